"""The page of an atlas: classes, habits, and a scatter of images, in one file that loads nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .._errors import GradCAMError
from .._run.files import write_whole
from ..render import DEFAULT_ALPHA, DEFAULT_CMAP, colormap
from .embed import filled, text_of, uri_of
from .numbers import base64, number

if TYPE_CHECKING:
    from ..atlas import Atlas

__all__ = ["write_atlas"]

POINTS = 10_000  # images in the scatter; of more, so many are drawn by lot
BUDGET = 3_200_000  # bytes of pictures, those of the most suspicious habits first
SIDE, CELLS = 120, 14  # pixels of a picture, and cells a side of its map, at most
CLASSES = 200  # rows of the table, the classes with the most suspicious habits first


def write_atlas(atlas: Atlas, path: str | Path | None = None) -> Path:
    "Write the page of `atlas`, by default into its folder, and return where it lies."
    path = atlas.path / "atlas.html" if path is None else Path(path)
    groups = atlas.groups
    labels = list(dict.fromkeys(groups["label"]))[:CLASSES]
    info = _info(atlas, labels)
    data = {
        "info": info,
        "classes": [_class(atlas, row) for row in atlas.classes.to_dict("records") if row["label"] in labels],
        "groups": [_group(row) for row in groups.to_dict("records") if row["label"] in labels],
        "points": _points(atlas, path.parent),
        "images": _images(atlas),
        "colours": base64(colormap(DEFAULT_CMAP).tobytes()),
        "alpha": DEFAULT_ALPHA,
    }
    html = filled("atlas.html", ["style", "atlas"], ["atlas"], data, title=info["name"], findings=info["findings"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html.encode("utf-8"))
    return path


def _info(atlas: Atlas, labels: list[str]) -> dict[str, Any]:
    table, plan, flagged = atlas.table, atlas.plan, atlas.groups[atlas.groups["flagged"]]
    right = table["correct"].mean() if table["correct"].notna().any() else None
    shortcuts = atlas.verdicts[atlas.verdicts["verdict"] == "shortcut"]
    findings = [text_of(text) for text in flagged["text"]]
    for label in shortcuts["label"].drop_duplicates():
        if label not in set(flagged["label"]):
            tests = ", ".join(shortcuts.loc[shortcuts["label"] == label, "test"])
            findings.append(
                text_of(f"{label!r} has a shortcut by the tests {tests}, but no habit of its own shows it.")
            )
    notes = list(atlas.notes)
    if len(labels) < len(atlas.labels):
        notes.append(
            f"The page has {len(labels)} of {len(atlas.labels)} classes: those with the most suspicious habits."
        )
    if len(table) > POINTS:
        notes.append(f"The scatter has {POINTS:,} of {len(table):,} images, drawn by lot, and all with pictures.")
    return {
        "name": text_of(atlas.path.name),
        "images": len(table),
        "accuracy": None if right is None else number(right),
        "layer": plan.layer,
        "method": plan.method,
        "explained": {"true": "each image's label", "pred": "each image's prediction"}.get(plan.target, plan.target),
        "findings": findings,
        "judged": bool(len(atlas.verdicts)),
        "notes": [text_of(note) for note in notes],
    }


def _class(atlas: Atlas, row: dict[str, Any]) -> dict[str, Any]:
    mean = atlas.mean_map(row["label"])
    verdicts = atlas.verdicts
    own = verdicts.loc[verdicts["label"] == row["label"], "verdict"]
    verdict = next((kind for kind in ("shortcut", "undecided", "clear") if (own == kind).any()), "")
    numbers = {key: number(row[key]) for key in ("accuracy", "prob", "spread", "border_share", "mask_share")}
    named = {"label": text_of(row["label"]), "images": int(row["images"]), "verdict": verdict}
    return named | numbers | {"mean": _cells(mean), "atypical": row["atypical"][:2]}


def _group(row: dict[str, Any]) -> dict[str, Any]:
    words = {key: text_of(str(row[key])) for key in ("label", "taken_for", "verdict", "text")}
    numbers = {key: number(row[key]) for key in ("share", "accuracy", "rest", "purity", "apart", "suspicion")}
    counts = {"habit": int(row["habit"]), "images": int(row["images"]), "flagged": bool(row["flagged"])}
    return words | numbers | counts | {"typical": [int(i) for i in row["typical"][:4]]}


def _cells(map: np.ndarray) -> dict[str, Any] | None:
    "A map in steps of 1/255 of its peak, at most `CELLS` a side; `None` for one that is empty or not finite."
    if not np.isfinite(map).all() or not (map > 0).any():
        return None
    size = min(CELLS, map.shape[1]), min(CELLS, map.shape[0])
    map = np.asarray(Image.fromarray(map.astype(np.float32)).resize(size, Image.Resampling.BOX)).clip(0)
    cells = np.rint(map / map.max() * 255).astype(np.uint8)
    return {"h": size[1], "w": size[0], "cells": base64(cells.tobytes())}


def _images(atlas: Atlas) -> dict[str, Any]:
    "Pictures of typical images with their maps, by index, as far as the budget goes."
    found, left = {}, BUDGET
    for index in _in_order(atlas):
        try:
            image = atlas.image(index)
        except GradCAMError:
            continue
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        uri = uri_of(image, "JPEG", quality=78, optimize=True)
        left -= len(uri)
        if left < 0:
            break
        found[str(index)] = {"uri": uri, "w": image.width, "h": image.height, "map": _cells(atlas.map(index))}
    return found


def _in_order(atlas: Atlas) -> Iterator[int]:
    known = set(atlas.shown)
    wanted = [i for typical in atlas.groups["typical"] for i in typical[:4]] + atlas.shown
    yield from (i for i in dict.fromkeys(map(int, wanted)) if i in known)


def _points(atlas: Atlas, folder: Path) -> dict[str, Any]:
    "The images of the scatter, as columns; a file is named as seen from the page."
    table = atlas.table
    chosen = np.arange(len(table))
    if len(table) > POINTS:
        kept = np.isin(table["index"].to_numpy(), atlas.shown)
        lot = np.random.default_rng(0).permutation(len(table))
        chosen = np.sort(lot[np.argsort(~kept[lot], kind="stable")][:POINTS])
    rows = table.iloc[chosen]
    at = atlas.places[chosen]
    root = None if atlas.plan.root is None else os.path.relpath(atlas.plan.root, folder.resolve())
    labels, preds = (rows[c].astype(str).astype("category").cat for c in ("label", "pred"))
    return {
        "root": root,
        "index": rows["index"].tolist(),
        "name": [text_of(name) for name in rows["name"]],
        "labels": [text_of(c) for c in labels.categories],
        "label": labels.codes.tolist(),
        "preds": [text_of(c) for c in preds.categories],
        "pred": preds.codes.tolist(),
        "right": [
            None if c is None else int(c) for c in rows["correct"].astype(object).where(rows["correct"].notna(), None)
        ],
        "habit": atlas.habits.habit[chosen].tolist(),
        "prob": [number(round(p, 3)) for p in rows["prob"].astype(float)],
        "loss": [number(round(v, 4)) for v in rows["loss"].astype(float)],
        "x": np.rint(at[:, 0] * 1000).astype(int).tolist(),
        "y": np.rint(at[:, 1] * 1000).astype(int).tolist(),
    }
