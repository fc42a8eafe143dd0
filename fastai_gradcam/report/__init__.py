"""The interactive page: everything a run recorded, in one HTML file that needs neither Python nor a network."""

import base64
import hashlib
import io
import json
import math
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from ..findings import Thresholds
from ..render import DEFAULT_ALPHA, DEFAULT_CMAP, colormap
from ..run import stamp_of

__all__ = ["report_page", "write_report"]

CMAPS = ("viridis", "magma", "cividis", "inferno", "jet", "turbo")
NUMBERS = (
    "prob pred_prob loss evidence negative_share entropy concentration border_share centroid_y centroid_x "
    "centroid_shift similarity_prev similarity_first iou_prev mask_share"
).split()
FLAGS = ("correct", "pointing_hit")
CLASSES = ("target", "pred")
IMAGE_SIDE = 256
SIDES = ("width", "height")
JPEG_QUALITY = 85
CELL_BUDGET = 850_000  # one byte each, of all layers and frames; beyond it large maps are averaged down
SCRIPTS = ("data.js", "state.js", "overlay.js", "charts.js", "grid.js", "large.js", "page.js")


def write_report(run: Any, path: str | os.PathLike | None = None, thresholds: Thresholds | None = None) -> Path:
    """Write the interactive page of `run` and return where it lies.

    `run` is a `Run`, or anything with its attributes. `path` is the file to write; `None` means `report.html`
    in the run's folder. The file replaces an older one in one step, so a page that is open can be reloaded at
    any moment. It loads nothing: images are embedded as JPEG (at most 256 px a side), maps as bytes with the
    maximum of each map. `thresholds`: from when on something is a finding, those of `run.findings`. Frames that failed, or whose maps cannot be read, are left out and named on the page.
    Raises `OSError` when the file cannot be written.
    """
    path = Path(run.path, "report.html") if path is None else Path(path)
    html = report_page(run, thresholds).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        unfinished.write_bytes(html)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def report_page(run: Any, thresholds: Thresholds | None = None) -> str:
    "The page that `write_report` writes, as text."
    return _html(_data(run, thresholds))


# ---------------------------------------------------------------------------------------------- the page


def _html(data: dict) -> str:
    sources = PackageLoader(__package__, "")
    env = Environment(loader=sources, autoescape=True)
    style = sources.get_source(env, "style.css")[0]
    scripts = "\n".join(sources.get_source(env, name)[0] for name in SCRIPTS)
    script = f"(() => {{\n'use strict';\n{scripts}\n}})();"
    return env.get_template("report.html").render(
        title=data["info"]["name"].encode("utf-8", "replace").decode(),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(_json(data)),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: Any) -> str:
    """JSON that no label can break out of a script element with (non-ASCII, U+2028 and surrogates are escaped too)."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------------------------------------- the data


def _data(run: Any, thresholds: Thresholds | None) -> dict:
    info = run.info  # once: a run that is still being written must not change halfway through
    maps = _Maps(run, info)
    history, history_notes = _history(run, info, maps)
    findings, findings_note = _findings(run, len(info["panel"]), thresholds)
    named = {key: str(info.get(key) or "") for key in ("name", "arch", "created", "updated")}
    return {
        "info": named | {"status": str(run.status)},
        "settings": _as_text(info.get("settings")),
        "versions": _as_text(info.get("versions")),
        "layers": [str(layer) for layer in info["layers"]],
        "panel": [_item(run, item, entry) for item, entry in enumerate(info["panel"])],
        "frames": [_frame(frame, _mailed(note, run)) for frame, note in zip(info["frames"], maps.notes, strict=True)],
        "maps": maps.layers,
        "history": history,
        "findings": findings,
        "notes": [_mailed(note, run) for note in (*maps.remarks, *history_notes, findings_note) if note],
        "cmaps": {name: _base64(colormap(name).tobytes()) for name in dict.fromkeys((*CMAPS, DEFAULT_CMAP))},
        "defaults": {"cmap": DEFAULT_CMAP, "alpha": DEFAULT_ALPHA},
    }


def _as_text(values: dict | None) -> dict[str, str]:
    return {
        str(key): _by_name(value)
        if isinstance(value, str)
        else json.dumps(_by_name(value), default=str, ensure_ascii=False)
        for key, value in (values or {}).items()
    }


def _by_name(value: Any) -> Any:
    """Files and folders without the place where they lie: a page that is mailed tells nothing of its author's machine."""
    if isinstance(value, dict):
        return {key: _by_name(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_name(part) for part in value]
    if isinstance(value, str) and (value.startswith(("/", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", value)):
        return PureWindowsPath(value).name or value
    return value


def _mailed(note: str | None, run: Any) -> str | None:
    """A message with the run's own files as seen from the run, and others by their names."""
    if note is None:
        return None
    for folder in {str(Path(run.path)), str(Path(run.path).resolve())}:
        note = note.replace(folder + os.sep, "").replace(folder, "the run")
    note = re.sub(
        r"(['\"])((?:/|[A-Za-z]:\\|\\\\).*?)\1", lambda found: f"{found[1]}{_by_name(found[2])}{found[1]}", note
    )
    return re.sub(r"(?<![\w/.:<])(?:/[^\s/'\":,;]+){2,}", lambda found: _by_name(found[0]), note)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _item(run: Any, item: int, entry: dict) -> dict:
    known = {"name": _by_name(str(entry.get("name") or "")), "label": str(entry.get("label") or "")}
    # A report that is refreshed while a run grows shows the same images each time.
    kept = getattr(run, "_pictures", {})
    files = [Path(run.path, str(entry.get(key))) for key in ("image", "mask")]
    key = (item, *map(str, files), *map(stamp_of, files))
    if key not in kept:
        kept[key] = _shown(run, item, entry)
    return known | kept[key]


def _shown(run: Any, item: int, entry: dict) -> dict:
    known: dict[str, Any] = {}
    try:
        image = run.image(item).convert("RGB")
    except Exception as error:
        # The page draws the maps over an even grey then.
        known["note"] = _mailed(_why(error), run)
        width, height = (min(8192, max(1, int(_number(entry.get(side)) or IMAGE_SIDE))) for side in SIDES)
        image = Image.new("RGB", (width, height))
    mask = _mask(run, item)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return known | {
        "width": image.width,
        "height": image.height,
        "image": None if known else _uri(image, "JPEG", quality=JPEG_QUALITY, optimize=True),
        "mask": None if mask is None else _uri(_bitmap(mask, image.size), "PNG", optimize=True),
        "mask_area": None if mask is None else _number(mask.mean()),
    }


def _mask(run: Any, item: int) -> np.ndarray | None:
    try:
        mask = run.mask(item)
    except Exception:
        return None
    return None if mask is None or not np.any(mask) else np.asarray(mask, bool)


def _bitmap(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST).convert("1")


def _uri(image: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{_base64(buffer.getvalue())}"


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _frame(frame: dict, note: str | None) -> dict:
    metrics = {str(name): _number(value) for name, value in (frame.get("metrics") or {}).items()}
    return {
        "frame": int(frame["frame"]),
        "fit": int(frame.get("fit") or 0),
        "epoch": int(-1 if frame.get("epoch") is None else frame["epoch"]),
        "metrics": metrics,
        "note": note,
    }


def _number(value: Any) -> float | None:
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------- the maps


class _Maps:
    """The raw maps of a run as bytes: for each layer its size, and for each frame the cells and each map's maximum."""

    def __init__(self, run: Any, info: dict):
        names = [str(layer) for layer in info["layers"]]
        self.classes = 1
        self.notes: list[str | None] = []
        self.remarks: list[str] = []
        frames: list[dict | None] = []
        self._shapes: dict[str, tuple] = {}
        for frame in info["frames"]:
            maps, note = self._read(run, frame, names, len(info["panel"]))
            frames.append(maps)
            self.notes.append(note)
        shown = max(1, sum(maps is not None for maps in frames))
        shares = _shares({name: math.prod(shape) for name, shape in self._shapes.items()}, CELL_BUDGET / shown)
        self.layers = [self._pack(name, frames, shares.get(name, 0)) for name in names]

    def _read(self, run: Any, frame: dict, names: list[str], n: int) -> tuple[dict | None, str | None]:
        if frame.get("status") == "failed":
            return None, f"failed: {frame.get('error') or 'the reason was not recorded'}"
        try:
            stored = run.maps(frame["frame"])
            maps = {name: np.asarray(stored[name], np.float32) for name in names}
        except Exception as error:
            return None, f"left out: its maps cannot be read ({_why(error)})"
        for name, array in maps.items():
            if array.ndim not in (3, 4) or len(array) != n:
                return None, f"left out: maps of shape {array.shape} do not fit a panel of {n} images"
            if array.shape != self._shapes.setdefault(name, array.shape):
                return None, f"left out: maps of shape {array.shape}, where the first frame has {self._shapes[name]}"
        self.classes = max(array.shape[1] if array.ndim == 4 else 1 for array in maps.values())
        return maps, None

    def _pack(self, name: str, frames: list[dict | None], budget: float) -> dict:
        if name not in self._shapes:
            nothing = [None] * len(frames)
            return {"height": 0, "width": 0, "ring": None, "cells": nothing, "peaks": nothing}
        *many, h, w = self._shapes[name]
        shrink = min(1.0, math.sqrt(budget / math.prod((*many, h, w))))
        size = (h, w) if shrink == 1 else (max(1, int(h * shrink)), max(1, int(w * shrink)))
        if size != (h, w):
            self.remarks.append(
                f"To keep this file small, the maps of layer {name} are averaged from {h}×{w} to {size[0]}×{size[1]} cells."
            )
        cells, peaks = [], []
        for maps in frames:
            packed = (None, None) if maps is None else _bytes(_average(maps[name].reshape(-1, h, w), size))
            cells.append(packed[0])
            peaks.append(packed[1])
        ring = 1 - max(0, h - 2) * max(0, w - 2) / (h * w)
        return {"height": size[0], "width": size[1], "ring": _number(ring), "cells": cells, "peaks": peaks}


def _shares(needs: dict[str, int], budget: float) -> dict[str, float]:
    "What each layer may hold of the budget: small ones what they need, and the others equal parts of what is left."
    shares: dict[str, float] = {}
    for name in sorted(needs, key=needs.__getitem__):
        shares[name] = min(needs[name], (budget - sum(shares.values())) / (len(needs) - len(shares)))
    return shares


def _average(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if maps.shape[1:] == size:
        return maps
    return _areas(maps.shape[1], size[0]) @ maps @ _areas(maps.shape[2], size[1]).T


def _areas(many: int, few: int) -> np.ndarray:
    """`(few, many)` weights with which each of `few` cells averages the part of the `many` that it covers."""
    edges, cell = np.linspace(0, many, few + 1), np.arange(many)
    covered = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    return (covered.clip(0) * few / many).astype(np.float32)


def _bytes(maps: np.ndarray) -> tuple[str, list[float | None]]:
    """The cells in steps of 1/255 of each map's maximum, and the maxima; `None` for a map that is not finite."""
    finite = np.isfinite(maps).all((1, 2))
    maps = np.where(finite[:, None, None], maps, 0).clip(0)
    peaks = maps.max((1, 2))
    share = maps / np.where(peaks > 0, peaks, 1)[:, None, None]
    cells = np.floor(share * 255 + 0.5).astype(np.uint8)
    return _base64(cells.tobytes()), [
        _number(peak) if known else None for peak, known in zip(peaks, finite, strict=True)
    ]


# ---------------------------------------------------------------------------------------------- the numbers


def _history(run: Any, info: dict, maps: _Maps) -> tuple[dict, list[str]]:
    """The history as flat columns, in the order layer, class, frame, image; classes as places in `names`.

    A column that is the same in every layer, as all about the answer are, holds the first layer's part alone.
    """
    layers, frames, n = [str(layer) for layer in info["layers"]], info["frames"], len(info["panel"])
    shape = (len(layers), maps.classes, len(frames), n)
    try:
        rows = _placed(run.history, layers, [frame["frame"] for frame in frames], shape)
    except Exception as error:
        empty = {"names": [], "columns": {}, "classes": [None] * maps.classes}
        return empty, [f"The numbers of this run cannot be read ({_why(error)})."]
    at = rows.pop("at").to_numpy()
    names: dict[str, int] = {}
    columns = {}
    for name in (*NUMBERS, *FLAGS, *CLASSES):
        if name not in rows:
            continue
        if name in CLASSES:
            values: Any = [names.setdefault(text, len(names)) if text else np.nan for text in _texts(rows[name])]
        else:
            values = _flags(rows[name]) if name in FLAGS else pd.to_numeric(rows[name], errors="coerce")
        column = np.full(math.prod(shape), np.nan)
        column[at] = values
        digits = 4 if name in ("prob", "pred_prob", "loss", "similarity_prev", "similarity_first") else 3
        columns[name] = _plain(_once(column, len(layers)), digits, whole=name in (*CLASSES, *FLAGS))
    missing = np.ones(math.prod(shape), bool)
    missing[at] = False
    notes = _missing(missing.reshape(shape), frames, maps.notes)
    known = list(names)
    return {"names": known, "columns": columns, "classes": _class_names(columns.get("target"), known, shape)}, notes


def _placed(history: pd.DataFrame, layers: list[str], frames: list[int], shape: tuple) -> pd.DataFrame:
    """The rows that belong to a known frame, layer and image, with `at`, their place in a flat column."""
    rows = history.copy()
    place = pd.DataFrame(
        {
            "layer": rows["layer"].astype(str).map({name: i for i, name in enumerate(layers)}),
            "frame": pd.to_numeric(rows["frame"], errors="coerce").map({frame: i for i, frame in enumerate(frames)}),
            "item": pd.to_numeric(rows["item"], errors="coerce"),
        }
    )
    place["cls"] = _class_places(place, rows["target"], shape[1])
    fits = place.notna().all(axis=1) & place["item"].between(0, shape[3] - 1)
    rows, place = rows[fits], place[fits].astype(int)
    at = np.ravel_multi_index((place["layer"], place["cls"], place["frame"], place["item"]), shape)
    return rows.assign(at=at)


def _class_places(place: pd.DataFrame, target: pd.Series, classes: int) -> pd.Series:
    """Of the classes of an image its rows stand for, in their order. Where rows are missing, each is placed by where
    its class stands in the frames that are whole; NaN where that is not known."""
    groups = place.groupby(["layer", "frame", "item"], dropna=False)
    places = (groups.cumcount() % classes).astype(float)
    whole = groups["frame"].transform("size") % classes == 0
    if whole.all():
        return places
    keys = pd.Series(list(zip(place["layer"], place["item"], target, strict=True)), place.index, object)
    seen = places[whole].groupby(keys[whole].to_numpy()).agg(["first", "nunique"])
    known = seen.loc[seen["nunique"] == 1, "first"].to_dict()
    return places.where(whole, keys.map(known))


def _texts(column: pd.Series) -> list[str]:
    return column.astype(object).where(column.notna(), "").astype(str).tolist()


def _flags(column: pd.Series) -> np.ndarray:
    return column.astype(str).str.lower().map({"true": 1.0, "false": 0.0, "1.0": 1.0, "0.0": 0.0}).to_numpy(float)


def _once(column: np.ndarray, layers: int) -> np.ndarray:
    per_layer = column.reshape(layers, -1) if layers else column[None]
    return per_layer[0] if np.array_equal(per_layer, np.broadcast_to(per_layer[0], per_layer.shape), True) else column


def _plain(column: np.ndarray, digits: int, whole: bool) -> list | None:
    """Numbers short enough to embed by the thousand, `None` where undefined; `None` for an empty column."""
    finite = np.isfinite(column)
    if not finite.any():
        return None
    values = np.where(finite, column, 0)
    if whole:
        values = values.astype(int)
    else:
        size = np.floor(np.log10(np.abs(values), out=np.zeros_like(values), where=values != 0))
        unit = 10.0 ** (digits - 1 - size)
        values = np.round(values * unit) / unit
    values = values.astype(object)
    values[~finite] = None
    return values.tolist()


def _missing(missing: np.ndarray, frames: list[dict], notes: list[str | None]) -> list[str]:
    images = missing.any(axis=(0, 1)).sum(axis=1)
    return [
        f"Frame {frame['frame']}: the numbers of {count} of {missing.shape[-1]} images are missing."
        for frame, count, note in zip(frames, images, notes, strict=True)
        if count and not note
    ]


def _class_names(targets: list | None, names: list[str], shape: tuple) -> list[str | None]:
    """For each explained class its name, or `None` where it differs between images."""
    if targets is None:
        return [None] * shape[1]
    per_class = np.array(targets, float).reshape(-1, *shape[1:]).swapaxes(0, 1).reshape(shape[1], -1)
    used = [np.unique(row[np.isfinite(row)]) for row in per_class]
    return [names[int(row[0])] if len(row) == 1 else None for row in used]


def _findings(run: Any, n: int, thresholds: Thresholds | None) -> tuple[list[dict] | None, str | None]:
    """What the run found worth a look, as plain dicts; `None` when that could not be worked out."""
    try:
        found = run.findings() if thresholds is None else run.findings(thresholds)
        rows = found.to_dict("records") if isinstance(found, pd.DataFrame) else [dict(row) for row in found]
    except Exception as error:
        return None, f"The findings could not be worked out ({_why(error)})."
    return [_finding(row, n) for row in rows], None


def _finding(row: dict, n: int) -> dict:
    frame = _number(row.get("frame"))
    return {
        "kind": _word(row.get("kind")) or "finding",
        "severity": _word(row.get("severity")),
        "frame": None if frame is None else int(frame),
        "layer": _word(row.get("layer")),
        "label": _word(row.get("label")),
        "items": [item for item in _ints(row.get("items")) if 0 <= item < n],
        "text": _word(row.get("text")),
    }


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _ints(value: Any) -> list[int]:
    if isinstance(value, str):
        value = value.replace(",", " ").replace("[", " ").replace("]", " ").split()
    elif not isinstance(value, Iterable):
        value = [value]
    return [int(number) for number in map(_number, value) if number is not None]
