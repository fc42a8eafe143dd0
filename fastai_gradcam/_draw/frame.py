"""The labelled grid of one frame, as it is saved during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from .._run.schema import Frame, FrameEntry
from .._run.words import frame_name, prediction
from ..render import Cell, grid

__all__ = ["frame_grid", "heading"]


def heading(frame: Frame | FrameEntry) -> str:
    "The words above a frame's grid: which fit and epoch, and the epoch's metrics."
    metrics = [f"{k} {v:.4g}" if v is not None else f"{k} –" for k, v in frame.metrics.items()]
    return f"{frame_name(frame).capitalize()}\n" + " · ".join([f"frame {frame.frame}", *metrics])


def frame_grid(frame: Frame, images: Sequence[Image.Image], labels: Sequence[str | None]) -> Image.Image:
    "The labelled grid of a frame: a cell per image, or a row per image if there are several layers or classes."
    cells, per_image = [], max(1, len(frame.rows) // max(1, len(images)))
    rows = sorted(frame.rows, key=lambda r: r["item"])
    seen: dict[tuple[int, str], int] = {}
    for row in rows:
        item, layer = row["item"], row["layer"]
        k = seen[item, layer] = seen.get((item, layer), -1) + 1
        maps = frame.maps[layer]
        map = maps[item] if maps.ndim == 3 else maps[item, k]
        label = labels[item]
        title = label if label is not None else f"image {item}"
        answer = prediction(row.get("pred"), row.get("pred_prob"))
        note = " · ".join(_about_map(row, per_image, len(frame.maps)))
        cells.append(Cell(images[item], map, title, answer, row["correct"], note))
    columns = None if per_image == 1 else per_image if per_image > 2 else per_image * 2
    return grid(cells, heading(frame), columns)


def _about_map(row: Mapping[str, Any], per_image: int, layers: int) -> list[str]:
    "The layer and class that the map explains, unless the cell says so already."
    about = [row["layer"]] if layers > 1 else []
    if row.get("target") not in (None, "", row.get("label")) or per_image > layers:
        about.append(f"map: {prediction(row['target'], row.get('prob'))}")
    return about
