"""`GradCAMCallback`: a frame of the panel before training and after every epoch, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import fastai.callback.core as fastai_callbacks
from fastai.callback.core import Callback
from fastai.learner import Learner, Recorder
from fastai.torch_core import rank_distrib
from torch import Tensor

from ._errors import GradCAMError
from ._fastai.fits import arm, armed, watch_fits
from ._fastai.masks import Masks
from ._fastai.phases import Phase, Phases
from ._fastai.session import PANEL, Session
from ._fastai.subject import metrics_of
from ._watch.faults import Faults
from ._watch.panel import Panel
from ._watch.settings import Settings
from .run import Run

__all__ = ["GradCAMCallback"]

_NOT_EXPORTED = ("items", "masks", "loggers")
_CANCELLED = tuple(v for k, v in vars(fastai_callbacks).items() if k.startswith("Cancel") and k.endswith("Exception"))


class GradCAMCallback(Callback):
    """Grad-CAM of a fixed validation panel before training and after every epoch, saved in a run folder.

    Becomes `learn.grad_cam`; `learn.grad_cam.run` is the `Run`. Weights, losses and random numbers are the same with
    it and without it, and after training has begun none of its failures ends the training.

    - `n`: how many validation images, spread over the classes by `seed`; `items`: your own instead, as indices into
      the validation set or as paths or rows of the data source.
    - `layer`: `None` (the last with space), an int `i` (`learn.model[0][i]`), a dotted name, a module, or a list.
    - `target`: `"true"` (each image's label; the first of several; the class with the largest region in a mask),
      `"pred"` (its prediction; the most probable of several labels; the largest predicted region), a label, an index, a
      list of these for several classes per image, a list of lists, a tensor or an array with a row for each image, or
      a callable `output -> (N,)` scores. In a regression `"true"` and `"pred"` are the score, `"-score"` its negative.
    - `method`: a name in `fastai_gradcam.methods.methods`, or a callable `(activations, gradients) -> maps`.
    - `every`: a frame every so many epochs; the last epoch of a fit always has one. `check`: so often, in epochs (a
      multiple of `every`), ROAD of the panel is held against a blob in the middle, in `run.checks` and the report.
    - `masks`: where the object is: a callable `item -> mask`, a folder of masks, a mapping to masks or boxes, or a list
      with one for each of `items`.
    - `path`: the folder of runs (default `learn.path/"gradcam"`); `name`: the run's folder in it (default: the time).
      A name that exists is refused unless `resume=True`, which goes on with that run.
    - `show`: each grid under the progress table (default: in a notebook). `loggers`: callables `(run, frame)`, called
      after each frame with its entry in the `Run`, such as those of `fastai_gradcam.loggers`; fastai's own
      `TensorBoardCallback` and `WandbCallback` get frames anyway.
    - `judge`: when images are changed on purpose to learn what each class depends on: `"end"` (of each fit), `"every"`
      (each frame, too, for an early alarm) or `None`. Verdicts are in `run.verdicts`, shortcuts in `run.findings()`.
    - `atlas`: whether `learn.gradcam_atlas` follows each fit, into the folder `atlas` of the run.
    - `on_error`: `"warn"` turns a failure during training into one warning and a failed frame, `"raise"` raises it.

    Raises `GradCAMError` before the first batch where a setting does not fit the learner.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam import GradCAMCallback
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path, cbs=GradCAMCallback(n=4, show=False))
    >>> with learn.no_bar(), learn.no_logging():
    ...     learn.fit(1)
    >>> learn.grad_cam.run.status, len(learn.grad_cam.run.frames)  # frame 0 is before training
    ('finished', 2)
    """

    # After Recorder (50), which has the epoch's metrics; before early stopping (63), which ends the last epoch.
    order = Recorder.order + 1
    remove_on_fetch = True

    def __init__(
        self,
        n: int = 16,
        items: Sequence | None = None,
        layer: Any = None,
        target: Any = "true",
        method: str | Callable[[Tensor, Tensor], Tensor] = "gradcam",
        every: int = 1,
        masks: Masks = None,
        path: str | Path | None = None,
        name: str | None = None,
        show: bool | None = None,
        seed: int = 12345,
        resume: bool = False,
        loggers: Iterable[Callable[[Run, dict], None]] | None = None,
        on_error: str = "warn",
        judge: str | None = "end",
        check: int | None = None,
        atlas: bool = False,
    ) -> None:
        asked = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if items is None and (not isinstance(n, int) or n < 1):
            raise GradCAMError(f"n must be a number of images from 1 up, got {n!r}.")
        self._settings = Settings(**{k: v for k, v in asked.items() if k not in (*PANEL, "atlas")}, asked=asked)
        faults = Faults(type(self).__name__, on_error == "raise", _CANCELLED)
        self._session = Session(lambda: self.learn, self._settings, faults)
        self._enabled, self._phases, self._left = True, Phases(), list[str]()
        self._epoch: int = 0

    # fastai pickles callbacks with the learner: settings go along, the panel, the run and open files do not.
    def __getstate__(self) -> dict[str, Any]:
        left = [k for k, v in self.settings.items() if v is not None and (k in _NOT_EXPORTED or callable(v))]
        asked = {k: v for k, v in self.settings.items() if k not in left}
        return {"learn": self.learn, "asked": asked, "left": self._left + left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state["asked"])
        self._left = state["left"]
        # Past fastai's `__setattr__`, which asks the learner for its attributes: it has none yet.
        self.__dict__["learn"] = state["learn"]

    def __deepcopy__(self, memo: dict[int, Any]) -> GradCAMCallback:
        new = type(self)(**self.settings)
        new.__dict__["learn"] = deepcopy(self.learn, memo)
        return new

    def __repr__(self) -> str:
        return f"GradCAMCallback({self.run!r})" if self.run is not None else "GradCAMCallback"

    # fastai switches callbacks off and on by setting `run`; here that name is the Run.
    @property
    def run(self) -> Run | None:
        "The `Run` that frames go to, `None` before the first training."
        return self._session.watcher.run if self._session.watcher is not None else None

    @run.setter
    def run(self, on: bool) -> None:
        self._enabled = bool(on)

    @property
    def panel(self) -> Panel | None:
        "The images that are watched, as the model takes them (`panel.x`); `None` before the first training."
        return self._session.watcher.panel if self._session.watcher is not None else None

    @property
    def settings(self) -> dict[str, Any]:
        "The settings that the callback was given."
        return self._settings.asked

    def flush(self) -> None:
        "Wait until every frame taken so far is on the disk."
        if self._session.watcher is not None:
            self._session.watcher.flush()

    def __call__(self, event_name: str) -> None:
        "fastai's calling convention, without its use of `run`."
        if self._enabled and event_name in self._events:
            getattr(self, event_name)()
        if event_name == "after_fit":
            self._enabled = True

    _events = frozenset("before_fit before_train after_train after_pred after_epoch after_cancel_fit after_fit".split())

    def before_fit(self) -> None:
        if self._phases.on("before_fit")[1] is Phase.OUTSIDE:
            # While they train, MixUp and its like put a loss of their own in its place.
            self._session.loss = self.learn.loss_func

    def before_train(self) -> None:
        if hasattr(self.learn, "lr_finder") or rank_distrib():
            return
        begins = self._phases.now in (Phase.OUTSIDE, Phase.ASIDE)
        if begins:
            self._session.begin(self._left)
        self._phases.on("before_train")
        if begins and self._session.watcher is not None:
            arm(self, self.learn)
            self._session.watcher.start()
        # Kept, because a `get_preds` inside of the epoch sets the learner's back to 0.
        self._epoch = self.learn.epoch
        self._session.trains_on()

    def after_train(self) -> None:
        if self._phases.now is Phase.EPOCH:
            self._session.averaged.trained(self.learn.model)
            self._session.trained += int(getattr(self.learn.dls.train, "n", 0) or 0)

    def after_pred(self) -> None:
        if not self.learn.training and self._phases.now is Phase.EPOCH:
            self._session.averaged.validates(self.learn.model)

    def after_epoch(self) -> None:
        if self._phases.on("after_epoch") != (Phase.EPOCH, Phase.BETWEEN):
            return
        self._session.over(self._epoch, metrics_of(self.learn), last=self._epoch == self.learn.n_epoch - 1)

    def after_cancel_fit(self) -> None:
        # With `every`, the epoch at which training was stopped early may not have had its frame.
        if self._phases.now in (Phase.EPOCH, Phase.BETWEEN):
            self._session.catch_up()

    def after_fit(self) -> None:
        self.after_cancel_fit()
        self.end("finished", "after_fit")

    def end(self, status: str, event: str = "end") -> None:
        "The fit is over. If an exception ended it, fastai has no event for that."
        before, now = self._phases.on(event)
        if now is Phase.OUTSIDE and before is not Phase.OUTSIDE:
            armed.discard(self)
            self._session.close(status)

    def trains(self, learn: Learner) -> bool:
        "Whether `learn` is the learner that is watched."
        return self._session.trains(learn)


watch_fits()
