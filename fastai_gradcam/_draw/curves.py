"""Lines with dots in Pillow: a strip of curves below a row of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..render import PAPER

__all__ = ["Curve", "Points", "curves"]

# Drawn larger, then reduced: Pillow's lines have steps.
_FINER = 3
# More dots than these would hide their line.
_MOST_DOTS = 24

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    "Values 0…1 (NaN: unknown) at `places`, which count in columns."

    places: np.ndarray
    values: np.ndarray
    colour: str
    dashed: bool = False


def curves(size: tuple[int, int], area: tuple[int, int, int, int], step: float, lines: Sequence[Curve]) -> Image.Image:
    """A picture of `size` with `lines` in `area` (left, top, right, bottom); column 0 is at its left, `step` apart."""
    image = Image.new("RGB", (_FINER * size[0], _FINER * size[1]), PAPER)
    draw = ImageDraw.Draw(image)
    x0, y0, x1, y1 = (_FINER * side for side in area)
    x1 = max(x0 + 1, x1)
    draw.line((x0, y1, x1, y1), "#d0d7de", _FINER)
    draw.line((x0, y0, x1, y0), "#eaeef2", _FINER)
    for line in lines:
        points = [
            (x0 + p * step * _FINER, y1 - float(np.clip(v, 0, 1)) * (y1 - y0)) if np.isfinite(v) else None
            for p, v in zip(line.places, line.values, strict=True)
        ]
        _draw(draw, points, line.colour, line.dashed)
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float] | None], colour: str, dashed: bool) -> None:
    "A line through `points`, broken where one is `None`; dots on few points, on the last of each part, and alone."
    radius = 2.5 * _FINER
    for part in _unbroken(points):
        if len(part) > 1:
            for piece in _dashes(part, 5 * _FINER) if dashed else [part]:
                draw.line(piece, colour, 2 * _FINER, joint="curve")
        for x, y in part if len(points) <= _MOST_DOTS else part[-1:]:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def _dashes(points: Points, length: float) -> Iterator[list[tuple[float, float]]]:
    "Every second piece of `length` of a line."
    xy = np.array(points)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    for start in np.arange(0, along[-1], 2 * length):
        ends = (start, *along[(along > start) & (along < start + length)], min(start + length, along[-1]))
        yield [(float(np.interp(e, along, xy[:, 0])), float(np.interp(e, along, xy[:, 1]))) for e in ends]


def _unbroken(points: Sequence[tuple[float, float] | None]) -> Iterator[list[tuple[float, float]]]:
    part: list[tuple[float, float]] = []
    for point in [*points, None]:
        if point is not None:
            part.append(point)
        elif part:
            yield part
            part = []
