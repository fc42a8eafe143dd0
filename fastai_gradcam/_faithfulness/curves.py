"""Deletion and insertion: the probability while the image is taken away, or put back, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._errors import GradCAMError
from .common import Classes, Probability, Scores, asking, given, hottest_first, mean_of, of_target, register

__all__ = ["blurred", "deletion", "insertion"]

STEPS = 224  # of RISE: 224 pixels a step at 224 × 224


@register(better=-1)
def deletion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 64,
    probability: Probability | None = None,
) -> Scores:
    """RISE's deletion: the area under `target`'s probability while the hottest pixels are set to 0. Lower is better.

    AUC = (Σ_k y_k - y_0/2 - y_n/2) / n, y_k: the probability with the k · ⌈pixels/`steps`⌉ hottest pixels of `x` set to
    0, which is the mean colour where `x` is normalised. Range 0…1. `x`: `(N, C, *space)`, `maps`: `(N, *space)` at any
    resolution, `target`: LongTensor `(N,)`; `None` takes the class predicted on the whole image, as RISE does.

    Pixels of equal heat are in random order, fixed by `seed` (RISE takes them from bottom to top): a constant or empty
    map is the random order. NaN where a map is not finite. `.figure`: the mean over the images. Pitfalls: images with
    grey holes are unlike those the model was trained on, and the curve's area says as much about how sure the model
    was; compare maps of the same images only.

    Petsiuk et al. 2018, RISE, https://arxiv.org/abs/1806.07421, algorithm 1.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import deletion
    >>> scores = deletion(model, x, maps, target)
    >>> scores.shape, bool(((scores >= 0) & (scores <= 1)).all())
    (torch.Size([2]), True)
    """
    return _curve(model, x, maps, target, torch.zeros_like, True, steps, seed, batch, probability)


@register(better=1)
def insertion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 64,
    probability: Probability | None = None,
) -> Scores:
    """RISE's insertion: the area under the probability of `target` while the hottest pixels return; higher is better.

    As `deletion`, from a blurred image (`blurred`: 11 × 11, σ = 5, of `x` as it is) to the image. Range 0…1.

    Petsiuk et al. 2018, RISE, https://arxiv.org/abs/1806.07421, algorithm 1.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import insertion
    >>> scores = insertion(model, x, maps, target)
    >>> scores.shape, bool(((scores >= 0) & (scores <= 1)).all())
    (torch.Size([2]), True)
    """
    return _curve(model, x, maps, target, blurred, False, steps, seed, batch, probability)


def _curve(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    substrate: Callable[[Tensor], Tensor],
    delete: bool,
    steps: int,
    seed: int,
    batch: int,
    probability: Probability | None,
) -> Scores:
    if steps < 1:
        raise GradCAMError(f"steps must be at least 1, got {steps!r}.")
    with asking(model, batch, probability) as ask:
        asked = given(x, maps, target, ask)
        cells = math.prod(x.shape[2:])
        step = math.ceil(cells / steps)
        counts = [*range(0, cells, step), cells]
        areas = []
        for at in range(0, len(x), batch):
            part = slice(at, at + batch)
            image = asked.x[part]
            other = substrate(image)
            ranks = hottest_first(asked.maps[part], image.shape[2:], seed + at).unflatten(1, image.shape[2:])[:, None]
            y = torch.stack(
                [
                    of_target(ask(torch.where((ranks < k) == delete, other, image)), asked.target[part]).double()
                    for k in counts
                ]
            )
            areas.append((y.sum(0) - y[0] / 2 - y[-1] / 2) / (len(counts) - 1))
        return asked.scores(torch.cat(areas), mean_of)


def blurred(x: Tensor) -> Tensor:
    """`x` blurred as RISE's insertion begins: σ = 5 in a window of 11, zeros outside of the image.

    RISE's kernel is a Gaussian folded at the window's edges, so that it sums to 1.
    """
    weights = torch.exp(-(torch.arange(-20, 21).double() ** 2) / 50)
    kernel = torch.zeros(11, dtype=torch.float64)
    for offset, weight in zip(range(-20, 21), weights / weights.sum(), strict=True):
        place = (5 + offset) % 22
        kernel[min(place, 21 - place)] += weight
    kernel = kernel.to(x)
    conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    planes = x.flatten(0, 1)[:, None]
    for d in range(x.ndim - 2):
        shape, padding = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
        shape[d], padding[d] = 11, 5
        planes = conv(planes, kernel.view(1, 1, *shape), padding=padding)
    return planes.view_as(x)
