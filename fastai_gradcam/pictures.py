"""Pictures of a whole run: its course on one page, as an animation, as curves, and beside another run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from .render import (
    DEFAULT_ALPHA,
    DEFAULT_CMAP,
    FAINT,
    INK,
    PAPER,
    RIGHT,
    WRONG,
    Cell,
    fit,
    font,
    grid,
    overlay,
    shorten,
)

if TYPE_CHECKING:
    import pandas as pd

    from .run import Run

__all__ = ["animation", "compare", "evolution", "plot", "title"]

PROBABILITY, ON_OBJECT = "#0969da", "#bc4c00"
_MOST_COLUMNS = 12
_MOST_STEPS = 60
_FINER = 3


def title(frame: dict[str, Any], several_fits: bool = True) -> str:
    "A frame's name in few letters: `before`, `epoch 3`, or `fit 1 ep 3` where a run has several fits."
    if frame["epoch"] < 0:
        return "before"
    return f"fit {frame['fit']} ep {frame['epoch']}" if several_fits else f"epoch {frame['epoch']}"


def evolution(
    run: Run,
    items: Sequence[int] | None = None,
    layer: str | None = None,
    columns: int = _MOST_COLUMNS,
    tile: int | None = None,
    alpha: float = DEFAULT_ALPHA,
    cmap: str = DEFAULT_CMAP,
) -> Image.Image:
    """A row per image, a column per frame, and under each row the course of its numbers over all frames, RGB.

    `items`: which images of the panel, default all. Of more than `columns` frames, evenly spread ones are drawn, the
    first and the last among them; the curves have every frame: the probability of the class explained, and, where
    there are masks, the share of attention on the object. Each overlay's frame is green where the prediction is
    right. `tile`: pixels of an image's side, default what fills a screen's width. Many images with few frames stand in
    two blocks side by side. Raises `ValueError` for a run without a complete frame, and for an image or layer that it does not have.
    """
    frames, maps, history, layer = _complete(run, layer)
    panel = run.panel
    items = list(range(len(panel))) if items is None else list(items)
    unknown = [i for i in items if not 0 <= i < len(panel)]
    if unknown:
        raise ValueError(f"There is no image {unknown[0]}: the panel has images 0 to {len(panel) - 1}.")
    shown = _evenly(len(frames), columns)
    blocks = 2 if len(items) > 6 and len(shown) <= 7 else 1
    tile = tile or min(160, max(88, 1200 // (blocks * (len(shown) + 1))))
    gap, strip = max(6, tile // 16), round(tile * 0.4)
    text = font(max(11, tile // 9))
    line = round(text.size * 1.5)
    row, wide = line + tile + strip + 2 * gap, gap + (1 + len(shown)) * (tile + gap)
    per_block = -(-len(items) // blocks)
    fits = len({f["fit"] for f in frames}) > 1
    masked = bool(history["mask_share"].notna().any())
    legend = _legend(text, gap, line, masked)
    wide_enough = max(blocks * wide + (blocks - 1) * 3 * gap + gap, legend.width)
    page = Image.new("RGB", (wide_enough, 2 * line + gap + per_block * row), PAPER)
    page.paste(legend)
    draw = ImageDraw.Draw(page)
    for block in range(blocks):
        for c, k in enumerate(shown):
            at = (block * (wide + 3 * gap) + gap + (c + 1) * (tile + gap), line + gap // 2)
            draw.text(at, shorten(title(frames[k], fits), text, tile), INK, text)
    for i, item in enumerate(items):
        x, y = (i // per_block) * (wide + 3 * gap) + gap, 2 * line + gap + (i % per_block) * row
        rows = history[history["item"] == item].drop_duplicates("frame").set_index("frame")
        draw.text((x, y), shorten(str(panel[item]["label"] or panel[item]["name"]), text, wide - gap), INK, text)
        image = run.image(item)
        image = image.resize(fit(image.size, tile), Image.Resampling.BICUBIC)
        page.paste(image, (x, y + line))
        for c, k in enumerate(shown):
            at = (x + (c + 1) * (tile + gap), y + line)
            page.paste(overlay(image, maps[k][item], alpha, cmap), at)
            colour = {True: RIGHT, False: WRONG, None: FAINT}[_verdict(rows["correct"].get(frames[k]["frame"]))]
            draw.rectangle((*at, at[0] + image.width - 1, at[1] + image.height - 1), outline=colour, width=2)
        middle = x + tile + gap + tile // 2
        # Drawn larger, then reduced: Pillow's lines have steps.
        size = (middle + (len(shown) - 1) * (tile + gap) - x + 2 * gap, strip + gap)
        curves = Image.new("RGB", (_FINER * size[0], _FINER * size[1]), PAPER)
        box = tuple(_FINER * v for v in (middle - x, gap, size[0] - 2 * gap, size[1] - gap))
        numbers = [f["frame"] for f in frames]
        for column, colour in (("prob", PROBABILITY), ("mask_share", ON_OBJECT))[: 1 + masked]:
            values = rows[column].reindex(numbers).to_numpy(dtype=float)
            _curve(ImageDraw.Draw(curves), box, values, colour)
        page.paste(curves.resize(size, Image.Resampling.LANCZOS), (x, y + line + tile))
    return page


def animation(
    run: Run,
    path: str | Path | None = None,
    items: Sequence[int] | None = None,
    seconds: float = 0.8,
    tile: int = 160,
) -> Path:
    """An animation of the grids, one frame after the other; returns the file, default `evolution.gif` in the run.

    `path`'s suffix says the kind: `.gif`, or `.webp` and `.png` where the installed Pillow has them. `seconds` is
    how long each frame stays; the last stays three times as long. Of more than 60 frames, 60 evenly spread ones.
    """
    frames, maps, history, _ = _complete(run, None)
    path = Path(path) if path is not None else run.path / "evolution.gif"
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in ("GIF", "WEBP", "PNG") or kind not in Image.SAVE_ALL:
        raise ValueError(f"An animation is saved as .gif, .webp or .png, got {path.name!r}.")
    items = list(range(len(run.panel))) if items is None else list(items)
    images, labels = [run.image(i) for i in items], [run.panel[i]["label"] or "" for i in items]
    fits = len({f["fit"] for f in frames}) > 1
    pages = []
    for k in _evenly(len(frames), _MOST_STEPS):
        rows = history[history["frame"] == frames[k]["frame"]].drop_duplicates("item").set_index("item")
        cells = [
            Cell(image, maps[k][i], str(label), *_prediction(rows, i))
            for i, image, label in zip(items, images, labels, strict=True)
        ]
        pages.append(grid(cells, _caption(frames[k], fits), tile=tile))
    # Pages of one size, whatever their headings needed.
    size = (max(p.width for p in pages), max(p.height for p in pages))
    pages = [_padded(p, size) for p in pages]
    if kind == "GIF":
        pages = _in_one_palette(pages)
    times = [round(1000 * seconds)] * (len(pages) - 1) + [round(3000 * seconds)]
    data = io.BytesIO()
    pages[0].save(data, kind, save_all=True, append_images=pages[1:], duration=times, loop=0)
    from .record import write_whole

    write_whole(path, data.getvalue())
    return path


def plot(run: Run, columns: Sequence[str] = ("prob", "mask_share", "entropy", "centroid_shift"), ax=None):
    """Curves over the frames: the panel's mean of each of `columns` of the history, and one thin line per image.

    Draws into the matplotlib axes `ax` (one per column, default new ones) and returns them. A column without numbers
    (no masks) is left out.
    """
    import matplotlib.pyplot as plt

    history = run.history
    columns = [c for c in columns if c in history and history[c].notna().any()]
    if not columns:
        raise ValueError("The run has no numbers in these columns yet.")
    if ax is None:
        ax = plt.subplots(1, len(columns), figsize=(4 * len(columns), 3), squeeze=False, layout="constrained")[1][0]
    axes = np.atleast_1d(ax)
    for column, at in zip(columns, axes, strict=True):
        per_item = history.pivot_table(index="frame", columns="item", values=column, aggfunc="mean")
        at.plot(per_item, color="0.8", linewidth=0.8)
        at.plot(per_item.mean(axis=1), color=PROBABILITY, linewidth=2, marker="o", markersize=3)
        at.set_title(column.replace("_", " "))
        at.set_xlabel("frame")
    return axes


def compare(
    run: Run,
    other: Run,
    frame: int = -1,
    items: Sequence[int] | None = None,
    layer: str | None = None,
    tile: int = 160,
) -> Image.Image:
    """Two runs on the same panel side by side: for each image, its map in `run` and its map in `other`, RGB.

    `frame`: which frame of each (negative counts from the last); `layer`: default the last of each. Raises `ValueError` where the panels differ.
    """
    if [p["name"] for p in run.panel] != [p["name"] for p in other.panel]:
        raise ValueError(
            f"The runs {run.name!r} and {other.name!r} watch different images; give both the same items= or seed=."
        )
    items = list(range(len(run.panel))) if items is None else list(items)
    cells, heads = [], []
    sides = []
    for one in (run, other):
        number = one._frame(frame)["frame"]
        which = one.layers[-1] if layer is None else layer
        maps, history = one.maps(number)[which], one.history
        rows = (
            history[(history["frame"] == number) & (history["layer"] == which)]
            .drop_duplicates("item")
            .set_index("item")
        )
        sides.append((maps if maps.ndim == 3 else maps[:, 0], rows))
        heads.append(f"{one.name} ({one.info['arch']}, frame {number})")
    for i in items:
        for (maps, rows), one in zip(sides, (run, other), strict=True):
            cells.append(
                Cell(one.image(i), maps[i], str(one.panel[i]["label"] or ""), *_prediction(rows, i), note=one.name)
            )
    return grid(cells, f"Left: {heads[0]}\nRight: {heads[1]}", columns=2 if len(items) < 5 else 4, tile=tile)


def _complete(run: Run, layer: str | None) -> tuple[list[dict], list[np.ndarray], pd.DataFrame, str]:
    "Complete frames, their maps `(n, h, w)` of one layer and first class, and the history of that layer."
    # The last layer says most about the class, and is the one that the findings judge.
    layer = run.layers[-1] if layer is None else layer
    if layer not in run.layers:
        raise ValueError(f"The run has no layer {layer!r}; it has {', '.join(run.layers)}.")
    frames, maps = [], []
    for frame in run.frames:
        try:
            stored = run.maps(frame["frame"])[layer]
        except ValueError as error:
            if frame["status"] == "ok":
                warnings.warn(f"Frame {frame['frame']} is left out: {error}", stacklevel=3)
            continue
        frames.append(frame)
        maps.append(stored if stored.ndim == 3 else stored[:, 0])
    if not frames:
        raise ValueError(f"The run {run.name!r} has no complete frame yet.")
    history = run.history
    return frames, maps, history[history["layer"] == layer], layer


def _evenly(count: int, most: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, max(1, most)))})


def _caption(frame: dict[str, Any], fits: bool) -> str:
    metrics = " · ".join(f"{k} {v:.3g}" for k, v in frame["metrics"].items() if v is not None)
    return f"{title(frame, fits).capitalize()}\n{metrics or ' '}"


def _prediction(rows: pd.DataFrame, item: int) -> tuple[str, bool | None]:
    if item not in rows.index:
        return "", None
    row = rows.loc[item]
    return f"{row['pred']} {row['pred_prob']:.0%}" if row["pred"] else "", _verdict(row["correct"])


def _verdict(correct: Any) -> bool | None:
    "True, False, or `None` for pandas' missing value."
    return bool(correct) if isinstance(correct, (bool, np.bool_)) else None


def _padded(page: Image.Image, size: tuple[int, int]) -> Image.Image:
    whole = Image.new("RGB", size, PAPER)
    whole.paste(page)
    return whole


def _in_one_palette(pages: list[Image.Image]) -> list[Image.Image]:
    "256 colours chosen from the first, middle and last page: a palette for each page would take half a second a page."
    some = [pages[0], pages[len(pages) // 2], pages[-1]]
    sheet = Image.new("RGB", (pages[0].width, pages[0].height * len(some)))
    for i, page in enumerate(some):
        sheet.paste(page, (0, i * page.height))
    palette = sheet.quantize(256, Image.Quantize.MEDIANCUT)
    return [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pages]


def _legend(type_, gap: int, line: int, masked: bool) -> Image.Image:
    entries = [("probability of the class", PROBABILITY), ("attention on the object", ON_OBJECT)][: 1 + masked]
    widths = [36 + round(type_.getlength(words)) for words, _ in entries]
    page = Image.new("RGB", (gap + sum(widths), line), PAPER)
    draw, x = ImageDraw.Draw(page), gap
    for (words, colour), width in zip(entries, widths, strict=True):
        draw.line((x, line // 2, x + 16, line // 2), colour, 2)
        draw.text((x + 20, 2), words, FAINT, type_)
        x += width
    return page


def _curve(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], values: np.ndarray, colour: str) -> None:
    "Values 0…1 as a line over the width of `box`, broken where they are undefined; a dot for each of few."
    x0, y0, x1, y1 = box
    draw.line((x0, y1, max(x0 + 1, x1), y1), "#d0d7de", _FINER)
    draw.line((x0, y0, max(x0 + 1, x1), y0), "#eaeef2", _FINER)
    step = (x1 - x0) / max(1, len(values) - 1)
    points = [
        (x0 + i * step, y1 - float(np.clip(v, 0, 1)) * (y1 - y0)) if np.isfinite(v) else None
        for i, v in enumerate(values)
    ]
    for part in _unbroken(points):
        if len(part) > 1:
            draw.line(part, colour, 2 * _FINER, joint="curve")
        for x, y in part if len(values) <= 2 * _MOST_COLUMNS else part[-1:]:
            draw.ellipse((x - 2.5 * _FINER, y - 2.5 * _FINER, x + 2.5 * _FINER, y + 2.5 * _FINER), colour)


def _unbroken(points: Sequence[tuple[float, float] | None]) -> Iterator[list[tuple[float, float]]]:
    part: list[tuple[float, float]] = []
    for point in [*points, None]:
        if point is not None:
            part.append(point)
        elif part:
            yield part
            part = []
