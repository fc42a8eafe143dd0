"""A run folder as it is read: frames, panel, maps, pictures and history. Reading changes nothing."""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from .._errors import GradCAMError, GradCAMIndexError, NoRunError
from .files import open_image, stamp_of
from .history import read_history
from .schema import FrameEntry, NewerVersion, PanelItem, RunInfo, grid_file, maps_file
from .verdicts import read_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunFiles"]

Files = TypeVar("Files", bound="RunFiles")


class RunFiles:
    """A folder of frames: what `GradCAMCallback` wrote, finished or still growing.

    `info` is `run.json`; `frames`, `panel`, `layers`, `vocab`, `settings` and `status` are parts of it. Everything is
    read when asked for: a run that grows shows its newest frame on the next look. Raises `FileNotFoundError` for a
    folder without a run, and `GradCAMError` for one that a newer version wrote or whose `run.json` is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._known: tuple[Any, RunInfo] | None = None
        self._frozen = False
        self._history: pd.DataFrame | None = None  # kept by frozen files
        self.contents()  # raises at once for a folder that is not a run

    def __repr__(self) -> str:
        try:
            about = f"{len(self.frames)} frames of {len(self.panel)} images, {self.status}"
        except (OSError, ValueError) as error:  # its folder was moved or damaged meanwhile
            about = str(error)
        return f"{type(self).__name__}({str(self.path)!r}): {about}"

    @cached_property
    def name(self) -> str:
        "The run's name: that of its folder."
        return self.path.resolve().name

    def contents(self) -> RunInfo:
        "`run.json`, checked; read again only if the file changed."
        if self._frozen and self._known is not None:
            return self._known[1]
        stamp = stamp_of(self.path / "run.json")
        if stamp is None or self._known is None or self._known[0] != stamp:
            self._known = stamp, self._read()
        return self._known[1]

    def frozen(self: Files) -> Files:
        "The run as it is now: frames that are written later are not seen."
        self.contents()
        other = copy.copy(self)
        other._frozen = True
        return other

    def _read(self) -> RunInfo:
        file = self.path / "run.json"
        try:
            return RunInfo.read(json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise NoRunError(f"There is no run in {str(self.path)!r}: it has no run.json.") from None
        except NewerVersion as error:
            raise GradCAMError(f"{str(file)!r} {error}") from None
        except ValueError as error:
            raise GradCAMError(f"{str(file)!r} is damaged: {str(error).rstrip('.')}.") from error

    @property
    def info(self) -> dict[str, Any]:
        "The contents of `run.json`."
        return copy.deepcopy(self.contents().raw)

    @property
    def status(self) -> str:
        "`running`, `finished` or `interrupted`; the last also if the process that wrote the run is gone."
        info = self.contents()
        if info.status == "running" and _is_here(info) and not _alive(info.raw.get("pid")):
            return "interrupted"
        return info.status

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
        "The class names; `None` if the learner has none."
        return self.info["vocab"]

    @property
    def settings(self) -> dict[str, Any]:
        "The settings of the callback."
        return self.info["settings"]

    @property
    def history(self) -> pd.DataFrame:
        """One row per frame × image × layer (× class), with the columns of `history.csv`. Undefined numbers are NaN.

        Only rows of complete frames; damaged rows are left out with a warning. Names are as they are in `vocab`.
        """
        if not self._frozen:
            return read_history(self.path / "history.csv", self.contents())
        if self._history is None:
            self._history = read_history(self.path / "history.csv", self.contents())
        return self._history.copy()

    @property
    def verdicts(self) -> pd.DataFrame:
        """The verdicts of interventions: a row per class × test, with the columns of `verdicts.csv`; without rows if
        the run was not judged. `verdict` is `shortcut`, `clear` or `undecided`.
        """
        return read_table(self.path)

    @property
    def checks(self) -> pd.DataFrame:
        """Whether the panel's maps say more than a blob in the middle: a row for each baseline at each frame that was
        checked (`check=`), with the columns of `learn.gradcam_check` after `frame`.
        """
        found = read_table(self.path, "checks")
        return found[found["frame"].isin([f.frame for f in self.contents().complete])].reset_index(drop=True)

    def maps(self, frame: int) -> dict[str, np.ndarray]:
        """Raw maps of a frame: for each layer an array `(n, h, w)`, or `(n, K, h, w)` for K classes per image.

        Negative numbers count from the last complete frame. Raises `IndexError` for a frame that does not exist and
        `GradCAMError` for one that failed or is damaged.
        """
        number = self.frame(frame).frame
        file = self._inside(maps_file(number))
        try:
            # Opened here: numpy leaves a file open that is not an archive.
            with file.open("rb") as data, np.load(data, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except Exception as error:  # numpy, zipfile and zlib have many for bytes that are not what they seem
            raise GradCAMError(f"The maps of frame {number} ({str(file)!r}) cannot be read: {error}") from error

    def maps_of(self, frame: int, layers: Sequence[str]) -> dict[str, np.ndarray]:
        "The maps of some layers of a frame. Raises as `maps` does, and if they do not fit the panel."
        stored, n = self.maps(frame), len(self.contents().panel)
        for layer in layers:
            if layer not in stored:
                raise GradCAMError(f"The maps of frame {frame} have no layer {layer!r}.")
            maps = stored[layer]
            if maps.ndim not in (3, 4) or len(maps) != n or 0 in maps.shape or maps.dtype.kind not in "fiub":
                about = f"{maps.dtype} {maps.shape}"
                raise GradCAMError(f"The maps of frame {frame} are {about}, for a panel of {n} images.")
        return {layer: stored[layer] for layer in layers}

    def image(self, item: int) -> Image.Image:
        """Image `item` of the panel as the model sees it, RGB, at the model's input size.

        Raises `IndexError` for an image that does not exist and `GradCAMError` for a file that cannot be read or lies
        outside of the run.
        """
        return open_image(self._inside(self._item(item).image))

    def mask(self, item: int) -> np.ndarray | None:
        "The object's mask on image `item`, boolean `(H, W)` at the image's size, or `None`. Raises as `image` does."
        file = self._item(item).mask
        return np.asarray(open_image(self._inside(file)).convert("L")) > 127 if file else None

    def grid(self, frame: int = -1) -> Image.Image:
        "The labelled heatmap grid of a frame, as saved during training, RGB. Raises as `maps` does."
        return open_image(self._inside(grid_file(self.frame(frame).frame)))

    def frame(self, frame: int) -> FrameEntry:
        "The complete frame numbered `frame`; negative numbers count from the last complete one. Raises as `maps` does."
        info = self.contents()
        if frame < 0:
            if -frame > len(info.complete):
                raise GradCAMIndexError(f"There is no frame {frame}: {len(info.complete)} frames are complete.")
            return info.complete[frame]
        found = next((f for f in info.frames if f.frame == frame), None)
        if found is None:
            known = f"frames 0 to {info.frames[-1].frame}" if info.frames else "no frames yet"
            raise GradCAMIndexError(f"There is no frame {frame}: the run has {known}.")
        if not found.complete:
            raise GradCAMError(f"Frame {frame} failed: {found.error}")
        return found

    def _item(self, item: int) -> PanelItem:
        panel = self.contents().panel
        if not -len(panel) <= item < len(panel):
            raise GradCAMIndexError(f"There is no image {item}: the panel has images 0 to {len(panel) - 1}.")
        return panel[item]

    def _inside(self, file: str) -> Path:
        "A file of the run. A link out of it is refused: a run from another person must not show this machine's files."
        found = (self.path / file).resolve()
        if not found.is_relative_to(self.path.resolve()):
            raise GradCAMError(f"The run names the file {file!r}, which lies outside of its folder {str(self.path)!r}.")
        return found


def _is_here(info: RunInfo) -> bool:
    return info.raw.get("host") == socket.gethostname()


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
