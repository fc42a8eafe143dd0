"""The run folder as people read it: `Run(path)`, without torch, without fastai, without the model."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .measures import MEASURES

if TYPE_CHECKING:
    import pandas as pd

    from ._draw.notebook import ReportView
    from ._run.writer import Recorder
    from .findings import Thresholds

__all__ = ["HISTORY_COLUMNS", "SCHEMA_VERSION", "Run"]

SCHEMA_VERSION = 1

HISTORY_COLUMNS = [*"frame fit epoch item layer label target prob pred pred_prob correct loss".split(), *MEASURES]
_OPTIONAL_TEXT = (str, type(None))
_NUMBER = (int, float, type(None))
# What the parts of `run.json` are: a type, or several, or what a list or a dict holds.
_FRAME = {
    "frame": int, "fit": int, "epoch": int, "metrics": dict, "status": str, "error": _OPTIONAL_TEXT
}  # fmt: skip
_ENTRY = {
    "item": int, "name": str, "label": _OPTIONAL_TEXT, "image": str, "mask": _OPTIONAL_TEXT, "width": int, "height": int
}  # fmt: skip
_PARTS = {
    "status": str, "settings": dict, "arch": _OPTIONAL_TEXT, "layers": list, "vocab": (list, type(None)), "panel": list,
    "frames": list,
}  # fmt: skip
_WHOLE = ("frame", "fit", "epoch", "item")
_TEXT, _FLAGS = ("layer", "label", "target", "pred"), ("correct", "pointing_hit")
_BOOLEANS = {"TRUE": True, "FALSE": False, "": None}  # spreadsheets write them in capitals


class Run:
    """A folder of frames: what `GradCAMCallback` wrote, finished or still growing.

    `info` is `run.json`; `frames`, `panel`, `layers`, `vocab`, `settings` and `status` are parts of it. Everything is
    read when asked for: a run that grows shows its newest frame on the next look. Raises `FileNotFoundError` for a
    folder without a run, and `ValueError` for one that a newer version wrote or whose `run.json` is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._writer: Recorder | None = None
        self._known: tuple[Any, dict[str, Any]] | None = None
        self._pictures: dict[Any, Any] = {}  # what the report made of the panel's images
        self.info  # noqa: B018  (a folder that is no run is told at once)

    def __repr__(self) -> str:
        try:
            about = f"{len(self.frames)} frames of {len(self.panel)} images, {self.status}"
        except (OSError, ValueError) as error:  # its folder was moved or damaged meanwhile
            about = str(error)
        return f"Run({str(self.path)!r}): {about}"

    @property
    def info(self) -> dict[str, Any]:
        "The contents of `run.json`."
        if self._writer is not None:
            self._writer.flush()
        return self._read_info()

    def _looked_up(self) -> dict[str, Any]:
        "`info`, read again only where the file is another one; not to be changed by whoever asks."
        if self._writer is not None:
            self._writer.flush()
        stamp = stamp_of(self.path / "run.json")
        if stamp is None or self._known is None or self._known[0] != stamp:
            self._known = stamp, self._read_info()
        return self._known[1]

    def _read_info(self) -> dict[str, Any]:
        file = self.path / "run.json"
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
            version = info["schema_version"]
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"There is no run in {str(self.path)!r}: it has no run.json.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(file)!r} is damaged: {error}") from error
        if not isinstance(version, int):
            raise ValueError(f"{str(file)!r} is damaged: its schema version is {version!r}.")
        if version <= SCHEMA_VERSION and (wrong := _not_a_run(info)):
            raise ValueError(f"{str(file)!r} is damaged: {wrong}.")
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{str(file)!r} has schema version {version}; this fastai_gradcam reads up to {SCHEMA_VERSION}. Upgrade it."
            )
        return info

    @property
    def status(self) -> str:
        "`running`, `finished` or `interrupted`; the last also where the process that wrote the run is gone."
        info = self.info
        status = info["status"]
        if status == "running" and info.get("host") == socket.gethostname() and not _alive(info.get("pid")):
            return "interrupted"
        return status

    @property
    def frames(self) -> list[dict[str, Any]]:
        "One dict per frame: `frame`, `fit`, `epoch` (-1 before training), `metrics`, `status` (ok or failed), `error`."
        return self.info["frames"]

    @property
    def panel(self) -> list[dict[str, Any]]:
        "One dict per image: `item`, `name`, `label`, `image`, `mask`, `width`, `height`."
        return self.info["panel"]

    @property
    def layers(self) -> list[str]:
        "Dotted names of the layers explained."
        return self.info["layers"]

    @property
    def vocab(self) -> list[str] | None:
        "The class names, `None` where the learner has none."
        return self.info["vocab"]

    @property
    def settings(self) -> dict[str, Any]:
        "What the callback was asked for."
        return self.info["settings"]

    @property
    def history(self) -> pd.DataFrame:
        """One row per frame × image × layer (× class): see `HISTORY_COLUMNS`. Undefined numbers are NaN.

        Only rows of frames that are complete; damaged rows are left out, with a warning.
        """
        info = self.info
        frames = {f["frame"] for f in info["frames"]}
        return read_history(self.path / "history.csv", frames, len(info["panel"]), info["layers"])

    def maps(self, frame: int) -> dict[str, np.ndarray]:
        """Raw maps of a frame: for each layer an array `(n, h, w)`, or `(n, K, h, w)` for K classes per image.

        Raises `IndexError` for a frame that does not exist and `ValueError` for one that failed or is damaged.
        """
        number = self._frame(frame)["frame"]
        file = self._inside(f"maps/frame-{number:03d}.npz")
        try:
            # Opened here: numpy leaves a file that is no archive open.
            with file.open("rb") as data, np.load(data, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except Exception as error:  # numpy, zipfile and zlib have many for bytes that are not what they seem
            raise ValueError(f"The maps of frame {number} ({str(file)!r}) cannot be read: {error}") from error

    def image(self, item: int) -> Image.Image:
        """Image `item` of the panel as the model sees it, RGB, at the model's input size.

        Raises `ValueError` for a file that cannot be read or lies outside of the run.
        """
        return _images(self._inside(self._looked_up()["panel"][item]["image"]))

    def mask(self, item: int) -> np.ndarray | None:
        "The object's mask on image `item`, boolean `(H, W)` at the image's size, or `None`. Raises as `image` does."
        file = self._looked_up()["panel"][item].get("mask")
        if not file:
            return None
        return np.asarray(_images(self._inside(file)).convert("L")) > 127

    def _inside(self, file: str) -> Path:
        "A file of the run, no link out of it: a run that somebody sent must not show what lies elsewhere on this machine."
        found = (self.path / file).resolve()
        if not found.is_relative_to(self.path.resolve()):
            raise ValueError(f"The run names the file {file!r}, which lies outside of its folder {str(self.path)!r}.")
        return found

    def grid(self, frame: int = -1) -> Image.Image:
        """The labelled heatmap grid of a frame, as saved during training; negative numbers count from the last complete one.

        Raises `IndexError` for a frame that does not exist and `ValueError` for one that failed or cannot be read.
        """
        number = self._frame(frame)["frame"]
        return _images(self._inside(f"frames/frame-{number:03d}.png"))

    def evolution(self, path: str | Path | None = None, **options: Any) -> Image.Image:
        """The run on one page: a row per image, a column per frame, curves below; saved where `path` is given.

        `options`: those of `fastai_gradcam.pictures.evolution` (`items`, `layer`, `columns`, `tile`, `alpha`, `cmap`,
        `scale`).
        """
        from . import pictures

        page = pictures.evolution(self, **options)
        if path is not None:
            page.save(path)
        return page

    def animation(self, path: str | Path | None = None, **options: Any) -> Path:
        """The grids one after the other, as `evolution.gif` in the run or in the file `path`; returns the file.

        `options`: those of `fastai_gradcam.pictures.animation` (`items`, `seconds`, `tile`).
        """
        from . import pictures

        return pictures.animation(self, path, **options)

    def plot(
        self,
        columns: Sequence[str] = ("prob", "mask_share", "entropy", "centroid_shift"),
        ax: Any = None,
        layer: str | None = None,
    ) -> np.ndarray:
        """Curves over the frames: the mean of each of `columns` and a thin line per image, of `layer`, default the last.

        See `fastai_gradcam.pictures.plot`.
        """
        from . import pictures

        return pictures.plot(self, columns, ax, layer)

    def compare(self, other: Run | str | Path, **options: Any) -> Image.Image:
        """This run and `other` on the same panel, frame against frame, or with `frame=` one of each side by side.

        `other`: a run, or the folder of one. `options`: those of `fastai_gradcam.pictures.compare` (`frame`, and those
        of `evolution`).
        """
        from . import pictures

        return pictures.compare(self, other, **options)

    def findings(self, thresholds: Thresholds | None = None, layer: str | None = None) -> pd.DataFrame:
        """What deserves a second look, the most important first; see `fastai_gradcam.findings.findings`.

        `thresholds`: from when on something is told; default `Thresholds()`. `layer`: the one to judge, default the last;
        `ValueError` for one that the run has not.
        """
        from ._draw.series import layer_of
        from .findings import Thresholds, findings

        layer = None if layer is None else layer_of(self, layer)
        areas = {}
        for item in range(len(self.panel)):
            try:
                mask = self.mask(item)
            except ValueError as error:
                warnings.warn(f"The mask of image {item} is left out: {error}", stacklevel=2)
                continue
            if mask is not None and mask.any():
                areas[item] = float(mask.mean())
        shapes: dict[str, tuple[int, ...]] = {}
        for frame in reversed([f["frame"] for f in self.frames if f["status"] == "ok"]):
            with suppress(ValueError):  # a damaged file; any other frame's maps have the same shape
                shapes = {layer: m.shape[-2:] for layer, m in self.maps(frame).items()}
                break
        t = thresholds or Thresholds()
        return findings(self.history, thresholds=t, mask_areas=areas, map_shapes=shapes, layer=layer)

    def report(self, path: str | Path | None = None, thresholds: Thresholds | None = None) -> Path:
        """Write the interactive page, `report.html` in the run or the file `path`; returns the file.

        `thresholds`: from when on something is a finding; default `Thresholds()`.
        """
        from .report import write_report

        return write_report(self, path, thresholds)

    def widget(self, height: int = 720) -> ReportView:
        """The interactive page inside of a notebook, as a cell's last line, `height` pixels high.

        It shows the run as it is now: of one that grows, run the cell again. Nothing is written. Raises `ValueError` for
        a height below 200.
        """
        from ._draw.notebook import ReportView

        return ReportView(self, height)

    def _frame(self, frame: int) -> dict[str, Any]:
        "The frame numbered `frame`; negative numbers count from the last complete one."
        frames = self._looked_up()["frames"]
        complete = [f for f in frames if f["status"] == "ok"]
        if frame < 0:
            if -frame > len(complete):
                raise IndexError(f"There is no frame {frame}: {len(complete)} frames are complete.")
            return complete[frame]
        found = next((f for f in frames if f["frame"] == frame), None)
        if found is None:
            known = f"frames 0 to {frames[-1]['frame']}" if frames else "no frames yet"
            raise IndexError(f"There is no frame {frame}: the run has {known}.")
        if found["status"] != "ok":
            raise ValueError(f"Frame {frame} failed: {found['error']}")
        return found

    def _repr_html_(self) -> str:
        from ._draw.notebook import in_brief

        return in_brief(self)

    @cached_property
    def name(self) -> str:
        "The run's name: that of its folder."
        return self.path.resolve().name


def _not_a_run(info: dict[str, Any]) -> str:
    "What in `run.json` is not what it should be, or nothing."

    def wrong(parts: Any, kinds: dict[str, Any], where: str = "") -> str:
        if not isinstance(parts, dict):
            return f"{where} is {parts!r:.60}"
        for key, kind in kinds.items():
            if key not in parts:
                return f"{where or 'it'} has no {key!r}"
            if not isinstance(parts[key], kind) or isinstance(parts[key], bool):
                return f"{key!r}{where and ' of '}{where} is {parts[key]!r:.60}"
        return ""

    if found := wrong(info, _PARTS):
        return found
    if not info["layers"] or not all(isinstance(layer, str) for layer in info["layers"]):
        return f"'layers' is {info['layers']!r:.60}"
    for i, entry in enumerate(info["panel"]):
        if found := wrong(entry, _ENTRY, f"image {i}"):
            return found
        if entry["width"] < 1 or entry["height"] < 1:
            return f"image {i} is {entry['width']}×{entry['height']} pixels"
    for i, frame in enumerate(info["frames"]):
        if found := wrong(frame, _FRAME, f"frame {i}"):
            return found
        if found := wrong(frame["metrics"], dict.fromkeys(frame["metrics"], _NUMBER), f"the metrics of frame {i}"):
            return found
    return ""


def stamp_of(file: Path) -> tuple[int, ...] | None:
    "What changes when a file is written or replaced; `None` where there is none."
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def read_history(file: Path, frames: set[int], images: int, layers: Sequence[str]) -> pd.DataFrame:
    "`history.csv` as a DataFrame, rows of `frames` only; those of an image or a layer that is not there are damaged."
    import pandas as pd

    numbers = [c for c in HISTORY_COLUMNS if c not in _TEXT and c not in _FLAGS]
    rows = [HISTORY_COLUMNS]
    if file.exists():
        try:
            rows = [row for row in csv.reader(io.StringIO(_whole_text(file.read_bytes()), newline="")) if row] or rows
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{str(file)!r} is damaged: {error}") from error
    header, *rows = rows
    missing = [c for c in HISTORY_COLUMNS if c not in header]
    if missing:
        raise ValueError(f"{str(file)!r} is damaged: it has no column {missing[0]!r}.")
    # A class may be called "NA" or "null": only numbers are undefined where they are empty.
    table = pd.DataFrame([r for r in rows if len(r) == len(header)], columns=header, dtype=str)
    table.index = pd.Index([i for i, r in enumerate(rows) if len(r) == len(header)])
    for column in numbers:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    whole = table["layer"].isin([" ".join(layer.splitlines()) for layer in layers]) & table["item"].between(
        0, images - 1
    )
    for column in _WHOLE:
        whole &= (table[column].abs() < 2**31) & (table[column] % 1 == 0)
    for column in _FLAGS:
        whole &= table[column].str.upper().isin(list(_BOOLEANS))
    table = table[whole]
    writing = rows and rows[-1][0] not in {str(frame) for frame in frames}  # the last row is of a frame on its way
    left_out = set(range(len(rows))) - set(table.index)
    if left_out and not (writing and left_out == {len(rows) - 1}):
        warnings.warn(f"{file.name}: a damaged row is left out.", stacklevel=3)
    table = table[table["frame"].isin(frames)].reset_index(drop=True)
    for column in _WHOLE:
        table[column] = table[column].astype(int)
    for column in _FLAGS:
        table[column] = table[column].str.upper().map(_BOOLEANS).astype("boolean")
    return table


def _whole_text(data: bytes) -> str:
    "Text that may end within a character, where its writer was killed; a spreadsheet puts a mark before it."
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start <= data.rfind(b"\n"):
            raise
        return data[: error.start].decode("utf-8-sig")


def _images(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"The picture {str(file)!r} cannot be read: {error}") from error


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
