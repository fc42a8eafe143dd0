"""Whose folder is it: the beginning of a run that was killed, and a run that another process writes."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["leftover", "written_elsewhere"]

_MADE = {"panel", "frames", "maps", "history.csv", ".history.csv.part", ".run.json.part"}
_PANEL = re.compile(r"\.?\d+(-mask)?\.(jpg|png)(\.part)?")


def leftover(path: Path) -> bool:
    "Whether `path` holds nothing but the beginning of a run whose process was killed before it had a run.json."
    if (path / "run.json").exists():
        return False
    inside = {p.name for p in path.iterdir()}
    empty = not any(any((path / folder).glob("*")) for folder in ("frames", "maps"))
    own = all(_PANEL.fullmatch(p.name) for p in (path / "panel").glob("*"))
    return bool(inside) and inside <= _MADE and empty and own


def written_elsewhere(info: Mapping[str, Any], status: str) -> bool:
    "Whether a process other than this one, on this machine, writes the run that `info` describes."
    return status == "running" and info.get("host") == socket.gethostname() and info.get("pid") != os.getpid()
