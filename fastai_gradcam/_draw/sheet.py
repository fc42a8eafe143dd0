"""A page of pictures: for each image of a panel its rows over columns, with a strip of curves below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..render import (
    FAINT,
    INK,
    PAPER,
    VERDICTS,
    WRONG,
    Style,
    colour_key,
    fit,
    font,
    mark_empty,
    mark_slices,
    overlay,
    shorten,
)
from .curves import Curve, curves
from .series import Series

__all__ = ["MOST_COLUMNS", "Head", "Plan", "Sheet", "draw_row"]

MOST_COLUMNS = 12

# A colour with "solid", "dashed" or a letter, or a colormap with "colours".
Mark = tuple[str, str]
# Lines of (mark, words).
Head = Sequence[Sequence[tuple[Mark | None, str]]]


@dataclass(frozen=True)
class Plan:
    """Where everything stands on a sheet, in pixels.

    `count` images of `size`, each with `rows` of an image and `columns` frames, and a strip of curves below. `tile`:
    the side of a picture. Many images with few columns stand in two blocks side by side.
    """

    size: tuple[int, int]
    count: int
    columns: int
    rows: int
    tile: int
    blocks: int

    @classmethod
    def of(cls, size: tuple[int, int], count: int, columns: int, rows: int, tile: int | None) -> Plan:
        "The plan that fills a screen's width, or with the `tile` asked for."
        blocks = 2 if count > 6 // rows and columns <= 7 else 1
        return cls(size, count, columns, rows, tile or min(160, max(88, 1200 // (blocks * (columns + 1)))), blocks)

    @property
    def high(self) -> int:
        return fit(self.size, self.tile)[1]

    @property
    def space(self) -> int:
        return max(6, self.tile // 16)

    @property
    def strip(self) -> int:
        return round(self.tile * 0.4)

    @property
    def text(self) -> ImageFont.FreeTypeFont:
        return font(max(11, self.tile // 9))

    @property
    def small(self) -> ImageFont.FreeTypeFont:
        return font(max(9, self.tile // 14))

    @property
    def line(self) -> int:
        return round(self.text.size * 1.5)

    @property
    def step(self) -> int:
        "From one image to the next below."
        return self.line + self.rows * (self.high + self.space) + self.strip + self.space

    @property
    def wide(self) -> int:
        "The width of a block."
        return self.space + (1 + self.columns) * (self.tile + self.space)

    @property
    def width(self) -> int:
        return max(240, self.blocks * self.wide + (self.blocks - 1) * 3 * self.space + self.space)

    @property
    def per_block(self) -> int:
        return -(-self.count // self.blocks)

    def at(self, place: int) -> tuple[int, int]:
        "The upper left corner of an image's block, below the head."
        block, row = divmod(place, self.per_block)
        return block * (self.wide + 3 * self.space) + self.space, row * self.step


class Sheet:
    "The page itself: pictures, words and curves are put where the plan says."

    def __init__(self, plan: Plan, head: Head, titles: Sequence[str]):
        "`titles`: of the columns; what ` · ` separates goes on lines of its own."
        self.plan = plan
        above = _head(head, plan)
        lines = [title.split(" · ") for title in titles]
        height = max(map(len, lines)) * plan.line
        self.top = above.height + height + plan.space
        self.image = Image.new("RGB", (plan.width, self.top + plan.per_block * plan.step), PAPER)
        self.image.paste(above)
        self.draw = ImageDraw.Draw(self.image)
        self._titles(lines, self.top - height - plan.space // 2)

    def _at(self, place: int) -> tuple[int, int]:
        x, y = self.plan.at(place)
        return x, self.top + y

    def _cell(self, place: int, row: int, column: int) -> tuple[int, int]:
        (x, y), p = self._at(place), self.plan
        return x + column * (p.tile + p.space), y + p.line + row * (p.high + p.space)

    def fitted(self, image: Image.Image) -> Image.Image:
        scale = min(self.plan.tile / image.width, self.plan.high / image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return image.resize(size, Image.Resampling.BICUBIC)

    def _titles(self, titles: Sequence[Sequence[str]], y: int) -> None:
        p = self.plan
        # One size for all of them, so that the longest fits.
        longest = max(p.text.getlength(part) for parts in titles for part in parts)
        text = p.text if longest <= p.tile else p.small
        for block in range(p.blocks):
            left = block * (p.wide + 3 * p.space) + p.space
            for c, parts in enumerate(titles):
                for i, part in enumerate(parts):
                    at = (left + (c + 1) * (p.tile + p.space), y + i * p.line)
                    self.draw.text(at, shorten(part, text, p.tile), INK, text)

    def label(self, place: int, words: str, note: str = "", warning: bool = False) -> None:
        p, (x, y) = self.plan, self._at(place)
        room = p.wide - p.space
        words = shorten(words, p.text, room // 2 if note else room)
        self.draw.text((x, y), words, INK, p.text)
        if note:
            indent = round(p.text.getlength(words)) + 2 * p.space
            note = shorten(note, p.text, room - indent)
            self.draw.text((x + indent, y), note, WRONG if warning else FAINT, p.text)

    def picture(self, place: int, row: int, column: int, image: Image.Image, depth: int | None = None) -> None:
        at = self._cell(place, row, column)
        self.image.paste(image, at)
        if depth is not None:
            mark_slices(self.draw, at, image.size, depth)

    def verdict(
        self, place: int, row: int, column: int, image: Image.Image, map: np.ndarray, right: bool | None
    ) -> None:
        "The frame of an overlay, by whether the prediction is right, and whether its map is empty."
        x, y = self._cell(place, row, column)
        edge, below = x + image.width - 1, y + image.height - 1
        self.draw.rectangle((x, y, edge, below), outline=VERDICTS[right], width=2)
        if right is not None:
            # For those who cannot tell the two colours.
            side = round(self.plan.small.size * 1.3)
            _chip(self.draw, (edge - side + 1, y), "✓" if right else "✗", VERDICTS[right], self.plan.small, side)
        mark_empty(self.draw, (x + 6, y + 5), map, self.plan.small)

    def gap(self, place: int, row: int, column: int, size: tuple[int, int]) -> None:
        (x, y), text = self._cell(place, row, column), self.plan.small
        self.draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), outline="#d0d7de")
        words = shorten("no such frame", text, size[0] - 8)
        left = x + (size[0] - text.getlength(words)) / 2
        self.draw.text((left, y + size[1] / 2 - text.size), words, FAINT, text)

    def chip(self, place: int, row: int, mark: Mark) -> None:
        _chip(self.draw, self._cell(place, row, 0), mark[1], mark[0], self.plan.text, self.plan.line)

    def curves(self, place: int, lines: Sequence[Curve]) -> None:
        p, (x, y) = self.plan, self._cell(place, self.plan.rows, 0)
        y -= p.space
        step, middle = p.tile + p.space, p.tile + p.space + p.tile // 2
        size = (middle + (p.columns - 1) * step + 2 * p.space, p.strip + p.space)
        area = (middle, p.space, size[0] - 2 * p.space, size[1] - p.space // 2)
        self.image.paste(curves(size, area, step, lines), (x, y))
        for words, level in (("100 %", area[1]), ("0 %", area[3])):
            self.draw.text((x + middle - p.space, y + level), words, FAINT, p.small, anchor="rm")


def draw_row(
    sheet: Sheet, place: int, row: int, series: Series, item: int, at: Mapping[int, int], style: Style
) -> None:
    "One row of pictures: the image itself, and in column `c` the series' frame `at[c]`."
    image = sheet.fitted(series.image(item))
    depth = series.info.panel[item].depth
    sheet.picture(place, row, 0, image, depth)
    for c in range(sheet.plan.columns):
        if c not in at:
            sheet.gap(place, row, c + 1, image.size)
            continue
        map = series.maps[at[c]][item]
        shown = overlay(image, map, style.alpha, style.cmap, style.vmax)
        sheet.picture(place, row, c + 1, shown, depth)
        sheet.verdict(place, row, c + 1, shown, map, series.answer(item, at[c])[1])


def _head(rows: Head, plan: Plan) -> Image.Image:
    "Lines of `(mark, words)`; what does not fit into the width goes on below."
    text, space, line = plan.text, plan.space, plan.line
    places, y = [], space // 2
    for row in rows:
        x = space
        for mark, words in row:
            indent = 0 if mark is None else line + 4 if len(mark[1]) == 1 else 24
            if mark is not None and mark[1] == "colours":
                indent = round(6 * text.size) + 8
            words = shorten(words, text, plan.width - 2 * space - indent)
            long = indent + round(text.getlength(words))
            if x > space and x + long > plan.width - space:
                x, y = space, y + line
            places.append((x, y, mark, indent, words))
            x += long + 2 * space
        y += line
    page = Image.new("RGB", (plan.width, y), PAPER)
    draw = ImageDraw.Draw(page)
    for x, y, mark, indent, words in places:
        if mark is not None and len(mark[1]) == 1:
            _chip(draw, (x, y), mark[1], mark[0], text, line)
        elif mark is not None and mark[1] == "colours":
            colour_key(page, (x, y + 2), plan.width, text, mark[0], words)
            continue
        elif mark is not None:
            for start, end in [(0, 16)] if mark[1] == "solid" else [(0, 6), (10, 16)]:
                draw.line((x + start, y + line // 2, x + end, y + line // 2), mark[0], 2)
        draw.text((x + indent, y + 2), words, INK if mark is not None and len(mark[1]) == 1 else FAINT, text)
    return page


def _chip(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    letter: str,
    colour: str,
    text: ImageFont.FreeTypeFont,
    side: int,
) -> None:
    x, y = at
    draw.rectangle((x, y, x + side - 1, y + side - 1), colour)
    draw.text((x + side / 2, y + side / 2), letter, PAPER, text, anchor="mm")
