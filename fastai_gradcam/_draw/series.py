"""The frames of a run as a series: the maps of one layer, the numbers that go with them, and words for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .._errors import GradCAMError, one_of, warn
from .._run.reader import RunFiles
from .._run.schema import FrameEntry
from .._run.words import frame_name, map_note, prediction
from .frame import slices_note

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KEYS", "Series", "about", "evenly", "first_class", "items_of", "layer_of", "scale_of"]

KEYS = {
    "map": "least to most attention, each map on its own scale",
    "image": "least to most attention, each image on its own scale",
    "all": "least to most attention, all maps on one scale",
}
GREY = "#8c959f"


class Series:
    """The complete frames of a run, their maps `(n, h, w)` of one layer and first class, and the history.

    Frames with damaged maps are left out with a warning. Raises `GradCAMError` for a layer that the run does not have,
    and if no frame is complete.
    """

    def __init__(self, run: RunFiles, layer: str | None):
        self.run, self.layer = run.frozen(), layer_of(run, layer)
        self.info = self.run.contents()
        self.frames: list[FrameEntry] = []
        self.maps: list[np.ndarray] = []
        self.classes = 1
        self.grey: set[int] = set()
        self._images: dict[int, Image.Image] = {}
        for frame in self.info.complete:
            try:
                stored = self.run.maps_of(frame.frame, [self.layer])[self.layer]
            except GradCAMError as error:
                warn(f"Frame {frame.frame} is left out: {error}")
                continue
            self.frames.append(frame)
            self.classes = 1 if stored.ndim == 3 else stored.shape[1]
            self.maps.append(stored if stored.ndim == 3 else stored[:, 0])
        if not self.frames:
            raise GradCAMError(f"The run {run.name!r} has no complete frame yet.")
        history = self.run.history
        self.history = history[history["layer"] == self.layer]
        self.about = about(run, self.layer, self.classes)
        self.masked = bool(self.history["mask_share"].notna().any())

    @cached_property
    def _by_item(self) -> dict[int, pd.DataFrame]:
        first = first_class(self.history, self.classes)
        return {int(item): rows.set_index("frame") for item, rows in first.groupby("item")}

    def image(self, item: int) -> Image.Image:
        "Image `item` of the panel; if it cannot be read, a grey one with a warning."
        if item not in self._images:
            try:
                self._images[item] = self.run.image(item)
            except GradCAMError as error:
                warn(f"Image {item} is drawn grey: {error}")
                self.grey.add(item)
                entry = self.info.panel[item]
                self._images[item] = Image.new("RGB", (entry.width, entry.height), GREY)
        return self._images[item]

    @property
    def size(self) -> tuple[int, int]:
        "Width and height of the panel's first image."
        return self.info.panel[0].width, self.info.panel[0].height

    def label(self, item: int) -> str:
        entry = self.info.panel[item]
        return str(entry.label or entry.name)

    def name(self, k: int, several_fits: bool | None = None) -> str:
        "The name of the series' `k`-th frame."
        return frame_name(self.frames[k], self.info.several_fits if several_fits is None else several_fits)

    def values(self, item: int, column: str) -> np.ndarray:
        "A number of one image over the frames, NaN where it is unknown."
        numbers = [f.frame for f in self.frames]
        if item not in self._by_item:
            return np.full(len(numbers), np.nan)
        return self._by_item[item][column].reindex(numbers).to_numpy(dtype=float)

    def row(self, item: int, k: int) -> pd.Series | None:
        "The row of the history for one image in the series' `k`-th frame."
        rows, number = self._by_item.get(item), self.frames[k].frame
        return None if rows is None or number not in rows.index else rows.loc[number]

    def answer(self, item: int, k: int) -> tuple[str, bool | None]:
        "The prediction in words, and whether it is right; `None` if that is unknown."
        row = self.row(item, k)
        if row is None:
            return "", None
        return prediction(row["pred"], row["pred_prob"]), _verdict(row["correct"])

    def note(self, item: int, k: int) -> str:
        "Which class the map is of, unless that is the prediction."
        row = self.row(item, k)
        return "" if row is None else map_note(row["target"], row["prob"], row["pred"])

    def classes_of(self, item: int, shown: Sequence[int]) -> str:
        "The classes of which the maps of these frames are, unless each is of the frame's prediction."
        rows = [row for k in shown if (row := self.row(item, k)) is not None]
        if not any(map_note(row["target"], None, row["pred"]) for row in rows):
            return ""
        return "maps of " + ", ".join(dict.fromkeys(row["target"] for row in rows))


def layer_of(run: RunFiles, layer: str | None) -> str:
    "The layer to draw: by default the last, which says most about the class, and which the findings judge."
    layers = run.contents().layers
    layer = layers[-1] if layer is None else layer
    if layer not in layers:
        raise GradCAMError(f"The run has no layer {layer!r}; it has {', '.join(layers)}.")
    return layer


def about(run: RunFiles, layer: str, classes: int) -> str:
    "Which of several layers and classes is drawn, in words."
    parts = [f"layer {layer}"] if len(run.contents().layers) > 1 else []
    parts += [f"the first of {classes} classes"] if classes > 1 else []
    return ", ".join(filter(None, (*parts, slices_note(run.contents().panel))))


def first_class(history: pd.DataFrame, classes: int) -> pd.DataFrame:
    "The rows of the first class. Images with missing rows are dropped, because their first class is unknown."
    groups = history.groupby(["frame", "item"])
    return history[(groups.cumcount() == 0) & (groups["item"].transform("size") == classes)]


def items_of(run: RunFiles, items: Sequence[int] | None) -> list[int]:
    size = len(run.contents().panel)
    items = list(range(size)) if items is None else list(items)
    unknown = [i for i in items if not 0 <= i < size]
    if unknown:
        raise GradCAMError(f"There is no image {unknown[0]}: the panel has images 0 to {size - 1}.")
    if not items:
        raise GradCAMError("items=[] leaves nothing to draw.")
    return items


def scale_of(series: Sequence[Series], items: Sequence[int], scale: str) -> Callable[[int], float | None]:
    "The value of the hottest colour for an image; `None` if each map has its own."
    if scale not in KEYS:
        raise GradCAMError(one_of("scale", scale, list(KEYS)))
    if scale == "map":
        return lambda item: None

    def top(item: int) -> float:
        maps = (m[item] for one in series for m in one.maps)
        return max((float(m[np.isfinite(m)].max(initial=0)) for m in maps), default=0.0)

    if scale == "image":
        return lambda item: top(item) or None
    highest = max(map(top, items)) or None
    return lambda item: highest


def evenly(count: int, most: int) -> list[int]:
    "At most `most` of `count` places, evenly spread, the first and the last among them."
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, max(1, most)))})


def _verdict(correct: Any) -> bool | None:
    "True, False, or `None` for pandas' missing value."
    return bool(correct) if isinstance(correct, (bool, np.bool_)) else None
