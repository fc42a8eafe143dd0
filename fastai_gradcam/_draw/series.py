"""What of a run is drawn: one layer of its complete frames, the numbers that go with them, and words for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .._errors import one_of

if TYPE_CHECKING:
    import pandas as pd

    from ..run import Run

__all__ = [
    "Course",
    "about",
    "evenly",
    "first_class",
    "items_of",
    "layer_of",
    "prediction",
    "scale_of",
    "title",
]

SCALES = ("map", "image", "all")


def title(frame: dict[str, Any], several_fits: bool = True) -> str:
    "A frame's name in few letters: `before`, `epoch 3`, or `fit 1 ep 3` where a run has several fits."
    if frame["epoch"] < 0:
        return "before"
    return f"fit {frame['fit']} ep {frame['epoch']}" if several_fits else f"epoch {frame['epoch']}"


class Course:
    "What of a run is drawn: its complete frames, their maps `(n, h, w)` of one layer and first class, its history."

    def __init__(self, run: Run, layer: str | None):
        layer = layer_of(run, layer)
        self.run, self.layer, self.panel = run, layer, run.panel
        self.all_frames: list[dict] = run.frames
        self.frames: list[dict] = []
        self.maps: list[np.ndarray] = []
        self.classes = 1
        self.grey: set[int] = set()
        self._images: dict[int, Image.Image] = {}
        for frame in self.all_frames:
            try:
                stored = _maps_of(run, frame["frame"], layer, len(self.panel))
            except ValueError as error:
                if frame["status"] == "ok":
                    warnings.warn(f"Frame {frame['frame']} is left out: {error}", stacklevel=4)
                continue
            self.frames.append(frame)
            self.classes = 1 if stored.ndim == 3 else stored.shape[1]
            self.maps.append(stored if stored.ndim == 3 else stored[:, 0])
        if not self.frames:
            raise ValueError(f"The run {run.name!r} has no complete frame yet.")
        history = run.history
        self.history = history[history["layer"] == layer]
        self.about = about(run, layer, self.classes)
        self.several = len({f["fit"] for f in self.frames}) > 1
        self.masked = bool(self.history["mask_share"].notna().any())

    @cached_property
    def _by_item(self) -> dict[int, pd.DataFrame]:
        first = first_class(self.history, self.classes)
        return {int(item): rows.set_index("frame") for item, rows in first.groupby("item")}

    def image(self, item: int) -> Image.Image:
        "Image `item` of the panel, or, with a warning, a grey one where it cannot be read."
        if item not in self._images:
            try:
                self._images[item] = self.run.image(item)
            except ValueError as error:
                warnings.warn(f"Image {item} is drawn grey: {error}", stacklevel=4)
                self.grey.add(item)
                entry = self.panel[item]
                self._images[item] = Image.new("RGB", (entry["width"], entry["height"]), "#8c959f")
        return self._images[item]

    def label(self, item: int) -> str:
        return str(self.panel[item]["label"] or self.panel[item]["name"])

    def values(self, item: int, column: str) -> np.ndarray:
        "A number of one image over the complete frames, NaN where it is unknown."
        numbers = [f["frame"] for f in self.frames]
        if item not in self._by_item:
            return np.full(len(numbers), np.nan)
        return self._by_item[item][column].reindex(numbers).to_numpy(dtype=float)

    def verdict(self, item: int, k: int) -> bool | None:
        if item not in self._by_item:
            return None
        return _verdict(self._by_item[item]["correct"].get(self.frames[k]["frame"]))


def _maps_of(run: Run, number: int, layer: str, n: int) -> np.ndarray:
    stored = run.maps(number)
    if layer not in stored:
        raise ValueError(f"The maps of frame {number} have no layer {layer!r}.")
    maps = stored[layer]
    if maps.ndim not in (3, 4) or len(maps) != n or 0 in maps.shape or maps.dtype.kind not in "fiub":
        raise ValueError(f"The maps of frame {number} are {maps.dtype} {maps.shape}, for a panel of {n} images.")
    return maps


def layer_of(run: Run, layer: str | None) -> str:
    "The layer to draw: by default the last, which says most about the class, and is the one that the findings judge."
    layers = run.layers
    layer = layers[-1] if layer is None else layer
    if layer not in layers:
        raise ValueError(f"The run has no layer {layer!r}; it has {', '.join(layers)}.")
    return layer


def about(run: Run, layer: str, classes: int) -> str:
    "Which of several layers and classes is drawn, in words."
    parts = [f"layer {layer}"] if len(run.layers) > 1 else []
    parts += [f"the first of {classes} classes"] if classes > 1 else []
    return ", ".join(parts)


def first_class(history: pd.DataFrame, classes: int) -> pd.DataFrame:
    "Of a layer's rows those of the first of `classes`; where a row is lost nobody knows which of an image's is the first."
    groups = history.groupby(["frame", "item"])
    return history[(groups.cumcount() == 0) & (groups["item"].transform("size") == classes)]


def items_of(run: Run, items: Sequence[int] | None) -> list[int]:
    size = len(run.panel)
    items = list(range(size)) if items is None else list(items)
    unknown = [i for i in items if not 0 <= i < size]
    if unknown:
        raise ValueError(f"There is no image {unknown[0]}: the panel has images 0 to {size - 1}.")
    if not items:
        raise ValueError("items=[] leaves nothing to draw.")
    return items


def scale_of(courses: Sequence[Course], items: Sequence[int], scale: str) -> Callable[[int], float | None]:
    "The value of the hottest colour for an image; `None` where each map has its own."
    if scale not in SCALES:
        raise ValueError(one_of("scale", scale, SCALES))
    if scale == "map":
        return lambda item: None

    def top(item: int) -> float:
        maps = (m[item] for course in courses for m in course.maps)
        return max((float(m[np.isfinite(m)].max(initial=0)) for m in maps), default=0.0)

    if scale == "image":
        return lambda item: top(item) or None
    highest = max(map(top, items)) or None
    return lambda item: highest


def evenly(count: int, most: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, max(1, most)))})


def prediction(rows: pd.DataFrame, item: int) -> tuple[str, bool | None]:
    if item not in rows.index:
        return "", None
    row = rows.loc[item]
    return f"{row['pred']} {row['pred_prob']:.0%}" if row["pred"] else "", _verdict(row["correct"])


def _verdict(correct: Any) -> bool | None:
    "True, False, or `None` for pandas' missing value."
    return bool(correct) if isinstance(correct, (bool, np.bool_)) else None
