"""`Learner.fit`, wrapped: callbacks are told when an exception ends it, for which fastai has no event."""

from __future__ import annotations

from functools import wraps
from typing import Any, Protocol

from fastai.learner import Learner

__all__ = ["armed", "watch_fits"]


class Armed(Protocol):
    "A callback in the middle of a training."

    def trains(self, learn: Learner) -> bool: ...

    def end(self, status: str) -> None: ...


# Callbacks in the middle of a training.
armed: set[Armed] = set()


def watch_fits() -> None:
    "Wrap `Learner.fit`, once."
    fit = Learner.fit
    if getattr(fit, "_tells_gradcam", False):
        return

    @wraps(fit)
    def watched(self: Learner, *args: Any, **kwargs: Any) -> Any:
        outer, status = armed.copy(), "interrupted"
        try:
            result = fit(self, *args, **kwargs)
            status = "finished"
            return result
        finally:
            for callback in armed - outer:
                if callback.trains(self):
                    callback.end(status)

    vars(watched)["_tells_gradcam"] = True
    Learner.fit = watched
