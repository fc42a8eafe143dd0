"""The changed copies of an image that options average over: noise, mirror images, brightness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._net.nested import map_tensors
from .question import Question

__all__ = ["noisy_copies", "question_of_view", "unchanged_view", "views"]


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
    """Six views of `x` (mirrored or not, times 1, 0.9 and 1.1), the unchanged one first, each with what turns its map
    back.
    """
    for back in (unchanged_view, _mirror):
        for brightness in (1, 0.9, 1.1):
            yield (back(x) * brightness).to(x.dtype), back


def question_of_view(question: Question, back: Callable[[Tensor], Tensor], size: Sequence[int]) -> Question:
    """`question` for a mirrored view: outputs with the space of the images, `size`, are mirrored back before scoring.

    So a score that looks at places (a segmentation's region, a mask) looks at the same places of the picture.
    """
    if back is unchanged_view:
        return question

    def turned(output: Any) -> Any:
        return map_tensors(lambda t: back(t) if _in_space(t.shape[2:], size) else t, output)

    return question.before(turned)


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


def unchanged_view(x: Tensor) -> Tensor:
    return x
