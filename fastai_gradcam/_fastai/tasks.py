"""The task of a learner: category, labels or regression, from its data and its loss function."""

from __future__ import annotations

from typing import Any

import torch
from fastai.data.transforms import Categorize, EncodedMultiCategorize, MultiCategorize, RegressionSetup
from fastai.vision.core import AddMaskCodes
from torch import Tensor

from .._watch.losses import IDENTITY, SIGMOID, VALUE, activation_of, kind_of
from .._watch.tasks import CATEGORY, LABELS, REGRESSION, Head, Task
from .private import copy_of, private

__all__ = ["task_of"]


def task_of(dls: Any, loss: Any) -> Task:
    "The targets of a learner, from its data's transforms and its loss function. If neither decides, it is a category."
    # It may keep a state, and is asked.
    loss = copy_of(loss)
    activation = activation_of(loss) if loss is not None else None
    decodes = getattr(loss, "decodes", None)
    lists = getattr(getattr(dls, "valid_ds", None), "tls", None)
    targets = [] if lists is None else list(lists[_inputs(dls) :])
    if len(targets) > 1:
        # A loss of several targets has an activation for each, or none that is known.
        return Task([_head(dls, i, one, None, None, None) for i, one in enumerate(targets)], loss)
    return Task([_head(dls, 0, targets[0] if targets else None, loss, activation, decodes)], loss)


def _inputs(dls: Any) -> int:
    return getattr(dls, "n_inp", 1)


def _head(dls: Any, i: int, target: Any, loss: Any, activation: Any, decodes: Any) -> Head:
    "Target `i`, as its transforms say, or else an example of it and the loss."
    transforms = list(getattr(getattr(target, "tfms", None), "fs", []))
    # The codes of masks are added after an item is made, for all that are masks.
    transforms += getattr(getattr(getattr(dls, "valid", None), "after_item", None), "fs", [])

    def first(*kinds: type) -> Any:
        return next((t for t in transforms if isinstance(t, kinds)), None)

    if (found := first(MultiCategorize, EncodedMultiCategorize)) is not None:
        return Head(LABELS, _listed(found.vocab), activation, decodes)
    if (found := first(Categorize, AddMaskCodes)) is not None:
        return Head(CATEGORY, _listed(found.vocab), activation, decodes)
    if (found := first(RegressionSetup)) is not None:
        return Head(REGRESSION, None, VALUE, numbers=getattr(found, "c", None) or 1)
    vocab = _listed(getattr(dls, "vocab", None)) if i == 0 else None
    kind = _kind(dls, i, loss, activation, vocab)
    return Head(REGRESSION, None, VALUE) if kind == REGRESSION else Head(kind, vocab, activation, decodes)


def _kind(dls: Any, i: int, loss: Any, activation: Any, vocab: Any) -> str:
    if vocab is None and activation == VALUE:
        return REGRESSION
    y = _example(dls, i)
    if y is not None:
        return kind_of(y, loss, vocab is not None)
    # Binary cross entropy of a row of scores means labels; of one score, it means two categories, which read alike.
    return LABELS if activation in (SIGMOID, IDENTITY) else CATEGORY


def _example(dls: Any, i: int) -> Tensor | None:
    "Target `i` of one image."
    try:
        sample = private(dls.valid.new(num_workers=0)).dataset[0] if hasattr(dls.valid, "new") else dls.valid_ds[0]
        n = _inputs(dls) if isinstance(sample, (tuple, list)) and len(sample) > _inputs(dls) else 1
        return torch.as_tensor(sample[n + i]).as_subclass(Tensor)
    except Exception:
        return None


def _listed(vocab: Any) -> list[Any] | None:
    "A vocabulary as a list, `None` where there is none, or one for each of several targets."
    if vocab is None or not len(vocab) or isinstance(vocab[-1], (list, tuple)) or hasattr(vocab[-1], "o2i"):
        return None
    return list(vocab)
