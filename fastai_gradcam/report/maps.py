"""The raw maps of a run as bytes, for the page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from .._errors import GradCAMError, reason_of
from .._run.reader import RunFiles
from .._run.schema import FrameEntry
from ..measures import ring_share
from .numbers import base64, number

__all__ = ["Maps"]

CELL_BUDGET = 850_000  # one byte each, of all layers and frames; beyond it large maps are averaged down


class Maps:
    """For each layer its size, and for each frame the cells and each map's maximum (`layers`).

    `notes`: for each frame why it is left out, or `None`. `remarks`: what else to know. `classes`: how many maps an
    image has in a layer.
    """

    def __init__(self, run: RunFiles):
        self._run, info = run, run.contents()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.notes: list[str | None] = []
        self.remarks: list[str] = []
        frames = [self._read(frame, info.layers) for frame in info.frames]
        shown = max(1, sum(maps is not None for maps in frames))
        shares = _shares({name: math.prod(shape) for name, shape in self._shapes.items()}, CELL_BUDGET / shown)
        self.layers = [self._pack(name, frames, shares.get(name, 0)) for name in info.layers]

    @property
    def classes(self) -> int:
        return max((shape[1] if len(shape) == 4 else 1 for shape in self._shapes.values()), default=1)

    def _read(self, frame: FrameEntry, layers: list[str]) -> dict[str, np.ndarray] | None:
        "The maps of a frame; `None`, with a note, if it failed or they do not fit."
        try:
            if not frame.complete:
                raise _LeftOut(f"failed: {frame.error or 'the reason was not recorded'}")
            stored = self._run.maps_of(frame.frame, layers)
            maps = {name: array.astype(np.float32) for name, array in stored.items()}
            for name, array in maps.items():
                if array.shape != self._shapes.get(name, array.shape):
                    first = self._shapes[name]
                    raise _LeftOut(f"left out: maps of shape {array.shape}, where the first frame has {first}")
        except _LeftOut as note:
            self.notes.append(str(note))
            return None
        except GradCAMError as error:
            self.notes.append(f"left out: its maps cannot be read ({reason_of(error)})")
            return None
        self.notes.append(None)
        self._shapes |= {name: array.shape for name, array in maps.items()}
        return maps

    def _pack(self, name: str, frames: list[dict[str, np.ndarray] | None], budget: float) -> dict[str, Any]:
        if name not in self._shapes:
            nothing = [None] * len(frames)
            return {"height": 0, "width": 0, "ring": None, "cells": nothing, "peaks": nothing}
        *many, h, w = self._shapes[name]
        shrink = min(1.0, math.sqrt(budget / math.prod((*many, h, w))))
        size = (h, w) if shrink == 1 else (max(1, int(h * shrink)), max(1, int(w * shrink)))
        if size != (h, w):
            self.remarks.append(
                f"To keep this file small, the maps of layer {name} are averaged from {h}×{w} to {size[0]}×{size[1]} "
                "cells."
            )
        packed = [(None, None) if maps is None else _bytes(_average(maps[name], size)) for maps in frames]
        cells, peaks = [cells for cells, _ in packed], [peaks for _, peaks in packed]
        return {"height": size[0], "width": size[1], "ring": number(ring_share((h, w))), "cells": cells, "peaks": peaks}


class _LeftOut(Exception):
    "Why a frame has no maps on the page."


def _shares(needs: dict[str, int], budget: float) -> dict[str, float]:
    "How much of the budget each layer may hold: small ones what they need, and the others equal parts of the rest."
    shares: dict[str, float] = {}
    for name in sorted(needs, key=needs.__getitem__):
        shares[name] = min(needs[name], (budget - sum(shares.values())) / (len(needs) - len(shares)))
    return shares


def _average(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    "All maps of a layer as `(n, *size)`, each cell the mean of the area that it covers."
    maps = maps.reshape(-1, *maps.shape[-2:])
    if maps.shape[1:] == size:
        return maps
    return np.stack([np.asarray(Image.fromarray(m).resize(size[::-1], Image.Resampling.BOX)) for m in maps])


def _bytes(maps: np.ndarray) -> tuple[str, list[float | None]]:
    "The cells in steps of 1/255 of each map's maximum, and the maxima; `None` for a map that is not finite."
    finite = np.isfinite(maps).all((1, 2))
    maps = np.where(finite[:, None, None], maps, 0).clip(0)
    peaks = maps.max((1, 2))
    share = maps / np.where(peaks > 0, peaks, 1)[:, None, None]
    cells = np.floor(share * 255 + 0.5).astype(np.uint8)
    return base64(cells.tobytes()), [number(peak) if known else None for peak, known in zip(peaks, finite, strict=True)]
