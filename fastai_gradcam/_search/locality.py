"""Telling layouts apart by trying out: a cell of a map responds most to its own part of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._net.inputs import Inputs
from .._net.nested import tensors
from .space import Reshape

__all__ = ["IS_LOCAL", "best_of", "localities"]

# Locality is 1 if only the cells over the changed corner respond, and 0 if they respond no more than others.
IS_LOCAL = 0.6
# Readings this close are equally good: the likelier one by its shape is taken.
_MARGIN = 0.1
# In logarithms of responses: below the first all cells respond alike, and a spread below the second is chance.
_ALIKE, _CHANCE = 0.05, 0.8
_FLOOR = 1e-3


def best_of(localities: list[float]) -> int:
    "The most local reading; among close ones the first, which is the likeliest by its shape."
    top = max(localities)
    return next(i for i, a in enumerate(localities) if a >= top - _MARGIN * abs(top))


def localities(
    net: nn.Module, inputs: Inputs, readings: Mapping[tuple[str, int], Sequence[Reshape]]
) -> dict[tuple[str, int], list[float]]:
    """How locally a module's output (its name and which of its tensors) responds to the image, for each reading of it.

    Four corners of the first image are changed, one at a time. If a reading is right, a cell's response to one rather
    than another is highest in the one corner and lowest in the other. It is the same everywhere if a reading
    is wrong or if there is no space: in channels, in class tokens, in the answers to learned queries. Outputs that do
    not respond are left out. Costs one forward pass of five images without gradients.
    """
    found: dict[tuple[str, int], list[float]] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for entry, tensor in enumerate(tensors(output)):
                if (name, entry) in readings and len(tensor) == 5:
                    answers = [_locality(read(tensor)) for read in readings[name, entry]]
                    if any(map(math.isfinite, answers)):
                        found[name, entry] = [a if math.isfinite(a) else -1.0 for a in answers]

        return hook

    names = {name for name, _ in readings}
    handles = [m.register_forward_hook(listen(name)) for name, m in net.named_modules() if name in names]
    try:
        with torch.no_grad():
            inputs.repeated(0, 5).with_x(_with_changed_corners(inputs.x)).run(net)
    except Exception:
        # The network does not take five images: its shapes have to do.
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


def _with_changed_corners(x: Tensor) -> Tensor:
    "The first image, and four copies of it with one corner changed in each."
    changed = x[:1].repeat(5, *[1] * (x.ndim - 1))
    for one, corner in zip(changed[1:], _corners(x.shape[2:]), strict=True):
        part = one[(slice(None), *corner)]
        if part.is_floating_point():
            noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(0))
            part += (x[:1].float().std().nan_to_num() or 1) * noise.to(part.device)
        else:
            part.copy_(x[:1].amax() - part)
    return changed


def _corners(space: Sequence[int]) -> list[tuple[slice, ...]]:
    "Two pairs of opposite corners, an eighth of each dimension wide."
    wide = [max(1, round(s / 8)) for s in space]
    low, high = [slice(w) for w in wide], [slice(s - w, s) for s, w in zip(space, wide, strict=True)]
    return [(low[0], *high[1:]), (high[0], *low[1:]), tuple(low), tuple(high)]


def _locality(A: Tensor) -> float:
    "From `(5, C, *space)` of an image and its changed copies. NaN if no cell, or every cell, responds."
    response = (A[1:].double() - A[:1].double()).flatten(2).norm(dim=1)
    most = response.amax(1, keepdim=True)
    if not bool((most > 0).all()) or not bool(most.isfinite().all()):
        return math.nan
    logs = (response / most + _FLOOR).log().unflatten(1, A.shape[2:])
    corners = _corners(A.shape[2:])
    opposite = [_of_pair(logs[i] - logs[j], corners[i], corners[j]) for i, j in ((0, 1), (2, 3))]
    if A.ndim == 3:
        return sum(opposite) / 2
    # Rows of the image, one after the other, respond to corners at the same height alike.
    level = [_of_pair(logs[i] - logs[j], corners[i], corners[j]) for i, j in ((0, 2), (1, 3))]
    return (sum(opposite) + sum(0 if math.isnan(one) else one for one in level)) / 4


def _of_pair(rather: Tensor, one: tuple[slice, ...], other: tuple[slice, ...]) -> float:
    here, there = rather[one], rather[other]
    ordered = rather.flatten().sort().values
    scale = ordered[-here.numel() :].mean() - ordered[: here.numel()].mean()
    # Attention that has learned nothing yet is an average.
    return math.nan if scale < _ALIKE else float((here.mean() - there.mean()) / scale.clamp(min=_CHANCE))
