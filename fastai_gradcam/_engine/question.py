"""Questions to an output: scores of classes, or of the caller's own function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError
from .._net.nested import map_tensors, tensors
from .scores import class_targets, main_output

__all__ = ["OfClasses", "OfFunction", "Question"]


class Question:
    "A question to an output. Once settled, it asks for the classes and regions of the output that it was settled by."

    def scores(self, output: Any) -> tuple[list[Tensor], Tensor | None]:
        "The scores `(N,)` to differentiate, one per class asked for, and the classes (`None` for a callable)."
        raise NotImplementedError

    def settled(self, output: Any) -> Question:
        "The same question for changed copies of the images that gave `output`."
        raise NotImplementedError

    def of_variants(self, clean: Any, i: int) -> Callable[[Any], Tensor]:
        "From the output for B variants of image `i` to their scores `(K, B)`. `clean`: the output for all images."
        raise NotImplementedError

    def total(self, output: Any, classes: Sequence[int] = ()) -> Tensor:
        "One number that depends on all scores, or on those of `classes`."
        raise NotImplementedError

    def before(self, change: Callable[[Any], Any]) -> Question:
        "The same question, asked of `change(output)`."
        return _Changed(self, change)


@dataclass(frozen=True)
class OfClasses(Question):
    "Classes of a table of scores. `pick(output, table)` names them; `like`: the scores whose regions count."

    read: Callable[..., Tensor]
    pick: Callable[[Any, Tensor], Any]
    dims: int
    like: Tensor | None = None

    def _table(self, output: Any) -> Tensor:
        return self.read(output) if self.like is None else self.read(output, self.like)

    def scores(self, output: Any) -> tuple[list[Tensor], Tensor | None]:
        table = self._table(output)
        classes = class_targets(self.pick(output, table), table)
        each = classes if classes.ndim == 2 else classes[:, None]
        return [table.gather(1, each[:, k : k + 1])[:, 0] for k in range(each.shape[1])], classes

    def settled(self, output: Any) -> Question:
        if self.like is not None:
            return self
        _, classes = self.scores(output)
        return replace(self, pick=lambda *_: classes, like=main_output(output, self.dims).detach())

    def of_variants(self, clean: Any, i: int) -> Callable[[Any], Tensor]:
        table = self._table(clean)
        classes = class_targets(self.pick(clean, table), table)
        like = None if self.like is None else self.like[i : i + 1]
        return lambda output: self.read(output, like)[:, classes[i].reshape(-1)].T

    def total(self, output: Any, classes: Sequence[int] = ()) -> Tensor:
        table = self._table(output)
        table = table[:, list(classes)] if classes else table
        # Each class counts differently: their plain sum may be the same for every image (a softmax).
        weights = torch.rand(table.shape[1], generator=torch.Generator().manual_seed(0)) + 0.5
        return (table * weights.to(table)).sum()


@dataclass(frozen=True)
class OfFunction(Question):
    "The caller's own function of the output for `n` images."

    function: Callable[[Any], Tensor]
    n: int
    is_settled: bool = False

    def scores(self, output: Any) -> tuple[list[Tensor], Tensor | None]:
        score = self.function(output)
        if not isinstance(score, Tensor) or score.shape not in ((self.n,), (self.n, 1)):
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise GradCAMError(f"The target callable must return one score per image, shape ({self.n},), got {got}.")
        return [score.reshape(self.n)], None

    def settled(self, output: Any) -> Question:
        settle = getattr(self.function, "settled", None)
        if self.is_settled or not callable(settle):
            return self
        return OfFunction(settle(output), self.n, True)

    def of_variants(self, clean: Any, i: int) -> Callable[[Any], Tensor]:
        def score(output: Any) -> Tensor:
            # It may hold something for each image of the batch: each variant is put in its image's place.
            count = next((len(t) for t in tensors(output, floating=False) if t.ndim), 0)
            if not count:
                raise GradCAMTypeError(
                    f"A method without gradients needs tensors in the output, got {type(output).__name__}."
                )
            placed = (map_tensors(lambda c, v, b=b: _placed(c, v[b], i, self.n), clean, output) for b in range(count))
            return torch.stack([self.scores(p)[0][0][i] for p in placed])[None]

        return score

    def total(self, output: Any, classes: Sequence[int] = ()) -> Tensor:
        return self.scores(output)[0][0].sum()


def _placed(clean: Tensor, one: Tensor, i: int, n: int) -> Tensor:
    if clean.ndim == 0 or len(clean) != n:
        return clean
    return torch.cat([clean[:i], one[None].to(clean.dtype), clean[i + 1 :]])


@dataclass(frozen=True)
class _Changed(Question):
    asked: Question
    change: Callable[[Any], Any]

    def scores(self, output: Any) -> tuple[list[Tensor], Tensor | None]:
        return self.asked.scores(self.change(output))

    def settled(self, output: Any) -> Question:
        return _Changed(self.asked.settled(self.change(output)), self.change)

    def of_variants(self, clean: Any, i: int) -> Callable[[Any], Tensor]:
        scores = self.asked.of_variants(self.change(clean), i)
        return lambda output: scores(self.change(output))

    def total(self, output: Any, classes: Sequence[int] = ()) -> Tensor:
        return self.asked.total(self.change(output), classes)
