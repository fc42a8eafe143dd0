"""The history as flat columns, for the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import GradCAMError, reason_of
from .._run.reader import RunFiles
from .numbers import plain

if TYPE_CHECKING:
    import pandas as pd

    from .maps import Maps

__all__ = ["history_of"]

NUMBERS = (
    "prob pred_prob loss evidence negative_share entropy concentration border_share centroid_y centroid_x "
    "centroid_shift similarity_prev similarity_first iou_prev mask_share"
).split()
FLAGS = ("correct", "pointing_hit")
CLASSES = ("target", "pred")
FINER = ("prob", "pred_prob", "loss", "similarity_prev", "similarity_first")


def history_of(run: RunFiles, maps: Maps) -> tuple[dict[str, Any], list[str]]:
    """The history in the order layer, class, frame, image, with classes as places in `names`; and notes on gaps.

    A column that is the same in every layer, as all about the answer are, holds the first layer's part alone.
    """
    info = run.contents()
    shape = (len(info.layers), maps.classes, len(info.frames), len(info.panel))
    try:
        rows = _placed(run.history, info.layers, [frame.frame for frame in info.frames], shape)
    except GradCAMError as error:
        empty = {"names": [], "columns": {}, "classes": [None] * maps.classes}
        return empty, [f"The numbers of this run cannot be read ({reason_of(error)})."]
    at = rows["at"].to_numpy()
    names: dict[str, int] = {}
    columns = {}
    for name in (*NUMBERS, *FLAGS, *CLASSES):
        if name in CLASSES:
            values: Any = [names.setdefault(text, len(names)) if text else np.nan for text in rows[name]]
        else:
            values = rows[name].astype("float64")
        column = np.full(math.prod(shape), np.nan)
        column[at] = values
        digits = None if name in (*CLASSES, *FLAGS) else 4 if name in FINER else 3
        columns[name] = plain(_once(column, len(info.layers)), digits)
    known = list(names)
    classes = _class_names(columns["target"], known, shape)
    return {"names": known, "columns": columns, "classes": classes}, _gaps(at, shape, run, maps)


def _placed(history: pd.DataFrame, layers: list[str], frames: list[int], shape: tuple[int, ...]) -> pd.DataFrame:
    "The rows with `at`, their place in a flat column; those whose place is unknown are left out."
    place = history[["item"]].assign(
        layer=history["layer"].map({name: i for i, name in enumerate(layers)}),
        frame=history["frame"].map({frame: i for i, frame in enumerate(frames)}),
    )
    place["cls"] = _class_places(place, history["target"], shape[1])
    fits = place["cls"].notna()
    place = place[fits].astype(int)
    at = np.ravel_multi_index((place["layer"], place["cls"], place["frame"], place["item"]), shape)
    return history[fits].assign(at=at)


def _class_places(place: pd.DataFrame, target: pd.Series, classes: int) -> pd.Series:
    """Which of an image's classes each row is of, by the order of its rows.

    If rows are missing, a class has the place that it has in the frames that are whole; NaN if that is not known.
    """
    groups = place.groupby(["layer", "frame", "item"])
    places = (groups.cumcount() % classes).astype(float)
    whole = groups["frame"].transform("size") % classes == 0
    if whole.all():
        return places
    import pandas as pd

    keys = pd.Series(list(zip(place["layer"], place["item"], target, strict=True)), place.index, object)
    seen = places[whole].groupby(keys[whole].to_numpy()).agg(["first", "nunique"])
    known = seen.loc[seen["nunique"] == 1, "first"].to_dict()
    return places.where(whole, keys.map(known))


def _once(column: np.ndarray, layers: int) -> np.ndarray:
    per_layer = column.reshape(layers, -1)
    return per_layer[0] if np.array_equal(per_layer, np.broadcast_to(per_layer[0], per_layer.shape), True) else column


def _gaps(at: np.ndarray, shape: tuple[int, ...], run: RunFiles, maps: Maps) -> list[str]:
    missing = np.ones(math.prod(shape), bool)
    missing[at] = False
    images = missing.reshape(shape).any(axis=(0, 1)).sum(axis=1)
    return [
        f"Frame {frame.frame}: the numbers of {count} of {shape[-1]} images are missing."
        for frame, count, note in zip(run.contents().frames, images, maps.notes, strict=True)
        if count and not note
    ]


def _class_names(targets: list | None, names: list[str], shape: tuple[int, ...]) -> list[str | None]:
    "For each explained class its name, or `None` if it differs between images."
    if targets is None:
        return [None] * shape[1]
    per_class = np.array(targets, float).reshape(-1, *shape[1:]).swapaxes(0, 1).reshape(shape[1], -1)
    used = [np.unique(row[np.isfinite(row)]) for row in per_class]
    return [names[int(row[0])] if len(row) == 1 else None for row in used]
