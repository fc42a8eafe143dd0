"""What a learner is asked, as its data and loss say: how targets are spelled, scores read, and answers named.

| task | output | targets | default | "true" |
|---|---|---|---|---|
| `category` | `(N, C)` | labels, indices | the predicted class | the image's class |
| `category`, one logit | `(N, 1)`, `(N,)` | both classes | the predicted one | the image's class |
| `category`, with space | `(N, C, *space)` | labels, indices | the largest predicted region | the class with the largest region in the mask |
| `labels` | `(N, C)` | labels, indices | each predicted label | the first of the image's labels |
| `regression` | `(N,)`, `(N, n)` | `"score"`, `"-score"`, `"score 1"` | the score | the score |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError, one_of
from ..targets import Contrast, Decided, Segment, class_scores, main_output, predicted, regions

__all__ = ["CATEGORY", "LABELS", "REGRESSION", "Answer", "Task", "as_list", "class_index"]

CATEGORY, LABELS, REGRESSION = "category", "labels", "regression"
_SCORE = re.compile(r"(-?)\s*score(?:\s+(\d+))?")


@dataclass(frozen=True)
class Answer:
    """The model's answer about one image, in words.

    `pred_prob`: 0…1, `None` for a regression; of several predicted labels that of the least sure one, of a region its
    mean. `correct`: `None` where there is no one right answer, or it is not known.
    """

    pred: str
    pred_prob: float | None
    correct: bool | None


@dataclass(frozen=True)
class Task:
    "`kind`: `category`, `labels` or `regression`; `vocab`: class names, `None` where classes have none."

    kind: str
    vocab: list[str] | None
    loss_func: Any

    # --- targets

    def target(self, wanted: Any, n: int, part: slice = slice(None)) -> Any:
        """The user's `target=` in the engine's terms, for those of `n` images that are in `part`.

        `None`, a label or an index for all images, a list of these (several per image), a tensor, an array or a list of
        lists (a row for each image), or a callable. Raises `ValueError` or `TypeError` for a label or index that does
        not exist, with the nearest, and for a number of rows that is not `n`.
        """
        if isinstance(wanted, (Contrast, Segment)):
            return wanted.named(lambda target: class_index(target, self._names)).images(part, n)
        if callable(wanted) or (wanted is None and self.kind == CATEGORY):
            return wanted
        if wanted is None:
            return Decided(self._scores, self._default)
        rows = _per_image(wanted, n)
        if isinstance(rows, list):
            rows = rows[part]
        if self.kind == REGRESSION:
            sides = _each(_side, rows)
            return Decided(self._scores, lambda scores: _each(lambda side: _column(side, scores.shape[1] // 2), sides))
        return _each(lambda target: class_index(target, self._names), rows)

    def in_words(self, wanted: Any, i: int, n: int) -> str | None:
        "The words for a callable target on image `i` of `n`, `None` if it has none."
        if isinstance(wanted, (Contrast, Segment)):
            wanted = wanted.named(lambda target: self._named(class_index(target, self._names)))
            wanted = wanted.images(slice(i, i + 1), n)
        name = getattr(wanted, "__name__", None)
        return None if name == "<lambda>" else name

    def true(self, y: Tensor | None) -> Any:
        "Each image's own answer, in the engine's terms. Raises `ValueError` where `y` has none."
        if self.kind == REGRESSION:
            return Decided(self._scores, lambda scores: scores.new_zeros(len(scores), dtype=torch.long))
        if y is not None and self.kind == LABELS and y.numel() == len(y):
            return y.reshape(-1).gt(0).long()
        if y is not None and self.kind == LABELS and y.ndim == 2:
            first, known = y.gt(0).float().argmax(1), y.gt(0).any(1)
            # An image without labels has none to explain: what comes nearest is shown.
            return Decided(
                self._scores,
                lambda scores: torch.where(known.to(scores.device), first.to(scores.device), scores.argmax(1)),
            )
        if y is not None and self.kind == CATEGORY and y.ndim >= 3 and not y.is_floating_point():
            # Pixels marked as none of the classes (255) are left out.
            return Decided(self._scores, lambda scores: _most_common(y, scores.shape[1]).to(scores.device))
        if y is not None and self.kind == CATEGORY and y.numel() == len(y) and not y.is_floating_point():
            return y.reshape(-1).long()
        raise GradCAMError(
            "target='true' needs one category per image, which this panel has not: choose target='pred', a class, "
            "or a callable on the model's output."
        )

    def pred(self) -> Any:
        "One answer of the model for each image, in the engine's terms."
        if self.kind == CATEGORY:
            return None
        return Decided(self._scores, lambda scores: scores.argmax(1)) if self.kind == LABELS else self.true(None)

    def _scores(self, output: Any, like: Tensor | None = None) -> Tensor:
        "`(N, C)`, regions as in `like`; of a regression with n outputs `(N, 2n)`: the outputs, then their negatives."
        output = main_output(output)
        if self.kind == REGRESSION and output.ndim in (1, 2) and output.numel():
            output = output.reshape(len(output), -1)
            return torch.cat([output, -output], 1)
        return class_scores(output, like)

    def _default(self, scores: Tensor) -> Tensor:
        if self.kind == REGRESSION:
            return scores.new_zeros(len(scores), dtype=torch.long)
        # As many columns for all images as the one with most labels has; in the others the first is repeated.
        on = self._predicted_labels(scores)
        order = scores.argsort(1, descending=True)
        count = on.sum(1).clamp(min=1)
        return torch.stack([order[:, k].where(count > k, order[:, 0]) for k in range(int(count.max()))], 1)

    def _predicted_labels(self, scores: Tensor) -> Tensor:
        return self._activated(scores) > getattr(self.loss_func, "thresh", 0.5)

    # --- answers

    def name(self, index: int, output: Any) -> str:
        "The name of class `index` of the model's output."
        if self.kind == REGRESSION:
            n = self._scores(output).shape[1] // 2
            return "-" * (index >= n) + ("score" if n == 1 else f"score {index % n}")
        return self._named(index)

    @property
    def _names(self) -> list[str] | None:
        # A single label is there or not.
        if self.kind == LABELS and self.vocab and len(self.vocab) == 1:
            return [f"not {self.vocab[0]}", self.vocab[0]]
        return self.vocab

    def _named(self, index: int) -> str:
        names = self._names
        return names[index] if names and index < len(names) else str(index)

    def probabilities(self, output: Any) -> Tensor | None:
        "`(N, C)`, in a segmentation the mean over each class's region; `None` for a regression. For display only."
        output = main_output(output).float()
        if self.kind == REGRESSION or output.ndim in (0, 3):
            return None
        if output.ndim > 2 and output[0, 0].numel() == 1:
            output = output.flatten(1)
        if output.ndim == 1 or output.shape[1] == 1:
            yes = output.reshape(len(output), 1, *output.shape[2:]).sigmoid()
            probs = torch.cat([1 - yes, yes], 1)
            output = torch.cat([-output.view_as(yes), output.view_as(yes)], 1)
        else:
            probs = self._activated(output)
        if output.ndim == 2:
            return probs
        where = regions(output)
        return (probs * where).flatten(2).sum(2) / where.flatten(2).sum(2)

    def _activated(self, logits: Tensor) -> Tensor:
        "By the loss function's own activation where it has one."
        activation = getattr(self.loss_func, "activation", None)
        if callable(activation):
            return activation(logits)
        return logits.sigmoid() if self.kind == LABELS else logits.softmax(1)

    def answers(self, output: Any, y: Tensor | None = None) -> list[Answer] | None:
        "The model's answer for each image, held against the targets `y` where given; `None` for an output of boxes, say."
        logits = main_output(output).detach()
        if self.kind == REGRESSION:
            if logits.ndim not in (1, 2):
                return None
            return [Answer(_number(row), None, None) for row in logits.float().cpu()]
        probs = self.probabilities(logits)
        if probs is None:
            return None
        if self.kind == LABELS and logits.ndim == 2 and logits.shape[1] > 1:
            return [
                self._labelled(p, on, y, i)
                for i, (p, on) in enumerate(zip(probs, self._predicted_labels(logits), strict=True))
            ]
        pred = predicted(logits).tolist()
        # A class per image, possibly in a column of its own.
        right = y.reshape(-1).long().tolist() if y is not None and y.numel() == len(pred) else None
        return [
            Answer(self._named(c), float(probs[i, c]), None if right is None else right[i] == c)
            for i, c in enumerate(pred)
        ]

    def _labelled(self, probs: Tensor, on: Tensor, y: Tensor | None, i: int) -> Answer:
        chosen = on.nonzero().flatten().tolist()
        correct = bool(y[i].gt(0).cpu().equal(on.cpu())) if y is not None and y.shape[1:] == on.shape else None
        if not chosen:
            return Answer("(none)", 1 - float(probs.max()), correct)
        return Answer(self.listed(chosen), float(probs[chosen].min()), correct)

    def listed(self, classes: Sequence[int]) -> str:
        "Several labels as one text."
        return ", ".join(self._named(c) for c in classes) or "(none)"

    def label(self, y: Tensor) -> str | None:
        "The target `y` of one image in words, `None` where there are none for it (a mask, points)."
        if self.kind == LABELS and y.numel() == 1:
            return self._named(int(y.gt(0)))
        if self.kind == LABELS and y.ndim == 1:
            return self.listed(y.gt(0).nonzero().flatten().tolist())
        if self.kind == REGRESSION:
            return _number(y) if y.ndim < 2 else None
        if y.numel() != 1 or y.ndim > 1 or y.is_floating_point():
            return None
        return self._named(int(y))


def _side(target: Any) -> tuple[int, bool]:
    "The index of the output and whether its negative is meant."
    if isinstance(target, str):
        found = _SCORE.fullmatch(target.strip())
        if not found:
            raise GradCAMError(one_of("target", target, ["score", "-score", "score 1", "-score 1"]))
        return int(found[2] or 0), found[1] == "-"
    return class_index(target, None), False


def _column(side: tuple[int, bool], n: int) -> int:
    index, negative = side
    if not 0 <= index < n:
        raise GradCAMError(f"target {index} is out of range: the model has scores 0 to {n - 1}.")
    return index + n * negative


def _per_image(wanted: Any, n: int) -> Any:
    "One class for all images, or a list with one entry for each of `n`: a class, or a list of classes."
    array = hasattr(wanted, "tolist")
    listed = as_list(wanted.tolist() if array else wanted)
    if listed is None:
        return wanted.tolist() if array else wanted
    if not listed:
        raise GradCAMError("target=[] names no class to explain.")
    rows: list[Any] = [as_list(row.tolist() if hasattr(row, "tolist") else row) for row in listed]
    if any(row is None for row in rows):
        # A list names several classes; an array holds a class per image, as in the engine. Of one image it can but
        # hold several.
        if not array or (n == 1 and len(listed) > 1):
            return [listed] * n
        rows = listed
    elif len({len(row) for row in rows}) > 1 or not rows[0]:
        raise GradCAMError(
            f"target has rows of {', '.join(str(len(row)) for row in rows)} classes: give each image as many, at least one."
        )
    if len(rows) != n:
        raise GradCAMError(
            f"target has a row for each of {len(rows)} images, but there {'is' if n == 1 else 'are'} {n}: give one class "
            "for all, a list of classes for each, or as many rows as images."
        )
    return rows


def _each(f: Callable[[Any], Any], rows: Any) -> Any:
    return [_each(f, row) for row in rows] if isinstance(rows, list) else f(rows)


def _most_common(y: Tensor, classes: int) -> Tensor:
    flat = y.flatten(1).long()
    return torch.stack([torch.bincount(row[(row >= 0) & (row < classes)], minlength=classes).argmax() for row in flat])


def _number(values: Tensor) -> str:
    return ", ".join(f"{float(v):.4g}" for v in values.reshape(-1))


def as_list(value: Any) -> list[Any] | None:
    "`value` as a list if a fastai user would call it one (list, tuple, `L`, a vocabulary), else `None`."
    # By name: fastcore's lists are known without importing fastcore.
    listed = isinstance(value, (list, tuple)) or any(c.__name__ == "CollBase" for c in type(value).__mro__)
    return list(value) if listed else None


def class_index(target: Any, vocab: Sequence[str] | None, classes: int | None = None) -> int:
    """The index of a class given by its label or index.

    Raises `ValueError` for a label outside of `vocab` (with the nearest one), an index out of range, or a label
    where there is no vocabulary.
    """
    if isinstance(target, (bool, np.bool_)) or not isinstance(target, (str, int, np.integer)):
        raise GradCAMTypeError(f"A target must be a label or an index, got {target!r}.")
    if isinstance(target, str):
        if not vocab:
            raise GradCAMError(f"target {target!r} is a label, but this learner has no vocabulary; give a class index.")
        if target not in vocab:
            raise GradCAMError(one_of("class", target, vocab))
        return list(vocab).index(target)
    many = len(vocab) if vocab else classes
    if many is not None and not 0 <= target < many:
        raise GradCAMError(f"target {target} is out of range: there are classes 0 to {many - 1}.")
    return int(target)
