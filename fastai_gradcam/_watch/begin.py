"""Where a run begins: the folder it may have, and whether an earlier run in it can be resumed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from .._errors import GradCAMError
from .._run.claims import leftover, written_elsewhere
from .._run.writer import Writer
from ..run import Run

__all__ = ["adopt", "check_resumable", "claim", "create", "timestamp"]

# The learner or model that each run of this process watches. It may continue its run without resume=.
_owners: WeakValueDictionary[Path, Any] = WeakValueDictionary()


def claim(folder: Path, name: str | None, resume: bool, owner: Any) -> tuple[Path, bool]:
    "The folder of the run, and whether it holds an earlier part of it. Raises `GradCAMError` where it may not be used."
    path = folder / (name or timestamp(folder))
    if path.exists() and leftover(path):
        shutil.rmtree(path)
    if not path.exists():
        return path, False
    if not (path / "run.json").exists():
        raise GradCAMError(f"{str(path)!r} exists and holds no run: choose another name=.")
    if not resume and _owners.get(path.resolve()) is not owner:
        raise GradCAMError(
            f"There is a run {path.name!r} in {str(folder)!r} already: choose another name=, or go on with it by "
            "resume=True."
        )
    run = Run(path)
    if resume and written_elsewhere(run.info, run.status):
        raise GradCAMError(
            f"Another process is writing the run {path.name!r} now: wait for it, or choose another name=."
        )
    return path, True


def create(path: Path, named: bool, make: Callable[[Path], Writer]) -> Writer:
    "A writer of a new run in `path`, or in the next folder of that time if another process has just taken it."
    while True:
        try:
            return make(path)
        except FileExistsError:
            if named:
                raise
            path = path.parent / timestamp(path.parent)
        except OSError as error:
            raise GradCAMError(
                f"The run cannot be written in {str(path.parent)!r} ({error.strerror}): give path= a folder that can "
                "be written."
            ) from error


def adopt(path: Path, owner: Any) -> None:
    "Note that the run in `path` watches `owner`."
    _owners[path.resolve()] = owner


def check_resumable(run: Run, now: dict[str, Any]) -> None:
    "Raises `GradCAMError` where the run is of another panel, layer, vocabulary, target or method than `now` has."
    stored = {
        "panel images": [p["name"] for p in run.panel],
        "layers": run.layers,
        "classes": run.vocab,
        "panel sizes": [[p["width"], p["height"]] for p in run.panel],
        **{k: run.settings.get(k) for k in ("target", "method")},
    }
    for what, before in stored.items():
        if before != now[what]:
            raise GradCAMError(
                f"The run {run.path.name!r} cannot be resumed: it has {what} {_brief(before)}, this learner has "
                f"{_brief(now[what])}. Choose another name=."
            )


def timestamp(folder: Path) -> str:
    "The time as the name of a folder, with a number added where two runs start within a second."
    base = time.strftime("%Y-%m-%d_%H-%M-%S")
    name, k = base, 1
    while (folder / name).exists():
        k += 1
        name = f"{base}_{k}"
    return name


def _brief(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 120 else text[:120] + "…"
