"""Which score is explained: a class, one class per image, several classes, or the caller's own function.

Scores are logits, never probabilities: a softmax that is sure of itself has no gradient left to explain. What a class's
score is depends on the output: the column of `(N, C)`; of a single score, `(N,)` or `(N, 1)`, the score itself (class 1)
or its negative (class 0); of a map of classes, `(N, C, *space)`, the class summed over the region where it is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = [
    "Contrast",
    "Decided",
    "Target",
    "class_scores",
    "class_targets",
    "contrast",
    "main_output",
    "predicted",
    "regions",
    "scores",
    "segment",
]


@dataclass(frozen=True)
class Decided:
    """A target that is decided once the output is there.

    `read(output)` gives the scores `(N, C)` to choose from, `pick(scores)` the classes, as `target=` has them.
    """

    read: Callable[[Any], Tensor]
    pick: Callable[[Tensor], Any]


Target = None | int | Sequence[int] | Tensor | Decided | Callable[[Any], Tensor]


def main_output(output: Any) -> Tensor:
    "The tensor of scores in a model's output: itself, the first of a tuple, or `logits`/`out`/the first of a mapping."
    if isinstance(output, Tensor):
        return output.as_subclass(Tensor) if type(output) is not Tensor else output
    if isinstance(output, Mapping):
        key = next((k for k in ("logits", "out") if k in output), next(iter(output), None))
        if key is not None:
            return main_output(output[key])
    if isinstance(output, (tuple, list)) and output:
        return main_output(output[0])
    raise TypeError(
        f"The model's output is a {type(output).__name__}, not a tensor; pass target= a callable that takes this "
        "output and returns one score per image."
    )


def class_scores(output: Tensor, like: Tensor | None = None) -> Tensor:
    """One score per image and class, `(N, C)`, from a model's tensor of scores.

    `(N, C)` is itself. `(N,)` and `(N, 1)` have two sides: −s is class 0, s is class 1. In `(N, C, *space)` with two or
    more dimensions of space, each class is summed over its region (`regions`) in `like`, by default `output` itself.
    Raises `ValueError` for other shapes.
    """
    output = _two_sided(output)
    if output.ndim == 2:
        return output
    return (output.float() * regions(output if like is None else _two_sided(like))).flatten(2).sum(2)


def regions(output: Tensor) -> Tensor:
    "1 where a class of `(N, C, *space)` scores is the predicted one; a class predicted nowhere has the whole image."
    mine = _where_predicted(output)
    nowhere = mine.flatten(2).sum(2).eq(0)
    return torch.where(nowhere.view(*nowhere.shape, *[1] * (output.ndim - 2)), 1, mine).float()


def predicted(output: Tensor) -> Tensor:
    "Each image's predicted class, LongTensor `(N,)`; of a map of classes, the one with the largest region."
    output = _two_sided(output.detach())
    return output.argmax(1) if output.ndim == 2 else _where_predicted(output).flatten(2).sum(2).argmax(1)


def _where_predicted(output: Tensor) -> Tensor:
    return one_hot(output.detach().argmax(1), output.shape[1]).movedim(-1, 1)


def _two_sided(output: Tensor) -> Tensor:
    "Scores as `(N, C)` or `(N, C, *space)` with C ≥ 2."
    if output.ndim == 1:
        output = output[:, None]
    elif output.ndim > 2 and output[0, 0].numel() == 1:
        output = output.flatten(1)
    if output.ndim in (0, 3) or output.numel() == 0:
        raise ValueError(
            f"The model's output has shape {tuple(output.shape)}, not (images, classes), so there is no class to "
            "explain; pass target= a callable that takes this output and returns one score per image."
        )
    return torch.cat([-output, output], 1) if output.shape[1] == 1 else output


def segment(classes: int | Sequence[int] | Tensor | None = None, mask: Any = None) -> Callable[[Any], Tensor]:
    """A target for segmentation: a class summed over the region where it is predicted, or over `mask`.

    `classes`: one class, one per image `(N,)`, or `None` for each image's class with the largest region. `mask`:
    `(*space)` for all images or `(N, *space)`, booleans or weights, of the output's size. The result takes the model's
    output, `(N, C, *space)`, and gives `(N,)` scores. Raises `ValueError` for a mask of another size, an output
    without space, and what `class_targets` raises.

    Vinogradova et al. 2020, Seg-Grad-CAM, https://arxiv.org/abs/2002.11434, eq. 2.
    """
    weights = None if mask is None else torch.as_tensor(mask)

    def summed(output: Any) -> Tensor:
        logits = _two_sided(main_output(output))
        if logits.ndim < 4:
            raise ValueError(f"segment() explains an output (N, classes, *space), got {tuple(logits.shape)}.")
        n, space = len(logits), tuple(logits.shape[2:])
        if weights is None:
            where = regions(logits)
        elif tuple(weights.shape) in (space, (n, *space), (1, *space)):
            where = weights.to(logits.device).float().expand(n, *space)[:, None]
        else:
            raise ValueError(
                f"mask has shape {tuple(weights.shape)}, but the model's output for {n} images has the size {space}: give "
                f"one mask {space} for all, or one per image {(n, *space)}."
            )
        each = class_targets(classes if classes is not None else predicted(logits), logits)
        if each.ndim != 1:
            raise ValueError(f"segment() takes one class, or one per image, got classes of shape {tuple(each.shape)}.")
        return (logits.float() * where).flatten(2).sum(2).gather(1, each[:, None])[:, 0]

    return summed


@dataclass(frozen=True, eq=False)
class Contrast:
    "The target that `contrast` makes: output -> (N,) scores."

    of: Any
    against: Any = None

    @property
    def __name__(self) -> str:
        return f"contrast({self.of}, {self.against})"

    def __call__(self, output: Any) -> Tensor:
        table = class_scores(main_output(output))
        mine = self._score(table, self.of)
        if self.against is not None:
            return mine - self._score(table, self.against)
        if table.shape[1] < 2:
            raise ValueError("contrast() needs a second class to compare with.")
        return mine - (table.sum(1) - mine) / (table.shape[1] - 1)

    @staticmethod
    def _score(table: Tensor, classes: Any) -> Tensor:
        each = class_targets(classes, table)
        if each.ndim != 1:
            raise ValueError(f"contrast() takes one class, or one per image, got classes of shape {tuple(each.shape)}.")
        return table.gather(1, each[:, None])[:, 0]


def contrast(of: int | Sequence[int] | Tensor, against: int | Sequence[int] | Tensor | None = None) -> Contrast:
    """A target that asks why one class rather than another: y_of − y_against.

    `of`, `against`: one class, or one per image `(N,)`; `against=None` is the mean of all other classes' scores.
    What speaks for both classes alike falls out. Raises what `class_targets` raises.

    The question: Prabhushankar et al. 2020, Contrastive Explanations in Neural Networks (which differentiates a loss
    between the two). The difference of logits, and its mean over the others: Wang & Wang 2022, "Why Not Other
    Classes?", mean contrast.
    """
    if of is None:
        raise TypeError("contrast() needs the class to explain: the predicted one may change with the image.")
    return Contrast(of, against)


def class_targets(target: Target, output: Tensor) -> Tensor:
    """The classes to explain, as a LongTensor `(N,)` or `(N, K)` on `output`'s device.

    `output`: the model's tensor of scores, as `class_scores` takes it. `target`: `None` is each image's predicted class.
    Raises `ValueError` for an output without classes, a number of targets that is not the batch's, or an index outside
    of `0…C-1`.
    """
    n, classes = _two_sided(output).shape[:2]
    if target is None:
        return predicted(output)
    try:
        wanted = torch.as_tensor(target, device=output.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_expected(target)) from error
    if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool:
        raise TypeError(_expected(target))
    wanted = wanted.long()
    if wanted.ndim == 0:
        wanted = wanted.expand(n)
    if wanted.ndim > 2 or len(wanted) != n:
        raise ValueError(
            f"target has shape {tuple(wanted.shape)} for a batch of {n} images: give one class for all, "
            f"one per image ({n},), or several per image ({n}, K)."
        )
    if wanted.numel() == 0:
        raise ValueError("target is empty: give at least one class per image.")
    low, high = int(wanted.min()), int(wanted.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"target {low if low < 0 else high} is out of range: the model has classes 0 to {classes - 1}."
        )
    return wanted


def _expected(target: object) -> str:
    return (
        f"target must be None, a class index, a LongTensor (N,) or (N, K), or a callable on the output, got {target!r}."
    )


def scores(output: Any, target: Target, n: int) -> tuple[list[Tensor], Tensor | None]:
    """The scores `(n,)` to differentiate, one per class asked for, and the classes (`None` for a callable).

    Raises what `class_targets` raises, and `ValueError` where a callable's scores are not one per image.
    """
    if callable(target):
        score = target(output)
        if not isinstance(score, Tensor) or score.shape not in ((n,), (n, 1)):
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"The target callable must return one score per image, shape ({n},), got {got}.")
        return [score.reshape(n)], None
    if isinstance(target, Decided):
        table = target.read(output)
        classes = class_targets(target.pick(table.detach()), table)
    else:
        logits = main_output(output)
        table, classes = class_scores(logits), class_targets(target, logits)
    each = classes if classes.ndim == 2 else classes[:, None]
    return [table.gather(1, each[:, k : k + 1])[:, 0] for k in range(each.shape[1])], classes
