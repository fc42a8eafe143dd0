"""Loaders and data sets of our own: what they keep from item to item, those of the training do not notice."""

from __future__ import annotations

import copy
import random
from collections import deque
from typing import Any, TypeVar

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, Datasets, TfmdLists
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from .._net.shadow import copied

__all__ = ["copy_of", "private"]

T = TypeVar("T")
_STATES = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator, nn.Module, deque, set)
# Longer lists and dicts are data, which reading does not change.
_SHORT = 256


def private(dl: DataLoader) -> DataLoader:
    "`dl` itself, which nobody else has, with transforms and a data set of its own."
    for name in ("after_item", "before_batch", "after_batch"):
        if hasattr(dl, name):
            setattr(dl, name, copy_of(getattr(dl, name)))
    dl.dataset = _own(dl.dataset)
    return dl


def _own(dataset: Any) -> Any:
    if isinstance(dataset, Datasets):
        own = copy.copy(dataset)
        own.tls = type(dataset.tls)([_own(one) for one in dataset.tls])
        return own
    if isinstance(dataset, TfmdLists):
        own = copy.copy(dataset)
        own.tfms = copy_of(dataset.tfms)
        return own
    if isinstance(dataset, (list, tuple)) or not hasattr(dataset, "__dict__"):
        return dataset
    try:
        own = copy.copy(dataset)
        for name, value in vars(dataset).items():
            if _keeps_a_state(value):
                vars(own)[name] = (
                    _own(value) if hasattr(value, "__getitem__") and hasattr(value, "__len__") else copy_of(value)
                )
    except Exception:
        return dataset
    return own


def _keeps_a_state(value: Any) -> bool:
    if isinstance(value, _STATES):
        return True
    if isinstance(value, (list, dict)):
        return len(value) <= _SHORT
    return callable(value) or (hasattr(value, "__dict__") and not isinstance(value, (torch.Tensor, np.ndarray, type)))


def copy_of(value: T) -> T:
    "A copy of a function, a transform or the like; itself where the copy would be one of a learner and its data."
    held = [_content(cell) for cell in getattr(value, "__closure__", None) or ()]
    if any(isinstance(v, (Learner, Callback, DataLoaders, DataLoader)) for v in (value, *held)):
        return value
    try:
        return copied(value)
    except Exception:
        return value


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
