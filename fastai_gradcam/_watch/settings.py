"""The user's settings of a watched training, checked at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .._errors import GradCAMError, GradCAMTypeError
from ..methods import resolve_method
from ..run import Run

__all__ = ["Logger", "Settings", "checked_loggers", "plain"]

Logger = Callable[[Run, dict[str, Any]], None]


@dataclass
class Settings:
    """The settings that every training loop has. Raises `GradCAMError` for one that is wrong in itself.

    `asked`: all that the user set, for `run.json`.
    """

    layer: Any = None
    target: Any = "true"
    method: Any = "gradcam"
    every: int = 1
    path: str | Path | None = None
    name: str | None = None
    show: bool | None = None
    resume: bool = False
    loggers: Any = None
    on_error: str = "warn"
    judge: str | None = None
    check: int | None = None
    asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = self.name
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise GradCAMError(f"every must be a number of epochs from 1 up, got {self.every!r}.")
        if self.check is not None and (
            isinstance(self.check, bool) or not isinstance(self.check, int) or self.check < 1 or self.check % self.every
        ):
            raise GradCAMError(
                f"check must be a number of epochs from 1 up, and a multiple of every={self.every} because maps are "
                f"checked at frames; got {self.check!r}."
            )
        if self.on_error not in ("warn", "raise"):
            raise GradCAMError(f"on_error must be 'warn' or 'raise', got {self.on_error!r}.")
        if self.judge not in (None, "end", "every"):
            raise GradCAMError(f"judge must be 'end', 'every' or None, got {self.judge!r}.")
        if name is not None and (not name or Path(name).name != name or name in (".", "..")):
            raise GradCAMError(f"name must be the name of one folder, got {name!r}.")
        if self.show and find_spec("IPython") is None:
            raise GradCAMError("show=True needs IPython, which is not installed: pip install ipython.")
        if self.resume and name is None:
            raise GradCAMError("resume=True needs the name= of the run to go on with.")
        resolve_method(self.method)
        if self.loggers is not None:
            self.loggers = checked_loggers(self.loggers)

    def plain(self) -> dict[str, Any]:
        "The settings, as JSON."
        return {k: plain(v) for k, v in self.asked.items()}


def checked_loggers(loggers: Any) -> list[Logger]:
    "`loggers` as a list. Raises `GradCAMTypeError` for a non-callable, and for a class (calling it would create one)."
    single = callable(loggers) or isinstance(loggers, str) or not isinstance(loggers, Iterable)
    listed = [loggers] if single else list(loggers)
    for logger in listed:
        if isinstance(logger, type):
            raise GradCAMTypeError(
                f"loggers must be callables (run, frame), got the class {logger.__name__}: give an object of it."
            )
        if not callable(logger):
            raise GradCAMTypeError(
                "loggers must be callables (run, frame), such as WandbLogger() of fastai_gradcam.loggers, "
                f"got {logger!r}."
            )
    return listed


def plain(value: Any) -> Any:
    "A setting as JSON has it."
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return getattr(value, "__name__", None) or str(value)[:200]
