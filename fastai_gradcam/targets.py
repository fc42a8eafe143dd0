"""Which score is explained: a class, one class per image, several classes, or the caller's own function.

Scores are logits, never probabilities: a softmax that is sure of itself has no gradient left to explain. The score of a
class depends on the output: the column of `(N, C)`; of a single score, `(N,)` or `(N, 1)`, the score itself (class 1)
or its negative (class 0); of a map of classes, `(N, C, *space)`, the class summed over the region where it is
predicted.

Smoothing and the methods without gradients look at changed copies of the images. Copies are asked about the classes and
regions of the images as they are. A callable that decides something by the output may have a method `settled(output)`,
which returns the callable to ask the copies with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._engine.question import OfClasses, OfFunction, Question
from ._engine.scores import class_scores, class_targets, main_output, predicted, regions, two_sided
from ._errors import GradCAMError, GradCAMTypeError

__all__ = [
    "Contrast",
    "Decided",
    "Segment",
    "Target",
    "as_question",
    "class_scores",
    "class_targets",
    "contrast",
    "main_output",
    "predicted",
    "regions",
    "segment",
]


@dataclass(frozen=True)
class Decided:
    """A target that is decided once the output is there.

    `read(output)` gives the scores `(N, C)` to choose from, `pick(scores)` the classes, as `target=` has them.
    `read(output, like)` takes regions from the scores `like` in place of the output's own.
    """

    read: Callable[..., Tensor]
    pick: Callable[[Tensor], Any]


Target = None | int | Sequence[int] | Tensor | Decided | Callable[[Any], Tensor]


def _listed(classes: Any) -> Any:
    "Classes as a list, or the one for all."
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    return list(classes) if isinstance(classes, (list, tuple)) else classes


def _words(classes: Any) -> str:
    listed = _listed(classes)
    return str(listed[0] if isinstance(listed, list) and len(listed) == 1 else listed)


def _named(classes: Any, index: Callable[[Any], Any]) -> Any:
    listed = _listed(classes)
    if listed is None:
        return None
    return [index(c) for c in listed] if isinstance(listed, list) else index(listed)


def _of_images(classes: Any, part: slice, n: int) -> Any:
    listed = _listed(classes)
    if not isinstance(listed, list):
        return classes
    if len(listed) != n:
        raise GradCAMError(
            f"There are classes for {len(listed)} images, but {n} images: give one class, or one per image."
        )
    return classes[part]


def _one_each(classes: Any, output: Tensor, says: str) -> Tensor:
    each = class_targets(classes, output)
    if each.ndim != 1:
        raise GradCAMError(f"{says}() takes one class, or one per image, got classes of shape {tuple(each.shape)}.")
    return each


@dataclass(frozen=True, eq=False)
class Segment:
    """The target that `segment` makes: output -> (N,) scores.

    `classes` and `mask` as there; `part`: which of a mask's images the output is of.
    """

    classes: Any = None
    mask: Tensor | None = None
    part: slice | None = None

    @property
    def __name__(self) -> str:
        given = [] if self.classes is None else [_words(self.classes)]
        return f"segment({', '.join(given + ['mask'] * (self.mask is not None))})"

    def __call__(self, output: Any) -> Tensor:
        logits, where, each = self._read(output)
        return (logits.float() * where).flatten(2).sum(2).gather(1, each[:, None])[:, 0]

    def settled(self, output: Any) -> Segment:
        "The same classes over the same regions, whatever the output."
        logits, where, each = self._read(output)
        mine = where.expand(logits.shape)[torch.arange(len(logits)), each]
        return Segment(each, mine.reshape(len(logits), *main_output(output).shape[2:]))

    def images(self, part: slice, n: int) -> Segment:
        "The target of some of `n` images. Raises `ValueError` where it has classes for another number."
        return replace(self, classes=_of_images(self.classes, part, n), part=part)

    def named(self, index: Callable[[Any], Any]) -> Segment:
        "With `index(class)` for each class."
        return replace(self, classes=_named(self.classes, index))

    def _read(self, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        "The scores `(N, C, *space)`, the weights of their cells `(N, 1 or C, *space)`, and the classes `(N,)`."
        # Who asks for a segment says that there is space, be it that of a signal.
        logits = two_sided(main_output(output, dims=1))
        if logits.ndim < 4:
            raise GradCAMError(f"segment() explains an output (N, classes, *space), got {tuple(logits.shape)}.")
        where = regions(logits) if self.mask is None else self._weights(logits, tuple(main_output(output).shape[2:]))
        return logits, where, _one_each(predicted(logits) if self.classes is None else self.classes, logits, "segment")

    def _weights(self, logits: Tensor, space: tuple[int, ...]) -> Tensor:
        n, mask = len(logits), self.mask
        assert mask is not None
        rows = mask[None] if tuple(mask.shape) == space else mask
        if self.part is not None and len(rows) > 1:
            rows = rows[self.part]
        if tuple(rows.shape) not in ((n, *space), (1, *space)):
            raise GradCAMError(
                f"mask has shape {tuple(mask.shape)}, but the model's output for {n} images has the size {space}: give "
                f"one mask {space} for all, or one per image {(n, *space)}."
            )
        return rows.to(logits.device).float().expand(n, *space).reshape(n, 1, *logits.shape[2:])


def segment(classes: Any = None, mask: Any = None) -> Segment:
    """A target for segmentation: a class summed over the region where it is predicted, or over `mask`.

    `classes`: one class, one per image `(N,)`, or `None` for each image's class with the largest region; in a learner
    also labels. `mask`: `(*space)` for all images or `(N, *space)`, booleans or weights, of the output's size; of a PIL
    image what is not black. The result takes the model's output, `(N, C, *space)`, and gives `(N,)` scores. Raises
    `TypeError` for a mask that is none of these, `ValueError` for an empty one, one of another size, an output without
    space, and what `class_targets` raises.

    Vinogradova et al. 2020, Seg-Grad-CAM, https://arxiv.org/abs/2002.11434, eq. 2.

    >>> import torch
    >>> from fastai_gradcam.targets import segment
    >>> output = torch.zeros(1, 2, 2, 2)  # two classes, 2 × 2 pixels
    >>> output[0, 1, 0] = 3.0  # class 1 wins in the upper row
    >>> segment(1)(output), segment(1, mask=[[True, False], [True, False]])(output)
    (tensor([6.]), tensor([3.]))
    """
    return Segment(classes, None if mask is None else _as_mask(mask))


def _as_mask(mask: Any) -> Tensor:
    try:
        weights = _as_weights(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GradCAMTypeError(
            f"mask must be a tensor, an array or an image of the output's size, or one per image, got {mask!r:.80}."
        ) from error
    if not weights.any():
        raise GradCAMError("mask is empty: there is no cell to sum the class over.")
    return weights


def _as_weights(mask: Any) -> Tensor:
    if isinstance(mask, (list, tuple)):
        return torch.stack([_as_weights(one) for one in mask])
    # An image's grey levels are not weights.
    weights = torch.as_tensor(np.asarray(mask) != 0 if hasattr(mask, "getbbox") else mask).as_subclass(Tensor)
    with torch.inference_mode(False):
        return weights.clone()  # one of inference mode takes no part in autograd


@dataclass(frozen=True, eq=False)
class Contrast:
    """The target that `contrast` makes: output -> (N,) scores.

    `of`, `against` as there; `like`: the scores whose regions count, in place of the output's own; `dims`: the images'
    dimensions of space.
    """

    of: Any
    against: Any = None
    like: Tensor | None = None
    dims: int = 2

    @property
    def __name__(self) -> str:
        return f"contrast({', '.join(_words(c) for c in (self.of, self.against) if c is not None)})"

    def __call__(self, output: Any) -> Tensor:
        table = class_scores(main_output(output, self.dims), self.like)
        mine = self._score(table, self.of)
        if self.against is not None:
            return mine - self._score(table, self.against)
        if table.shape[1] < 2:
            raise GradCAMError("contrast() needs a second class to compare with.")
        return mine - (table.sum(1) - mine) / (table.shape[1] - 1)

    def settled(self, output: Any) -> Contrast:
        "The same classes over the same regions, whatever the output."
        return replace(self, like=main_output(output, self.dims).detach())

    def images(self, part: slice, n: int) -> Contrast:
        "The target of some of `n` images. Raises `ValueError` where it has classes for another number."
        return replace(self, of=_of_images(self.of, part, n), against=_of_images(self.against, part, n))

    def named(self, index: Callable[[Any], Any]) -> Contrast:
        "With `index(class)` for each class."
        return replace(self, of=_named(self.of, index), against=_named(self.against, index))

    @staticmethod
    def _score(table: Tensor, classes: Any) -> Tensor:
        return table.gather(1, _one_each(classes, table, "contrast")[:, None])[:, 0]


def contrast(of: Any, against: Any = None) -> Contrast:
    """A target that asks why one class rather than another: y_of − y_against.

    `of`, `against`: one class, or one per image `(N,)`, in a learner also labels; `against=None` is the mean of all
    other classes' scores. Evidence that both classes share cancels out. Raises `TypeError` without `of`, `ValueError`
    for a class against itself, and what `class_targets` raises.

    The question: Prabhushankar et al. 2020, Contrastive Explanations in Neural Networks (which differentiates a loss
    between the two). The difference of logits, and its mean over the others: Wang & Wang 2022, "Why Not Other
    Classes?", mean contrast.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> from fastai_gradcam import gradcam
    >>> from fastai_gradcam.targets import contrast
    >>> cams = gradcam(model, torch.randn(2, 3, 9, 9), target=contrast(2, 0))  # why class 2 rather than class 0
    >>> cams.maps[0].shape
    torch.Size([2, 4, 4])
    >>> contrast(2, 0)(torch.tensor([[1.0, 5.0, 4.0]]))
    tensor([3.])
    """
    if of is None:
        raise GradCAMTypeError("contrast() needs the class to explain: the predicted one may change with the image.")
    if against is not None and _words(of) == _words(against):
        raise GradCAMError(f"contrast({_words(of)}, {_words(against)}) compares a class with itself: nothing is left.")
    return Contrast(of, against)


def as_question(target: Target, n: int, dims: int = 2) -> Question:
    "The question that `target` asks of the output for `n` images with `dims` dimensions of space."
    if isinstance(target, Decided):
        decided = target
        return OfClasses(read=decided.read, pick=lambda output, table: decided.pick(table.detach()), dims=dims)
    if isinstance(target, Contrast):
        target = replace(target, dims=dims)
    if callable(target):
        return OfFunction(function=target, n=n)

    def read(output: Any, like: Tensor | None = None) -> Tensor:
        return class_scores(main_output(output, dims), like)

    if target is None:
        return OfClasses(read=read, pick=lambda output, table: predicted(main_output(output, dims)), dims=dims)
    return OfClasses(read=read, pick=lambda output, table: target, dims=dims)
