"""`Learner.fit`, wrapped: callbacks are told of an exception that ends it, and stay at hand as `learn.grad_cam`."""

from __future__ import annotations

from functools import wraps
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from fastai.learner import Learner

__all__ = ["arm", "armed", "watch_fits"]


class Armed(Protocol):
    "A callback in the middle of a training."

    name: str

    def trains(self, learn: Learner) -> bool: ...

    def end(self, status: str) -> None: ...


# Callbacks in the middle of a training, and the last that watched the present fit of a learner.
armed: set[Armed] = set()
_latest: WeakKeyDictionary[Learner, Armed] = WeakKeyDictionary()


def arm(callback: Armed, learn: Learner) -> None:
    "`callback` watches the fit of `learn` that has begun."
    armed.add(callback)
    _latest[learn] = callback


def watch_fits() -> None:
    "Wrap `Learner.fit`, once."
    fit = Learner.fit
    if getattr(fit, "_tells_gradcam", False):
        return

    @wraps(fit)
    def watched(self: Learner, *args: Any, **kwargs: Any) -> Any:
        outer, status = armed.copy(), "interrupted"
        _latest.pop(self, None)
        try:
            result = fit(self, *args, **kwargs)
            status = "finished"
            return result
        finally:
            for callback in armed - outer:
                if callback.trains(self):
                    callback.end(status)
            # One that came by `fit(cbs=)` is removed by now, and its run is still asked for.
            if (last := _latest.pop(self, None)) is not None and not hasattr(self, last.name):
                setattr(self, last.name, last)

    vars(watched)["_tells_gradcam"] = True
    Learner.fit = watched
