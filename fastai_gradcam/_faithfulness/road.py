"""ROAD: what happens to the prediction when the most, or the least, relevant pixels are imputed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError, one_of
from .common import Classes, Pixels, Probability, Scores, asking, given, hottest_first, mean_of, of_target, register
from .imputation import impute

__all__ = ["road"]

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

    For each share p, MoRF removes the ⌊p·H·W⌋ pixels that `maps` has hottest, LeRF all others. A removed pixel is
    imputed (`impute`) in pixel space, before normalisation: pixels = x · `std` + `mean`. Counts are exact; pixels of
    equal heat are in random order, fixed by `seed`. So a map that is constant or empty is the random order.

    - `x`: `(N, C, H, W)` as the model takes it. `maps`: `(N, h, w)` at any resolution, upsampled bilinearly; negative
      values count as less than zero. `target`: LongTensor `(N,)`, the true classes for the figure of the paper, or
      `None` for the predicted ones.
    - `order`: `"morf"`, `"lerf"`: a value per image is the mean over `shares` of the target's probability, 0…1; of MoRF
      lower is better, of LeRF higher. `"combined"`: (LeRF - MoRF) / 2, -0.5…0.5, higher is better (the combination is
      pytorch-grad-cam's, not the paper's). A random order scores around 0 where `shares` are symmetric about ½, and
      below with those of the paper: compare with a random map.
    - `probability`: a callable from the model's output to `(N, C)`; default: softmax, of one score sigmoid.

    Gives `Scores` `(N,)`, NaN where the map is not finite. `.figure` is that of the paper: a dict of `share` and, for
    each order, `morf_accuracy`, `morf_probability`, …, a list with one number per share, means over the images with a
    value. Pitfalls: a score of one image says little, compare means over 100 images and more with their intervals; a
    smooth blob in the middle scores well wherever objects are in the middle, so look at the baselines, too. Raises
    `GradCAMError` for arguments that do not fit.

    Rong et al. 2022, ROAD, https://arxiv.org/abs/2202.00449, section 4 and figure 5.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam.faithfulness import road
    >>> model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 2))
    >>> scores = road(model, torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4), torch.tensor([0, 1]), shares=[0.5])
    >>> scores.shape, sorted(scores.figure)[0]
    (torch.Size([2]), 'lerf_accuracy')
    """
    if order not in ("combined", "morf", "lerf"):
        raise GradCAMError(one_of("order", order, ["combined", "morf", "lerf"]))
    if not shares or not all(0 <= p <= 1 for p in shares):
        raise GradCAMError(f"shares must be numbers from 0 to 1, at least one, got {shares!r}.")
    orders = ["morf", "lerf"] if order == "combined" else [order]
    with asking(model, batch, probability) as ask:
        asked = given(x, maps, target, ask)
        if asked.x.ndim != 4:
            raise GradCAMError(f"road imputes images (N, C, H, W), got shape {tuple(x.shape)}.")
        pixels = Pixels(asked.x, mean, std)
        found = {name: x.new_zeros(2, len(shares), len(x), dtype=torch.float32) for name in orders}
        for at in range(0, len(x), batch):
            part = slice(at, at + batch)
            inputs, classes = asked.x[part], asked.target[part]
            size, clean = inputs.shape[2:], pixels.of(inputs)
            ranks = hottest_first(asked.maps[part], size, seed + at).unflatten(1, size)
            for k, share in enumerate(shares):
                count = int(ranks[0].numel() * share + 1e-6)
                for name in orders:
                    missing = ranks < count if name == "morf" else ranks >= count
                    filled = pixels.input(impute(clean, missing, noise, seed + at + _NOISE), inputs)
                    # The known pixels keep their exact values.
                    probs = ask(torch.where(missing[:, None], filled, inputs))
                    found[name][0, k, part] = of_target(probs, classes)
                    found[name][1, k, part] = (probs.argmax(1) == classes).float()
        per_image = {name: values[0].mean(0) for name, values in found.items()}
        figure: dict[str, list[float]] = {"share": list(shares)}
        for name, values in found.items():
            for what, row in zip(("probability", "accuracy"), values, strict=True):
                figure[f"{name}_{what}"] = [mean_of(of_share[asked.fine]) for of_share in row]
        value = (per_image["lerf"] - per_image["morf"]) / 2 if order == "combined" else per_image[order]
        return asked.scores(value, lambda _: figure)
