"""The changed copies of an image that smoothing averages over: noise, mirror images, brightness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..targets import Settled, Target
from .weights import map_tensors

__all__ = ["as_it_is", "noisy_copies", "of_view", "views"]


def noisy_copies(x: Tensor, noise: float, n: int, seed: int = 0) -> Iterator[Tensor]:
    """`n` copies of `x` with Gaussian noise of `noise` × each image's range of values.

    The noise is the same for each image, in every call and on every device, and draws nothing from torch's generators.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = x.float().flatten(1)
    sigma = (noise * (flat.amax(1) - flat.amin(1))).reshape(-1, *[1] * (x.ndim - 1))
    for _ in range(n):
        yield (x + sigma * torch.randn(x.shape[1:], generator=generator).to(x.device)).to(x.dtype)


def views(x: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    "Six views of `x`, the first as it is, each with what turns its map back: mirrored or not, times 1, 0.9 and 1.1."
    for mirrored in (False, True):
        back = _mirror if mirrored else as_it_is
        for brightness in (1, 0.9, 1.1):
            yield back(x) * brightness, back


def of_view(target: Target, back: Callable[[Tensor], Tensor], size: Sequence[int]) -> Target:
    """`target`, settled, asked of a view: what has the space of the images in the output, `size`, is turned back first.

    So a score that looks at places (a segmentation's region, a mask) looks at the same places of the picture.
    """
    if back is as_it_is:
        return target

    def turned(output: Any) -> Any:
        return map_tensors(lambda t: back(t) if _in_space(t.shape[2:], size) else t, output)

    if isinstance(target, Settled):
        read = target.read
        return replace(target, read=lambda output, like: read(turned(output), like))
    return (lambda output: target(turned(output))) if callable(target) else target


def _in_space(cells: Sequence[int], size: Sequence[int]) -> bool:
    "Whether cells cover the images evenly: one stride in all dimensions, up to rounding."
    if len(cells) != len(size) or math.prod(cells) <= 1:
        return False
    if len(size) == 1:
        # A detector's (N, boxes, 4) of signals has no space.
        return tuple(cells) == tuple(size)
    strides = [s / c for s, c in zip(size, cells, strict=True)]
    return min(strides) >= 1 and max(strides) <= 1.1 * min(strides)


def _mirror(x: Tensor) -> Tensor:
    return x.flip(-1)


def as_it_is(x: Tensor) -> Tensor:
    return x
