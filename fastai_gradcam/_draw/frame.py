"""The labelled grid of one frame, as it is saved during training."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .._run.schema import Frame, FrameEntry, PanelItem
from .._run.words import frame_name, map_note, prediction
from ..render import Cell, grid

__all__ = ["cells_of", "frame_grid", "heading", "slices_note"]


def heading(frame: Frame | FrameEntry) -> str:
    "The words above a frame's grid: which fit and epoch, and the epoch's metrics."
    metrics = [f"{k} {v:.4g}" if v is not None else f"{k} –" for k, v in frame.metrics.items()]
    return f"{frame_name(frame).capitalize()}\n" + " · ".join([f"frame {frame.frame}", *metrics])


def frame_grid(frame: Frame, images: Sequence[Image.Image], panel: Sequence[PanelItem]) -> Image.Image:
    "The labelled grid of a frame: a cell per image, or a row per image if there are several layers or classes."
    words = " · ".join(filter(None, (heading(frame), slices_note(panel))))
    return grid(cells_of(frame, images, panel), words, _columns(frame, len(images)))


def cells_of(frame: Frame, images: Sequence[Image.Image], panel: Sequence[PanelItem]) -> list[Cell]:
    "The cells of a frame's grid, each with the class that its map is of unless that is the prediction."
    several_layers = len(frame.maps) > 1
    cells, seen = [], dict[tuple[int, str], int]()
    for row in sorted(frame.rows, key=lambda r: r["item"]):
        item, layer, entry = row["item"], row["layer"], panel[row["item"]]
        k = seen[item, layer] = seen.get((item, layer), -1) + 1
        maps = frame.maps[layer]
        map = maps[item] if maps.ndim == 3 else maps[item, k]
        title = entry.label if entry.label is not None else f"image {item}"
        several_classes = maps.ndim == 4
        notes = [layer] if several_layers else []
        notes += [map_note(row.get("target"), row.get("prob"), row.get("pred"), always=several_classes)]
        answer = prediction(row.get("pred"), row.get("pred_prob"))
        note = " · ".join(filter(None, notes))
        cells.append(Cell(images[item], map, title, answer, row["correct"], note, entry.depth))
    return cells


def _columns(frame: Frame, images: int) -> int | None:
    per_image = max(1, len(frame.rows) // max(1, images))
    return None if per_image == 1 else per_image if per_image > 2 else per_image * 2


def slices_note(panel: Sequence[PanelItem]) -> str:
    "The number of slices drawn of each volume; 0 for images."
    depth = panel[0].depth if panel else None
    return "" if depth is None else f"4 of {depth} slices"
