"""Words for a page that is mailed: files by their names, without the place where they lie on its author's machine."""

from __future__ import annotations

import json
import re
from pathlib import Path, PureWindowsPath
from typing import Any

__all__ = ["as_text", "by_name", "in_words", "mailed"]


def as_text(values: Any) -> dict[str, str]:
    "A dict of settings or versions, each value as text."
    if not isinstance(values, dict):
        return {}
    named = {str(key): by_name(value) for key, value in values.items()}
    return {
        key: value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        for key, value in named.items()
    }


def in_words(settings: dict[str, Any]) -> dict[str, Any]:
    "Settings for a reader who does not know the arguments; defaults are left out."
    said = {key.replace("_", " "): value for key, value in settings.items() if value is not None}
    targets = {"true": "each image's label", "pred": "each image's prediction"}
    if isinstance(said.get("target"), str):
        said["class explained"] = targets.get(said["target"], said["target"])
        del said["target"]
    return {key: {True: "yes", False: "no"}[value] if isinstance(value, bool) else value for key, value in said.items()}


def by_name(value: Any) -> Any:
    "Absolute paths in a value become the names of their files."
    if isinstance(value, dict):
        return {key: by_name(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [by_name(part) for part in value]
    if isinstance(value, str) and (value.startswith(("/", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", value)):
        return PureWindowsPath(value).name or value
    return value


def mailed(note: str, run: Path) -> str:
    "A message with the run's own files as seen from the run, and others by their names."
    for folder in {str(run), str(run.resolve())}:
        note = note.replace(folder + "/", "").replace(folder + "\\", "").replace(folder, "the run")
    quoted = r"(['\"])((?:/|[A-Za-z]:\\|\\\\).*?)\1"
    note = re.sub(quoted, lambda found: f"{found[1]}{by_name(found[2])}{found[1]}", note)
    return re.sub(r"(?<![\w/.:<])(?:/[^\s/'\":,;]+){2,}", lambda found: by_name(found[0]), note)
