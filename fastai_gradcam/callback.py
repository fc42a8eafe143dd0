"""`GradCAMCallback`: a frame of the panel before training and after every epoch, and nothing else changed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from importlib.util import find_spec
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
from torch import Tensor
from torch.nn.parameter import is_lazy

from ._draw.notebook import NotebookGrid, in_notebook
from ._engine.guard import unchanged
from ._engine.layers import unwrap
from ._errors import reason_of
from ._fastai.items import for_model
from ._fastai.masks import Masks
from ._fastai.panel import Panel, build_panel
from ._fastai.tasks import Task, task_of
from ._run.publish import ReportRefresher, publish
from ._run.writer import Frame
from ._run.writer import Recorder as RunRecorder
from .cam import CAMs, gradcam
from .learner import resolve_layer
from .loggers import loggers_of
from .measures import measure
from .methods import resolve_method
from .render import slices
from .run import Run
from .targets import main_output

__all__ = ["GradCAMCallback"]

_BEFORE_TRAINING = -1
_NOT_EXPORTED = ("items", "masks", "loggers")
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
    - `target`: `"true"` (each image's label; the first of several; the class with the largest region in a mask),
      `"pred"` (its prediction; the most probable of several labels; the largest predicted region), a label, an index, a
      list of these for several classes per image, a list of lists, a tensor or an array with a row for each image, or
      a callable `output -> (N,)` scores. In a regression `"true"` and `"pred"` are the score; `"-score"` is its
      negative.
    - `method`: a name in `fastai_gradcam.methods.methods`, or a callable `(activations, gradients) -> maps`.
    - `every`: a frame every so many epochs; the last epoch of a fit always has one.
    - `masks`: where the object is: a callable `item -> mask`, a folder of masks, a mapping to masks or boxes, or a list
      with one for each of `items`.
    - `path`: the folder of runs (default `learn.path/"gradcam"`); `name`: the run's folder in it (default: the time).
      A name that exists is refused unless `resume=True`, which goes on with that run.
    - `show`: show each grid under the progress table (default: in a notebook).
    - `loggers`: callables `(run, frame)`, called after each frame with the `Run` and the frame's entry in it, such as
      those of `fastai_gradcam.loggers`. fastai's own `TensorBoardCallback` and `WandbCallback` get frames by themselves.
    - `on_error`: `"warn"` turns a failure during training into one warning and a failed frame, `"raise"` raises it.

    Raises `ValueError` or `TypeError` before the first batch where a setting does not fit the learner.
    """

    # Behind Recorder (50), which has the epoch's metrics; before early stopping (63), which ends the last epoch.
    order = Recorder.order + 1
    remove_on_fetch = True

    # What `_begin` sets, before anything asks for it.
    _panel: Panel
    _task: Task
    _recorder: RunRecorder
    _refresher: ReportRefresher
    _layer: list[str] | None

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
    ) -> None:
        if items is None and (not isinstance(n, int) or n < 1):
            raise ValueError(f"n must be a number of images from 1 up, got {n!r}.")
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a number of epochs from 1 up, got {every!r}.")
        if on_error not in ("warn", "raise"):
            raise ValueError(f"on_error must be 'warn' or 'raise', got {on_error!r}.")
        if name is not None and (not name or Path(name).name != name or name in (".", "..")):
            raise ValueError(f"name must be the name of one folder, got {name!r}.")
        if show and find_spec("IPython") is None:
            raise ValueError("show=True needs IPython, which is not installed: pip install ipython.")
        if resume and name is None:
            raise ValueError("resume=True needs the name= of the run to go on with.")
        resolve_method(method)
        if loggers is not None:
            loggers = _checked_loggers(loggers)
        self._settings = {
            "n": n, "items": items, "layer": layer, "target": target, "method": method, "every": every, "masks": masks,
            "path": path, "name": name, "show": show, "seed": seed, "resume": resume, "loggers": loggers,
            "on_error": on_error,
        }  # fmt: skip
        self._enabled = True
        self._loss_func: Any = None
        self._left: list[str] = []
        self._forget()

    def _forget(self) -> None:
        "The state of a callback that has not seen a training yet."
        self._run: Run | None = None
        self._watched: ref | None = None
        self._layers: list[str] = []
        self._next, self._fit = 0, -1
        self._first: dict[str, np.ndarray] | None = None
        self._previous: dict[str, np.ndarray] | None = None
        self._watching, self._inside = False, 0
        self._shown: NotebookGrid | None = None
        self._epoch: int | None = None
        self._pending: tuple[int, dict[str, float | None]] | None = None

    # fastai pickles callbacks with the learner: settings go along, the panel, the run and open files do not.
    def __getstate__(self) -> dict[str, Any]:
        left = [k for k, v in self._settings.items() if v is not None and (k in _NOT_EXPORTED or callable(v))]
        settings = {k: v for k, v in self._settings.items() if k not in left}
        return {"learn": self.learn, "settings": settings, "left": self._left + left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state["settings"])
        self._left = state["left"]
        # Past fastai's `__setattr__`, which asks the learner for its attributes: it has none yet.
        self.__dict__["learn"] = state["learn"]

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
        if self._watching:
            self._inside += 1
            return
        # While they train, MixUp and its like put a loss of their own in its place.
        self._loss_func = self.learn.loss_func

    def before_train(self) -> None:
        if hasattr(self.learn, "lr_finder") or rank_distrib():
            return
        if self._inside:  # a fit inside of an epoch
            self._watching, self._inside = False, 0
        if not self._watching:
            self._arm()
        # Kept, because a `get_preds` inside of the epoch sets the learner's back to 0.
        self._epoch, self._pending = self.learn.epoch, None

    def after_epoch(self) -> None:
        if not self._watching or self._inside or self._epoch is None:
            return
        epoch, self._epoch = self._epoch, None
        self._pending = (epoch, self._metrics())
        if epoch == self.learn.n_epoch - 1 or (epoch + 1) % self._settings["every"] == 0:
            self._take(*self._pending)

    def after_cancel_fit(self) -> None:
        # With `every`, the epoch at which training was stopped early may not have had its frame.
        if self._watching and not self._inside and self._pending:
            self._take(*self._pending)

    def after_fit(self) -> None:
        if self._inside:
            self._inside -= 1
            return
        self.after_cancel_fit()
        self._end("finished")

    def _end(self, status: str) -> None:
        "All frames on the disk, the run's status set, the writing thread ended."
        if not self._watching:
            return
        self._watching, self._inside = False, 0
        _armed.discard(self)
        # What interrupts the training is on its way to the user: nothing of ours takes its place.
        raising = None if status == "finished" else False
        with self._harmless("closing the run", raising):
            # The writing thread may be about to put a refresh off: behind the last frame it no longer is.
            self._recorder.flush()
            self._refresher.stop()
            self._recorder.close(status)
        with self._harmless("drawing the run", raising):
            publish(self._recorder.path)
        self._report_errors(raising)

    @contextmanager
    def _harmless(self, doing: str, raising: bool | None = None) -> Iterator[None]:
        "A failure in the block becomes a warning, or with `on_error='raise'` goes on."
        try:
            yield
        except _CANCELLED:
            # Like a KeyboardInterrupt, somebody's wish and not a failure.
            raise
        except Exception as error:
            self._failed(doing, error, raising)

    def _failed(self, doing: str, error: Exception, raising: bool | None = None) -> None:
        if self._settings["on_error"] == "raise" if raising is None else raising:
            raise error
        warnings.warn(f"GradCAMCallback: {doing} failed, training goes on: {reason_of(error)}", stacklevel=3)

    def _unchanged(self) -> AbstractContextManager[None]:
        "Leaves the model and the loss function as they are, and the random number generators."
        loss = self._loss_func
        return unchanged(unwrap(self.learn.model), loss, getattr(loss, "func", None))

    # --- before the first batch: whatever is wrong is told here ------------------------------------------------

    def _arm(self) -> None:
        "Begin a run, or go on with the one of this learner. Raises where a setting does not fit."
        if self._watched is None or self._watched() is not self.learn:
            self._forget()
            if any(map(is_lazy, self.learn.model.parameters())):
                raise ValueError(
                    "The model has lazy layers, whose shapes the first batch decides: pass one through the model before "
                    "training, so that the panel does not."
                )
            with self._unchanged():
                self._begin()
            self._watched = ref(self.learn)
        else:
            self._fit += 1
            with self._harmless("going on with the run"):
                self._recorder.set_status("running")
        self._watching = True
        # A new picture for each fit: it belongs below the progress table of the cell that runs it.
        show = self._settings["show"]
        self._shown = NotebookGrid() if (in_notebook() if show is None else show) else None
        _armed.add(self)
        if self._next == 0:
            self._take(_BEFORE_TRAINING, {})

    def _begin(self) -> None:
        s, learn = self._settings, self.learn
        folder = Path(s["path"] if s["path"] is not None else Path(learn.path) / "gradcam")
        path = folder / (s["name"] or _timestamp(folder))
        exists = path.exists()
        if exists and _leftover(path):
            shutil.rmtree(path)
            exists = False
        if exists and not (path / "run.json").exists():
            raise ValueError(f"{str(path)!r} exists and holds no run: choose another name=.")
        if exists and not s["resume"] and not _of_this_learner(path, learn):
            raise ValueError(
                f"There is a run {path.name!r} in {str(folder)!r} already: choose another name=, or go on with it by "
                "resume=True."
            )
        if exists and s["resume"] and _written_by_another_process(path):
            raise ValueError(
                f"Another process is writing the run {path.name!r} now: wait for it, or choose another name=."
            )
        if exists and any(cb._run is not None and cb._run.path == path for cb in _armed):
            raise ValueError(f"Another callback is writing the run {path.name!r}: give each a name= of its own.")
        if self._left:
            warnings.warn(
                f"GradCAMCallback: {', '.join(self._left)} did not travel with the exported learner; the defaults are "
                "used.",
                stacklevel=2,
            )
        _refuse_own_pictures(learn)
        self._panel = build_panel(learn, s["n"], s["items"], s["seed"], s["masks"])
        self._task = task_of(learn.dls, self._loss_func)
        self._vocab = self._task.vocab
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
        if exists:
            self._continue(path)
            return
        about: dict[str, Any] = {
            "settings": {k: _plain(v) for k, v in s.items()},
            "arch": _arch(learn, model),
            "layers": self._layers,
            "vocab": self._vocab,
            "names": self._panel.names,
            "labels": self._panel.labels,
            "images": self._panel.images,
            "masks": self._panel.masks,
        }
        while True:
            try:
                self._recorder = RunRecorder.create(path, **about)
                break
            except FileExistsError:
                # Another process took the name meanwhile; by the time of day, several may start in one second.
                if s["name"]:
                    raise
                path = folder / _timestamp(folder)
        self._fit = 0
        self._adopt(path)

    def _continue(self, path: Path) -> None:
        run = Run(path)
        for what, stored, now in (
            ("panel images", [p["name"] for p in run.panel], self._panel.names),
            ("layers", run.layers, self._layers),
            ("classes", run.vocab, self._vocab),
            ("panel sizes", [[p["width"], p["height"]] for p in run.panel], [list(i.size) for i in self._panel.images]),
            *((k, run.settings.get(k), _plain(self._settings[k])) for k in ("target", "method")),
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
        self._run = run = Run(path)
        run._writer = self._recorder
        self._recorder.after_frame = self._refresher = ReportRefresher(path)
        _watched_by[path.resolve()] = ref(self.learn)

    def _check_probe(self, cams: CAMs) -> None:
        for name, maps in zip(cams.layers, cams.maps, strict=True):
            per_image = 1 + (cams.target is not None and cams.target.ndim == 2)
            if maps.ndim - per_image not in (2, 3):
                raise ValueError(
                    f"Layer {name!r} gives maps of shape {tuple(maps.shape[per_image:])}; the callback draws (h, w), and "
                    "(d, h, w) as slices."
                )

    # --- a frame -------------------------------------------------------------------------------------------------

    def _take(self, epoch: int, metrics: dict[str, float | None]) -> None:
        "One frame of the panel, whatever happens."
        self._pending = None
        frame = Frame(self._next, self._fit, epoch, metrics)
        failure = None
        try:
            with self._unchanged():
                self._look(frame)
        except _CANCELLED:
            raise
        except Exception as error:
            failure, frame.error = error, reason_of(error)
            frame.maps, frame.rows = {}, []
        self._next = frame.frame + 1
        with self._harmless(f"writing frame {frame.frame}"):
            self._recorder.add(frame)
            if self._settings["on_error"] == "raise":
                self._recorder.flush()
        if failure is not None:
            self._failed(f"frame {frame.frame}", failure)
        loggers = [*(self._settings["loggers"] or ()), *loggers_of(self.learn)]
        run = self._run
        if failure is None and run is not None and (loggers or self._shown is not None):
            # They read the frame's files. Where those could not be written, that is the one thing to tell.
            self._recorder.flush()
            if self._recorder.has(frame.frame):
                for logger in loggers:
                    self._log(logger, run, frame)
                if self._shown is not None:
                    with self._harmless(f"showing frame {frame.frame}"):
                        self._shown.show(run.grid(frame.frame))
        self._report_errors()

    def _log(self, logger: Callable[[Run, dict], None], run: Run, frame: Frame) -> None:
        name = getattr(logger, "__name__", None) or type(logger).__name__
        with self._harmless(f"logger {name} at frame {frame.frame}"):
            try:
                with self._unchanged():
                    logger(run, frame.entry())
            except _CANCELLED:
                raise
            except Exception as error:
                self._recorder.note(frame.frame, f"logger {name}: {reason_of(error)}")
                raise

    def _look(self, frame: Frame) -> None:
        "Fill in the frame's maps and rows."
        n = len(self._panel)
        chunks = self._in_chunks(n)
        maps = [np.concatenate([_numpy(c.maps[i]) for c in chunks]) for i in range(len(self._layers))]
        several = chunks[0].target is not None and chunks[0].target.ndim == 2
        # A run holds pictures: of a volume the slices that are drawn, which its numbers are about, too.
        maps = [slices(m) if m.ndim - several == 4 else m for m in maps]
        negative = [np.concatenate([_numpy(c.negative_share[i]) for c in chunks]) for i in range(len(self._layers))]
        logits = torch.cat([main_output(c.output) for c in chunks])
        targets = [c.target for c in chunks if c.target is not None]
        target = torch.cat(targets) if targets else None
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
        if target is None or (isinstance(target, str) and target == "pred"):
            return self._task.pred()
        if isinstance(target, str) and target == "true":
            return self._task.true(None if panel.y is None else panel.y[part])
        return self._task.target(target, len(panel), part)

    def _about(self, logits: Tensor, target: Tensor | None) -> Callable[[int, int], dict[str, Any]]:
        "The columns of a row that are about the prediction, for image `item` and its `k`-th class."
        panel, task, loss = self._panel, self._task, self._losses(logits)
        answers = task.answers(logits, panel.y)
        probs = None if target is None else task.probabilities(logits)
        classes = None if target is None else _numpy(target).reshape(len(panel), -1)

        def about(item: int, k: int) -> dict[str, Any]:
            row: dict[str, Any] = {"label": panel.labels[item], "loss": loss[item], "correct": None}
            if classes is not None:
                row["target"] = task.name(int(classes[item, k]), logits)
                row["prob"] = None if probs is None else float(probs[item, classes[item, k]])
            else:
                row["target"] = task.in_words(self._settings["target"], item, len(panel))
            if answers is not None:
                one = answers[item]
                row |= {"pred": one.pred, "pred_prob": one.pred_prob, "correct": one.correct}
            return row

        return about

    def _losses(self, logits: Tensor) -> list[float | None]:
        "The loss of each image by the learner's own loss function, `None` where it has none per image."
        y = self._panel.y
        if y is None:
            return [None] * len(self._panel)
        try:
            y = y.to(logits.device)
            each: list[float | None] = [
                float(self._loss_func(logits[i : i + 1].float(), y[i : i + 1])) for i in range(len(y))
            ]
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

    def _report_errors(self, raising: bool | None = None) -> None:
        "Warn of (or raise) what the writing thread could not do."
        for sentence in self._recorder.take_errors():
            if self._settings["on_error"] == "raise" if raising is None else raising:
                raise RuntimeError(f"GradCAMCallback: {sentence}")
            warnings.warn(f"GradCAMCallback: {sentence}", stacklevel=3)


# Callbacks in the middle of a training, and the learner that each run of this process belongs to.
_armed: set[GradCAMCallback] = set()
_watched_by: dict[Path, ref] = {}


def _of_this_learner(path: Path, learn: Learner) -> bool:
    owner = _watched_by.get(path.resolve())
    return owner is not None and owner() is learn


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def _out_of_memory(error: BaseException) -> bool:
    # torch has a class for the accelerators' memory, and only words for the CPU's and for cuBLAS and cuDNN.
    kinds = (torch.cuda.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in _NO_MEMORY)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy() if x.is_floating_point() else x.detach().cpu().numpy()


def _leftover(path: Path) -> bool:
    "Whether `path` holds nothing but the beginning of a run whose process was killed before it had a run.json."
    if (path / "run.json").exists():
        return False
    made = {"panel", "frames", "maps", "history.csv", ".history.csv.part", ".run.json.part"}
    inside = {p.name for p in path.iterdir()}
    empty = not any(any((path / folder).glob("*")) for folder in ("frames", "maps"))
    own = all(re.fullmatch(r"\.?\d+(-mask)?\.(jpg|png)(\.part)?", p.name) for p in (path / "panel").glob("*"))
    return bool(inside) and inside <= made and empty and own


def _written_by_another_process(path: Path) -> bool:
    run = Run(path)
    return (
        run.status == "running" and run.info.get("host") == socket.gethostname() and run.info.get("pid") != os.getpid()
    )


def _refuse_own_pictures(learn: Learner) -> None:
    "A run saved among the images is read as more of them by the next `get_image_files`."
    for dataset in (getattr(learn.dls, "train_ds", None), getattr(learn.dls, "valid_ds", None)):
        items = getattr(dataset, "items", None)
        folders = {i.parent for i in (() if items is None or hasattr(items, "iloc") else items) if isinstance(i, Path)}
        for folder in folders:
            if (folder.parent / "run.json").exists() and folder.name in ("panel", "frames"):
                raise ValueError(
                    f"The learner's data holds pictures that a run of this callback saved: {str(folder)!r} is read as a "
                    "class. Move the runs out of the images' folder, and give the callback path= elsewhere."
                )


def _checked_loggers(loggers: Any) -> list[Callable[[Run, dict], None]]:
    "`loggers` as a list. Raises `TypeError` for what is no callable, and for a class, which a call would only make."
    found = [loggers] if callable(loggers) or isinstance(loggers, str) or not isinstance(loggers, Iterable) else loggers
    found = list(found)
    for one in found:
        if isinstance(one, type):
            raise TypeError(
                f"loggers must be callables (run, frame), got the class {one.__name__}: give an object of it."
            )
        if not callable(one):
            raise TypeError(
                f"loggers must be callables (run, frame), such as WandbLogger() of fastai_gradcam.loggers, got {one!r}."
            )
    return found


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
    def told(self: Learner, *args: Any, **kwargs: Any) -> Any:
        outer, status = _armed.copy(), "interrupted"
        try:
            result = fit(self, *args, **kwargs)
            status = "finished"
            return result
        finally:
            for cb in _armed - outer:
                if cb._watched is not None and cb._watched() is self:
                    cb._end(status)

    vars(told)["_tells_gradcam"] = True
    Learner.fit = told


_watch_fit()
