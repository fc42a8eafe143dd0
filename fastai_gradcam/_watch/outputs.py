"""Where in a model's output the scores of each target stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError
from .head import CATEGORY, REGRESSION, Head
from .losses import weights
from .nested import mapped, tensors

__all__ = ["Spot", "find", "made_up"]

_ADVICE = "pass target= a callable that takes the output and returns one score per image"


@dataclass(frozen=True)
class Spot:
    "The `part`-th tensor of an output, whole or some of its columns."

    part: int
    columns: slice | None = None

    def of(self, output: Any) -> Tensor:
        scores = tensors(output)[self.part]
        scores = scores.as_subclass(Tensor) if type(scores) is not Tensor else scores
        return scores if self.columns is None else scores[:, self.columns]

    def put(self, output: Any, scores: Tensor) -> Any:
        "`output` for as many images as `scores` has, with `scores` in this place and zeros in all others."
        count = iter(range(len(tensors(output))))

        def replace(t: Tensor) -> Tensor:
            if next(count) != self.part:
                return t.new_zeros(len(scores), *t.shape[1:]) if t.ndim else t
            if self.columns is None:
                return scores.reshape(len(scores), *t.shape[1:])
            zeros = t.new_zeros(len(scores), t.shape[1]).to(scores.dtype)
            before, after = zeros[:, : self.columns.start], zeros[:, self.columns.stop :]
            return torch.cat([before, scores, after], 1)

        return mapped(replace, output)


def made_up(head: Head, n: int) -> Tensor:
    "A target for `n` images, as the loss takes it."
    if head.kind == CATEGORY:
        return torch.zeros(n, dtype=torch.long)
    return torch.zeros(n) if head.width in (None, 1) and head.kind == REGRESSION else torch.zeros(n, head.width or 1)


def find(output: Any, heads: Sequence[Head], loss: Any) -> list[Spot]:
    """The place of each head's scores, found by its number of classes and by what the loss depends on.

    Raises `GradCAMTypeError` for an output without tensors, and `GradCAMError` where the places are not certain.
    """
    parts = [i for i, t in enumerate(tensors(output)) if t.is_floating_point() and t.ndim]
    if not parts:
        raise GradCAMTypeError(f"The model's output is a {type(output).__name__}, not a tensor; {_ADVICE}.")
    if len(heads) == 1:
        return [Spot(_single(output, parts, heads[0], loss))]
    if len(parts) == 1:
        return _columns(tensors(output)[parts[0]], parts[0], heads)
    return _one_each(output, parts, heads)


def _fits(scores: Tensor, head: Head) -> bool:
    if head.width is None:
        return scores.ndim <= 2
    if scores.ndim == 1 or scores.shape[1] == 1:
        return head.width <= (1 if head.kind == REGRESSION else 2)
    return scores.shape[1] == head.width and scores.ndim != 3


def _single(output: Any, parts: list[int], head: Head, loss: Any) -> int:
    known = tensors(output)
    if len(parts) == 1:
        return parts[0]
    fitting = [i for i in parts if _fits(known[i], head)]
    if isinstance(output, Mapping):
        for key in ("logits", "out"):
            named = output.get(key)
            if isinstance(named, Tensor):
                at = next(i for i, t in enumerate(known) if t is named)
                if head.width is None or at in fitting:
                    return at
    if len(fitting) == 1:
        return fitting[0]
    # Several: the one that the loss depends on most, an auxiliary one having a smaller weight.
    count = len(known[parts[0]])
    found = weights(loss, output, [made_up(head, count)], [known[i] for i in fitting or parts])
    ranked = sorted(zip(found, fitting or parts, strict=False), reverse=True)
    if ranked and ranked[0][0] > 0 and (len(ranked) == 1 or ranked[0][0] > 1.1 * ranked[1][0]):
        return ranked[0][1]
    raise GradCAMError(
        f"The model gives {_shapes([known[i] for i in parts])}, and which of these holds the "
        f"{'classes' if head.width is None else f'{head.width} classes'} is not certain: {_ADVICE}, such as "
        "lambda output: output[0][:, 1]."
    )


def _columns(scores: Tensor, part: int, heads: Sequence[Head]) -> list[Spot]:
    "Neighbouring columns of one tensor, in the order of the targets."
    widths = [h.width for h in heads]
    if scores.ndim == 2 and widths.count(None) == 1:
        rest = scores.shape[1] - sum(w for w in widths if w is not None)
        widths = [rest if w is None else w for w in widths]
    if (
        scores.ndim != 2
        or None in widths
        or sum(w or 0 for w in widths) != scores.shape[1]
        or min(w or 0 for w in widths) < 1
    ):
        raise _uncertain([scores], heads)
    spots, start = [], 0
    for width in widths:
        spots.append(Spot(part, slice(start, start + (width or 0))))
        start += width or 0
    return spots


def _one_each(output: Any, parts: list[int], heads: Sequence[Head]) -> list[Spot]:
    "A tensor for each target: in their order if they fit so, else in the one order in which they do."
    known = tensors(output)
    if len(parts) < len(heads) or len(parts) > 8:
        raise _uncertain([known[i] for i in parts], heads)

    def all_fit(order: Sequence[int]) -> bool:
        return all(_fits(known[i], h) for i, h in zip(order, heads, strict=True))

    if len(parts) == len(heads) and all_fit(parts):
        return [Spot(i) for i in parts]
    orders = [o for o in permutations(parts, len(heads)) if all_fit(o)]
    if len(orders) != 1:
        raise _uncertain([known[i] for i in parts], heads)
    return [Spot(i) for i in orders[0]]


def _uncertain(parts: Sequence[Tensor], heads: Sequence[Head]) -> GradCAMError:
    expected = " and ".join(f"{h.width} classes" if h.kind != REGRESSION else "numbers" for h in heads)
    return GradCAMError(
        f"The learner has {len(heads)} targets ({expected}), and which part of the model's output, {_shapes(parts)}, "
        f"belongs to which is not certain: {_ADVICE}, such as lambda output: output[:, 0]."
    )


def _shapes(parts: Sequence[Tensor]) -> str:
    return " and ".join(str(tuple(t.shape)) for t in parts)
