"""Means over images with bootstrap intervals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._errors import GradCAMError

__all__ = ["Interval", "interval"]


class Interval(NamedTuple):
    "A mean, the bounds of its interval, and the number of images that it is taken over."

    mean: float
    low: float
    high: float
    images: int


def interval(
    values: Tensor, other: Tensor | None = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `values` `(N,)` with a bootstrap interval over images; with `other`, of the paired difference.

    The percentile interval: images are drawn N at a time, with replacement, `draws` times; the bounds are the quantiles
    (1 ± `level`) / 2 of their means. Images without a value (NaN) in one of the two are left out. Without images
    everything is NaN; with one, the bounds are. Raises `GradCAMError` for values of different length or a
    level outside of 0…1.

    Efron & Tibshirani 1993, An introduction to the bootstrap, chapter 13.

    >>> import torch
    >>> from fastai_gradcam.faithfulness import interval
    >>> interval(torch.tensor([1.0, 1.0, float("nan")]))
    Interval(mean=1.0, low=1.0, high=1.0, images=2)
    """
    if not 0 < level < 1 or draws < 1:
        raise GradCAMError(f"An interval needs a level between 0 and 1 and draws ≥ 1, got {level!r} and {draws!r}.")
    if other is not None and other.shape != values.shape:
        raise GradCAMError(f"The two sides of a difference need the same images, got {len(values)} and {len(other)}.")
    each = values.detach().cpu().double()
    each = each if other is None else each - other.detach().cpu().double()
    each = each[each.isfinite()]
    nan = float("nan")
    if len(each) == 0:
        return Interval(nan, nan, nan, 0)
    if len(each) == 1:
        return Interval(float(each[0]), nan, nan, 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(each), (draws, len(each)), generator=generator)
    bounds = torch.quantile(each[chosen].mean(1), torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    return Interval(float(each.mean()), float(bounds[0]), float(bounds[1]), len(each))
