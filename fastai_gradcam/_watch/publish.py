"""Keeps `report.html` current during training, and draws the run's pictures at the end."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

from .._run.writer import Frame, write_whole
from .._run.writer import Recorder as Writer
from ..run import Run

__all__ = ["ReportRefresher", "publish"]

# The report grows with the run; a refresh waits until this many times its own duration has passed since the last.
_RARELY = 10


class ReportRefresher:
    """Keeps `report.html` of a growing run up to date, for a page that is reloaded while training goes on.

    Called after each frame, on the thread that writes the run, and takes at most a tenth of that thread's time,
    however long the run. A refresh that comes too soon is made up for as soon as it is due.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run: Run | None = None  # one for all refreshes: it keeps the images it has shown
        self._next = 0.0
        self._timer: threading.Timer | None = None

    def __call__(self, writer: Writer, frame: Frame) -> None:
        self.stop()
        wait = self._next - time.monotonic()
        if wait <= 0:
            self._refresh()
            return
        self._timer = threading.Timer(wait, writer.behind, [self._refresh])
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        "Make no refresh that is still due."
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def _refresh(self) -> None:
        start = time.monotonic()
        if self._run is None:
            self._run = Run(self.path)
        self._run.report()
        end = time.monotonic()
        self._next = end + _RARELY * (end - start)


def publish(path: Path) -> None:
    "Write the run's `report.html`, `evolution.png` and `evolution.gif`. A run without a complete frame has none."
    run = Run(path)
    if not any(f["status"] == "ok" for f in run.frames):
        return
    run.report()
    picture = io.BytesIO()
    run.evolution().save(picture, "PNG")
    write_whole(path / "evolution.png", picture.getvalue())
    run.animation()
