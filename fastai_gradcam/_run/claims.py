"""Whose folder is it: the beginning of a run that was killed, and a run that another process writes."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import is_unfinished

__all__ = ["leftover", "written_elsewhere"]

_MADE = {"panel", "frames", "maps", "history.csv"}
_PICTURE = r"\d+(-mask)?\.(jpg|png)"


def leftover(path: Path) -> bool:
    "Whether `path` holds only the beginning of a run whose process was killed before it had a run.json."
    inside = {p.name for p in path.iterdir()}
    begun = all(name in _MADE or is_unfinished(name, r"history\.csv|run\.json") for name in inside)
    empty = not any(any((path / folder).glob("*")) for folder in ("frames", "maps"))
    own = all(re.fullmatch(_PICTURE, p.name) or is_unfinished(p.name, _PICTURE) for p in (path / "panel").glob("*"))
    return bool(inside) and begun and empty and own


def written_elsewhere(info: Mapping[str, Any], status: str) -> bool:
    "Whether a process other than this one, on this machine, writes the run that `info` describes."
    return status == "running" and info.get("host") == socket.gethostname() and info.get("pid") != os.getpid()
