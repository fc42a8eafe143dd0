"""The page as HTML, and the data that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._errors import GradCAMError, reason_of
from .._run.files import stamp_of, write_whole
from .._run.reader import RunFiles
from .._run.schema import FrameEntry, PanelItem, grid_file
from .._run.words import frame_name
from ..findings import TITLES, TRIED_TITLES, Thresholds, checks_in_words, checks_of, findings_of
from ..render import DEFAULT_ALPHA, DEFAULT_CMAP, colormap
from .embed import filled, text_of, uri_of
from .history import history_of
from .mailed import as_text, by_name, in_words, mailed
from .maps import Maps
from .numbers import base64, number
from .tried import alarms_of, tried_of

__all__ = ["report_page", "write_report"]

CMAPS = ("viridis", "magma", "cividis", "inferno", "jet", "turbo")
IMAGE_SIDE = 256
JPEG_QUALITY = 85
# In the order in which they need each other.
SCRIPTS = "data state overlay charts grid beside large header transport controls findings keys start".split()
GRID_SIDE = 1000  # pixels of the newest grid, which is what there is to see without JavaScript

# The panel's images as the page has them, by their files and when these were written.
Pictures = dict[Any, dict[str, Any]]


def write_report(
    run: RunFiles,
    path: str | Path | None = None,
    thresholds: Thresholds | None = None,
    pictures: Pictures | None = None,
) -> Path:
    """Write the interactive page of `run` and return where it lies.

    `path` is the file to write; `None` means `report.html` in the run's folder. The file replaces an older one in one
    step, so a page that is open can be reloaded at any moment. It loads nothing: images are embedded as JPEG (at most
    256 px a side), maps as bytes with the maximum of each map. `thresholds`: when something is a finding, default those
    of `run.findings`. `pictures`: a dict that keeps the embedded images for the next call. Frames that failed, or whose
    maps cannot be read, are left out and named on the page. Raises `OSError` if the file cannot be written.
    """
    path = run.path / "report.html" if path is None else Path(path)
    html = report_page(run, thresholds, pictures).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html)
    return path


def report_page(run: RunFiles, thresholds: Thresholds | None = None, pictures: Pictures | None = None) -> str:
    "The page that `write_report` writes, as text."
    run = run.frozen()  # a run that is still being written must not change halfway through
    pictures = {} if pictures is None else pictures
    return _html(_data(run, thresholds, pictures), _newest_grid(run, pictures))


def _html(data: dict[str, Any], grid: dict[str, Any] | None) -> str:
    return filled(
        "report.html",
        ["style"],
        SCRIPTS,
        data,
        title=text_of(data["info"]["name"]),
        grid=grid,
        findings=[
            {"title": (TITLES | TRIED_TITLES).get(f["kind"], f["kind"]), "text": text_of(f["text"])}
            for f in data["findings"] or ()
        ],
        checked=data["checked"],
    )


# --- the data


def _data(run: RunFiles, thresholds: Thresholds | None, pictures: Pictures) -> dict[str, Any]:
    info = run.contents()
    maps = Maps(run)
    history, gaps = history_of(run, maps)
    findings, checked, unknown = _findings(run, thresholds)
    notes = [*maps.remarks, *gaps, *unknown]
    frames = zip(info.frames, maps.notes, strict=True)
    return {
        "info": {key: str(info.raw.get(key) or "") for key in ("name", "arch", "created", "updated")}
        | {"status": run.status},
        "settings": as_text(in_words(info.settings)),
        "versions": as_text(info.raw.get("versions")),
        "layers": info.layers,
        "panel": [_item(run, item, entry, pictures) for item, entry in enumerate(info.panel)],
        "frames": [
            _frame(frame, frame_name(frame, info.several_fits), note and mailed(note, run.path))
            for frame, note in frames
        ],
        "maps": maps.layers,
        "history": history,
        "findings": findings,
        "checked": checked,
        "alarms": alarms_of(run),
        "titles": TITLES | TRIED_TITLES,
        "notes": [mailed(note, run.path) for note in notes],
        "cmaps": {name: base64(colormap(name).tobytes()) for name in dict.fromkeys((*CMAPS, DEFAULT_CMAP))},
        "defaults": {"cmap": DEFAULT_CMAP, "alpha": DEFAULT_ALPHA},
    }


def _item(run: RunFiles, item: int, entry: PanelItem, pictures: Pictures) -> dict[str, Any]:
    files = [run.path / file for file in (entry.image, entry.mask) if file]
    key = (item, *map(str, files), *map(stamp_of, files))
    if key not in pictures:
        pictures[key] = _picture(run, item, entry)
    return {"name": by_name(entry.name), "label": entry.label or "", "depth": entry.depth, **pictures[key]}


def _picture(run: RunFiles, item: int, entry: PanelItem) -> dict[str, Any]:
    known: dict[str, Any] = {}
    try:
        image = run.image(item)
    except GradCAMError as error:
        # The page draws the maps over an even grey then.
        known["note"] = mailed(reason_of(error), run.path)
        image = Image.new("RGB", (min(8192, entry.width), min(8192, entry.height)))
    mask = _mask(run, item)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return known | {
        "width": image.width,
        "height": image.height,
        "image": None if known else uri_of(image, "JPEG", quality=JPEG_QUALITY, optimize=True),
        "mask": None if mask is None else uri_of(_bitmap(mask, image.size), "PNG", optimize=True),
        "mask_area": None if mask is None else number(mask.mean()),
    }


def _mask(run: RunFiles, item: int) -> np.ndarray | None:
    try:
        mask = run.mask(item)
    except GradCAMError:
        return None
    return mask if mask is not None and mask.any() else None


def _bitmap(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST).convert("1")


def _embedded(image: Image.Image) -> dict[str, Any]:
    uri = uri_of(image, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return {"width": image.width, "height": image.height, "image": uri}


def _newest_grid(run: RunFiles, pictures: Pictures) -> dict[str, Any] | None:
    "The newest grid that was saved, small, with words for it; `None` if there is none."
    info = run.contents()
    for frame in reversed(info.complete):
        file = run.path / grid_file(frame.frame)
        key = ("grid", str(file), stamp_of(file))
        try:
            if key not in pictures:
                grid = run.grid(frame.frame)
                grid.thumbnail((GRID_SIDE, 4 * GRID_SIDE), Image.Resampling.LANCZOS)
                for old in [known for known in pictures if known[0] == "grid"]:
                    del pictures[old]
                pictures[key] = _embedded(grid)
            return {**pictures[key], "words": frame_name(frame, info.several_fits)}
        except GradCAMError:
            continue
    return None


def _frame(frame: FrameEntry, name: str, note: str | None) -> dict[str, Any]:
    metrics = {key: number(value) for key, value in frame.metrics.items()}
    when = {"frame": frame.frame, "fit": frame.fit, "epoch": frame.epoch, "name": name}
    return {**when, "metrics": metrics, "note": note}


def _findings(run: RunFiles, thresholds: Thresholds | None) -> tuple[list[dict[str, Any]] | None, str, list[str]]:
    "The findings as plain dicts and what was looked for; `None`, with a note, if they could not be worked out."
    try:
        found = findings_of(run, thresholds)
        checked = checks_in_words(checks_of(run, thresholds or Thresholds()))
    except Exception as error:
        return None, "", [f"The findings could not be worked out ({reason_of(error)})."]
    shown = found[["kind", "severity", "frame", "layer", "label", "items", "text"]].to_dict("records")
    for row, finding in zip(shown, found.to_dict("records"), strict=True):
        row["tried"] = tried_of(run, finding, _embedded)
    return shown, checked, []
