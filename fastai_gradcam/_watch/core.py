"""`Watcher`: frames of one panel, taken of a model that trains, and written as a run; in any training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._draw.frame import frame_grid
from .._draw.notebook import NotebookGrid, in_notebook
from .._errors import GradCAMError, reason_of
from .._net.guard import undisturbed
from .._net.layers import named_layers, unwrap
from .._net.shadow import copied, shadow
from .._run.schema import Frame
from .._run.writer import Writer
from ..cam import CAMs, explain
from ..run import Run
from .begin import adopt, check_resumable, claim, create
from .checking import check_panel, checkable
from .faults import Faults
from .judging import Judging, images_for, set_of_panel
from .look import Look, check_shapes, depth_of, in_chunks, losses
from .nested import on_device_of, rows
from .panel import Panel
from .publish import ReportRefresher, publish
from .settings import Logger, Settings
from .subject import Subject, Unwatchable
from .tasks import Task

__all__ = ["BEFORE_TRAINING", "Subject", "Unwatchable", "Watcher"]

BEFORE_TRAINING = -1

# Those in the middle of a training.
_open: WeakSet[Watcher] = WeakSet()


@dataclass(eq=False)
class Watcher:
    """Takes frames and writes them as a run; whatever fails once a training has begun is kept from it.

    `begin` once, `start` at each fit, `take` for each frame, `close` at the end of each fit.
    """

    subject: Subject
    settings: Settings
    faults: Faults
    run: Run | None = None
    fit: int = -1
    layers: list[str] = field(default_factory=list)
    _number: int = 0
    _first: dict[str, np.ndarray] | None = None
    _previous: dict[str, np.ndarray] | None = None
    _shown: NotebookGrid | None = None
    _depth: int | None = None
    _own_weights: bool = False

    panel: Panel = field(init=False)
    task: Task = field(init=False)
    writer: Writer = field(init=False)
    _refresher: ReportRefresher = field(init=False)
    _judging: Judging = field(init=False)

    # --- before the first batch: whatever is wrong is said here

    def begin(self, folder: Path, make: Callable[[], tuple[Panel, Task]]) -> None:
        "Begin a run in `folder`, of the panel that `make()` gives, or resume one. Raises where a setting does not fit."
        s = self.settings
        model = self.subject.model()
        if any(map(is_lazy, model.parameters())):
            raise GradCAMError(
                "The model has lazy layers, whose shapes the first batch decides: pass one through the model before "
                "training, so that the panel does not."
            )
        with undisturbed():
            path, exists = claim(folder, s.name, s.resume, self.subject.owner())
            if exists and any(w.run is not None and w.run.path == path for w in _open):
                raise GradCAMError(f"Another callback is writing the run {path.name!r}: give each a name= of its own.")
            self.panel, self.task = make()
            self._target(slice(0, len(self.panel)))
            if s.check is not None:
                checkable(self.panel, self.task)
            # Named once, so that all frames show the same layer, also after the network has changed.
            named = self.subject.layers or (lambda layer: [name for name, _ in named_layers(unwrap(model), layer)])
            layers = None if s.layer is None else named(s.layer)
            # One small look shows whether layer, target and method fit this model.
            probe = self._probe(model, layers)
            self.layers = probe.layers
            check_shapes(probe)
            self._depth = depth_of(self.panel, probe)
            if exists:
                self._resume(Run(path))
            else:
                self.writer = create(path, s.name is not None, self._create)
            if probe.notes:
                self.writer.change(lambda info: info.setdefault("notes", probe.notes))
            self.run = Run(self.writer.path)
            self.writer.after_frame = self._refresher = ReportRefresher(self.writer.path)
            adopt(self.writer.path, self.subject.owner())
            self._judging = Judging(self.writer.path, self.faults.say)

    def _probe(self, model: nn.Module, layers: list[str] | None) -> CAMs:
        """One small look. A network whose forward pass writes into its parameters is given them back, and copies from
        now.
        """
        model = unwrap(model)
        before = [p.detach().cpu().clone() for p in model.parameters()]
        try:
            net = shadow(model)
        except GradCAMError as error:
            raise Unwatchable(str(error)) from error
        self.task.listen(net)
        probe = self._cams(net, slice(0, min(2, len(self.panel))), layers)
        with torch.no_grad():
            for p, value in zip(model.parameters(), before, strict=True):
                if not torch.equal(p.detach().cpu().nan_to_num(), value.nan_to_num()):
                    p.data.copy_(value)
                    self._own_weights = True
        return probe

    def _create(self, path: Path) -> Writer:
        p = self.panel
        return Writer.create(
            path,
            settings=self.settings.plain(),
            arch=self.subject.arch or type(unwrap(self.subject.model())).__name__,
            layers=self.layers, vocab=self.task.vocab, names=p.names, labels=p.labels, images=p.images, masks=p.masks,
            draw=frame_grid, depth=self._depth,
        )  # fmt: skip

    def _resume(self, run: Run) -> None:
        asked, p = self.settings.plain(), self.panel
        now = {"panel images": p.names, "layers": self.layers, "classes": self.task.vocab}
        sizes = [list(image.size) for image in p.images]
        check_resumable(run, {**now, "panel sizes": sizes, **{k: asked.get(k) for k in ("target", "method")}})
        self.writer = Writer.resume(run.path, p.images, frame_grid)
        frames = run.frames
        self._number = 1 + max((f["frame"] for f in frames), default=-1)
        self.fit = max((f["fit"] for f in frames), default=-1)
        complete = [f["frame"] for f in frames if f["status"] == "ok"]
        if complete:
            self._first, self._previous = run.maps(complete[0]), run.maps(complete[-1])

    def start(self) -> None:
        "A fit begins: the run is running, and its very first frame is taken."
        self.fit += 1
        if self.fit and self._number:
            with self.faults.harmless("going on with the run"):
                self.writer.set_status("running")
        # A new picture for each fit: it belongs below the progress table of the cell that runs it.
        show = self.settings.show
        self._shown = NotebookGrid() if (in_notebook() if show is None else show) else None
        _open.add(self)
        if self._number == 0:
            self.take(BEFORE_TRAINING, {})

    def renew(self, panel: Panel, task: Task) -> None:
        "The same images, as the training's data gives them from now on."
        self.panel, self.task = panel, task
        self.writer.flush()
        self.writer.images = list(panel.images)

    def mark(self, items: list[int], key: str, value: Any) -> None:
        "Note something of some of the panel's images in `run.json`."
        self.writer.change(lambda info: [info["panel"][i].setdefault(key, value) for i in items])

    # --- a frame

    def take(self, epoch: int, metrics: dict[str, float | None]) -> None:
        "One frame of the panel, whatever happens."
        frame = Frame(self._number, self.fit, epoch, dict(metrics), frozen=self.subject.frozen())
        failure = None
        try:
            with undisturbed():
                self._fill(frame)
        except self.faults.passing:
            raise
        except Exception as error:
            failure, frame.error = error, reason_of(error)
            frame.maps, frame.rows = {}, []
        if failure is None and self.settings.check is not None and (epoch + 1) % self.settings.check == 0:
            self._check(frame)
        self._number += 1
        with self.faults.harmless(f"writing frame {frame.frame}"):
            self.writer.add(frame)
            if self.faults.raising:
                self.writer.flush()
        if failure is not None:
            self.faults.failed(f"frame {frame.frame}", failure)
        else:
            if self.settings.judge == "every" and epoch >= 0:
                self._judge(frame.frame)
            self._publish(frame)
        self.faults.report(self.writer.take_errors())

    def _fill(self, frame: Frame) -> None:
        "The frame's maps and rows."
        panel = self.panel
        net = shadow(unwrap(self.subject.model()), self._own_weights)
        self.task.listen(net)
        look = Look.of(in_chunks(len(panel), lambda part: self._cams(net, part, self.layers)))
        loss = losses(self._loss(), look.output, panel.y, len(panel))
        rows_ = look.rows(panel, self.task, self.settings.target, loss, self._previous, self._first)
        place = {"frame": frame.frame, "fit": frame.fit, "epoch": frame.epoch}
        frame.maps, frame.rows = look.maps, [place | row for row in rows_]
        self._previous = look.maps
        self._first = self._first if self._first is not None else look.maps

    def _check(self, frame: Frame) -> None:
        with self.faults.harmless(f"checking the maps of frame {frame.frame}"), undisturbed():
            path, layer, method = self.writer.path, self.layers[-1], self.settings.method
            net = shadow(unwrap(self.subject.model()), self._own_weights)
            frame.metrics |= check_panel(path, frame.frame, self.subject, net, self.panel, self.task, layer, method)

    def _loss(self) -> Any:
        "A copy of the loss function, which may keep a state; `None` where it cannot be copied."
        try:
            return copied(self.subject.loss())
        except GradCAMError:
            return None

    def _cams(self, net: nn.Module, part: slice, layers: list[str] | None) -> CAMs:
        x = self.subject.inputs(net, on_device_of(net, rows(self.panel.x, part)))
        target, at = self._target(part), self.panel.at
        return explain(net, x, layer=layers, target=target, method=self.settings.method, input=at)

    def _target(self, part: slice) -> Any:
        "The engine's target for a part of the panel. Raises where it does not fit the data."
        return self.task.asked(self.settings.target, len(self.panel), part, [y[part] for y in self.panel.y])

    def _publish(self, frame: Frame) -> None:
        "Loggers and the notebook get the frame, once its files are there."
        loggers, run = [*(self.settings.loggers or ()), *self.subject.loggers()], self.run
        if run is None or not (loggers or self._shown is not None):
            return
        self.writer.flush()
        # Where the files could not be written, that is the one thing to say.
        if not self.writer.has(frame.frame):
            return
        for logger in loggers:
            self._log(logger, run, frame)
        if self._shown is not None:
            with self.faults.harmless(f"showing frame {frame.frame}"):
                self._shown.show(run.grid(frame.frame))

    def _log(self, logger: Logger, run: Run, frame: Frame) -> None:
        name = getattr(logger, "__name__", None) or type(logger).__name__
        with self.faults.harmless(f"logger {name} at frame {frame.frame}"):
            try:
                with undisturbed():
                    logger(run, frame.entry())
            except self.faults.passing:
                raise
            except Exception as error:
                self.writer.note(frame.frame, f"logger {name}: {reason_of(error)}")
                raise

    # --- judging

    def _judge(self, frame: int | None = None) -> None:
        "Interventions, at a frame or at the end of a fit. Ctrl-C ends the judging alone."
        make = self.subject.judging or (lambda n: set_of_panel(self.panel, self.task))
        try:
            with self.faults.harmless("judging"), undisturbed():
                n, model = images_for(self.subject.trained()), unwrap(self.subject.model())
                self._judging.judge(frame, model, lambda: make(n), self.layers[-1:], self.settings.method)
        except KeyboardInterrupt:
            self.faults.say("judging was interrupted and is left out; nothing else is.")

    # --- the end of a fit

    def flush(self) -> None:
        "Wait until every frame taken so far is on the disk, or has failed."
        self.writer.flush()

    def close(self, status: str) -> None:
        "All frames on the disk, the run's status set, the writing thread ended. `start` opens the run again."
        _open.discard(self)
        # The exception that interrupts the training is on its way to the user: nothing of ours takes its place.
        raising = None if status == "finished" else False
        if status == "finished" and self.settings.judge is not None:
            self._judge()
        with self.faults.harmless("closing the run", raising):
            # Flush first: until the last frame is written, the writer may still schedule a refresh.
            self.writer.flush()
            self._refresher.stop()
            self.writer.close(status)
        with self.faults.harmless("drawing the run", raising):
            publish(self.writer.path)
        self.faults.report(self.writer.take_errors(), raising)
