"""Boxes and regions of a picture: where a map is hottest, a random box beside it, corners and the border."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BOX", "Place", "hottest", "places_of", "random_beside", "random_corners"]

# A patch is a box of this share of the picture's height and width: 6 % of its area. A tag of a fifth of the side is
# rarely cut whole by a box of its own size.
BOX = 0.25
_CORNER, _BORDER = 1 / 3, 1 / 12


def side_of(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a patch in a picture of `size`."""
    return max(2, round(size[0] * BOX)), max(2, round(size[1] * BOX))


def hottest(maps: Tensor, side: tuple[int, int]) -> Tensor:
    """`(N, 2)`: the top left corner of the box that holds the most of each map `(N, H, W)`."""
    held = F.avg_pool2d(maps[:, None].float(), side, stride=1)[:, 0]
    best = held.flatten(1).argmax(1)
    return torch.stack([best // held.shape[2], best % held.shape[2]], 1)


def random_corners(n: int, size: tuple[int, int], side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """`(n, 2)`: corners of boxes inside a picture of `size`, each place as likely as any other."""
    room = [(a - b + 1) for a, b in zip(size, side, strict=True)]
    return torch.stack([torch.randint(r, (n,), generator=generator) for r in room], 1)


def random_beside(hot: Tensor, size: tuple[int, int], side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """As `random_corners`, one for each of `hot`, and none overlaps its hot box by more than a quarter."""
    found = random_corners(len(hot), size, side, generator)
    for _ in range(50):
        apart = [(found[:, k] - hot[:, k]).abs() / side[k] for k in (0, 1)]
        near = (1 - apart[0]).clamp(min=0) * (1 - apart[1]).clamp(min=0) > 0.25
        if not near.any():
            break
        found = torch.where(near[:, None], random_corners(len(hot), size, side, generator), found)
    return found


@dataclass(frozen=True)
class Place:
    """A region of the picture, `(H, W)` bool, and another of its area, where the class does not look."""

    name: str
    region: Tensor
    opposite: Tensor


def places_of(mean_map: Tensor) -> dict[str, Place]:
    """The `corner` where a map `(H, W)` is densest, the `border`, and in `densest` that of the two where it is denser.

    The control of a corner is the corner where the map is thinnest; that of the border is a block in the centre.
    """
    h, w = mean_map.shape
    regions = {name: _corner(h, w, *name.split()) for name in ("top left", "top right", "bottom left", "bottom right")}
    density = {name: float(mean_map[region].mean()) for name, region in regions.items()}
    border = torch.ones(h, w, dtype=torch.bool)
    width = max(1, round(min(h, w) * _BORDER))
    border[width : h - width, width : w - width] = False
    best, least = (choose(density, key=density.__getitem__) for choose in (max, min))
    corner = Place(f"{best} corner", regions[best], regions[least])
    rim = Place("border", border, _centre(h, w, float(border.float().mean())))
    denser = rim if float(mean_map[border].mean()) > density[best] else corner
    return {"corner": corner, "border": rim, "densest": denser}


def _corner(h: int, w: int, vertical: str, horizontal: str) -> Tensor:
    region = torch.zeros(h, w, dtype=torch.bool)
    a, b = max(1, round(h * _CORNER)), max(1, round(w * _CORNER))
    region[
        slice(0, a) if vertical == "top" else slice(h - a, h), slice(0, b) if horizontal == "left" else slice(w - b, w)
    ] = True
    return region


def _centre(h: int, w: int, area: float) -> Tensor:
    region = torch.zeros(h, w, dtype=torch.bool)
    a, b = max(1, round(h * area**0.5)), max(1, round(w * area**0.5))
    top, left = (h - a) // 2, (w - b) // 2
    region[top : top + a, left : left + b] = True
    return region
