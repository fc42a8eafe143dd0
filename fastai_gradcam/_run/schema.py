"""The run folder's format: the parts of run.json, the columns of history.csv, the names of the files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from .._errors import GradCAMError, spelled
from ..measures import MEASURES

__all__ = ["HISTORY_COLUMNS", "SCHEMA_VERSION", "Frame", "FrameEntry", "PanelItem", "RunInfo"]
__all__ += ["grid_file", "image_file", "maps_file", "mask_file", "now", "panel_items"]

SCHEMA_VERSION = 1

HISTORY_COLUMNS = [*"frame fit epoch item layer label target prob pred pred_prob correct loss".split(), *MEASURES]

Number = int | float | None


def maps_file(frame: int) -> str:
    return f"maps/frame-{frame:03d}.npz"


def grid_file(frame: int) -> str:
    return f"frames/frame-{frame:03d}.png"


def image_file(item: int) -> str:
    return f"panel/{item:03d}.jpg"


def mask_file(item: int) -> str:
    return f"panel/{item:03d}-mask.png"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@dataclass
class Frame:
    """One look at the panel, as it is handed to the writer.

    `maps`: for each layer `(n, h, w)` or `(n, K, h, w)`. `rows`: one dict per image × layer × class, with the columns
    of `history.csv`. `error`: why the frame failed; it then has no maps and rows. `frozen`: whether the epoch trained
    with the body of the network frozen, as in the first part of `fine_tune`.
    """

    frame: int
    fit: int
    epoch: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    created: str = field(default_factory=now)
    frozen: bool = False

    def entry(self) -> dict[str, Any]:
        "The frame's entry in `run.json`."
        return {
            "frame": self.frame,
            "fit": self.fit,
            "epoch": self.epoch,
            "metrics": self.metrics,
            "status": "failed" if self.error else "ok",
            "error": self.error,
            "created": self.created,
            "frozen": self.frozen,
        }


@dataclass(frozen=True)
class FrameEntry:
    "A frame as `run.json` names it. `history_bytes`: how far `history.csv` is whole with this frame's rows."

    frame: int
    fit: int
    epoch: int
    metrics: dict[str, Number]
    status: str
    error: str | None
    history_bytes: int | None = None
    frozen: bool = False

    @property
    def complete(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class PanelItem:
    "An image of the panel: its files in the run folder, its size in pixels, and of a volume how many slices it has."

    item: int
    name: str
    label: str | None
    image: str
    mask: str | None
    width: int
    height: int
    depth: int | None = None


@dataclass(frozen=True)
class RunInfo:
    "The contents of `run.json`, checked; `raw` is the dict that they were read from."

    status: str
    settings: dict[str, Any]
    arch: str | None
    layers: list[str]
    vocab: list[Any] | None
    panel: list[PanelItem]
    frames: list[FrameEntry]
    raw: dict[str, Any]

    @classmethod
    def read(cls, info: Any) -> RunInfo:
        """Check `info`, the parsed `run.json`. Unknown keys are ignored.

        Raises `GradCAMError` with what is wrong, and for a version that is newer than this package.
        """
        if not isinstance(info, dict):
            raise GradCAMError(f"it is {info!r:.60}")
        info = _as_text(info)
        version = info.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise GradCAMError(f"its schema version is {version!r:.60}")
        if version > SCHEMA_VERSION:
            raise NewerVersion(version)
        parts = _checked(cls, {**info, "raw": info})
        if not parts["layers"]:
            raise GradCAMError("'layers' is []")
        parts["panel"] = panel_items(info["panel"])
        parts["frames"] = [FrameEntry(**_checked(FrameEntry, e, f"frame {i}")) for i, e in enumerate(info["frames"])]
        return cls(**parts)

    @property
    def complete(self) -> list[FrameEntry]:
        "The frames that did not fail."
        return [f for f in self.frames if f.complete]

    @property
    def several_fits(self) -> bool:
        return len({f.fit for f in self.frames}) > 1

    @property
    def history_bytes(self) -> int | None:
        "How far `history.csv` is whole; `None` in a run of an earlier version, which did not note it."
        return self.frames[-1].history_bytes if self.frames else 0


def _as_text(value: Any) -> Any:
    "Parsed JSON with every string `spelled`, as a run of an earlier version may have names that are not text."
    if isinstance(value, dict):
        return {key: _as_text(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_as_text(v) for v in value]
    return spelled(value) if isinstance(value, str) else value


def panel_items(entries: list[Any]) -> list[PanelItem]:
    "The entries of the panel, checked. Raises `GradCAMError` with what is wrong."
    items = [PanelItem(**_checked(PanelItem, entry, f"image {i}")) for i, entry in enumerate(entries)]
    for i, one in enumerate(items):
        if one.width < 1 or one.height < 1:
            raise GradCAMError(f"image {i} is {one.width}×{one.height} pixels")
    return items


class NewerVersion(GradCAMError):
    "A run that a newer version wrote."

    def __init__(self, version: int):
        super().__init__(f"has schema version {version}; this fastai_gradcam reads up to {SCHEMA_VERSION}. Upgrade it.")


def _checked(kind: type, given: Any, where: str = "") -> dict[str, Any]:
    "The fields of the dataclass `kind` out of the dict `given`, each of the type that it is declared with."
    if not isinstance(given, dict):
        raise GradCAMError(f"{where} is {given!r:.60}")
    hints, found = get_type_hints(kind), {}
    for one in fields(kind):
        key = one.name
        if key not in given and one.default is one.default_factory:  # no default of either kind
            raise GradCAMError(f"{where or 'it'} has no {key!r}")
        if key not in given:
            continue
        value = given[key]
        if key == "metrics" and isinstance(value, Mapping):
            wrong = [name for name, number in value.items() if not _fits(number, Number)]
            if wrong:
                raise GradCAMError(f"{wrong[0]!r} of the metrics of {where} is {value[wrong[0]]!r:.60}")
        elif not _fits(value, hints[key]):
            raise GradCAMError(f"{key!r}{where and ' of '}{where} is {value!r:.60}")
        found[key] = value
    return found


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is list:
        # Lists of dataclasses are read one by one, with the place of what is wrong.
        return isinstance(value, list) and (inside[0] is not str or all(isinstance(v, str) for v in value))
    if origin is dict:
        return isinstance(value, dict)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
