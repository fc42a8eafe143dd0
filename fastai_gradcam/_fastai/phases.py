"""Where a learner is in its fit, as the events of fastai tell it to a callback."""

from __future__ import annotations

from enum import Enum

__all__ = ["Phase", "Phases"]


class Phase(Enum):
    OUTSIDE = "no fit is watched"
    EPOCH = "an epoch of a watched fit runs"
    BETWEEN = "an epoch of a watched fit is over"
    ASIDE = "inside a watched fit, a call such as validate or get_preds runs"


# fastai announces `before_fit` for `validate`, `get_preds` and `lr_find`, too; only `before_train` means training.
# A `before_train` inside such a call comes from a fit in the middle of an epoch, which is a fit of its own.
_NEXT = {
    (Phase.OUTSIDE, "before_train"): Phase.EPOCH,
    (Phase.ASIDE, "before_train"): Phase.EPOCH,
    (Phase.BETWEEN, "before_train"): Phase.EPOCH,
    (Phase.EPOCH, "before_train"): Phase.EPOCH,
    (Phase.EPOCH, "after_epoch"): Phase.BETWEEN,
    (Phase.EPOCH, "before_fit"): Phase.ASIDE,
    (Phase.BETWEEN, "before_fit"): Phase.ASIDE,
    (Phase.ASIDE, "before_fit"): Phase.ASIDE,
    (Phase.EPOCH, "after_fit"): Phase.OUTSIDE,
    (Phase.BETWEEN, "after_fit"): Phase.OUTSIDE,
    # For an exception that ends the fit, fastai has no event.
    **{(phase, "end"): Phase.OUTSIDE for phase in Phase},
}


class Phases:
    "The phase of a fit; `on(event)` is the one place that changes it."

    def __init__(self) -> None:
        self.now = Phase.OUTSIDE
        self._outer: list[Phase] = []

    def on(self, event: str) -> tuple[Phase, Phase]:
        "Move on by an event of fastai's, or by `end`; the phase before it and the one after it."
        before = self.now
        if before is Phase.ASIDE and event == "after_fit":
            self.now = self._outer.pop()
            return before, self.now
        self.now = _NEXT.get((before, event), before)
        if self.now is not Phase.ASIDE:
            self._outer.clear()
        elif event == "before_fit":
            self._outer.append(before)
        return before, self.now
