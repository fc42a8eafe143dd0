"""Map → colours → overlay → labelled grid. Knows images and arrays, neither models nor torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ._errors import GradCAMError, one_of
from ._lettering import font as font
from ._lettering import shorten as shorten
from ._lettering import wrap as wrap

__all__ = ["DEFAULT_ALPHA", "DEFAULT_CMAP", "Cell", "colormap", "grid", "normalise", "overlay", "upsample"]

DEFAULT_CMAP = "inferno"
DEFAULT_ALPHA = 0.5

RIGHT, WRONG, INK, FAINT, PAPER = "#1a7f37", "#c9252d", "#1f2328", "#656d76", "#ffffff"
KEY = "least to most attention, each map on its own scale"
VERDICTS = {True: RIGHT, False: WRONG, None: FAINT}


@lru_cache
def colormap(name: str) -> np.ndarray:
    "The 256 colours of matplotlib's colormap `name`, uint8 `(256, 3)`. Raises `GradCAMError` for an unknown one."
    if name not in matplotlib.colormaps:
        raise GradCAMError(one_of("colormap", name, [n for n in matplotlib.colormaps if not n.endswith("_r")]))
    return (matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]).copy()


def upsample(map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`map` `(h, w)` bilinearly at `size` `(width, height)`, float32 `(height, width)`.

    >>> import numpy as np
    >>> from PIL import Image
    >>> from fastai_gradcam.render import upsample
    >>> upsample(np.eye(2), (8, 4)).shape
    (4, 8)
    """
    image = Image.fromarray(np.ascontiguousarray(map, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def normalise(map: np.ndarray, vmax: float | None = None) -> np.ndarray:
    """`map` divided by `vmax` (its own maximum), clipped to 0…1. A map without mass stays all zero, NaN becomes 0.

    >>> import numpy as np
    >>> from PIL import Image
    >>> from fastai_gradcam.render import normalise
    >>> normalise(np.array([[0.0, 2.0], [4.0, np.nan]])).tolist()
    [[0.0, 0.5], [1.0, 0.0]]
    """
    map = np.nan_to_num(np.asarray(map, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(map.max()) if vmax is None else float(vmax)
    return np.clip(map / top, 0, 1) if top > 0 else np.zeros_like(map)


def slices(volume: np.ndarray) -> np.ndarray:
    """Four slices `(…, 2h, 2w)` of volumes `(…, d, h, w)`, evenly spread over the depth, in reading order.

    The same depths, as shares of d, whatever the resolution: a map's slices lie over the image's.
    """
    a, b, c, d = (volume[..., place, :, :] for place in shown_slices(volume.shape[-3]))
    return np.concatenate([np.concatenate([a, b], -1), np.concatenate([c, d], -1)], -2)


def overlay(
    image: Image.Image,
    map: np.ndarray,
    alpha: float = DEFAULT_ALPHA,
    cmap: str = DEFAULT_CMAP,
    vmax: float | None = None,
) -> Image.Image:
    """`image` with `map` over it: `(1 - alpha)·image + alpha·colour`, at the image's size, RGB.

    `map`: `(h, w)`, any resolution, or a volume `(d, h, w)`, drawn as `slices`; `vmax`: the value of the hottest colour
    (default: the map's maximum). An empty map is shown as what it is: the image, without colour. Raises `GradCAMError`
    for an alpha outside of 0…1 and for a colormap that matplotlib has not.

    >>> import numpy as np
    >>> from PIL import Image
    >>> from fastai_gradcam.render import overlay
    >>> image = Image.new("RGB", (64, 48), "grey")
    >>> hot = overlay(image, np.array([[0.0, 0.0], [0.0, 1.0]]), cmap="jet")
    >>> hot.size, hot.getpixel((60, 44))[0] > hot.getpixel((4, 4))[0]  # red at the lower right
    ((64, 48), True)
    """
    if not 0 <= alpha <= 1:
        raise GradCAMError(f"alpha must lie in 0…1, got {alpha!r}.")
    colours = colormap(cmap)
    image = image.convert("RGB")
    map = slices(np.asarray(map)) if np.ndim(map) == 3 else map
    heat = normalise(upsample(map, image.size), vmax) if vmax else normalise(upsample(normalise(map), image.size), 1.0)
    if not heat.any():
        return image
    coloured = Image.fromarray(colours[np.rint(heat * 255).astype(np.uint8)])
    return Image.blend(image, coloured, alpha)


@dataclass(frozen=True)
class Style:
    "How maps are drawn: opacity, colormap, and the value of the hottest colour (`None`: each map's maximum)."

    alpha: float = DEFAULT_ALPHA
    cmap: str = DEFAULT_CMAP
    vmax: float | None = None


@dataclass
class Cell:
    """One picture of a grid: an image, its map, what to write under it.

    `verdict`: whether the prediction is right, which colours the frame and the subtitle; `None` if that is unknown.
    `depth`: of a volume, drawn as four of its slices, how many it has: the slices get their numbers.

    >>> import numpy as np
    >>> from PIL import Image
    >>> from fastai_gradcam.render import Cell
    >>> cell = Cell(Image.new("RGB", (64, 64), "grey"), np.eye(2), "Trout", "Sea Bass 71%", verdict=False)
    >>> cell.title, cell.verdict
    ('Trout', False)
    """

    image: Image.Image
    map: np.ndarray | None = None
    title: str = ""
    subtitle: str = ""
    verdict: bool | None = None
    note: str = ""
    depth: int | None = None


def grid(
    cells: Sequence[Cell],
    heading: str = "",
    columns: int | None = None,
    tile: int = 208,
    alpha: float = DEFAULT_ALPHA,
    cmap: str = DEFAULT_CMAP,
) -> Image.Image:
    """Cells in rows of `columns` (default: about as wide as high), each image at most `tile` pixels, RGB.

    Under each image stand its title and subtitle, green if the verdict is right and red if it is wrong, with a sign for
    those who cannot tell the two. `heading` stands above all, on as many lines as it needs, and over maps a colour key.

    >>> import numpy as np
    >>> from PIL import Image
    >>> from fastai_gradcam.render import Cell, grid
    >>> image = Image.new("RGB", (64, 64), "grey")
    >>> cells = [Cell(image, np.eye(2), label) for label in ("Trout", "Shrimp", "Sea Bass")]
    >>> page = grid(cells, "Three fish", columns=3, tile=100)
    >>> page.width > 300
    True
    """
    if not cells:
        raise GradCAMError("There are no cells to draw.")
    columns = min(columns or math.ceil(math.sqrt(len(cells))), len(cells))
    rows = math.ceil(len(cells) / columns)
    gap, text, notes = tile // 16, _text_of(tile), any(c.note for c in cells)
    line = _line_of(text)
    high = max(fit(c.image.size, tile)[1] for c in cells)
    lines = 1 + any(c.subtitle for c in cells) + notes
    step_x, step_y = tile + gap, high + lines * line + gap + line // 4
    head_font = font(tile // 11)
    # A page of one narrow column grows with its heading's longest part, within reason.
    longest = max((head_font.getlength(part) for part in re.split(r" · |\n", heading)), default=0)
    width = max(gap + columns * step_x, math.ceil(min(longest, 3 * tile)) + 2 * gap)
    head = wrap(heading, head_font, width - 2 * gap)
    head_line = round(head_font.size * 1.4)
    key = round(text.size * 1.8) if any(c.map is not None for c in cells) else 0
    top = gap + len(head) * head_line + key + (gap // 2 if head else 0)
    page = Image.new("RGB", (width, top + rows * step_y), PAPER)
    draw = ImageDraw.Draw(page)
    for i, words in enumerate(head):
        draw.text((gap, gap + i * head_line), words, INK if i == 0 else FAINT, head_font)
    if key:
        colour_key(page, (gap, gap + len(head) * head_line + key // 4), width - 2 * gap, text, cmap)
    for i, cell in enumerate(cells):
        at = gap + (i % columns) * step_x, top + (i // columns) * step_y
        _draw_cell(page, cell, at, tile, high, Style(alpha, cmap))
    return page


def _draw_cell(page: Image.Image, cell: Cell, at: tuple[int, int], tile: int, high: int, style: Style) -> None:
    "A cell with its upper left corner `at`; its image is centred in `tile` × `high` pixels, with words below."
    (x, y), text, draw = at, _text_of(tile), ImageDraw.Draw(page)
    size = fit(cell.image.size, tile)
    picture = cell.image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if cell.map is not None:
        picture = overlay(picture, cell.map, style.alpha, style.cmap, style.vmax)
    left, above = x + (tile - size[0]) // 2, y + (high - size[1]) // 2
    page.paste(picture, (left, above))
    colour = VERDICTS[cell.verdict]
    stroke = max(2, tile // 70)
    draw.rectangle((left, above, left + size[0] - 1, above + size[1] - 1), outline=colour, width=stroke)
    if cell.depth is not None:
        mark_slices(draw, (left, above), size, cell.depth)
    if cell.map is not None:
        mark_empty(draw, (left + stroke + 5, above + stroke + 3), cell.map, text)
    sign = {True: "✓ ", False: "✗ ", None: ""}[cell.verdict]
    line = _line_of(text)
    below = y + high + line // 4
    written = [(cell.title, INK), (sign + cell.subtitle if cell.subtitle else "", colour), (cell.note, FAINT)]
    for words, ink in (w for w in written if w[0]):
        draw.text((x, below), shorten(words, text, tile), ink, text)
        below += line


def colour_key(
    page: Image.Image, at: tuple[int, int], width: int, text: ImageFont.FreeTypeFont, cmap: str, words: str = KEY
) -> int:
    "A bar of the colours from least to most, with `words` beside it; returns its width, at most `width`."
    (x, y), draw = at, ImageDraw.Draw(page)
    bar = round(min(6 * text.size, width / 3)), round(text.size * 0.8)
    page.paste(
        Image.fromarray(colormap(cmap)[None]).resize(bar, Image.Resampling.NEAREST), (x, y + round(text.size / 5))
    )
    if text.getlength(words) > width - bar[0] - 8:
        words = shorten(words.partition(",")[0], text, width - bar[0] - 8)
    draw.text((x + bar[0] + 8, y), words, FAINT, text)
    return bar[0] + 8 + round(text.getlength(words))


def shown_slices(depth: int) -> list[int]:
    "The places of the four slices of a volume that are drawn, from 0."
    return [int((i + 0.5) / 4 * depth) for i in range(4)]


def mark_slices(draw: ImageDraw.ImageDraw, at: tuple[int, int], size: tuple[int, int], depth: int) -> None:
    "Borders between the four slices of a volume, and the number of each, counted from 1."
    (x, y), (w, h), text = at, size, font(max(9, min(size) // 14))
    for line in ((x + w // 2, y, x + w // 2, y + h - 1), (x, y + h // 2, x + w - 1, y + h // 2)):
        draw.line(line, PAPER, 2)
    for i, place in enumerate(shown_slices(depth)):
        corner = x + (i % 2 + 1) * w // 2 - 5, y + (i // 2 + 1) * h // 2 - 4
        _on_paper(draw, corner, str(place + 1), text, "rb")


def _on_paper(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], words: str, text: ImageFont.FreeTypeFont, anchor: str = "la"
) -> None:
    box = draw.textbbox(at, words, font=text, anchor=anchor)
    draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), PAPER)
    draw.text(at, words, FAINT, text, anchor=anchor)


def _text_of(tile: int) -> ImageFont.FreeTypeFont:
    return font(min(18, tile // 14))


def _line_of(text: ImageFont.FreeTypeFont) -> int:
    return round(text.size * 1.35)


def mark_empty(draw: ImageDraw.ImageDraw, at: tuple[int, int], map: np.ndarray, text: ImageFont.FreeTypeFont) -> None:
    "Say at the place `at` if a map is empty or not finite, which its overlay does not show."
    finite = np.isfinite(map).all()
    if not finite or not normalise(map).any():
        _on_paper(draw, at, "empty map" if finite else "not finite", text)


def fit(size: tuple[int, int], tile: int) -> tuple[int, int]:
    scale = tile / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
