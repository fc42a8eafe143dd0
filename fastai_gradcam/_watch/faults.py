"""Failures of this library during a training: each becomes a warning, and the training goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from .. import _errors
from .._errors import reason_of

__all__ = ["Faults", "warn"]


@dataclass
class Faults:
    """Turns failures into warnings, or raises them where the user asked for it.

    `who`: the name that warnings begin with. `raising`: whether failures are raised. `passing`: exceptions that are a
    user's wish, as a KeyboardInterrupt is, and always go on.
    """

    who: str
    raising: bool = False
    passing: tuple[type[BaseException], ...] = ()

    @contextmanager
    def harmless(self, doing: str, raising: bool | None = None) -> Iterator[None]:
        "A failure in the block becomes a warning, or is raised; `raising` overrules the setting."
        try:
            yield
        except self.passing:
            raise
        except Exception as error:
            self.failed(doing, error, raising)

    def failed(self, doing: str, error: Exception, raising: bool | None = None) -> None:
        if self.raising if raising is None else raising:
            raise error
        self.say(f"{doing} failed, training goes on: {reason_of(error)}")

    def report(self, sentences: list[str], raising: bool | None = None) -> None:
        "Warn of (or raise) what the writing thread could not do."
        for sentence in sentences:
            if self.raising if raising is None else raising:
                raise RuntimeError(f"{self.who}: {sentence}")
            self.say(sentence)

    def say(self, sentence: str) -> None:
        warn(f"{self.who}: {sentence}")


def warn(text: str) -> None:
    "Warn, also where warnings are errors: those must not end a training."
    try:
        _errors.warn(text)
    except Warning:
        with suppress(Exception):
            print(text, file=sys.stderr)
