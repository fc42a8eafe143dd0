"""The history of one layer, tidied: a row for each frame and image, and the last frame's by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._errors import GradCAMError, one_of
from ..measures import ring_share
from .thresholds import Thresholds

__all__ = ["Panel", "is_missing", "tidy"]

NUMBERS = (
    "frame epoch item prob pred_prob evidence negative_share border_share centroid_y centroid_x centroid_shift "
    "similarity_prev mask_share"
).split()
WORDS = ("layer", "label", "target", "pred")
TRUTH = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


def tidy(history: pd.DataFrame, layer: str | None) -> pd.DataFrame:
    """One row for each frame and image of `layer` (default the last), every column present and typed.

    `correct` is 1, 0 or NaN. Where an image has several classes, the map of its label is kept, else that of its
    prediction, else the first. Raises `GradCAMError` if there is no such layer.
    """
    rows = pd.DataFrame(index=range(len(history)))
    for name in NUMBERS:
        given = history[name].to_numpy() if name in history else np.nan
        rows[name] = pd.to_numeric(pd.Series(given, index=rows.index), errors="coerce").astype("float64")
    for name in WORDS:
        given = history[name].tolist() if name in history else [""] * len(rows)
        rows[name] = pd.Series(["" if is_missing(o) else str(o) for o in given], index=rows.index, dtype=object)
    given = history["correct"].tolist() if "correct" in history else [""] * len(rows)
    rows["correct"] = [TRUTH.get(str(o).strip().lower(), np.nan) for o in given]
    rows["finite"] = np.isfinite(rows["evidence"]) if "evidence" in history else True
    rows[NUMBERS] = rows[NUMBERS].replace([np.inf, -np.inf], np.nan)
    rows = rows.dropna(subset=["frame", "item"])
    rows[["frame", "item"]] = rows[["frame", "item"]].astype(int)
    layers = list(dict.fromkeys(rows["layer"]))
    if layer is not None and layers and layer not in layers:
        raise GradCAMError(one_of("layer", layer, layers))
    if layers:
        rows = rows[rows["layer"] == (layers[-1] if layer is None else layer)]
    of_label, of_pred = rows["target"] == rows["label"], rows["target"] == rows["pred"]
    rows = rows.assign(rank=np.select([of_label, of_pred], [0, 1], 2))
    return rows.sort_values(["frame", "item", "rank"], kind="stable").drop_duplicates(["frame", "item"])


def is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value != value


class Panel:
    """The tables that a finding looks at: `rows` of all frames, `last` those of the last frame by image, with `limit`,
    the share on the object below which an image looks outside of it; and `found`, the images of earlier findings by
    kind.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        thresholds: Thresholds,
        mask_areas: Mapping[int, float],
        map_shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self.rows, self.thresholds = rows, thresholds
        self.frames: list[int] = sorted(rows["frame"].unique().tolist())
        self.frame, self.layer = self.frames[-1], rows["layer"].iloc[0]
        self.last = rows[rows["frame"] == self.frame].set_index("item")
        self.trained = not (self.last["epoch"] < 0).all()
        areas = pd.Series({int(item): float(area) for item, area in mask_areas.items()}, dtype="float64")
        self.last["mask_area"] = areas.reindex(self.last.index)
        self.last["limit"] = (self.last["mask_area"] * thresholds.over_chance).fillna(thresholds.on_object)
        records = rows.to_records(index=False)
        self.by_item = {item: records[records["item"] == item] for item in self.last.index}
        shape = map_shapes.get(self.layer)
        self.even_border = None if shape is None else ring_share(shape)
        self.found: dict[str, set[int]] = {}

    @property
    def none(self) -> pd.DataFrame:
        "No images."
        return self.last.iloc[:0]

    @property
    def off_object(self) -> pd.Series:
        return self.last["mask_share"] < self.last["limit"]

    @property
    def sure(self) -> pd.Series:
        "The images of the last frame that are right and confident."
        return (self.last["correct"] == 1) & (self.last["pred_prob"] >= self.thresholds.confident)

    def found_as(self, *kinds: str) -> set[int]:
        "The images of the findings of these kinds."
        return set[int]().union(*(self.found.get(kind, ()) for kind in kinds))

    def same_target(self) -> Iterator[tuple[int, np.recarray]]:
        """Each image with its rows since the explained class last changed.

        The maps of two classes differ without anything having moved.
        """
        for item, rows in self.by_item.items():
            other = np.flatnonzero(rows["target"] != rows["target"][-1])
            yield item, rows[other[-1] + 1 if len(other) else 0 :]

    def with_numbers(self, found: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
        "The last frame's rows of these images, with more numbers for each."
        if not found:
            return self.none
        return self.last.loc[list(found)].join(pd.DataFrame.from_dict(dict(found), orient="index"))
