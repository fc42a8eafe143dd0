"""`Session`: what a callback watches from fit to fit, also where the learner or its data changes between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

from fastai.learner import Learner

from .._watch.core import Unwatchable, Watcher
from .._watch.faults import Faults
from .._watch.judging import JudgingSet
from .._watch.panel import Panel
from .._watch.settings import Settings
from .._watch.tasks import Task
from .atlas import Making, replace_atlas
from .averaged import Averaged
from .items import item_name
from .judging import judging_bar, judging_set
from .masks import Masks
from .panel import build_panel, refuse_own_pictures
from .subject import subject_of
from .tasks import task_of

__all__ = ["PANEL", "Session"]

# The settings that are about the panel.
PANEL = ("n", "items", "masks", "seed")


class Session:
    """The runs of one callback: a run for each learner, and for each set of classes.

    `learner()`: the learner that trains. `loss`: its loss function, before callbacks such as MixUp replace it.
    `trained`: how many images it has passed forward and backward.
    """

    def __init__(self, learner: Callable[[], Learner], settings: Settings, faults: Faults):
        self.learner, self.settings, self.faults = learner, settings, faults
        self.loss: Any = None
        self.watcher: Watcher | None = None
        self.averaged = Averaged()
        self.trained = 0
        self._runs = 0
        self._data: ref[Any] | None = None

    def trains(self, learn: Learner) -> bool:
        "Whether `learn` is the learner that is watched."
        return self.watcher is not None and self.watcher.subject.owner() is learn

    def begin(self, left: list[str]) -> None:
        """Begin a run, or go on with the one of this learner. Raises `GradCAMError` where a setting does not fit.

        `left`: settings that did not travel with an exported learner.
        """
        learn, settings = self.learner(), self.settings
        if self.watcher is not None and self.trains(learn) and self._goes_on(self.watcher, learn):
            return
        if settings.name is not None and self._runs:
            # One callback for several learners or data sets, as in cross-validation: each has a run of its own.
            settings = replace(settings, name=f"{settings.name}_{self._runs + 1}")
        self.watcher = None
        if left:
            self.faults.say(f"{', '.join(left)} did not travel with the exported learner; the defaults are used.")
        subject = subject_of(self.learner, self.averaged, lambda: self.loss, self._judging_set, lambda: self.trained)
        watcher = Watcher(subject, settings, self.faults)
        folder = Path(settings.path) if settings.path is not None else Path(learn.path) / "gradcam"
        try:
            watcher.begin(folder, self._panel)
        except Unwatchable as error:
            if self.faults.raising:
                raise
            self.faults.say(f"this training is not watched. {error}")
        else:
            self.watcher, self._runs, self._data = watcher, self._runs + 1, ref(learn.dls)

    def _panel(self) -> tuple[Panel, Task]:
        learn, asked = self.learner(), self.settings.asked
        refuse_own_pictures(learn)
        needs = isinstance(asked["target"], str) and asked["target"] == "true"
        return build_panel(learn, **{k: asked[k] for k in PANEL}, need_labels=needs), task_of(learn.dls, self.loss)

    def _judging_set(self, n: int) -> JudgingSet:
        learn, asked = self.learner(), self.settings.asked
        images = judging_set(learn, n, asked["seed"], asked["masks"])
        return replace(images, bar=lambda: judging_bar(learn))

    def _goes_on(self, watcher: Watcher, learn: Learner) -> bool:
        "Whether the run of this learner goes on: with other classes it cannot, other data shows the same images anew."
        if self._data is not None and self._data() is learn.dls:
            return True
        with watcher.looks.undisturbed():
            goes_on = _renew(watcher, learn, self.loss, self.settings.asked["masks"])
        self._data = ref(learn.dls)
        return goes_on

    def trains_on(self) -> None:
        "Another epoch begins: the weights of one that is over are gone, and so is its frame if it has none."
        if self.watcher is not None:
            self.watcher.due = None

    def over(self, epoch: int, metrics: dict[str, float | None], last: bool) -> None:
        "An epoch is over: a frame, if it is due, of the weights that the epoch's metrics are of."
        if self.watcher is not None:
            self.watcher.over(epoch, metrics, last)
        if self.watcher is None or self.watcher.due is None:
            self.averaged.forget()

    def catch_up(self) -> None:
        "The frame of the last epoch, if it has none."
        if self.watcher is not None:
            self.watcher.catch_up()
        self.averaged.forget()

    def close(self, status: str) -> None:
        if self.watcher is not None:
            self.watcher.close(status)
            if status == "finished" and self.settings.asked.get("atlas") and self.watcher.run is not None:
                with self.faults.harmless("the atlas"), self.watcher.looks.undisturbed():
                    self._atlas(self.watcher.run.path / "atlas", self.watcher.looks.layers[-1:])

    def _atlas(self, folder: Path, layer: list[str]) -> None:
        "The validation set as the model sees it now; the atlas of an earlier fit is replaced."
        s, judge = self.settings, self.settings.judge is not None
        replace_atlas(
            Making(self.learner(), folder, None, layer, s.target, s.method, s.asked["masks"], judge, self.loss)
        )


def _renew(watcher: Watcher, learn: Learner, loss: Any, masks: Masks) -> bool:
    """Show the watcher its images as the learner's data gives them now; whether that is possible.

    It is not where the classes are others. Images that the learner now trains on are named in a warning and in the run.
    """
    faults, task = watcher.faults, task_of(learn.dls, loss)
    if [(h.kind, h.vocab) for h in task.heads] != [(h.kind, h.vocab) for h in watcher.looks.task.heads]:
        return False
    with faults.harmless("showing the panel's images as the new data gives them"):
        panel = build_panel(learn, items=watcher.panel.sources, masks=masks, need_labels=False)
        panel.names = watcher.panel.names
        watcher.renew(panel, task)
    trained = _trained_on(learn, watcher)
    if trained:
        names = ", ".join(repr(watcher.panel.names[i]) for i in trained[:3])
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        faults.say(
            f"the learner's data has changed, and the model now trains on {len(trained)} of the panel's images: {names}"
            f"{more}. From now on, its answers for them are not those for images that it has not seen."
        )
        watcher.mark(trained, "trained_on_since_fit", watcher.fit + 1)
    return True


def _trained_on(learn: Learner, watcher: Watcher) -> list[int]:
    "The images of the panel that are among those to train on."
    items = getattr(getattr(learn.dls, "train_ds", None), "items", None)
    if items is None or any(isinstance(source, int) for source in watcher.panel.sources):
        return []
    root, rows = getattr(learn.dls, "path", None), getattr(items, "iloc", items)
    known = {item_name(rows[i], -1, root) for i in range(len(items))}
    return [i for i, source in enumerate(watcher.panel.sources) if item_name(source, -2, root) in known]
