"""The task of a learner: category, labels or regression, from its data and its loss function."""

from __future__ import annotations

from typing import Any

from fastai.data.transforms import (
    Categorize,
    CategoryMap,
    EncodedMultiCategorize,
    MultiCategorize,
    RegressionSetup,
)
from fastai.vision.core import AddMaskCodes

from .._watch.tasks import CATEGORY, LABELS, REGRESSION, Task

__all__ = ["task_of"]

_OF_REGRESSION = ("mse", "l1", "huber", "gaussiannll", "poissonnll")


def task_of(dls: Any, loss_func: Any) -> Task:
    "The task of a learner, from its data's transforms and its loss function. If neither decides, it is a category."
    transforms = _target_transforms(dls)

    def has(*kinds: type) -> bool:
        return any(isinstance(t, kinds) for t in transforms)

    vocab = _vocabulary(dls)
    if vocab is None:
        vocab = next((list(map(str, v)) for t in transforms if (v := getattr(t, "vocab", None)) is not None), None)
    loss = _name(getattr(loss_func, "func", loss_func))
    if has(MultiCategorize, EncodedMultiCategorize):
        return Task(LABELS, vocab, loss_func)
    if has(Categorize, AddMaskCodes):
        return Task(CATEGORY, vocab, loss_func)
    if has(RegressionSetup) or (vocab is None and any(word in loss for word in _OF_REGRESSION)):
        return Task(REGRESSION, None, loss_func)
    # Binary cross entropy of a row of scores means labels; of one score, it means two categories, which read alike.
    return Task(LABELS if "bcewithlogits" in loss or "binarycross" in loss else CATEGORY, vocab, loss_func)


def _name(loss: Any) -> str:
    return (getattr(loss, "__name__", None) or type(loss).__name__).lower().replace("_", "")


def _target_transforms(dls: Any) -> list[Any]:
    lists = getattr(getattr(dls, "valid_ds", None), "tls", None) or []
    found = [t for one in lists[1:] for t in getattr(getattr(one, "tfms", None), "fs", [])]
    after = getattr(getattr(dls, "valid", None), "after_item", None)
    return found + [t for t in getattr(after, "fs", []) if isinstance(t, AddMaskCodes)]


def _vocabulary(dls: Any) -> list[str] | None:
    "The class names of a learner with one category per image, `None` for any other kind of target."
    vocab = getattr(dls, "vocab", None)
    if vocab is None or (isinstance(vocab, CategoryMap) and not len(vocab)):
        return None
    if len(vocab) and isinstance(vocab[-1], (list, tuple)):
        return None
    return [str(v) for v in vocab]
