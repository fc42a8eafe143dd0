"""Pictures of a whole run: all frames on one page, an animation, curves, and a comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ._draw.compare import compare
from ._draw.curves import Curve
from ._draw.picture import picture
from ._draw.series import KEYS, Series, about, evenly, first_class, items_of, layer_of, scale_of
from ._draw.sheet import MOST_COLUMNS, Head, Plan, Sheet, draw_row
from ._errors import GradCAMError, one_of
from ._run.files import image_bytes, write_whole
from ._run.history import NUMBERS
from ._run.reader import RunFiles
from .render import DEFAULT_ALPHA, DEFAULT_CMAP, PAPER, Cell, Style, grid

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["animation", "compare", "evolution", "plot"]

PROBABILITY, ON_OBJECT = "#0969da", "#bc4c00"
# The curves of the evolution: column, colour, words.
_LINES = [("prob", PROBABILITY, "probability of the class"), ("mask_share", ON_OBJECT, "attention on the object")]
_MOST_STEPS = 60
_DRAWABLE = [c for c in (*NUMBERS, "correct", "pointing_hit") if c not in ("frame", "fit", "epoch", "item")]


def evolution(
    run: RunFiles,
    items: Sequence[int] | None = None,
    layer: str | None = None,
    columns: int = MOST_COLUMNS,
    tile: int | None = None,
    alpha: float = DEFAULT_ALPHA,
    cmap: str = DEFAULT_CMAP,
    scale: str = "map",
) -> Image.Image:
    """A row per image, a column per frame, and under each row curves of its numbers over all frames, RGB.

    `items`: which images of the panel, default all. `layer`: default the last; of several classes per image the first
    is drawn. At most `columns` frames are drawn, evenly spread, the first and the last among them. The curves have
    every frame: the probability of the class explained and, with masks, the share of attention on the object. Each
    overlay is framed green if the prediction is right. `tile`: pixels of an image's side, default what fills a screen's
    width. `scale`: the hottest colour is the maximum of each `"map"`, of each `"image"` over the frames, or of `"all"`
    maps. Many images with few frames stand in two blocks side by side.

    Raises `GradCAMError` for a run without a complete frame, for an image or layer that it does not have, and for an
    unknown scale.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import Watch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x, labels = torch.rand(2, 3, 32, 32), ["cat", "dog"]
    >>> with Watch(model, x, labels=labels, vocab=labels, path="runs", name="one") as watch:
    ...     watch(0, {"valid_loss": 0.7})
    >>> from fastai_gradcam.pictures import evolution
    >>> page = evolution(watch.run, tile=64)
    >>> page.save("evolution.png")
    """
    series = Series(run, layer)
    items = items_of(run, items)
    top = scale_of([series], items, scale)
    shown = evenly(len(series.frames), columns)
    lines = _LINES[: 1 + series.masked]
    head: Head = [[((colour, "solid"), words) for _, colour, words in lines], [((cmap, "colours"), KEYS[scale])]]
    head = [*head, *([[(None, series.about)]] if series.about else [])]
    sheet = Sheet(Plan.of(series.size, len(items), len(shown), 1, tile), head, [series.name(k) for k in shown])
    every = np.interp(range(len(series.frames)), shown, range(len(shown)))
    for place, item in enumerate(items):
        sheet.label(place, series.label(item), series.classes_of(item, shown))
        draw_row(sheet, place, 0, series, item, dict(enumerate(shown)), Style(alpha, cmap, top(item)))
        sheet.curves(place, [Curve(every, series.values(item, column), colour) for column, colour, _ in lines])
    return picture(sheet.image)


def animation(
    run: RunFiles,
    path: str | Path | None = None,
    items: Sequence[int] | None = None,
    seconds: float = 0.8,
    tile: int = 160,
) -> Path:
    """An animation of the grids, one frame after the other; returns the file, default `evolution.gif` in the run.

    The suffix of `path` chooses the format: `.gif`, or `.webp`, `.png` and `.mp4` if the installed Pillow writes them.
    `items`: which images of the panel, default all. `seconds`: how long each frame stays; the last stays three times
    as long. If there are more than 60 frames, 60 evenly spread ones are shown. `tile`: pixels of an image's side.

    Raises `GradCAMError` for a suffix that cannot be written, with those that can, and for a run without a complete
    frame.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import Watch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x, labels = torch.rand(2, 3, 32, 32), ["cat", "dog"]
    >>> with Watch(model, x, labels=labels, vocab=labels, path="runs", name="one") as watch:
    ...     watch(0, {"valid_loss": 0.7})
    >>> from fastai_gradcam.pictures import animation
    >>> animation(watch.run, seconds=0.5).name
    'evolution.gif'
    """
    series = Series(run, None)
    path = Path(path) if path is not None else run.path / "evolution.gif"
    kind = _animated_kind(path)
    items = items_of(run, items)
    pages = []
    for k in evenly(len(series.frames), _MOST_STEPS):
        pages.append(grid([_cell(series, i, k) for i in items], _caption(series, k), tile=tile))
    # Pages of one size, whatever their headings needed.
    size = (max(p.width for p in pages), max(p.height for p in pages))
    pages = [_padded(p, size) for p in pages]
    if kind == "GIF":
        pages = _in_one_palette(pages)
    times = [round(1000 * seconds)] * (len(pages) - 1) + [round(3000 * seconds)]
    write_whole(path, image_bytes(pages[0], kind, save_all=True, append_images=pages[1:], duration=times, loop=0))
    return path


def plot(
    run: RunFiles,
    columns: Sequence[str] = ("prob", "mask_share", "entropy", "centroid_shift"),
    ax: Any = None,
    layer: str | None = None,
) -> np.ndarray:
    """Curves over the frames: the panel's mean of each of `columns` of the history, and one thin line per image.

    `layer`: default the last; of several classes per image the first is drawn. Draws into the matplotlib axes `ax` (one
    per column, default new ones) and returns them as an array. A column without numbers (such as `mask_share` without
    masks) is left out; if its axes were given, they say so.

    Raises `GradCAMError` for a layer or column that does not exist, if no column has numbers, and for a number of axes
    that does not fit.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import Watch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x, labels = torch.rand(2, 3, 32, 32), ["cat", "dog"]
    >>> with Watch(model, x, labels=labels, vocab=labels, path="runs", name="one") as watch:
    ...     watch(0, {"valid_loss": 0.7})
    >>> from fastai_gradcam.pictures import plot
    >>> axes = plot(watch.run, ["prob", "entropy"])
    >>> len(axes)
    2
    """
    layer, history = layer_of(run, layer), run.history
    history = history[history["layer"] == layer]
    classes = int(history.groupby(["frame", "item"]).size().max()) if len(history) else 1
    history = first_class(history, classes)
    columns = [columns] if isinstance(columns, str) else list(columns)
    for column in columns:
        if column not in _DRAWABLE:
            raise GradCAMError(one_of("column", column, _DRAWABLE, most=len(_DRAWABLE)))
    known = [c for c in columns if history[c].notna().any()]
    if not known:
        raise GradCAMError("The run has no numbers in these columns yet.")
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(1, len(known), figsize=(4 * len(known), 3), squeeze=False, layout="constrained")[1][0]
    axes = np.atleast_1d(ax)
    if axes.size not in (len(columns), len(known)):
        raise GradCAMError(f"ax has {axes.size} axes for {len(columns)} columns; give one for each.")
    for column, at in zip(columns if axes.size == len(columns) else known, axes.flat, strict=True):
        _plot_column(at, history, column, about(run, layer, classes))
    return axes


def _plot_column(at: Any, history: pd.DataFrame, column: str, words: str) -> None:
    "The curves of one column in the axes `at`: the mean of the panel over a thin line for each image."
    from matplotlib.ticker import MaxNLocator

    name = {known: said for known, _, said in _LINES}.get(column, column.replace("_", " "))
    at.set_title("\n".join(filter(None, (name, words))).replace("$", r"\$"))
    at.set_xlabel("frame")
    at.xaxis.set_major_locator(MaxNLocator(integer=True))
    per_item = history.astype({column: float}).pivot(index="frame", columns="item", values=column)
    if per_item.isna().all(axis=None):
        at.text(0.5, 0.5, "no numbers", color="0.5", ha="center", va="center", transform=at.transAxes)
        return
    each = at.plot(per_item, color="0.8", linewidth=0.8)
    mean = at.plot(per_item.mean(axis=1), color=PROBABILITY, linewidth=2, marker="o", markersize=3)
    at.legend([*mean, *each[:1]], ["mean of the panel", "each image"], fontsize="small", framealpha=0.7)


def _animated_kind(path: Path) -> str:
    "Pillow's name for the format that `path` asks for by its suffix."
    known = Image.registered_extensions()
    kinds = {s: known[s] for s in (".gif", ".webp", ".png", ".mp4") if known.get(s) in Image.SAVE_ALL}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        unable = "The installed Pillow writes no .mp4. " if path.suffix.lower() == ".mp4" else ""
        raise GradCAMError(f"{unable}An animation is saved as {' or '.join(kinds)}, got {path.name!r}.")
    return kind


def _cell(series: Series, item: int, k: int) -> Cell:
    answer, depth = series.answer(item, k), series.info.panel[item].depth
    return Cell(series.image(item), series.maps[k][item], series.label(item), *answer, series.note(item, k), depth)


def _caption(series: Series, k: int) -> str:
    metrics = " · ".join(f"{name} {v:.3g}" for name, v in series.frames[k].metrics.items() if v is not None)
    words = " · ".join(filter(None, (series.name(k).capitalize(), series.about)))
    return f"{words}\n{metrics or ' '}"


def _padded(page: Image.Image, size: tuple[int, int]) -> Image.Image:
    whole = Image.new("RGB", size, PAPER)
    whole.paste(page)
    return whole


def _in_one_palette(pages: list[Image.Image]) -> list[Image.Image]:
    """256 colours for all, chosen from every third pixel of the first, middle and last page.

    Choosing takes most of an animation's time: with all pixels ten times as long, for colours as good.
    """
    some = [pages[0], pages[len(pages) // 2], pages[-1]]
    width, height = (max(1, side // 3) for side in pages[0].size)
    sheet = Image.new("RGB", (width, height * len(some)))
    for i, page in enumerate(some):
        sheet.paste(page.resize((width, height), Image.Resampling.NEAREST), (0, i * height))
    palette = sheet.quantize(256, Image.Quantize.MEDIANCUT)
    return [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pages]
