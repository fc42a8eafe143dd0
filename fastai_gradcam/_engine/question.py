"""Questions to an output: scores of classes, or of the caller's own function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError
from .._net.nested import map_tensors, tensors
from .scores import class_targets, main_output

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["OfClasses", "OfFunction", "Question"]


def _as_it_is(output: Any) -> Any:
    return output


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question to `change(output)`. Once settled, it asks for the classes and regions of the output that settled it.

    `scores(output)`: the scores `(N,)` to differentiate, one per class asked for, and the classes (`None` for a
    callable). `settled(output)`: the same question for changed copies of the images that gave `output`.
    `of_variants(clean, i)`: from the output for B variants of image `i` to their scores `(K, B)`; `clean`: the output
    for all images. `total(output, classes)`: one number that depends on all scores, or on those of `classes`.
    """

    change: Callable[[Any], Any] = _as_it_is

    def before(self, change: Callable[[Any], Any]) -> Self:
        "The same question, asked of `change(output)`."
        own = self.change
        return replace(self, change=lambda output: own(change(output)))


@dataclass(frozen=True, kw_only=True)
class OfClasses(_Asked):
    "Classes of a table of scores. `pick(output, table)` names them; `like`: the scores whose regions count."

    read: Callable[..., Tensor]
    pick: Callable[[Any, Tensor], Any]
    dims: int
    like: Tensor | None = None

    def _read(self, output: Any) -> tuple[Tensor, Tensor]:
        "The table and the classes asked for."
        table = self._table(output)
        return table, class_targets(self.pick(self.change(output), table), table)

    def _table(self, output: Any) -> Tensor:
        return self.read(self.change(output), *([] if self.like is None else [self.like]))

    def scores(self, output: Any) -> tuple[list[Tensor], Tensor | None]:
        table, classes = self._read(output)
        each = classes if classes.ndim == 2 else classes[:, None]
        return [table.gather(1, each[:, k : k + 1])[:, 0] for k in range(each.shape[1])], classes

    def settled(self, output: Any) -> OfClasses:
        if self.like is not None:
            return self
        _, classes = self._read(output)
        like = main_output(self.change(output), self.dims).detach()
        return replace(self, pick=lambda *_: classes, like=like)

    def of_variants(self, clean: Any, i: int) -> Callable[[Any], Tensor]:
        _, classes = self._read(clean)
        like = None if self.like is None else self.like[i : i + 1]
        return lambda output: self.read(self.change(output), like)[:, classes[i].reshape(-1)].T

    def total(self, output: Any, classes: Sequence[int] = ()) -> Tensor:
        table = self._table(output)
        table = table[:, list(classes)] if classes else table
        # Each class counts differently: their plain sum may be the same for every image (a softmax).
        weights = torch.rand(table.shape[1], generator=torch.Generator().manual_seed(0)) + 0.5
        return (table * weights.to(table)).sum()


@dataclass(frozen=True, kw_only=True)
class OfFunction(_Asked):
    "The caller's own function of the output for `n` images."

    function: Callable[[Any], Tensor]
    n: int
    is_settled: bool = False

    def scores(self, output: Any) -> tuple[list[Tensor], Tensor | None]:
        return [self._score(self.change(output))], None

    def _score(self, output: Any) -> Tensor:
        score = self.function(output)
        if not isinstance(score, Tensor) or score.shape not in ((self.n,), (self.n, 1)):
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise GradCAMError(f"The target callable must return one score per image, shape ({self.n},), got {got}.")
        return score.reshape(self.n)

    def settled(self, output: Any) -> OfFunction:
        settle = getattr(self.function, "settled", None)
        if self.is_settled or not callable(settle):
            return self
        return replace(self, function=settle(self.change(output)), is_settled=True)

    def of_variants(self, clean: Any, i: int) -> Callable[[Any], Tensor]:
        clean = self.change(clean)

        def score(output: Any) -> Tensor:
            output = self.change(output)
            # It may hold something for each image of the batch: each variant is put in its image's place.
            count = next((len(t) for t in tensors(output, floating=False) if t.ndim), 0)
            if not count:
                raise GradCAMTypeError(
                    f"A method without gradients needs tensors in the output, got {type(output).__name__}."
                )
            placed = (map_tensors(lambda c, v, b=b: _placed(c, v[b], i, self.n), clean, output) for b in range(count))
            return torch.stack([self._score(p)[i] for p in placed])[None]

        return score

    def total(self, output: Any, classes: Sequence[int] = ()) -> Tensor:
        return self._score(self.change(output)).sum()


Question = OfClasses | OfFunction


def _placed(clean: Tensor, one: Tensor, i: int, n: int) -> Tensor:
    if clean.ndim == 0 or len(clean) != n:
        return clean
    return torch.cat([clean[:i], one[None].to(clean.dtype), clean[i + 1 :]])
