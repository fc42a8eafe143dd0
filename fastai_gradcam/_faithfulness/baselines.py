"""Maps that know nothing of the model: what a metric says of these is the scale for what it says of a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import GradCAMError, one_of
from .common import given

__all__ = ["baseline", "baselines"]

baselines: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {}


def baseline(name: str, x: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """The maps of a baseline for the images `x` `(N, C, *space)`, float32 with the shape of `maps` `(N, *space)`.

    At the resolution of the maps that they stand beside, so that both are equally smooth:

    - `"random"`: uniform noise, fixed by `seed`.
    - `"centre"`: a Gaussian blob in the middle, σ a quarter of each side.
    - `"edges"`: the mean size of the image's gradient (Sobel, mean of the channels) in each cell.
    - `"another"`: the map of the next image; NaN where there is only one.
    - `"ones"`: a constant map.

    Raises `GradCAMError` for another name.

    >>> import torch
    >>> from fastai_gradcam.faithfulness import baseline
    >>> baseline("ones", torch.rand(1, 3, 8, 8), torch.rand(1, 2, 2)).tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """
    if name not in baselines:
        raise GradCAMError(one_of("baseline", name, list(baselines)))
    given(x, maps, None)
    return baselines[name](x.detach().float(), maps.detach().float(), seed)


def _register(
    name: str,
) -> Callable[[Callable[[Tensor, Tensor, int], Tensor]], Callable[[Tensor, Tensor, int], Tensor]]:
    def add(make: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
        baselines[name] = make
        return make

    return add


@_register("random")
def _random(x: Tensor, maps: Tensor, seed: int) -> Tensor:
    drawn = [torch.rand(maps.shape[1:], generator=torch.Generator().manual_seed(seed + i)) for i in range(len(maps))]
    return torch.stack(drawn).to(maps.device)


@_register("centre")
def _centre(x: Tensor, maps: Tensor, seed: int) -> Tensor:
    blob = torch.ones(maps.shape[1:], device=maps.device)
    for d, cells in enumerate(maps.shape[1:]):
        place = (torch.arange(cells, device=maps.device) + 0.5) / cells - 0.5
        blob = blob * torch.exp(-((place / 0.25) ** 2) / 2).view(-1, *[1] * (maps.ndim - 2 - d))
    return blob.expand_as(maps).clone()


@_register("edges")
def _edges(x: Tensor, maps: Tensor, seed: int) -> Tensor:
    grey = x.mean(1, keepdim=True)
    space = x.ndim - 2
    conv = (F.conv1d, F.conv2d, F.conv3d)[space - 1]
    pools: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    grey = F.pad(grey, (1, 1) * space, mode="replicate")
    squares = []
    for d in range(space):
        kernel = torch.ones([1] * space, device=x.device)
        for other in range(space):
            weights = torch.tensor([-1.0, 0, 1] if other == d else [1.0, 2, 1], device=x.device)
            kernel = kernel * weights.view([3 if k == other else 1 for k in range(space)])
        squares.append(conv(grey, kernel[None, None]) ** 2)
    return pools[space - 1](torch.stack(squares).sum(0).sqrt(), tuple(maps.shape[1:]))[:, 0]


@_register("another")
def _another(x: Tensor, maps: Tensor, seed: int) -> Tensor:
    return maps.roll(1, 0) if len(maps) > 1 else torch.full_like(maps, torch.nan)


@_register("ones")
def _ones(x: Tensor, maps: Tensor, seed: int) -> Tensor:
    return torch.ones_like(maps)
