"""A judgement as a run keeps it: rows about each class, and the pictures that decided, as PIL images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .rule import Suspicion
from .trials import Outcomes

__all__ = ["class_rows", "pictures_of"]

_TILE, _GAP = 112, 4


def class_rows(
    suspicion: Mapping[str, Suspicion], places: Mapping[str, str], left_out: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of `patches/classes.csv`."""
    judged = [{"label": label, "place": places.get(label, ""), **asdict(s)} for label, s in suspicion.items()]
    return judged + [{"label": label, "left_out": why} for label, why in left_out.items()]


def pictures_of(
    shortcuts: Sequence[tuple[str, str]],
    outcomes: Outcomes,
    names: Sequence[str],
    picture: Callable[[Tensor], Image.Image] | None = None,
) -> list[tuple[str, str, Image.Image, str]]:
    """Label, test, image and caption: the patches of each class among `shortcuts` (test ""), and the images before and
    after each of its tests.

    `picture`: an input `(C, H, W)` as an image; default: its values stretched over their range.
    """
    draw, found = picture or _stretched, []
    for label in dict.fromkeys(label for label, _ in shortcuts):
        patches = outcomes.patches.get(names.index(label), [])
        if patches:
            found.append((label, "", _rows([[draw(p) for p in patches]]), "the hottest patches"))
    for label, test in shortcuts:
        shown = outcomes.shown.get((names.index(label), test), [])
        if shown:
            rows = [[draw(s.before) for s in shown], [draw(s.after) for s in shown]]
            caption = "; ".join(f"{names[s.was]} became {names[s.became]}" for s in shown)
            found.append((label, test, _rows(rows), caption))
    return found


def _rows(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    width = max(len(row) for row in rows) * (_TILE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, len(rows) * (_TILE + _GAP) - _GAP), "white")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            scale = _TILE / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            sheet.paste(image.convert("RGB").resize(size), (j * (_TILE + _GAP), i * (_TILE + _GAP)))
    return sheet


def _stretched(x: Tensor) -> Image.Image:
    x = torch.nan_to_num(x.detach().cpu().float())
    low, high = float(x.min()), float(x.max())
    if low < -0.01 or high > 1.01:
        x = (x - low) / max(high - low, 1e-12)
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
