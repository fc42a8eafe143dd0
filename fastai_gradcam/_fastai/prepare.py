"""Inputs as the training loop gives them to the model: through the callbacks that run before a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import Learner
from fastcore.basics import detuplify
from torch import nn

from .._watch.nested import mapped, on_device_of
from .private import copy_of

__all__ = ["prepared", "split"]


def split(learn: Learner, batch: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    "A batch as inputs and targets, as the learner splits it."
    stand = _Stand(learn, learn.model)
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    type(learn)._split(stand, parts)
    return tuple(stand.xb), tuple(stand.yb)


def prepared(
    learn: Learner, net: nn.Module, xb: tuple[Any, ...], yb: tuple[Any, ...] = ()
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs and targets of a batch after the callbacks' `before_batch`, in validation order, as for `learn.predict`.

    The callbacks are copies, and the learner they see stands for `learn`: neither changes. `net`: its model, or a copy.
    """
    callbacks = [cb for cb in learn.cbs.sorted("order") if _prepares(cb)]
    if not callbacks:
        return xb, yb
    stand = _Stand(learn, net)
    # They may work in place.
    stand.xb, stand.yb = mapped(torch.clone, on_device_of(net, xb)), yb
    with _autocast_as_before():
        for cb in callbacks:
            _copied_call(cb, stand)()
    return tuple(stand.xb), tuple(stand.yb)


def _prepares(cb: Callback) -> bool:
    # fastai's own look at the batch or set autocast, which is for the forward pass; only one casts the input.
    theirs = type(cb).__module__.startswith("fastai.") and not type(cb).__module__.startswith("fastai.learner")
    return (
        bool(cb.run)
        and cb.run_valid
        and hasattr(cb, "before_batch")
        and not theirs
        and not isinstance(cb, MixedPrecision)
    )


class _Stand:
    "A learner as callbacks see it in validation; what they set stays here."

    xb: tuple[Any, ...]
    yb: tuple[Any, ...]

    def __init__(self, learn: Learner, model: nn.Module):
        vars(self).update(_learn=learn, model=model, training=False, iter=0, n_iter=1, xb=(), yb=())

    @property
    def x(self) -> Any:
        return detuplify(self.xb)

    @property
    def y(self) -> Any:
        return detuplify(self.yb)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_learn"], name)


def _copied_call(cb: Callback, stand: _Stand) -> Callable[[], Any]:
    "`before_batch` of a copy of `cb`, which has `stand` for its learner, and variables of its own around it."
    own = copy.copy(cb)
    for name, value in vars(cb).items():
        vars(own)[name] = copy_of(value)
    vars(own)["learn"] = stand
    given = vars(cb).get("before_batch")
    if isinstance(given, partial) and given.args[:1] == (cb,):  # of `Callback(before_batch=f)`
        return partial(copy_of(given.func), own)
    method = getattr(type(own), "before_batch", None)
    return own.before_batch if method is None else partial(copy_of(method), own)


@contextmanager
def _autocast_as_before() -> Iterator[None]:
    "A callback may enter autocast before a batch, to leave it after the forward pass."
    torch.autocast_increment_nesting()
    depth = torch.autocast_decrement_nesting()
    before = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    cache = torch.is_autocast_cache_enabled()
    try:
        yield
    finally:
        torch.autocast_increment_nesting()
        while torch.autocast_decrement_nesting() > depth:
            pass
        for kind, enabled, dtype in before:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(cache)
        if depth == 0:
            torch.clear_autocast_cache()
