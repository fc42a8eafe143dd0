"""The run folder as people read it: `Run(path)`, without torch, without fastai, without the model."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import warnings
import zipfile
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

    from .findings import Thresholds
    from .notebook import ReportView
    from .record import Recorder

__all__ = ["HISTORY_COLUMNS", "SCHEMA_VERSION", "Run"]

SCHEMA_VERSION = 1

HISTORY_COLUMNS = [*"frame fit epoch item layer label target prob pred pred_prob correct loss".split(), *MEASURES]
_NEEDED = ("status", "settings", "arch", "layers", "vocab", "panel", "frames")
_FRAME = {"frame", "fit", "epoch", "metrics", "status", "error"}
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
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no run in {str(self.path)!r}: it has no run.json.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(file)!r} is damaged: {error}") from error
        if not isinstance(version, int):
            raise ValueError(f"{str(file)!r} is damaged: its schema version is {version!r}.")
        missing = [key for key in _NEEDED if key not in info]
        if missing and version <= SCHEMA_VERSION:
            raise ValueError(f"{str(file)!r} is damaged: it has no {missing[0]!r}.")
        if version <= SCHEMA_VERSION and not all(_FRAME <= f.keys() for f in info["frames"]):
            raise ValueError(f"{str(file)!r} is damaged: one of its frames has no {' or '.join(sorted(_FRAME))}.")
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

        Only rows of frames that are complete; a damaged last row is left out, with a warning.
        """
        return read_history(self.path / "history.csv", {f["frame"] for f in self.frames})

    def maps(self, frame: int) -> dict[str, np.ndarray]:
        """Raw maps of a frame: for each layer an array `(n, h, w)`, or `(n, K, h, w)` for K classes per image.

        Raises `IndexError` for a frame that does not exist and `ValueError` for one that failed or is damaged.
        """
        number = self._frame(frame)["frame"]
        file = self.path / "maps" / f"frame-{number:03d}.npz"
        try:
            # Opened here: numpy leaves a file that is no archive open.
            with file.open("rb") as data, np.load(data, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
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
        "A file that `run.json` names: a run that somebody sent must not show what lies elsewhere on this machine."
        found = (self.path / file).resolve()
        if not found.is_relative_to(self.path.resolve()):
            raise ValueError(f"The run names the file {file!r}, which lies outside of its folder {str(self.path)!r}.")
        return found

    def grid(self, frame: int = -1) -> Image.Image:
        """The labelled heatmap grid of a frame, as saved during training; negative numbers count from the last complete one.

        Raises `IndexError` for a frame that does not exist and `ValueError` for one that failed or cannot be read.
        """
        number = self._frame(frame)["frame"]
        return _images(self.path / "frames" / f"frame-{number:03d}.png")

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
        self, columns: Sequence[str] = ("prob", "mask_share", "entropy", "centroid_shift"), ax: Any = None
    ) -> np.ndarray:
        "Curves over the frames: the mean of each of `columns` and a thin line per image; see `fastai_gradcam.pictures.plot`."
        from . import pictures

        return pictures.plot(self, columns, ax)

    def compare(self, other: Run, **options: Any) -> Image.Image:
        """This run and `other` on the same panel, frame against frame, or with `frame=` one of each side by side.

        `options`: those of `fastai_gradcam.pictures.compare` (`frame`, and those of `evolution`).
        """
        from . import pictures

        return pictures.compare(self, other, **options)

    def findings(self, thresholds: Thresholds | None = None) -> pd.DataFrame:
        """What deserves a second look, the most important first; see `fastai_gradcam.findings.findings`.

        `thresholds`: from when on something is told; default `Thresholds()`.
        """
        from .findings import Thresholds, findings

        masks = {p["item"]: self.mask(p["item"]) for p in self.panel}
        areas = {item: float(mask.mean()) for item, mask in masks.items() if mask is not None and mask.any()}
        shapes: dict[str, tuple[int, ...]] = {}
        for frame in reversed([f["frame"] for f in self.frames if f["status"] == "ok"]):
            with suppress(ValueError):  # a damaged file; any other frame's maps have the same shape
                shapes = {layer: m.shape[-2:] for layer, m in self.maps(frame).items()}
                break
        return findings(self.history, thresholds=thresholds or Thresholds(), mask_areas=areas, map_shapes=shapes)

    def report(self, path: str | Path | None = None) -> Path:
        "Write the interactive page, `report.html` in the run or the file `path`; returns the file."
        from .report import write_report

        return write_report(self, path)

    def widget(self, height: int = 720) -> ReportView:
        """The interactive page inside of a notebook, as a cell's last line, `height` pixels high.

        It shows the run as it is now: of one that grows, run the cell again. Nothing is written. Raises `ValueError` for
        a height below 200.
        """
        from .notebook import ReportView

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
        from .notebook import in_brief

        return in_brief(self)

    @cached_property
    def name(self) -> str:
        "The run's name: that of its folder."
        return self.path.resolve().name


def stamp_of(file: Path) -> tuple[int, ...] | None:
    "What changes when a file is written or replaced; `None` where there is none."
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def read_history(file: Path, frames: set[int]) -> pd.DataFrame:
    "`history.csv` as a DataFrame, rows of `frames` only."
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
    flags = [header.index(c) for c in _FLAGS]
    whole = [r for r in rows if len(r) == len(header) and all(r[i].upper() in _BOOLEANS for i in flags)]
    writing = rows and rows[-1][0] not in {str(frame) for frame in frames}  # the last row is of a frame on its way
    if len(whole) < len(rows) and not (writing and whole == rows[:-1]):
        warnings.warn(f"{file.name}: a damaged row is left out.", stacklevel=3)
    # A class may be called "NA" or "null": only numbers are undefined where they are empty.
    table = pd.DataFrame(whole, columns=header, dtype=str)
    for column in numbers:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    table = table[table["frame"].isin(frames) & table["item"].notna()].reset_index(drop=True)
    for column in ("frame", "fit", "epoch", "item"):
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


def _alive(pid: int | None) -> bool:
    if not pid:
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
