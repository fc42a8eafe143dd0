"""The run folder as it is written: frame by frame, each file whole or not there, off the training thread."""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._errors import reason_of
from .._version import __version__
from .files import append_at, image_bytes, remove_unfinished, write_whole
from .history import HEADER, rows_of, rows_text
from .reader import RunFiles
from .schema import SCHEMA_VERSION, Frame, PanelItem, grid_file, image_file, maps_file, mask_file, now, panel_items

__all__ = ["Draw", "Frame", "Writer"]

# Frames that may wait for a slow disk before training waits too.
_MOST_WAITING = 2

# The grid of a frame: the frame, the panel's images and their entries → a picture.
Draw = Callable[[Frame, Sequence[Image.Image], Sequence[PanelItem]], Image.Image]


class Writer:
    """Writes one run folder from a thread of its own; the training thread only hands frames over.

    A frame counts once `run.json` names it, which is written last. Failures are kept for the training thread to report
    (`take_errors`), and the frame is marked as failed. `after_frame(writer, frame)` is called after each complete
    frame, on the writing thread.
    """

    def __init__(self, path: Path, info: dict[str, Any], images: Sequence[Image.Image], draw: Draw, size: int):
        self.path, self.info, self.images, self.draw = path, info, list(images), draw
        self._history_bytes = size
        self._errors: list[str] = []
        self.after_frame: Callable[[Writer, Frame], None] | None = None
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
        draw: Draw,
        depth: int | None = None,
    ) -> Writer:
        """Begin a run in the new folder `path`. `depth`: how many slices each volume has, for a panel of volumes.

        Raises `FileExistsError` if the folder exists already.
        """
        path.mkdir(parents=True)
        try:
            for folder in ("panel", "frames", "maps"):
                (path / folder).mkdir()
            info = {
                "schema_version": SCHEMA_VERSION,
                "status": "running",
                "name": path.name,
                "created": now(),
                "updated": now(),
                **_this_process(),
                "arch": arch,
                "settings": dict(settings),
                "layers": list(layers),
                "vocab": None if vocab is None else list(vocab),
                "panel": [
                    _write_item(path, i, *one) | ({} if depth is None else {"depth": depth})
                    for i, one in enumerate(zip(names, labels, images, masks, strict=True))
                ],
                "frames": [],
                "versions": _versions(),
            }
            write_whole(path / "history.csv", HEADER)
            writer = cls(path, info, images, draw, len(HEADER))
            writer._write_info()
        except BaseException:
            # Half a run, left by a full disk, would refuse its own name to the next try.
            shutil.rmtree(path, ignore_errors=True)
            raise
        return writer

    @classmethod
    def resume(cls, path: Path, images: Sequence[Image.Image], draw: Draw) -> Writer:
        "Go on with the run in `path`. Rows of a frame during which its process was killed are cut off."
        run = RunFiles(path)
        remove_unfinished(path)
        info, history = run.contents(), path / "history.csv"
        data = history.read_bytes() if history.exists() else HEADER
        size = info.history_bytes if info.status == "running" else None
        if size is not None and size <= len(data):
            data = data[:size]
        else:
            data = rows_of(data, [f.frame for f in info.frames])
        write_whole(history, data)
        writer = cls(path, {**run.info, **_this_process()}, images, draw, len(data))
        writer.set_status("running")
        return writer

    def add(self, frame: Frame) -> None:
        "Hand a frame over for writing. Waits while two others are still being written."
        self._waiting = [f for f in self._waiting if not f.done()]
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting[0].result()
        self._submit(self._write, frame)

    def note(self, frame: int, reason: str) -> None:
        "Write `reason` into the entry of a frame handed over, which stays complete."
        self._submit(self._note, frame, reason)

    def change(self, change: Callable[[dict[str, Any]], Any]) -> None:
        "Change the contents of `run.json` by `change(info)`, after the frames handed over."
        self._submit(self._change, change)

    def _change(self, change: Callable[[dict[str, Any]], Any]) -> None:
        try:
            change(self.info)
            self._write_info()
        except BaseException as error:
            self._errors.append(f"run.json could not be written: {reason_of(error)}")

    def _submit(self, work: Callable, *args: Any) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gradcam")
        self._waiting.append(self._thread.submit(work, *args))

    def after(self, work: Callable[[], None]) -> None:
        "Do `work` on the writing thread, after what waits there; nothing if that thread has ended."
        thread = self._thread
        if thread is not None:
            with suppress(RuntimeError):
                thread.submit(work)

    def set_status(self, status: str) -> None:
        "Write `status` into `run.json`, after all frames handed over."
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
        "Whether the frame is complete; ask after `flush`."
        return any(f["frame"] == frame and f["status"] == "ok" for f in self.info["frames"])

    def take_errors(self) -> list[str]:
        "The failures since the last call, one sentence for each frame."
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
        self.info["frames"].append(entry | {"history_bytes": self._history_bytes})
        try:
            self._write_info()
        except BaseException as error:
            errors.append(f"frame {frame.frame} could not be entered in run.json: {reason_of(error)}")
        if entry["status"] == "ok" and self.after_frame is not None:
            try:
                self.after_frame(self, frame)
            except BaseException as error:
                errors.append(f"frame {frame.frame} is complete, but the step after it failed: {reason_of(error)}")
        # One cause, such as a full disk, is reported once.
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
        maps, picture = self.path / maps_file(frame.frame), self.path / grid_file(frame.frame)
        try:
            stored = io.BytesIO()
            arrays: dict[str, Any] = {**frame.maps}
            np.savez(stored, **arrays)
            write_whole(maps, stored.getvalue())
            drawn = self.draw(frame, self.images, panel_items(self.info["panel"]))
            # Level 1 takes a third of the time of the default and a tenth more space.
            write_whole(picture, image_bytes(drawn, "PNG", compress_level=1))
            self._history_bytes = append_at(self.path / "history.csv", rows_text(frame.rows), self._history_bytes)
        except BaseException:
            # A failed frame has no files, and on a full disk `run.json` needs their room to say so.
            for file in (maps, picture):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            raise

    def _write_info(self) -> None:
        self.info["updated"] = now()
        text = json.dumps(self.info, ensure_ascii=False, indent=1)
        # File names need not be UTF-8: such bytes are written as an escape, which JSON reads back.
        write_whole(self.path / "run.json", text.encode("utf-8", "backslashreplace"))


def _write_item(
    path: Path, item: int, name: str, label: str | None, image: Image.Image, mask: np.ndarray | None
) -> dict[str, Any]:
    "Write an image of the panel, and give its entry in `run.json`."
    write_whole(path / image_file(item), image_bytes(image, "JPEG", quality=92, subsampling=0))
    if mask is not None:
        write_whole(path / mask_file(item), image_bytes(Image.fromarray(mask).convert("L"), "PNG"))
    return {
        "item": item,
        "name": name,
        "label": label,
        "image": image_file(item),
        "mask": None if mask is None else mask_file(item),
        "width": image.width,
        "height": image.height,
    }


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _versions() -> dict[str, str]:
    versions = {"fastai_gradcam": __version__, "python": platform.python_version()}
    for name in ("fastai", "torch", "torchvision", "timm"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
