"""`Watcher`: frames of one panel, taken of a model that trains, and written as a run; in any training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import Tensor

from .._draw.frame import frame_grid
from .._draw.notebook import NotebookGrid, in_notebook
from .._errors import GradCAMError, reason_of
from .._net.guard import undisturbed
from .._net.layers import unwrap
from .._run.schema import Frame
from .._run.writer import Writer
from ..run import Run
from .begin import adopt, check_resumable, claim, create
from .checking import check_panel, checkable
from .faults import Faults
from .judging import Judging, images_for, set_of_panel
from .look import depth_of
from .looks import Looks
from .panel import Panel
from .publish import ReportRefresher, publish
from .settings import Logger, Settings
from .subject import Subject, Unwatchable, refuse_incomplete
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
    due: tuple[int, dict[str, float | None]] | None = None
    _number: int = 0
    _shown: NotebookGrid | None = None
    _depth: int | None = None

    looks: Looks = field(init=False)
    writer: Writer = field(init=False)
    _refresher: ReportRefresher = field(init=False)
    _judging: Judging = field(init=False)

    @property
    def panel(self) -> Panel:
        "The images that are watched."
        return self.looks.panel

    # --- before the first batch: whatever is wrong is said here

    def begin(self, folder: Path, make: Callable[[], tuple[Panel, Task]]) -> None:
        "Begin a run in `folder`, of the panel that `make()` gives, or resume one. Raises where a setting does not fit."
        s = self.settings
        model = self.subject.model()
        refuse_incomplete(model)
        with undisturbed():
            path, exists = claim(folder, s.name, s.resume, self.subject.owner())
            if exists and any(w.run is not None and w.run.path == path for w in _open):
                raise GradCAMError(f"Another callback is writing the run {path.name!r}: give each a name= of its own.")
            self.looks = Looks(self.subject, s)
            probe = self.looks.first(make)
            if s.check is not None:
                checkable(self.panel, self.looks.task)
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

    def _create(self, path: Path) -> Writer:
        p = self.panel
        return Writer.create(
            path,
            settings=self.settings.plain(),
            arch=self.subject.arch or type(unwrap(self.subject.model())).__name__,
            layers=self.looks.layers, vocab=self.looks.task.vocab, names=p.names, labels=p.labels, images=p.images,
            masks=p.masks, draw=frame_grid, depth=self._depth,
        )  # fmt: skip

    def _resume(self, run: Run) -> None:
        asked, p = self.settings.plain(), self.panel
        now = {"panel images": p.names, "layers": self.looks.layers, "classes": self.looks.task.vocab}
        sizes = [list(image.size) for image in p.images]
        check_resumable(run, {**now, "panel sizes": sizes, **{k: asked.get(k) for k in ("target", "method")}})
        self.writer = Writer.resume(run.path, p.images, frame_grid)
        frames = run.frames
        self._number = 1 + max((f["frame"] for f in frames), default=-1)
        self.fit = max((f["fit"] for f in frames), default=-1)
        complete = [f["frame"] for f in frames if f["status"] == "ok"]
        if complete:
            self.looks.first_maps, self.looks.maps = run.maps(complete[0]), run.maps(complete[-1])

    def start(self) -> None:
        "A fit begins: the run is running, and its very first frame is taken."
        self.fit, self.due = self.fit + 1, None
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
        self.looks.panel, self.looks.task = panel, task
        self.writer.flush()
        self.writer.images = list(panel.images)

    def mark(self, items: list[int], key: str, value: Any) -> None:
        "Note something of some of the panel's images in `run.json`."
        self.writer.change(lambda info: [info["panel"][i].setdefault(key, value) for i in items])

    # --- a frame

    def over(self, epoch: int, metrics: dict[str, float | None], last: bool = False) -> None:
        "An epoch is over: a frame, if it is one of every so many or the `last`; else `catch_up` can still take it."
        self.due = epoch, metrics
        if last or (epoch + 1) % self.settings.every == 0:
            self.catch_up()

    def catch_up(self) -> None:
        "The frame of an epoch that is over and has none."
        if self.due is not None:
            due, self.due = self.due, None
            self.take(*due)

    def take(self, epoch: int, metrics: dict[str, float | None]) -> None:
        "One frame of the panel, whatever happens."
        frame = Frame(self._number, self.fit, epoch, dict(metrics), frozen=self.subject.frozen())
        failure = None
        try:
            with self.looks.undisturbed():
                frame.maps, rows = self.looks.look()
            frame.rows = [{"frame": frame.frame, "fit": frame.fit, "epoch": frame.epoch, **row} for row in rows]
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

    def _check(self, frame: Frame) -> None:
        looks = self.looks
        with self.faults.harmless(f"checking the maps of frame {frame.frame}"), looks.undisturbed():
            path, layer, method = self.writer.path, looks.layers[-1], self.settings.method
            net, panel = looks.copy_of_model(), looks.panel
            frame.metrics |= check_panel(path, frame.frame, self.subject, net, panel, looks.task, layer, method)

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
        looks = self.looks
        make = self.subject.judging or (lambda n: set_of_panel(looks.panel, looks.task))
        try:
            with self.faults.harmless("judging"), looks.undisturbed():
                n, model = images_for(self.subject.trained()), unwrap(self.subject.model())
                self._judging.judge(frame, model, lambda: make(n), looks.layers[-1:], self.settings.method)
        except KeyboardInterrupt:
            self.faults.say("judging was interrupted and is left out; nothing else is.")

    # --- the end of a fit

    def flush(self) -> None:
        "Wait until every frame taken so far is on the disk, or has failed."
        self.writer.flush()

    def close(self, status: str) -> None:
        "All frames on the disk, the run's status set, the writing thread ended. `start` opens the run again."
        if status == "finished":
            self.catch_up()
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


def number(value: Any) -> float | None:
    "A metric as JSON has it, which has no NaN; `None` for what is no single number."
    try:
        found = float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return found if math.isfinite(found) else None
