"""`Trained`: what the callbacks of all trainers share; an adapter adds only when, and of which data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

from torch import nn

from ..run import Run
from .core import Subject, Unwatchable, Watcher, number
from .dataset import Asked, Source, judging_set, make_panel, read_by
from .faults import Faults
from .judging import JudgingSet
from .settings import Settings

__all__ = ["Trained"]

_OF_THE_PANEL = ("n", "items", "seed", "masks", "vocab", "mean", "std", "inputs", "loss_func")


class Trained:
    """A training that is watched: a run that begins with it, a frame when an epoch is over, an end.

    `who`: the name that warnings begin with. `asked`: the callback's settings. Raises `GradCAMError` for one that is
    wrong in itself.
    """

    def __init__(self, who: str, asked: dict[str, Any]) -> None:
        self._who, self._given = who, {k: v for k, v in asked.items() if k != "self" and not k.startswith("__")}
        of_the_panel = {k: v for k, v in self._given.items() if k in _OF_THE_PANEL}
        others = {k: v for k, v in self._given.items() if k not in _OF_THE_PANEL}
        self._asked = Asked(**of_the_panel)
        self._settings = Settings(**others, asked=self._given)
        self._watcher: Watcher | None = None
        self._open, self._epochs, self._runs = False, 0, 0

    # Callbacks are copied to other processes: settings go along, the run and its open files do not.
    def __getstate__(self) -> dict[str, Any]:
        return {"who": self._who, "asked": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)

    @property
    def run(self) -> Run | None:
        "The `Run` that frames go to; `None` before the first training, and in all processes but the first."
        return self._watcher.run if self._watcher is not None else None

    def begin(self, model: nn.Module, folder: str | Path, source: Callable[[], Source]) -> None:
        """A training begins: a run in `folder/"gradcam"`, or the next part of the run that `model` has already.

        Raises `GradCAMError` where a setting does not fit.
        """
        if self._open:
            self.close("interrupted")
        if self._watcher is None or self._watcher.subject.owner() is not model:
            self._watcher, self._epochs = None, 0

            def judging(n: int) -> JudgingSet:
                return judging_set(source(), self._asked, model, n, watcher.looks.task.vocab)

            subject = Subject(
                ref(model), lambda: model, lambda: self._asked.loss_func, arch=type(model).__name__, judging=judging,
                trained=lambda: self._epochs * _length(source().train), beside=lambda: read_by(source()),
            )  # fmt: skip
            settings = self._settings
            if settings.name is not None and self._runs:
                # One callback for several models, as in cross-validation: each has a run of its own.
                settings = replace(settings, name=f"{settings.name}_{self._runs + 1}")
            watcher = Watcher(subject, settings, Faults(self._who, self._settings.on_error == "raise"))
            path = self._settings.path
            place = Path(path) if path is not None else Path(folder) / "gradcam"
            try:
                watcher.begin(place, lambda: make_panel(source(), self._asked, model))
            except Unwatchable as error:
                if watcher.faults.raising:
                    raise
                watcher.faults.say(f"this training is not watched. {error}")
                return
            self._watcher, self._runs = watcher, self._runs + 1
        self._open = True
        self._watcher.start()

    def over(self, epoch: int, metrics: Mapping[str, Any], last: bool = False) -> None:
        "An epoch is over: a frame, if it is one of every so many or the `last`; else `close` can still take it."
        if self._open and self._watcher is not None:
            self._epochs += 1
            self._watcher.over(epoch, {str(k): n for k, v in metrics.items() if (n := number(v)) is not None}, last)

    def flush(self) -> None:
        "Wait until every frame taken so far is on the disk."
        if self._watcher is not None:
            self._watcher.flush()

    def close(self, status: str) -> None:
        "The training is over: the last frame, the report and the pictures."
        if not self._open or self._watcher is None:
            return
        self._open = False
        self._watcher.close(status)


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError:
        return 0
