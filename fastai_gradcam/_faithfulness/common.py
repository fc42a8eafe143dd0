"""Shared by the metrics: checked arguments, probabilities, pixel space, order of pixels, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._engine.scores import class_scores, main_output
from .._errors import GradCAMError, GradCAMTypeError
from .._net.guard import undisturbed
from .._net.layers import unwrap
from .._net.shadow import shadow

__all__ = ["Given", "Metric", "Pixels", "Scores", "asking", "given", "hottest_first", "metrics", "register", "resized"]

Probability = Callable[[Any], Tensor]
Classes = Tensor | Sequence[int] | int | None


class Scores(Tensor):
    """A value per image, float32 `(N,)`, NaN where there is no answer; `figure` is what the metric's paper reports.

    Arithmetic with it gives plain tensors.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import average_drop
    >>> scores = average_drop(model, x, maps, target)
    >>> type(scores).__name__, 0 <= scores.figure <= 100  # per cent, as the paper reports it
    ('Scores', True)
    """

    figure: Any

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @staticmethod
    def of(values: Tensor, figure: Any) -> Scores:
        scores = values.detach().float().as_subclass(Scores)
        scores.figure = figure
        return scores


@dataclass(frozen=True)
class Metric:
    """A metric in the registry. `better`: 1 where higher is better, -1 where lower is.

    `masks`: it needs masks of the objects. `explains`: it makes maps of its own, by `explain=`.
    """

    name: str
    function: Callable[..., Scores]
    better: int
    masks: bool = False
    explains: bool = False


metrics: dict[str, Metric] = {}


def register(better: int, **how: bool) -> Callable[[Callable[..., Scores]], Callable[..., Scores]]:
    "Decorator: make a function `(model, x, maps, target, …)` known by its name."

    def add(function: Callable[..., Scores]) -> Callable[..., Scores]:
        metrics[function.__name__] = Metric(function.__name__, function, better, **how)
        return function

    return add


# --- arguments


@dataclass(frozen=True)
class Given:
    "Checked arguments: `maps` has zeros where a map is not finite, `fine` `(N,)` says which maps are."

    x: Tensor
    maps: Tensor
    target: Tensor
    fine: Tensor

    def scores(self, values: Tensor, figure: Callable[[Tensor], Any]) -> Scores:
        "`values`, NaN where the map is not finite; `figure` is computed from those that are a number."
        values = torch.where(self.fine, values.float(), torch.nan)
        return Scores.of(values, figure(values[values.isfinite()]))


def given(x: Tensor, maps: Tensor, target: Classes, ask: Callable[[Tensor], Tensor] | None = None) -> Given:
    "Raises `GradCAMError` for arguments that do not belong together. `ask` answers a target of `None`."
    for name, value in (("x", x), ("maps", maps)):
        if not isinstance(value, Tensor):
            raise GradCAMTypeError(f"{name} must be a tensor, got {type(value).__name__}.")
    if x.ndim < 3 or len(x) == 0:
        raise GradCAMError(f"x must be a batch (N, C, *space) with N ≥ 1, got shape {tuple(x.shape)}.")
    if len(maps) != len(x) or maps.ndim != x.ndim - 1:
        raise GradCAMError(
            f"maps must be (N, *space), one map per image of x {tuple(x.shape)}, got shape {tuple(maps.shape)}."
        )
    x = x.detach().as_subclass(Tensor)
    maps = maps.detach().as_subclass(Tensor).to(x.device).float()
    fine = maps.flatten(1).isfinite().all(1)
    maps = torch.where(fine.view(-1, *[1] * (maps.ndim - 1)), maps, 0)
    if target is None:
        classes = torch.zeros(len(x), dtype=torch.long) if ask is None else ask(x).argmax(1)
    else:
        classes = torch.as_tensor(target)
    whole = not classes.is_floating_point() and classes.dtype != torch.bool
    if not whole or classes.ndim > 1 or (classes.ndim == 1 and len(classes) != len(x)):
        raise GradCAMError(f"target must hold one class per image, a LongTensor ({len(x)},), got {target!r:.200}.")
    return Given(x, maps, classes.long().to(x.device).expand(len(x)), fine)


@contextmanager
def asking(
    model: nn.Module, batch: int = 64, probability: Probability | None = None
) -> Iterator[Callable[[Tensor], Tensor]]:
    "Gives `ask(x)`, the class probabilities `(N, C)` of a copy of the model in evaluation mode, in batches."
    if not isinstance(model, nn.Module):
        raise GradCAMTypeError(f"model must be an nn.Module, got {type(model).__name__}.")
    if batch < 1:
        raise GradCAMError(f"batch must be at least 1, got {batch!r}.")
    read = probability or probabilities
    with torch.inference_mode(False), torch.no_grad(), undisturbed():
        net = shadow(unwrap(model))
        yield lambda x: torch.cat([read(net(part.clone())).float() for part in x.split(batch)])


def probabilities(output: Any) -> Tensor:
    """`(N, C)`: the softmax of the class scores; of a single score s, `(1 - sigmoid(s), sigmoid(s))`.

    Rows that are not negative and sum to 1 are probabilities already: the network ends in a softmax.
    """
    output = main_output(output)
    if output.numel() == len(output):
        one = output.reshape(-1, 1).float().sigmoid()
        return torch.cat([1 - one, one], 1)
    scores = class_scores(output).float()
    ended = bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all())
    return scores if ended else scores.softmax(1)


def of_target(probs: Tensor, target: Tensor) -> Tensor:
    "Raises `GradCAMError` for a class that does not exist."
    if int(target.min()) < 0 or int(target.max()) >= probs.shape[1]:
        raise GradCAMError(f"target has a class outside of the model's {probs.shape[1]}: {target.tolist()!s:.200}.")
    return probs.gather(1, target[:, None])[:, 0]


# --- pixels


class Pixels:
    "Between what the model takes and pixel space 0…1: x = (pixels - mean) / std, per channel."

    def __init__(self, x: Tensor, mean: Any, std: Any) -> None:
        self._mean, self._std = (self._per_channel(v, x, d) for v, d in ((mean, 0.0), (std, 1.0)))
        if bool((self._std == 0).any()):
            raise GradCAMError(f"std must not be 0, got {std!r}.")

    @staticmethod
    def _per_channel(value: Any, x: Tensor, default: float) -> Tensor:
        values = torch.as_tensor(default if value is None else value, dtype=torch.float32, device=x.device).flatten()
        if len(values) not in (1, x.shape[1]):
            raise GradCAMError(
                f"mean and std need one number, or one for each of {x.shape[1]} channels, got {value!r}."
            )
        return values.view(1, -1, *[1] * (x.ndim - 2))

    def of(self, x: Tensor) -> Tensor:
        return x * self._std + self._mean

    def input(self, pixels: Tensor, like: Tensor) -> Tensor:
        return ((pixels - self._mean) / self._std).to(like.dtype)


_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    "`maps` `(N, *space)` at another resolution, bilinear (linear, trilinear), corners not aligned."
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    if len(size) not in _MODES:
        raise GradCAMError(f"Maps have 1 to 3 dimensions of space, got {len(size)}.")
    return F.interpolate(maps[:, None], size=tuple(size), mode=_MODES[len(size)], align_corners=False)[:, 0]


def hottest_first(maps: Tensor, size: Sequence[int], seed: int) -> Tensor:
    """The rank `(N, pixels)` of each pixel of `size`, 0 for the hottest; pixels that are equal are in random order.

    The order of image i depends on `seed` + i alone. Values are compared as they are: nothing is added to them.
    """
    flat = resized(maps, size).flatten(1)
    ranks = torch.empty_like(flat, dtype=torch.long)
    for i, values in enumerate(flat):
        shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed + i)).to(values.device)
        order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
        ranks[i, order] = torch.arange(len(values), device=values.device)
    return ranks


def scaled(maps: Tensor) -> Tensor:
    "`maps` without what is negative, divided by each one's maximum; an empty map stays empty."
    maps = maps.clamp(min=0)
    top = maps.flatten(1).amax(1).view(-1, *[1] * (maps.ndim - 1))
    return torch.where(top > 0, maps / torch.where(top > 0, top, 1), 0)


def mean_of(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else float("nan")
