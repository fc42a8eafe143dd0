"""`GradCAMCallback`: a frame of the panel before training and after every epoch, and nothing else changed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import torch
from fastai.callback.core import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)
from fastai.learner import Learner, Recorder
from fastai.torch_core import rank_distrib
from fastcore.foundation import L
from torch import Tensor

from .cam import CAMs, gradcam
from .data import class_index, for_model, probabilities, vocabulary
from .guard import unchanged
from .layers import unwrap
from .learner import resolve_layer
from .masks import Masks
from .measures import measure
from .methods import resolve_method
from .panel import Panel, build_panel
from .record import Frame
from .record import Recorder as RunRecorder
from .run import Run
from .targets import main_output

__all__ = ["GradCAMCallback"]

_BEFORE_TRAINING = -1
_CANCELLED = (
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)


class GradCAMCallback(Callback):
    """Grad-CAM of a fixed validation panel before training and after every epoch, saved in a run folder.

    Becomes `learn.grad_cam`; `learn.grad_cam.run` is the `Run`. Weights, losses and random numbers are the same with
    it and without it, and after training has begun none of its failures ends the training.

    - `n`: how many validation images, spread over the classes by `seed`; `items`: your own instead, as indices into
      the validation set or as paths or rows of the data source.
    - `layer`: `None` (the last with space), an int `i` (`learn.model[0][i]`), a dotted name, a module, or a list.
    - `target`: `"true"` (each image's label), `"pred"` (its prediction), a label, an index, a list of these for
      several classes per image, or a callable `output -> (N,)` scores.
    - `method`: a name in `fastai_gradcam.methods.methods`, or a callable `(activations, gradients) -> maps`.
    - `every`: a frame every so many epochs; the last epoch of a fit always has one.
    - `masks`: where the object is: a callable `item -> mask`, a folder of masks, or a mapping to masks or boxes.
    - `path`: the folder of runs (default `learn.path/"gradcam"`); `name`: the run's folder in it (default: the time).
      A name that exists is refused unless `resume=True`, which goes on with that run.
    - `show`: show each grid under the progress table (default: in a notebook).
    - `loggers`: callables `(run, frame)` called after each frame.
    - `on_error`: `"warn"` turns a failure during training into one warning and a failed frame, `"raise"` raises it.

    Raises `ValueError` or `TypeError` before the first batch where a setting does not fit the learner.
    """

    # Behind Recorder (50), which has the epoch's metrics; before early stopping (63), which ends the last epoch.
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
    ):
        if items is None and (not isinstance(n, int) or n < 1):
            raise ValueError(f"n must be a number of images from 1 up, got {n!r}.")
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a number of epochs from 1 up, got {every!r}.")
        if on_error not in ("warn", "raise"):
            raise ValueError(f"on_error must be 'warn' or 'raise', got {on_error!r}.")
        if name is not None and (not name or Path(name).name != name or name in (".", "..")):
            raise ValueError(f"name must be the name of one folder, got {name!r}.")
        if resume and name is None:
            raise ValueError("resume=True needs the name= of the run to go on with.")
        resolve_method(method)
        self._settings = {
            "n": n, "items": items, "layer": layer, "target": target, "method": method, "every": every, "masks": masks,
            "path": path, "name": name, "show": show, "seed": seed, "resume": resume, "loggers": loggers,
            "on_error": on_error,
        }  # fmt: skip
        self._forget()

    def _forget(self) -> None:
        "The state of a callback that has not seen a training yet."
        self._enabled = True
        self._run: Run | None = None
        self._recorder: RunRecorder | None = None
        self._watched: ref | None = None
        self._panel: Panel | None = None
        self._layers: list[str] = []
        self._next, self._fit = 0, -1
        self._first: dict[str, np.ndarray] | None = None
        self._previous: dict[str, np.ndarray] | None = None
        self._watching, self._pending = False, None

    # fastai pickles callbacks with the learner: settings go along, the panel, the run and open files do not.
    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self._settings.items() if k not in ("items", "masks", "loggers")}
        portable = {k: v for k, v in kept.items() if not callable(v) and not isinstance(v, torch.nn.Module)}
        return {"_settings": portable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["_settings"])

    def __repr__(self) -> str:
        return f"GradCAMCallback({self._run!r})" if self._run is not None else "GradCAMCallback"

    # fastai switches callbacks off and on by setting `run`; here that name is the Run.
    @property
    def run(self) -> Run | None:
        "The `Run` that frames go to, `None` before the first training."
        return self._run

    @run.setter
    def run(self, on: bool) -> None:
        self._enabled = bool(on)

    def __call__(self, event_name: str) -> None:
        "fastai's calling convention, without its use of `run`."
        if self._enabled and event_name in self._events:
            getattr(self, event_name)()
        if event_name == "after_fit":
            self._enabled = True

    _events = frozenset("before_fit before_train after_epoch after_cancel_fit after_fit".split())

    def before_fit(self) -> None:
        # `validate`, `get_preds` and `lr_find` say before_fit too; only before_train tells a training.
        self._watching, self._pending = False, None

    def before_train(self) -> None:
        if hasattr(self.learn, "lr_finder") or rank_distrib():
            return
        if not self._watching:
            self._arm()
            self._watching = True
        self._pending = None

    def after_epoch(self) -> None:
        if not self._watching:
            return
        self._pending = (self.learn.epoch, self._metrics())
        last = self.learn.epoch == self.learn.n_epoch - 1
        if last or (self.learn.epoch + 1) % self._settings["every"] == 0:
            self._take()

    def after_cancel_fit(self) -> None:
        # With `every`, the epoch at which training was stopped early may not have had its frame.
        if self._watching and self._pending:
            self._take()

    def after_fit(self) -> None:
        if self._watching:
            self._end("finished")

    def _end(self, status: str) -> None:
        "All frames on the disk, the run's status set, the writing thread ended."
        if not self._watching or self._recorder is None:
            return
        self._watching = False
        with self._harmless("closing the run"):
            self._recorder.close()
            self._recorder.set_status(status)
        self._report_errors()

    def _harmless(self, doing: str):
        return _Harmless(self, doing)

    # --- before the first batch: whatever is wrong is told here ------------------------------------------------

    def _arm(self) -> None:
        "Begin a run, or go on with the one of this learner. Raises where a setting does not fit."
        if self._watched is None or self._watched() is not self.learn:
            settings, enabled = self._settings, self._enabled
            self._forget()
            self._settings, self._enabled = settings, enabled
            with unchanged(unwrap(self.learn.model)):
                self._begin()
            self._watched = ref(self.learn)
            fresh = self._next == 0
        else:
            self._fit += 1
            fresh = False
            with self._harmless("going on with the run"):
                self._recorder.set_status("running")
        if fresh:
            self._pending = (_BEFORE_TRAINING, {})
            self._take()

    def _begin(self) -> None:
        s, learn = self._settings, self.learn
        folder = Path(s["path"] if s["path"] is not None else Path(learn.path) / "gradcam")
        path = folder / (s["name"] or _timestamp(folder))
        exists = (path / "run.json").exists()
        if path.exists() and not (s["resume"] and exists):
            raise ValueError(
                f"There is a run {path.name!r} in {str(folder)!r} already: choose another name=, or go on with it by "
                "resume=True."
            )
        self._panel = build_panel(learn, s["n"], s["items"], s["seed"], s["masks"])
        self._vocab = vocabulary(learn.dls)
        self._target_of(self._panel, slice(0, len(self._panel)))
        model = unwrap(learn.model)
        if s["layer"] is not None:
            self._layer = resolve_layer(learn, s["layer"])
        else:
            # Named once, so that all frames show the same layer, also after the network changed.
            self._layer = None
        # One small look shows whether layer, target and method fit this model.
        probe = self._cams(slice(0, min(2, len(self._panel))))
        self._layers = probe.layers
        self._layer = probe.layers
        self._check_probe(probe)
        if s["resume"] and exists:
            self._continue(path)
            return
        self._recorder = RunRecorder.create(
            path,
            settings={k: _plain(v) for k, v in s.items()},
            arch=_arch(learn, model),
            layers=self._layers,
            vocab=self._vocab,
            names=self._panel.names,
            labels=self._panel.labels,
            images=self._panel.images,
            masks=self._panel.masks,
        )
        self._fit = 0
        self._adopt(path)

    def _continue(self, path: Path) -> None:
        run = Run(path)
        for what, stored, now in (
            ("panel images", [p["name"] for p in run.panel], self._panel.names),
            ("layers", run.layers, self._layers),
            ("classes", run.vocab, self._vocab),
        ):
            if stored != now:
                raise ValueError(
                    f"The run {path.name!r} cannot be resumed: it has {what} {_brief(stored)}, this learner has "
                    f"{_brief(now)}. Choose another name=."
                )
        self._recorder = RunRecorder.resume(path, run.info, self._panel.images)
        frames = run.frames
        self._next = 1 + max((f["frame"] for f in frames), default=-1)
        self._fit = 1 + max((f["fit"] for f in frames), default=-1)
        complete = [f["frame"] for f in frames if f["status"] == "ok"]
        if complete:
            self._first, self._previous = run.maps(complete[0]), run.maps(complete[-1])
        self._adopt(path)

    def _adopt(self, path: Path) -> None:
        self._run = Run(path)
        self._run._writer = self._recorder

    def _check_probe(self, cams: CAMs) -> None:
        for name, maps in zip(cams.layers, cams.maps, strict=True):
            per_image = 1 + (cams.target is not None and cams.target.ndim == 2)
            if maps.ndim - per_image != 2:
                raise ValueError(
                    f"Layer {name!r} gives maps of shape {tuple(maps.shape[per_image:])}; the callback draws (h, w)."
                )

    # --- a frame -------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        "One frame of the panel, whatever happens."
        (epoch, metrics), self._pending = self._pending, None
        frame = Frame(self._next, self._fit, epoch, metrics)
        self._next += 1
        with self._harmless(f"frame {frame.frame}") as failure:
            with unchanged(unwrap(self.learn.model)):
                self._look(frame)
        frame.error = failure.reason
        if frame.error:
            frame.maps, frame.rows = {}, []
        with self._harmless(f"writing frame {frame.frame}"):
            self._recorder.add(frame)
            if self._settings["on_error"] == "raise":
                self._recorder.flush()
        self._report_errors()
        if failure.error is not None and self._settings["on_error"] == "raise":
            raise failure.error

    def _look(self, frame: Frame) -> None:
        "Fill in the frame's maps and rows."
        n = len(self._panel)
        chunks = self._in_chunks(n)
        maps = [np.concatenate([_numpy(c.maps[i]) for c in chunks]) for i in range(len(self._layers))]
        negative = [np.concatenate([_numpy(c.negative_share[i]) for c in chunks]) for i in range(len(self._layers))]
        logits = torch.cat([main_output(c.output) for c in chunks])
        target = None if chunks[0].target is None else torch.cat([c.target for c in chunks])
        about = self._about(logits, target)
        frame.maps = dict(zip(self._layers, maps, strict=True))
        for item in range(n):
            for i, layer in enumerate(self._layers):
                for k in range(maps[i].shape[1] if maps[i].ndim == 4 else 1):
                    at = (item, k) if maps[i].ndim == 4 else (item,)
                    numbers = measure(
                        maps[i][at],
                        float(negative[i][at]),
                        None if self._previous is None else self._previous[layer][at],
                        None if self._first is None else self._first[layer][at],
                        self._panel.masks[item],
                    )
                    place = {"frame": frame.frame, "fit": frame.fit, "epoch": frame.epoch, "item": item, "layer": layer}
                    frame.rows.append({**place, **about(item, k), **numbers})
        self._previous = frame.maps
        self._first = self._first if self._first is not None else frame.maps

    def _in_chunks(self, n: int) -> list[CAMs]:
        "The panel in one batch; in smaller and smaller ones while the device runs out of memory."
        size = n
        while True:
            try:
                return [self._cams(slice(i, min(i + size, n))) for i in range(0, n, size)]
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not _out_of_memory(error):
                    raise
            size = (size + 1) // 2
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def _cams(self, part: slice) -> CAMs:
        model = unwrap(self.learn.model)
        x = for_model(self._panel.x[part], model)
        return gradcam(
            model, x, layer=self._layer, target=self._target_of(self._panel, part), method=self._settings["method"]
        )

    def _target_of(self, panel: Panel, part: slice) -> Any:
        "The engine's target for a part of the panel. Raises where it does not fit the data."
        target = self._settings["target"]
        if callable(target) or target is None or target == "pred":
            return None if isinstance(target, str) else target
        if isinstance(target, str) and target == "true":
            if panel.y is None or panel.y.ndim != 1 or panel.y.is_floating_point():
                raise ValueError(
                    "target='true' needs one category per image, which this panel has not: choose target='pred', a class, "
                    "or a callable on the model's output."
                )
            return panel.y[part].long()
        several = isinstance(target, (list, tuple))
        classes = [class_index(t, self._vocab) for t in (target if several else [target])]
        if not classes:
            raise ValueError("target=[] names no class to explain.")
        return torch.tensor(classes).expand(len(panel.x[part]), -1) if several else classes[0]

    def _about(self, logits: Tensor, target: Tensor | None) -> Callable[[int, int], dict[str, Any]]:
        "The columns of a row that are about the prediction, for image `item` and its `k`-th class."
        panel, n = self._panel, len(self._panel)
        loss = self._losses(logits)
        categories = logits.ndim == 2
        probs = _numpy(probabilities(logits, self.learn.loss_func)) if categories else None
        pred = probs.argmax(1) if categories else None
        classes = None if target is None else _numpy(target).reshape(n, -1)
        name = lambda c: self._vocab[c] if self._vocab and c < len(self._vocab) else str(c)  # noqa: E731

        def about(item: int, k: int) -> dict[str, Any]:
            row: dict[str, Any] = {"label": panel.labels[item], "loss": loss[item], "correct": None}
            if classes is not None:
                row["target"] = name(int(classes[item, k]))
                row["prob"] = float(probs[item, classes[item, k]])
            if categories:
                row["pred"], row["pred_prob"] = name(int(pred[item])), float(probs[item, pred[item]])
                if panel.labels[item] is not None:
                    row["correct"] = row["pred"] == panel.labels[item]
            return row

        return about

    def _losses(self, logits: Tensor) -> list[float | None]:
        "The loss of each image by the learner's own loss function, `None` where it has none per image."
        y = self._panel.y
        if y is None:
            return [None] * len(self._panel)
        try:
            y = y.to(logits.device)
            each = [float(self.learn.loss_func(logits[i : i + 1].float(), y[i : i + 1])) for i in range(len(y))]
        except Exception:
            # A loss of the user's own may need more than predictions and targets.
            return [None] * len(self._panel)
        return each

    def _metrics(self) -> dict[str, float | None]:
        "The epoch's losses and metrics, as the progress table has them."
        recorder = getattr(self.learn, "recorder", None)
        if recorder is None:
            return {}
        names, values = list(recorder.metric_names), list(recorder.log)
        shown = {}
        for name, value in zip(names, values, strict=False):
            if name in ("epoch", "time"):
                continue
            number = isinstance(value, (int, float, np.number, Tensor)) and np.size(value) == 1
            # JSON has no NaN.
            shown[name] = float(value) if number and np.isfinite(float(value)) else None
        return shown

    def _report_errors(self) -> None:
        "Warn of (or raise) what the writing thread could not do."
        if self._recorder is None:
            return
        for frame, reason in self._recorder.take_errors():
            message = f"GradCAMCallback: frame {frame} could not be written: {reason}"
            if self._settings["on_error"] == "raise":
                raise RuntimeError(message)
            warnings.warn(message, stacklevel=3)


class _Harmless:
    "Context manager that turns an exception into a warning, so that the training goes on."

    def __init__(self, callback: GradCAMCallback, doing: str):
        self.doing, self.raising = doing, callback._settings["on_error"] == "raise"
        self.reason: str | None = None
        self.error: Exception | None = None

    def __enter__(self) -> _Harmless:
        return self

    def __exit__(self, kind, error, trace) -> bool:
        # KeyboardInterrupt and fastai's Cancel…Exceptions are somebody's wish, not a failure.
        if not isinstance(error, Exception) or isinstance(error, _CANCELLED):
            return False
        self.error, self.reason = error, f"{type(error).__name__}: {error}"
        if not self.raising:
            warnings.warn(f"GradCAMCallback: {self.doing} failed, training goes on: {self.reason}", stacklevel=4)
        return True


def _out_of_memory(error: BaseException) -> bool:
    # torch has a class for the accelerators' memory, and only words for the CPU's.
    kinds = (torch.cuda.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy() if x.is_floating_point() else x.detach().cpu().numpy()


def _timestamp(folder: Path) -> str:
    "The time as a folder's name, with a number behind it where two runs start within a second."
    base = time.strftime("%Y-%m-%d_%H-%M-%S")
    name, k = base, 1
    while (folder / name).exists():
        k += 1
        name = f"{base}_{k}"
    return name


def _arch(learn: Learner, model: torch.nn.Module) -> str:
    arch = getattr(learn, "arch", None)
    return getattr(arch, "__name__", None) or (arch if isinstance(arch, str) else type(model).__name__)


def _plain(value: Any) -> Any:
    "A setting as JSON has it."
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return getattr(value, "__name__", None) or str(value)[:200]


def _brief(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 120 else text[:120] + "…"


def _watch_fit() -> None:
    "Let `Learner.fit` tell its callbacks when an exception ends it, for which fastai has no event."
    fit = Learner.fit
    if getattr(fit, "_tells_gradcam", False):
        return

    @wraps(fit)
    def told(self, *args, **kwargs):
        cbs = kwargs.get("cbs", args[3] if len(args) > 3 else None)
        watching = [cb for cb in [*self.cbs, *L(cbs)] if isinstance(cb, GradCAMCallback)]
        try:
            return fit(self, *args, **kwargs)
        finally:
            for cb in watching:
                cb._end("interrupted")

    told._tells_gradcam = True
    Learner.fit = told


_watch_fit()
