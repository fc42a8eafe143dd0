"""A learner as what is watched: its model, loss, loggers and metrics at the moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import Tensor

from .._watch.core import Subject
from .._watch.judging import JudgingSet
from ..loggers import loggers_of
from .averaged import Averaged
from .explain import model_input, resolve_layer
from .items import normalisation

__all__ = ["metrics_of", "subject_of"]


def subject_of(
    learner: Callable[[], Learner],
    averaged: Averaged,
    loss: Callable[[], Any],
    judging: Callable[[int], JudgingSet],
    trained: Callable[[], int],
) -> Subject:
    "The learner that `learner()` gives as long as it trains."
    arch = getattr(learner(), "arch", None)
    return Subject(
        judging=judging,
        trained=trained,
        owner=ref(learner()),
        model=lambda: averaged.or_else(learner().model),
        loss=loss,
        layers=lambda layer: resolve_layer(learner(), layer),
        beside=lambda: _run_by_a_look(learner()),
        beyond=(Learner, Callback, DataLoaders, DataLoader),
        loggers=lambda: loggers_of(learner()),
        frozen=lambda: bool(getattr(learner().opt, "frozen_idx", 0)),
        pixels=lambda: normalisation(learner().dls),
        inputs=lambda net, x: model_input(learner(), net, x if isinstance(x, tuple) else (x,)),
        arch=getattr(arch, "__name__", None) or (arch if isinstance(arch, str) else None),
    )


def _run_by_a_look(learn: Learner) -> list[Any]:
    "The transforms of the validation data, and the callbacks' classes; the callbacks themselves are copied."
    valid = learn.dls.valid
    transforms = [getattr(valid, name, None) for name in ("after_item", "before_batch", "after_batch")]
    return [*transforms, getattr(valid, "dataset", None), *map(type, learn.cbs)]


def metrics_of(learn: Learner) -> dict[str, float | None]:
    "The epoch's losses and metrics, as the progress table has them."
    recorder = getattr(learn, "recorder", None)
    if recorder is None:
        return {}
    shown = {}
    for name, value in zip(recorder.metric_names, recorder.log, strict=False):
        if name in ("epoch", "time"):
            continue
        number = isinstance(value, (int, float, np.number, Tensor)) and np.size(value) == 1
        # JSON has no NaN.
        shown[name] = float(value) if number and np.isfinite(float(value)) else None
    return shown
