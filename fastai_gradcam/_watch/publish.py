"""Keeps `report.html` current during training, and draws the run's pictures at the end."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from .._run.files import image_bytes, write_whole
from .._run.reader import RunFiles
from .._run.schema import Frame
from .._run.writer import Writer
from ..report import write_report
from ..run import Run

__all__ = ["ReportRefresher", "publish"]

# The report grows with the run; a refresh waits until this many times its own duration has passed since the last.
_RARELY = 10


class ReportRefresher:
    """Keeps `report.html` of a growing run up to date, for a page that is reloaded while training goes on.

    Called after each frame, on the thread that writes the run, and takes at most a tenth of that thread's time,
    however long the run. A refresh that comes too soon is done as soon as it is due.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run: RunFiles | None = None
        self._pictures: dict[Any, Any] = {}  # the panel's images as the report shows them
        self._next = 0.0
        self._timer: threading.Timer | None = None

    def __call__(self, writer: Writer, frame: Frame) -> None:
        self.stop()
        wait = self._next - time.monotonic()
        if wait <= 0:
            self._refresh()
            return
        self._timer = threading.Timer(wait, writer.after, [self._refresh])
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
            self._run = RunFiles(self.path)
        write_report(self._run, pictures=self._pictures)
        end = time.monotonic()
        self._next = end + _RARELY * (end - start)


def publish(path: Path) -> None:
    "Write the run's `report.html`, `evolution.png` and `evolution.gif`; nothing if no frame is complete."
    run = Run(path)
    if run.contents().complete:
        run.report()
        write_whole(path / "evolution.png", image_bytes(run.evolution(), "PNG"))
        run.animation()
