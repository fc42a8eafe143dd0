"""Pictures of a whole run: its course on one page, as an animation, and as curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ._draw.compare import compare
from ._draw.series import Course, about, evenly, first_class, items_of, layer_of, prediction, scale_of, title
from ._draw.sheet import MOST_COLUMNS, Head, Sheet, overlays
from ._errors import one_of
from .render import DEFAULT_ALPHA, DEFAULT_CMAP, PAPER, Cell, grid

if TYPE_CHECKING:
    from .run import Run

__all__ = ["animation", "compare", "evolution", "plot", "title"]

PROBABILITY, ON_OBJECT = "#0969da", "#bc4c00"
_MOST_STEPS = 60
_NOT_DRAWN = "frame fit epoch item layer label target pred".split()


def evolution(
    run: Run,
    items: Sequence[int] | None = None,
    layer: str | None = None,
    columns: int = MOST_COLUMNS,
    tile: int | None = None,
    alpha: float = DEFAULT_ALPHA,
    cmap: str = DEFAULT_CMAP,
    scale: str = "map",
) -> Image.Image:
    """A row per image, a column per frame, and under each row the course of its numbers over all frames, RGB.

    `items`: which images of the panel, default all. `layer`: default the last; of several classes per image the first
    is drawn. Of more than `columns` frames, evenly spread ones are drawn, the first and the last among them; the curves
    have every frame: the probability of the class explained, and, where there are masks, the share of attention on
    the object. Each overlay's frame is green where the prediction is right. `tile`: pixels of an image's side, default
    what fills a screen's width. `scale`: the hottest colour is the maximum of each `"map"`, of each `"image"` over the
    frames, or of `"all"` maps. Many images with few frames stand in two blocks side by side. Raises `ValueError` for a
    run without a complete frame, for an image or layer that it does not have, and for an unknown scale.
    """
    course = Course(run, layer)
    items = items_of(run, items)
    top = scale_of([course], items, scale)
    shown = evenly(len(course.frames), columns)
    curves = [("prob", PROBABILITY, "probability of the class"), ("mask_share", ON_OBJECT, "attention on the object")]
    curves = curves[: 1 + course.masked]
    head: Head = [
        [((colour, "solid"), words) for _, colour, words in curves],
        *([[(None, course.about)]] if course.about else []),
    ]
    page = Sheet(head, len(items), len(shown), 1, run.panel[0], tile)
    several = len({f["fit"] for f in course.frames}) > 1
    page.headings([title(course.frames[k], several) for k in shown])
    every = np.interp(range(len(course.frames)), shown, range(len(shown)))
    for place, item in enumerate(items):
        page.label(place, course.label(item))
        overlays(page, place, 0, course, item, dict(enumerate(shown)), alpha, cmap, top(item))
        page.curves(place, [(every, course.values(item, column), colour, False) for column, colour, _ in curves])
    return page.image


def animation(
    run: Run,
    path: str | Path | None = None,
    items: Sequence[int] | None = None,
    seconds: float = 0.8,
    tile: int = 160,
) -> Path:
    """An animation of the grids, one frame after the other; returns the file, default `evolution.gif` in the run.

    `path`'s suffix says the kind: `.gif`, or `.webp`, `.png` and `.mp4` where the installed Pillow writes them.
    Raises `ValueError` with those it does write for any other. `seconds` is how long each frame stays; the last stays three times as long. Of more than 60 frames, 60 evenly spread ones.
    `items`: which images of the panel, default all; `tile`: pixels of an image's side. Raises `ValueError` for another
    suffix, and for a run without a complete frame.
    """
    course = Course(run, None)
    frames, maps, history = course.frames, course.maps, course.history
    path = Path(path) if path is not None else run.path / "evolution.gif"
    kinds = _animated_kinds()
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        unable = "The installed Pillow writes no .mp4. " if path.suffix.lower() == ".mp4" else ""
        raise ValueError(f"{unable}An animation is saved as {' or '.join(kinds)}, got {path.name!r}.")
    items = items_of(run, items)
    images, labels = [course.image(i) for i in items], [course.label(i) for i in items]
    pages = []
    for k in evenly(len(frames), _MOST_STEPS):
        rows = history[history["frame"] == frames[k]["frame"]].drop_duplicates("item").set_index("item")
        cells = [
            Cell(image, maps[k][i], label, *prediction(rows, i))
            for i, image, label in zip(items, images, labels, strict=True)
        ]
        pages.append(grid(cells, _caption(frames[k], course), tile=tile))
    # Pages of one size, whatever their headings needed.
    size = (max(p.width for p in pages), max(p.height for p in pages))
    pages = [_padded(p, size) for p in pages]
    if kind == "GIF":
        pages = _in_one_palette(pages)
    times = [round(1000 * seconds)] * (len(pages) - 1) + [round(3000 * seconds)]
    data = io.BytesIO()
    pages[0].save(data, kind, save_all=True, append_images=pages[1:], duration=times, loop=0)
    from ._run.writer import write_whole

    write_whole(path, data.getvalue())
    return path


def plot(
    run: Run,
    columns: Sequence[str] = ("prob", "mask_share", "entropy", "centroid_shift"),
    ax: Any = None,
    layer: str | None = None,
) -> np.ndarray:
    """Curves over the frames: the panel's mean of each of `columns` of the history, and one thin line per image.

    `layer`: default the last; of several classes per image the first is drawn. Draws into the matplotlib axes `ax` (one
    per column, default new ones) and returns them, an array. A column without numbers (no masks) is left out; its axes,
    where they were given, say so. Raises `ValueError` for a layer or column that there is not, where no column has
    numbers, and for another count of axes.
    """
    import matplotlib.pyplot as plt

    layer, history = layer_of(run, layer), run.history
    history = history[history["layer"] == layer]
    classes = int(history.groupby(["frame", "item"]).size().max()) if len(history) else 1
    history = first_class(history, classes)
    drawable = [c for c in history if c not in _NOT_DRAWN]
    columns = [columns] if isinstance(columns, str) else list(columns)
    for column in columns:
        if column not in drawable:
            raise ValueError(one_of("column", column, drawable, most=len(drawable)))
    known = [c for c in columns if history[c].notna().any()]
    if not known:
        raise ValueError("The run has no numbers in these columns yet.")
    if ax is None:
        ax = plt.subplots(1, len(known), figsize=(4 * len(known), 3), squeeze=False, layout="constrained")[1][0]
    axes = np.atleast_1d(ax)
    if axes.size not in (len(columns), len(known)):
        raise ValueError(f"ax has {axes.size} axes for {len(columns)} columns; give one for each.")
    for column, at in zip(columns if axes.size == len(columns) else known, axes.flat, strict=True):
        words = filter(None, (column.replace("_", " "), about(run, layer, classes)))
        at.set_title("\n".join(words).replace("$", r"\$"))
        at.set_xlabel("frame")
        if column not in known:
            at.text(0.5, 0.5, "no numbers", color="0.5", ha="center", va="center", transform=at.transAxes)
            continue
        per_item = history.astype({column: float}).pivot(index="frame", columns="item", values=column)
        at.plot(per_item, color="0.8", linewidth=0.8)
        at.plot(per_item.mean(axis=1), color=PROBABILITY, linewidth=2, marker="o", markersize=3)
    return axes


def _animated_kinds() -> dict[str, str]:
    "What the installed Pillow can animate, by suffix."
    known = Image.registered_extensions()
    return {s: known[s] for s in (".gif", ".webp", ".png", ".mp4") if known.get(s) in Image.SAVE_ALL}


def _caption(frame: dict[str, Any], course: Course) -> str:
    metrics = " · ".join(f"{k} {v:.3g}" for k, v in frame["metrics"].items() if v is not None)
    words = " · ".join(filter(None, (title(frame, course.several).capitalize(), course.about)))
    return f"{words}\n{metrics or ' '}"


def _padded(page: Image.Image, size: tuple[int, int]) -> Image.Image:
    whole = Image.new("RGB", size, PAPER)
    whole.paste(page)
    return whole


def _in_one_palette(pages: list[Image.Image]) -> list[Image.Image]:
    """256 colours for all, chosen from every third pixel of the first, middle and last page.

    Choosing takes longer than all else of an animation: of all pixels ten times as long, for colours as good.
    """
    some = [pages[0], pages[len(pages) // 2], pages[-1]]
    width, height = (max(1, side // 3) for side in pages[0].size)
    sheet = Image.new("RGB", (width, height * len(some)))
    for i, page in enumerate(some):
        sheet.paste(page.resize((width, height), Image.Resampling.NEAREST), (0, i * height))
    palette = sheet.quantize(256, Image.Quantize.MEDIANCUT)
    return [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pages]
