"""The run folder as the callback writes it: frame by frame, each file whole or not there, off the training thread."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._errors import reason_of
from .._version import __version__
from ..render import Cell, grid
from ..run import HISTORY_COLUMNS, SCHEMA_VERSION

__all__ = ["Frame", "Recorder", "append", "heading", "write_whole"]

# Frames that may wait for a slow disk before training waits too.
_MOST_WAITING = 2


@dataclass
class Frame:
    """What one look at the panel found.

    `maps`: for each layer `(n, h, w)` or `(n, K, h, w)`. `rows`: one dict per image × layer × class, with the
    columns of `history.csv`. `error`: why the frame failed, then there are no maps and rows.
    """

    frame: int
    fit: int
    epoch: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    created: str = field(default_factory=lambda: _now())

    def entry(self) -> dict[str, Any]:
        "The frame's entry in `run.json`."
        return {
            "frame": self.frame,
            "fit": self.fit,
            "epoch": self.epoch,
            "metrics": self.metrics,
            "status": "failed" if self.error else "ok",
            "error": self.error,
            "created": self.created,
        }


def write_whole(file: Path, data: bytes) -> None:
    "Write `file` so that whoever looks, whenever, sees the old contents or the new, never a part."
    temporary = file.with_name(f".{file.name}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append(file: Path, data: bytes) -> None:
    """Append all of `data` to `file`, or nothing.

    Unlike `write_whole` it costs the same however long the file is. Where the process is killed on the way, a part may
    stay; it belongs to a frame that `run.json` does not name, which readers leave out.
    """
    size = file.stat().st_size
    try:
        with file.open("ab") as out:
            out.write(data)
    except BaseException:
        with suppress(OSError):
            os.truncate(file, size)
        raise


class Recorder:
    """Writes one run folder from one thread of its own; the training thread only hands frames over.

    A frame counts once `run.json` names it, which is written last. What goes wrong is kept for the training thread
    to report (`take_errors`), and the frame is marked as failed. `after_frame(recorder, frame)` is called behind each
    complete frame, on the writing thread.
    """

    def __init__(self, path: Path, info: dict[str, Any], panel_images: Sequence[Image.Image]):
        self.path, self.info = path, info
        self.images = list(panel_images)
        self._errors: list[str] = []
        self.after_frame: Callable[[Recorder, Frame], None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: list[Future] = []

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        settings: Mapping[str, Any],
        arch: str,
        layers: Sequence[str],
        vocab: Sequence[str] | None,
        names: Sequence[str],
        labels: Sequence[str | None],
        images: Sequence[Image.Image],
        masks: Sequence[np.ndarray | None],
    ) -> Recorder:
        "Begin a run in the new folder `path`. Raises `FileExistsError` where there is one already."
        path.mkdir(parents=True)
        try:
            return cls._fill(path, names, labels, images, masks, settings, arch, layers, vocab)
        except BaseException:
            # A full disk leaves no half of a run that would refuse its own name to the next try.
            shutil.rmtree(path, ignore_errors=True)
            raise

    @classmethod
    def _fill(
        cls,
        path: Path,
        names: Sequence[str],
        labels: Sequence[str | None],
        images: Sequence[Image.Image],
        masks: Sequence[np.ndarray | None],
        settings: Mapping[str, Any],
        arch: str,
        layers: Sequence[str],
        vocab: Sequence[str] | None,
    ) -> Recorder:
        for folder in ("panel", "frames", "maps"):
            (path / folder).mkdir()
        panel = []
        for i, (name, label, image, mask) in enumerate(zip(names, labels, images, masks, strict=True)):
            write_whole(path / f"panel/{i:03d}.jpg", _encoded(image, "JPEG", quality=92, subsampling=0))
            if mask is not None:
                write_whole(path / f"panel/{i:03d}-mask.png", _encoded(Image.fromarray(mask).convert("L"), "PNG"))
            panel.append(
                {
                    "item": i,
                    "name": name,
                    "label": label,
                    "image": f"panel/{i:03d}.jpg",
                    "mask": None if mask is None else f"panel/{i:03d}-mask.png",
                    "width": image.width,
                    "height": image.height,
                }
            )
        info = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "name": path.name,
            "created": _now(),
            "updated": _now(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "arch": arch,
            "settings": dict(settings),
            "layers": list(layers),
            "vocab": None if vocab is None else list(vocab),
            "panel": panel,
            "frames": [],
            "versions": _versions(),
        }
        recorder = cls(path, info, images)
        write_whole(path / "history.csv", _csv([HISTORY_COLUMNS]))
        recorder._write_info()
        return recorder

    @classmethod
    def resume(cls, path: Path, info: dict[str, Any], images: Sequence[Image.Image]) -> Recorder:
        "Go on with the run in `path`, which `info` describes."
        for leftover in path.rglob(".*.part"):
            leftover.unlink(missing_ok=True)
        _drop_rows(path / "history.csv", {f["frame"] for f in info["frames"]})
        recorder = cls(path, {**info, "pid": os.getpid(), "host": socket.gethostname()}, images)
        recorder.set_status("running")
        return recorder

    def add(self, frame: Frame) -> None:
        "Hand a frame over for writing. Waits while two others are still being written."
        self._waiting = [f for f in self._waiting if not f.done()]
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting[0].result()
        self._submit(self._write, frame)

    def note(self, frame: int, reason: str) -> None:
        "Write `reason` into the entry of a frame handed over, which stays complete."
        self._submit(self._note, frame, reason)

    def _submit(self, work: Callable, *args: Any) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gradcam")
        self._waiting.append(self._thread.submit(work, *args))

    def behind(self, work: Callable[[], None]) -> None:
        "Do `work` on the writing thread, behind what waits there; nothing where that thread has ended."
        thread = self._thread
        if thread is not None:
            with suppress(RuntimeError):
                thread.submit(work)

    def set_status(self, status: str) -> None:
        "Write `status` into `run.json`, behind all frames handed over."
        self.flush()
        self.info["status"] = status
        self._write_info()

    def flush(self) -> None:
        "Wait until every frame handed over is on the disk, or has failed."
        wait(list(self._waiting))

    def close(self, status: str) -> None:
        "`set_status`, and end the writing thread; `add` starts another."
        try:
            self.set_status(status)
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def has(self, frame: int) -> bool:
        "Whether the frame is complete; ask behind `flush`."
        return any(f["frame"] == frame and f["status"] == "ok" for f in self.info["frames"])

    def take_errors(self) -> list[str]:
        "What failed since the last call, one sentence for each frame."
        taken, self._errors = self._errors, []
        return taken

    def _write(self, frame: Frame) -> None:
        # Whatever happens here must reach neither the thread's end nor the training.
        entry, errors = frame.entry(), []
        if frame.error is None:
            try:
                self._write_frame(frame)
            except BaseException as error:
                entry |= {"status": "failed", "error": reason_of(error)}
                errors.append(f"frame {frame.frame} could not be written: {reason_of(error)}")
        self.info["frames"].append(entry)
        try:
            self._write_info()
        except BaseException as error:
            errors.append(f"frame {frame.frame} could not be entered in run.json: {reason_of(error)}")
        if entry["status"] == "ok" and self.after_frame is not None:
            try:
                self.after_frame(self, frame)
            except BaseException as error:
                errors.append(f"frame {frame.frame} is complete, but what follows it failed: {reason_of(error)}")
        # One cause, such as a full disk, is told once.
        self._errors += errors[:1]

    def _note(self, number: int, reason: str) -> None:
        entry = next((f for f in self.info["frames"] if f["frame"] == number), None)
        if entry is not None and entry["error"] is None:
            entry["error"] = reason
            try:
                self._write_info()
            except BaseException as error:
                self._errors.append(f"frame {number} could not be entered in run.json: {reason_of(error)}")

    def _write_frame(self, frame: Frame) -> None:
        name = f"frame-{frame.frame:03d}"
        maps, picture = self.path / f"maps/{name}.npz", self.path / f"frames/{name}.png"
        try:
            stored = io.BytesIO()
            arrays: dict[str, Any] = {**frame.maps}
            np.savez(stored, **arrays)
            write_whole(maps, stored.getvalue())
            drawn = frame_grid(frame, self.images, [p["label"] for p in self.info["panel"]])
            # Level 1 takes a third of the time of the default and a tenth more space.
            write_whole(picture, _encoded(drawn, "PNG", compress_level=1))
            rows = [[_cell(row.get(c)) for c in HISTORY_COLUMNS] for row in frame.rows]
            append(self.path / "history.csv", _csv(rows))
        except BaseException:
            # A failed frame has no files, and on a full disk `run.json` needs their room to say so.
            for file in (maps, picture):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            raise

    def _write_info(self) -> None:
        self.info["updated"] = _now()
        text = json.dumps(self.info, ensure_ascii=False, indent=1)
        # File names need not be UTF-8: what python keeps of such bytes is written as an escape, which JSON reads back.
        write_whole(self.path / "run.json", text.encode("utf-8", "backslashreplace"))


def heading(frame: Mapping[str, Any]) -> str:
    "The words above a frame's grid: which fit and epoch, and the epoch's metrics."
    if frame["epoch"] < 0:
        return f"Before training\nframe {frame['frame']}"
    metrics = " · ".join(f"{k} {v:.4g}" if v is not None else f"{k} –" for k, v in frame["metrics"].items())
    return f"Fit {frame['fit']} · epoch {frame['epoch']}\nframe {frame['frame']} · {metrics}".rstrip(" ·")


def frame_grid(frame: Frame, images: Sequence[Image.Image], labels: Sequence[str | None]) -> Image.Image:
    "The labelled grid of a frame: a cell per image, or a row per image where there are several layers or classes."
    cells, per_image = [], max(1, len(frame.rows) // max(1, len(images)))
    rows = sorted(frame.rows, key=lambda r: r["item"])
    seen: dict[tuple[int, str], int] = {}
    for row in rows:
        item, layer = row["item"], row["layer"]
        k = seen[item, layer] = seen.get((item, layer), -1) + 1
        maps = frame.maps[layer]
        map = maps[item] if maps.ndim == 3 else maps[item, k]
        note = " · ".join(_about_map(row, per_image, len(frame.maps)))
        title = labels[item] if labels[item] is not None else f"image {item}"
        cells.append(Cell(images[item], map, title, _predicted(row), row["correct"], note))
    columns = None if per_image == 1 else per_image if per_image > 2 else per_image * 2
    return grid(cells, heading(frame.entry()), columns)


def _predicted(row: Mapping[str, Any]) -> str:
    if row.get("pred") in (None, ""):
        return ""
    return f"{row['pred']} {row['pred_prob']:.0%}" if row.get("pred_prob") is not None else str(row["pred"])


def _about_map(row: Mapping[str, Any], per_image: int, layers: int) -> list[str]:
    "What the map explains, where the cell does not say so already."
    about = [row["layer"]] if layers > 1 else []
    if row.get("target") not in (None, "", row.get("label")) or per_image > layers:
        about.append(
            f"map: {row['target']} {row['prob']:.0%}" if row.get("prob") is not None else f"map: {row['target']}"
        )
    return about


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.6g}"
    # A row is a line; all else in a name stays as it is, so that no two become one.
    return " ".join(str(value).splitlines())


def _drop_rows(history: Path, complete: Collection[int]) -> None:
    "Leave out the rows of a frame at which the writing process was killed: its number will be given again."
    with history.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    known = set(map(str, complete))
    # A row that was cut short may have lost digits of its frame's number.
    kept = [row for row in rows if len(row) == len(header) and row[0] in known]
    if len(kept) < len(rows):
        write_whole(history, _csv([header, *kept]))


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _versions() -> dict[str, str]:
    versions = {"fastai_gradcam": __version__, "python": platform.python_version()}
    for name in ("fastai", "torch", "torchvision", "timm"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
