"""One target of a training, such as a category: how its scores are read, and its answers named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import GradCAMError, spelled
from ..targets import class_scores, predicted, regions
from .asked import class_index
from .decoding import Decodes, class_of, labels_of
from .losses import IDENTITY, LOG, SIGMOID, SOFTMAX, activated

__all__ = ["CATEGORY", "LABELS", "REGRESSION", "Answer", "Head"]

CATEGORY, LABELS, REGRESSION = "category", "labels", "regression"


@dataclass(frozen=True)
class Answer:
    """The model's answer for one image, in words.

    `pred_prob`: 0…1, `None` where it is not known; of several predicted labels that of the least sure one, of a region
    its mean. `correct`: `None` where there is no one right answer, or it is not known.
    """

    pred: str | None
    pred_prob: float | None
    correct: bool | None


@dataclass(frozen=True)
class Head:
    """One target: its `kind`, its classes as they stand in the vocabulary, and how the loss reads its scores.

    `activation`: a constant of `losses`, a callable, or `None` where it is not known. `decodes`: the loss's own, from
    probabilities to classes. `numbers`: of a regression, how many there are, where that is known.
    """

    kind: str
    vocab: list[Any] | None = None
    activation: str | Callable[[Tensor], Tensor] | None = None
    decodes: Decodes | None = None
    numbers: int | None = None

    def __post_init__(self) -> None:
        if self.vocab is not None:
            object.__setattr__(self, "vocab", [spelled(v) if isinstance(v, str) else v for v in self.vocab])

    @property
    def width(self) -> int | None:
        "How many columns of an output it has, where that is known."
        return self.numbers if self.kind == REGRESSION else len(self.vocab) if self.vocab else None

    @property
    def single(self) -> bool:
        "Whether a lone score is a label that is there or not."
        sigmoid = self.kind == LABELS or self.activation in (SIGMOID, IDENTITY)
        return bool(self.vocab) and len(self.vocab or ()) == 1 and sigmoid

    @property
    def names(self) -> list[str] | None:
        if self.vocab is None:
            return None
        words = [str(v) for v in self.vocab]
        return [f"not {words[0]}", words[0]] if self.single else words

    def named(self, index: int) -> str:
        "The name of a class, or its index where it has none."
        return self.names[index] if self.names and index < len(self.names) else str(index)

    # --- scores

    def table(self, scores: Tensor, undone: bool = False, like: Tensor | None = None) -> Tensor:
        """One score per image and class `(N, C)`, logits if there are any; for n numbers, those and their negatives.

        `undone`: they are those before the activation that the network ends in. `like`: scores whose regions count.
        """
        if self.kind == REGRESSION:
            if scores.ndim not in (1, 2):
                raise GradCAMError(
                    f"The model's output has shape {tuple(scores.shape)}, not a number or a few for each image: pass "
                    "target= a callable that takes this output and returns one score per image."
                )
            flat = scores.reshape(len(scores), -1)
            return torch.cat([flat, -flat], 1)
        logits = scores if undone else self._logits(scores)
        if logits.ndim == 2 and logits.shape[1] == 1 and self.vocab and len(self.vocab) == 1 and not self.single:
            return logits
        return class_scores(logits, like)

    def _logits(self, scores: Tensor) -> Tensor:
        "Probabilities as the logits they are made from, so far as they say."
        one_column = _lone(scores)
        if self.activation != IDENTITY:
            return scores
        # A sure probability is 1 to the last digit, and has no gradient left.
        return torch.logit(scores, 1e-6) if self.kind == LABELS or one_column else scores.clamp_min(1e-12).log()

    def probabilities(self, scores: Tensor, ending: str | None, undone: bool = False) -> Tensor | None:
        """`(N, C)`, in a segmentation the mean over each class's region; `None` where they are not known.

        `ending`: the activation that the network itself ends in; `undone`: the scores are those before it.
        """
        if self.kind == REGRESSION or scores.ndim in (0, 3):
            return None
        scores = scores.float()
        if scores.ndim > 2 and scores[0, 0].numel() == 1:
            scores = scores.flatten(1)
        one_column = _lone(scores)
        if one_column and self.vocab and len(self.vocab) == 1 and not self.single:
            return torch.ones(len(scores), 1)
        if one_column:
            scores = scores.reshape(len(scores), 1, *scores.shape[2:])
        how = self.activation
        if ending is not None:
            how = ending if undone else {SIGMOID: IDENTITY, SOFTMAX: IDENTITY, LOG: LOG}[ending]
        probs = activated(scores, how, one_column, self.kind == CATEGORY)
        if probs is None:
            return None
        if one_column:
            probs = torch.cat([1 - probs, probs], 1)
        if probs.ndim == 2:
            return probs
        where = regions(probs)
        return (probs * where).flatten(2).sum(2) / where.flatten(2).sum(2)

    # --- which classes

    def true(self, y: Tensor | None) -> Callable[[Tensor], Tensor]:
        "Each image's own answer among the scores `(N, C)`. Raises `GradCAMError` where `y` has none."
        if self.kind == REGRESSION:
            return lambda scores: scores.new_zeros(len(scores), dtype=torch.long)
        known, classes = self._truth(y)
        if y is None or known is None:
            raise GradCAMError(
                "target='true' needs one category per image, which this panel has not: choose target='pred', a class, "
                "or a callable on the model's output."
            )
        # An image without a label has none to explain: what is predicted is shown.
        return lambda scores: torch.where(
            known.to(scores.device), classes(scores).to(scores.device), self.first(scores)
        )

    def all_true(self, y: Tensor | None) -> Callable[[Tensor], Tensor]:
        "As `true`, but of several labels all, `(N, K)`; the first is repeated in images that have fewer."
        one = self.true(y)
        if self.kind != LABELS or y is None or y.ndim != 2 or y.shape[1] < 2:
            return one
        on = y.gt(0).cpu()
        order, count = on.float().argsort(dim=1, descending=True, stable=True), on.sum(1)

        def pick(scores: Tensor) -> Tensor:
            first = one(scores).cpu()
            each = [torch.where(count > k, order[:, k], first) for k in range(max(1, int(count.max())))]
            return torch.stack(each, 1).to(scores.device)

        return pick

    def _truth(self, y: Tensor | None) -> tuple[Tensor | None, Callable[[Tensor], Tensor]]:
        "For which images the class is known, and the classes."
        if y is None:
            return None, _nothing
        n = len(y)
        if self.kind == LABELS and y.numel() == n:
            return torch.ones(n, dtype=torch.bool), lambda scores: y.reshape(-1).gt(0).long()
        if self.kind == LABELS and y.ndim == 2:
            return y.gt(0).any(1), lambda scores: y.gt(0).float().argmax(1)
        if self.kind == CATEGORY and y.ndim >= 3 and not y.is_floating_point():
            # Pixels marked as none of the classes (255) are left out.
            return torch.ones(n, dtype=torch.bool), lambda scores: _most_common(y, scores.shape[1])
        classes = self.classes(y)
        if classes is None or not bool((classes >= 0).any()):
            return None, _nothing
        return classes >= 0, lambda scores: classes.clamp_min(0)

    def classes(self, y: Tensor) -> Tensor | None:
        "The class of each image, -1 where it is not known; `None` where `y` has no class per image."
        if y.ndim == 2 and y.shape[1] > 1 and y.is_floating_point():
            return torch.where(y.sum(1) > 0, y.argmax(1), -1)  # soft labels
        if y.ndim > 2 or y.numel() != len(y):
            return None
        flat = y.reshape(-1)
        if flat.is_floating_point():
            if bool((flat != flat.round()).logical_and(flat.isfinite()).any()):
                return None
            flat = torch.where(flat.isfinite(), flat, -1)
        flat = flat.long()
        most = None if not self.vocab or self.single else max(2, len(self.vocab))
        return torch.where((flat < 0) | (flat >= (most or 2**31)), -1, flat)

    def first(self, scores: Tensor) -> Tensor:
        "The predicted class, the most probable label, or the first number, from the scores `(N, C)`."
        if self.kind == REGRESSION:
            return scores.new_zeros(len(scores), dtype=torch.long)
        return scores.argmax(1)

    def default(self, scores: Tensor) -> Tensor:
        "The target where none is asked for: the predicted class, each predicted label, the first number."
        if self.kind != LABELS or (scores.shape[1] == 2 and self.single):
            return self.first(scores)
        # As many columns for all images as the one with most labels has; in the others the first is repeated.
        scores = scores.float()
        on = labels_of(self.activation(scores) if callable(self.activation) else scores.sigmoid(), self.decodes)
        order = scores.masked_fill(~on & on.any(1, keepdim=True), -torch.inf).argsort(1, descending=True)
        count = on.sum(1).clamp(min=1)
        return torch.stack([order[:, k].where(count > k, order[:, 0]) for k in range(int(count.max()))], 1)

    def chosen(self, scores: Tensor, ending: str | None, undone: bool = False) -> Tensor | None:
        "The predicted class of each image: of the largest region, or as the loss decodes it; `None` if it does not."
        if scores.ndim > 3 and scores[0, 0].numel() > 1:
            return predicted(scores)
        if self.decodes is None or not (self.kind == CATEGORY or self.single) or scores.ndim > 2:
            return None
        probs = self.probabilities(scores, ending, undone)
        return None if probs is None else class_of(probs, self.decodes, _lone(scores))

    # --- words

    def column(self, index: int, columns: int) -> str:
        "The name of a column of the table, which has so many."
        if self.kind != REGRESSION:
            return self.named(index)
        n = columns // 2
        return "-" * (index >= n) + ("score" if n == 1 else f"score {index % n}")

    def answers(self, scores: Tensor, ending: str | None, y: Tensor | None) -> list[Answer] | None:
        "The answer for each image, held against the targets `y` where given; `None` for an output of boxes, say."
        if self.kind == REGRESSION:
            return [Answer(number(row), None, None) for row in scores.float().cpu()] if scores.ndim in (1, 2) else None
        if scores.ndim in (0, 3):
            return None
        probs = self.probabilities(scores, ending)
        if self.kind == LABELS and scores.ndim == 2 and scores.shape[1] > 1:
            return None if probs is None else self._labelled(probs, y)
        if probs is not None and scores.ndim <= 2:
            pred = class_of(probs, self.decodes, _lone(scores))
        elif _lone(scores):
            return None
        else:
            pred = predicted(scores)
        true = None if y is None else self.classes(y)
        return [
            Answer(
                self.named(c),
                None if probs is None else float(probs[i, c]),
                None if true is None or true[i] < 0 else int(true[i]) == c,
            )
            for i, c in enumerate(pred.tolist())
        ]

    def _labelled(self, probs: Tensor, y: Tensor | None) -> list[Answer]:
        found = []
        for i, (row, on) in enumerate(zip(probs, labels_of(probs, self.decodes), strict=True)):
            chosen = on.nonzero().flatten().tolist()
            correct = bool(y[i].gt(0).cpu().equal(on.cpu())) if y is not None and y.shape[1:] == on.shape else None
            prob = float(row[chosen].min()) if chosen else 1 - float(row.max())
            found.append(Answer(self._listed(chosen), prob, correct))
        return found

    def _listed(self, classes: Sequence[int]) -> str:
        return ", ".join(self.named(c) for c in classes) or "(none)"

    def label(self, y: Tensor) -> str | None:
        "The target `y` of one image in words, `None` where there are none for it (points, a label that is not known)."
        if self.kind == LABELS and y.numel() == 1:
            return self.named(int(y.gt(0))) if bool(y.isfinite()) and float(y) >= 0 else None
        if self.kind == LABELS and y.ndim == 1:
            return self._listed(y.gt(0).nonzero().flatten().tolist())
        if self.kind == REGRESSION:
            return number(y) if y.ndim < 2 else None
        if self.kind == CATEGORY and y.ndim >= 2 and not y.is_floating_point():
            return self.named(int(_most_common(y[None], len(self.vocab)))) if self.vocab else None
        classes = self.classes(y[None])
        return None if classes is None or classes[0] < 0 else self.named(int(classes[0]))

    def index(self, target: Any, columns: int | None = None) -> int:
        "The class that `target` names: a label, or else an index. Raises `GradCAMError` for one that does not exist."
        return class_index(target, self.vocab, self.names, columns)


def _lone(scores: Tensor) -> bool:
    return scores.ndim == 1 or scores.shape[1] == 1


def _nothing(scores: Tensor) -> Tensor:
    return scores.new_zeros(len(scores), dtype=torch.long)


def _most_common(y: Tensor, classes: int) -> Tensor:
    flat = y.flatten(1).long()
    return torch.stack([torch.bincount(row[(row >= 0) & (row < classes)], minlength=classes).argmax() for row in flat])


def number(values: Tensor) -> str:
    return ", ".join(f"{float(v):.4g}" for v in values.reshape(-1))
