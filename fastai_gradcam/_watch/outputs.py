"""Where in a model's output the scores of each target stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError
from .._net.nested import named
from .head import CATEGORY, REGRESSION, Head
from .losses import moved, weights
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
    known = tensors(output)
    ys = [made_up(head, len(known[parts[0]])) for head in heads]
    moves = [moved(loss, output, ys, at, [known[i] for i in parts]) for at in range(len(heads))]
    if not all(any(bool(m.any()) for m in each) for each in moves):
        moves = []  # the loss cannot be asked
    if len(parts) == 1:
        return _columns(known[parts[0]], parts[0], heads, [each[0] for each in moves])
    return _one_each(known, parts, heads, moves)


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
    for value in (named(output, "logits"), named(output, "out")):
        at = next((i for i, t in enumerate(known) if t is value), None)
        if at is not None and (head.width is None or at in fitting):
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


def _columns(scores: Tensor, part: int, heads: Sequence[Head], moves: list[Tensor]) -> list[Spot]:
    "Neighbouring columns of one tensor, in the order in which the loss reads them, or else in that of the targets."
    widths = [h.width for h in heads]
    if scores.ndim == 2 and widths.count(None) == 1:
        rest = scores.shape[1] - sum(w for w in widths if w is not None)
        widths = [rest if w is None else w for w in widths]
    known = [w for w in widths if w is not None]
    if scores.ndim != 2 or None in widths or sum(known) != scores.shape[1] or min(known) < 1:
        raise _uncertain([scores], heads)
    by_column = [m.sum(0) for m in moves]
    middles = [float((m * torch.arange(len(m))).sum() / m.sum()) for m in by_column] or [0.0] * len(heads)
    spots, start = {}, 0
    for i in sorted(range(len(heads)), key=middles.__getitem__):
        spots[i] = Spot(part, slice(start, start + known[i]))
        start += known[i]
    if any(2 * m[spots[i].columns].sum() < m.sum() for i, m in enumerate(by_column)):
        raise _uncertain([scores], heads)
    return [spots[i] for i in range(len(heads))]


def _one_each(known: list[Tensor], parts: list[int], heads: Sequence[Head], moves: list[list[Tensor]]) -> list[Spot]:
    "A tensor for each target: the one that the loss reads with it, else in their order, or the one order that fits."

    def all_fit(order: Sequence[int]) -> bool:
        return all(_fits(known[i], h) for i, h in zip(order, heads, strict=True))

    few = len(heads) <= len(parts) <= 8
    orders = [o for o in permutations(parts, len(heads)) if all_fit(o)] if few and not moves else []
    read = tuple(max(zip(each, parts, strict=True), key=lambda pair: float(pair[0].norm()))[1] for each in moves)
    if moves and len(set(read)) == len(heads) and all_fit(read):
        orders = [read]
    if len(orders) == 1 or (orders and list(orders[0]) == parts):
        return [Spot(i) for i in orders[0]]
    raise _uncertain([known[i] for i in parts], heads)


def _uncertain(parts: Sequence[Tensor], heads: Sequence[Head]) -> GradCAMError:
    expected = " and ".join(f"{h.width} classes" if h.kind != REGRESSION else "numbers" for h in heads)
    return GradCAMError(
        f"The learner has {len(heads)} targets ({expected}), and which part of the model's output, {_shapes(parts)}, "
        f"belongs to which is not certain: {_ADVICE}, such as lambda output: output[:, 0]."
    )


def _shapes(parts: Sequence[Tensor]) -> str:
    return " and ".join(str(tuple(t.shape)) for t in parts)
