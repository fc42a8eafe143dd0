"""ROAD: what happens to the prediction when the most, or the least, relevant pixels are imputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError, one_of
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
)
from .imputation import impute

__all__ = ["road"]

Ask = Callable[[Tensor], Tensor]
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
# Noise and ties draw from generators of their own.
_NOISE = 1 << 32


@register(better=1)
def road(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    *,
    order: str = "combined",
    shares: Sequence[float] = SHARES,
    mean: Any = None,
    std: Any = None,
    noise: float = 0.01,
    seed: int = 0,
    batch: int = 64,
    probability: Probability | None = None,
) -> Scores:
    """ROAD: the probability of `target` with the most relevant pixels removed, or with only these kept.

    For each share p, MoRF removes the ⌊p·H·W⌋ pixels that `maps` has hottest, LeRF all others; removed pixels are
    imputed (`impute`) in pixel space, x · `std` + `mean`. Counts are exact, and pixels of equal heat in random order,
    fixed by `seed`: a constant or empty map is the random order. `x`: `(N, C, H, W)`, `maps`: `(N, h, w)`, upsampled
    bilinearly. `target`: LongTensor `(N,)`, the true classes for the figure of the paper; `None`: the predicted ones.

    Gives `Scores` `(N,)`, NaN where the map is not finite. `order="morf"`, `"lerf"`: the mean over `shares` of the
    target's probability, 0…1; of MoRF lower is better, of LeRF higher. `"combined"`: (LeRF - MoRF) / 2, -0.5…0.5,
    higher is better (pytorch-grad-cam's, not the paper's); a random order scores around 0 where `shares` are symmetric
    about ½, and below with those of the paper. `.figure`: a dict of `share` and, for each order, `morf_accuracy`,
    `morf_probability`, …, means over the images with one number per share. Pitfalls: compare means over 100 images and
    more with their intervals; a blob in the middle scores well wherever objects are, so look at the baselines, too.

    Rong et al. 2022, ROAD, https://arxiv.org/abs/2202.00449, section 4 and figure 5.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam.faithfulness import road
    >>> model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 2))
    >>> scores = road(model, torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4), torch.tensor([0, 1]), shares=[0.5])
    >>> scores.shape, sorted(scores.figure)[0]
    (torch.Size([2]), 'lerf_accuracy')
    """
    orders = _orders(order, shares)
    with asking(model, batch, probability) as ask:
        asked = given(x, maps, target, ask)
        found = {name: x.new_zeros(2, len(shares), len(x), dtype=torch.float32) for name in orders}
        for part, k, name, probs in _removed(asked, ask, Pixels(x, mean, std), orders, shares, noise, seed, batch):
            classes = asked.target[part]
            found[name][0, k, part] = of_target(probs, classes)
            found[name][1, k, part] = (probs.argmax(1) == classes).float()
        each = {name: values[0].mean(0) for name, values in found.items()}
        value = (each["lerf"] - each["morf"]) / 2 if order == "combined" else each[order]
        return asked.scores(value, lambda _: _figure(found, shares, asked.fine))


def _orders(order: str, shares: Sequence[float]) -> list[str]:
    if order not in ("combined", "morf", "lerf"):
        raise GradCAMError(one_of("order", order, ["combined", "morf", "lerf"]))
    if not shares or not all(0 <= p <= 1 for p in shares):
        raise GradCAMError(f"shares must be numbers from 0 to 1, at least one, got {shares!r}.")
    return ["morf", "lerf"] if order == "combined" else [order]


def _removed(
    asked: Given, ask: Ask, pixels: Pixels, orders: list[str], shares: Sequence[float], noise: float, seed: int,
    batch: int,
) -> Iterator[tuple[slice, int, str, Tensor]]:  # fmt: skip
    "The probabilities for each part of the images, place of a share, and order."
    if asked.x.ndim != 4:
        raise GradCAMError(f"road imputes images (N, C, H, W), got shape {tuple(asked.x.shape)}.")
    for at in range(0, len(asked.x), batch):
        part = slice(at, at + batch)
        inputs, size = asked.x[part], asked.x.shape[2:]
        clean, ranks = pixels.of(inputs), hottest_first(asked.maps[part], size, seed + at).unflatten(1, size)
        for k, share in enumerate(shares):
            count = int(ranks[0].numel() * share + 1e-6)
            for name in orders:
                missing = ranks < count if name == "morf" else ranks >= count
                filled = pixels.input(impute(clean, missing, noise, seed + at + _NOISE), inputs)
                # The known pixels keep their exact values.
                yield part, k, name, ask(torch.where(missing[:, None], filled, inputs))


def _figure(found: dict[str, Tensor], shares: Sequence[float], fine: Tensor) -> dict[str, list[float]]:
    figure = {"share": list(shares)}
    for name, values in found.items():
        for what, row in zip(("probability", "accuracy"), values, strict=True):
            figure[f"{name}_{what}"] = [mean_of(of_share[fine]) for of_share in row]
    return figure
