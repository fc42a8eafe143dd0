"""Average drop, increase and win: the probability of what a map leaves of the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .common import (
    Classes,
    Given,
    Pixels,
    Probability,
    Scores,
    asking,
    given,
    hottest_first,
    mean_of,
    of_target,
    register,
    resized,
    scaled,
)

__all__ = ["average_drop", "increase", "win"]


def _percent(values: Tensor) -> float:
    return 100 * mean_of(values)


@register(better=-1)
def average_drop(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    *,
    keep: float | None = None,
    mean: Any = None,
    std: Any = None,
    seed: int = 0,
    batch: int = 64,
    probability: Probability | None = None,
) -> Scores:
    """Grad-CAM++'s drop: how much of the probability is lost where the map is cold; lower is better.

    max(0, Y - O) / Y, 0…1. Y: the probability of `target`, O: that of the image multiplied by its map, which is
    upsampled bilinearly, cut at zero and divided by its maximum. The product is taken in pixel space, x · `std` +
    `mean`: cold is black. Without `mean` and `std` it is taken of `x` as it is: cold is the mean colour of normalised
    input.
    `keep`: Score-CAM's other protocol, which keeps the share `keep` of the pixels that is hottest as it is, and mutes
    the others (0.5 in the paper); ties are in random order, fixed by `seed`.

    `x`: `(N, C, *space)`, `maps`: `(N, *space)`, `target`: LongTensor `(N,)`, `None`: the predicted class. Gives
    `Scores` `(N,)`, NaN where the map is not finite or Y is 0. `.figure`: the average drop in per cent. An empty map
    leaves nothing: the drop is that of the black image. Pitfalls: a map of ones has no drop at all, so the metric
    favours maps that are large; compare with that baseline.

    Chattopadhay et al. 2018, Grad-CAM++, https://arxiv.org/abs/1710.11063, section 4.2 (whose formula lacks the 1/N).

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import average_drop
    >>> scores = average_drop(model, x, maps, target)
    >>> scores.shape, bool(((scores >= 0) & (scores <= 1)).all())
    (torch.Size([2]), True)
    """
    with asking(model, batch, probability) as ask:
        asked = given(x, maps, target, ask)
        before, after = _explained(asked, ask, keep, Pixels(x, mean, std), seed, batch)
        return asked.scores(_drop(before, after), _percent)


@register(better=1)
def increase(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    *,
    keep: float | None = None,
    mean: Any = None,
    std: Any = None,
    seed: int = 0,
    batch: int = 64,
    probability: Probability | None = None,
) -> Scores:
    """Grad-CAM++'s increase: whether the image multiplied by its map is surer than the whole; higher is better.

    1 where Y < O, else 0; all as in `average_drop`. NaN where the map is not finite. `.figure`: the share of images
    with an increase, in per cent. A class of probability 1 cannot increase: 0.

    Chattopadhay et al. 2018, Grad-CAM++, https://arxiv.org/abs/1710.11063, section 4.2.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import increase
    >>> scores = increase(model, x, maps, target)
    >>> scores.shape, bool(((scores >= 0) & (scores <= 1)).all())
    (torch.Size([2]), True)
    """
    with asking(model, batch, probability) as ask:
        asked = given(x, maps, target, ask)
        before, after = _explained(asked, ask, keep, Pixels(x, mean, std), seed, batch)
        return asked.scores((before < after).float(), _percent)


def win(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    others: Tensor,
    *,
    keep: float | None = None,
    mean: Any = None,
    std: Any = None,
    seed: int = 0,
    batch: int = 64,
    probability: Probability | None = None,
) -> Scores:
    """Grad-CAM++'s win: whether the probability falls less under `maps` than under `others`; higher is better.

    1, 0, or ½ where both fall alike, so that the two sides' figures add up to 100 %. `others`: `(N, *space)`, maps of
    another method. All else as in `average_drop`; NaN where one of the two has no answer.

    Chattopadhay et al. 2018, Grad-CAM++, https://arxiv.org/abs/1710.11063, section 4.2.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import win
    >>> scores = win(model, x, maps, target, others=torch.rand(2, 16, 16))
    >>> scores.shape, bool(((scores >= 0) & (scores <= 1)).all())
    (torch.Size([2]), True)
    """
    with asking(model, batch, probability) as ask:
        mine, theirs = given(x, maps, target, ask), given(x, others, target, ask)
        pixels = Pixels(x, mean, std)
        drops = [
            _drop(*_explained(asked, ask, keep, pixels, seed, batch)).where(asked.fine, torch.nan)
            for asked in (mine, theirs)
        ]
        won = ((drops[1] - drops[0]).sign() + 1) / 2
        return mine.scores(won, _percent)


def _drop(before: Tensor, after: Tensor) -> Tensor:
    return torch.where(before > 0, (before - after).clamp(min=0) / before, torch.nan)


def _explained(
    asked: Given, ask: Any, keep: float | None, pixels: Pixels, seed: int, batch: int
) -> tuple[Tensor, Tensor]:
    "The probability of each image, and of what its map leaves of it."
    if keep is not None and not 0 < keep <= 1:
        raise GradCAMError(f"keep must be a share of the pixels, above 0 and up to 1, or None, got {keep!r}.")
    before, after = [], []
    for at in range(0, len(asked.x), batch):
        x, maps, target = (t[at : at + batch] for t in (asked.x, asked.maps, asked.target))
        size = x.shape[2:]
        if keep is None:
            mask = scaled(resized(maps, size))
        else:
            ranks = hottest_first(maps, size, seed + at)
            mask = (ranks < int(ranks.shape[1] * keep + 1e-6)).unflatten(1, size)
        left = pixels.input(pixels.of(x) * mask[:, None], x)
        before.append(of_target(ask(x), target))
        after.append(of_target(ask(left), target))
    return torch.cat(before), torch.cat(after)
