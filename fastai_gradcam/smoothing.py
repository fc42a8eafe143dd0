"""The changed copies of an image that smoothing averages over: noise, mirror images, brightness."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["as_it_is", "noisy_copies", "views"]


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


def _mirror(x: Tensor) -> Tensor:
    return x.flip(-1)


def as_it_is(x: Tensor) -> Tensor:
    return x
