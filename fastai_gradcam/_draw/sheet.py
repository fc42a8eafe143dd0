"""A page of pictures: for each image of a panel its rows over columns, with a strip of curves below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..render import FAINT, INK, PAPER, VERDICTS, WRONG, fit, font, mark_empty, overlay, shorten
from .series import Course

__all__ = ["MOST_COLUMNS", "Head", "Sheet", "overlays"]

MOST_COLUMNS = 12
_FINER = 3

Mark = tuple[str, str]
Head = Sequence[Sequence[tuple[Mark | None, str]]]


@dataclass
class Sheet:
    """A page of blocks, one for each image: its label, rows of pictures over columns, and a strip of curves.

    `head`: lines of `(mark, words)` above all; a mark is a colour with `"solid"`, `"dashed"` or a letter. `entry`: an
    image of the panel, for its shape. `tile`: pixels of a picture's side, default what fills a screen's width.
    """

    head: Head
    count: int
    columns: int
    rows: int
    entry: dict[str, Any]
    tile: int | None = None

    def __post_init__(self) -> None:
        blocks = 2 if self.count > 6 // self.rows and self.columns <= 7 else 1
        self.side = tile = self.tile or min(160, max(88, 1200 // (blocks * (self.columns + 1))))
        self.high = fit((self.entry["width"], self.entry["height"]), tile)[1]
        self.space, self.strip = max(6, tile // 16), round(tile * 0.4)
        self.text, self.small = font(max(11, tile // 9)), font(max(9, tile // 14))
        self.line = round(self.text.size * 1.5)
        self.wide = self.space + (1 + self.columns) * (tile + self.space)
        self.step = self.line + self.rows * (self.high + self.space) + self.strip + self.space
        self.per_block = -(-self.count // blocks)
        width = max(240, blocks * self.wide + (blocks - 1) * 3 * self.space + self.space)
        head = _head(self.head, self.text, self.space, self.line, width)
        self.top = head.height + self.line + self.space
        self.image = Image.new("RGB", (width, self.top + self.per_block * self.step), PAPER)
        self.image.paste(head)
        self.draw = ImageDraw.Draw(self.image)
        self.blocks = blocks

    def _at(self, place: int) -> tuple[int, int]:
        block, row = divmod(place, self.per_block)
        return block * (self.wide + 3 * self.space) + self.space, self.top + row * self.step

    def _cell(self, place: int, row: int, column: int) -> tuple[int, int]:
        x, y = self._at(place)
        return x + column * (self.side + self.space), y + self.line + row * (self.high + self.space)

    def fitted(self, image: Image.Image) -> Image.Image:
        scale = min(self.side / image.width, self.high / image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return image.resize(size, Image.Resampling.BICUBIC)

    def headings(self, words: Sequence[str]) -> None:
        for block in range(self.blocks):
            left = block * (self.wide + 3 * self.space) + self.space
            for c, heading in enumerate(words):
                at = (left + (c + 1) * (self.side + self.space), self.top - self.line - self.space // 2)
                self.draw.text(at, shorten(heading, self.text, self.side), INK, self.text)

    def label(self, place: int, words: str, warning: str = "") -> None:
        room = self.wide - self.space
        words = shorten(words, self.text, room // 2 if warning else room)
        x, y = self._at(place)
        self.draw.text((x, y), words, INK, self.text)
        if warning:
            indent = round(self.text.getlength(words)) + 2 * self.space
            self.draw.text((x + indent, y), shorten(warning, self.text, room - indent), WRONG, self.text)

    def picture(
        self,
        place: int,
        row: int,
        column: int,
        image: Image.Image,
        map: np.ndarray | None = None,
        verdict: bool | None = None,
    ) -> None:
        x, y = self._cell(place, row, column)
        self.image.paste(image, (x, y))
        if map is not None:
            right, below = x + image.width - 1, y + image.height - 1
            self.draw.rectangle((x, y, right, below), outline=VERDICTS[verdict], width=2)
        if verdict is not None:
            # For those who cannot tell the two colours.
            side = round(self.small.size * 1.3)
            _chip(self.draw, (right - side + 1, y), "✓" if verdict else "✗", VERDICTS[verdict], self.small, side)
        if map is not None:
            mark_empty(self.draw, (x + 6, y + 5), map, self.small)

    def gap(self, place: int, row: int, column: int, size: tuple[int, int]) -> None:
        x, y = self._cell(place, row, column)
        self.draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), outline="#d0d7de")
        words = shorten("no such frame", self.small, size[0] - 8)
        left = x + (size[0] - self.small.getlength(words)) / 2
        self.draw.text((left, y + size[1] / 2 - self.small.size), words, FAINT, self.small)

    def chip(self, place: int, row: int, letter: str, colour: str) -> None:
        _chip(self.draw, self._cell(place, row, 0), letter, colour, self.text, self.line)

    def curves(self, place: int, curves: Sequence[tuple[np.ndarray, np.ndarray, str, bool]]) -> None:
        "Each curve: where its points stand, in columns; their values 0…1; its colour; whether it is dashed."
        x, y = self._cell(place, self.rows, 0)
        y -= self.space
        middle = self.side + self.space + self.side // 2
        # Drawn larger, then reduced: Pillow's lines have steps.
        width = middle + (self.columns - 1) * (self.side + self.space) + 2 * self.space
        size = (width, self.strip + self.space)
        image = Image.new("RGB", (_FINER * size[0], _FINER * size[1]), PAPER)
        draw = ImageDraw.Draw(image)
        x0, y0 = middle * _FINER, self.space * _FINER
        x1, y1 = (size[0] - 2 * self.space) * _FINER, (size[1] - self.space // 2) * _FINER
        draw.line((x0, y1, max(x0 + 1, x1), y1), "#d0d7de", _FINER)
        draw.line((x0, y0, max(x0 + 1, x1), y0), "#eaeef2", _FINER)
        step = (self.side + self.space) * _FINER
        for places, values, colour, dashed in curves:
            points = [
                (x0 + p * step, y1 - float(np.clip(v, 0, 1)) * (y1 - y0)) if np.isfinite(v) else None
                for p, v in zip(places, values, strict=True)
            ]
            _curve(draw, points, colour, dashed)
        self.image.paste(image.resize(size, Image.Resampling.LANCZOS), (x, y))
        for words, level in (("100 %", y0), ("0 %", y1)):
            at = (x + middle - self.space, y + level / _FINER)
            self.draw.text(at, words, FAINT, self.small, anchor="rm")


def overlays(
    page: Sheet,
    place: int,
    row: int,
    course: Course,
    item: int,
    at: dict[int, int],
    alpha: float,
    cmap: str,
    vmax: float | None,
    chip: tuple[str, str] | None = None,
) -> None:
    "One row of pictures: the image itself, and in column `c` the frame `at[c]` of the course."
    image = page.fitted(course.image(item))
    page.picture(place, row, 0, image)
    if chip is not None:
        page.chip(place, row, *chip)
    for c in range(page.columns):
        if c not in at:
            page.gap(place, row, c + 1, image.size)
            continue
        map = course.maps[at[c]][item]
        shown = overlay(image, map, alpha, cmap, vmax)
        page.picture(place, row, c + 1, shown, map, course.verdict(item, at[c]))


def _head(rows: Head, text: ImageFont.FreeTypeFont, space: int, line: int, width: int) -> Image.Image:
    "Lines of `(mark, words)`; what does not fit into `width` goes on below."
    places, y = [], space // 2
    for row in rows:
        x = space
        for mark, words in row:
            indent = 0 if mark is None else line + 4 if len(mark[1]) == 1 else 24
            words = shorten(words, text, width - 2 * space - indent)
            long = indent + round(text.getlength(words))
            if x > space and x + long > width - space:
                x, y = space, y + line
            places.append((x, y, mark, indent, words))
            x += long + 2 * space
        y += line
    page = Image.new("RGB", (width, y), PAPER)
    draw = ImageDraw.Draw(page)
    for x, y, mark, indent, words in places:
        if mark is not None and len(mark[1]) == 1:
            _chip(draw, (x, y), mark[1], mark[0], text, line)
        elif mark is not None:
            dashes = [(0, 16)] if mark[1] == "solid" else [(0, 6), (10, 16)]
            for start, end in dashes:
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


def _curve(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float] | None], colour: str, dashed: bool) -> None:
    "A line through `points`, broken where one is `None`; a dot for each of few."
    for part in _unbroken(points):
        if len(part) > 1 and not dashed:
            draw.line(part, colour, 2 * _FINER, joint="curve")
        elif len(part) > 1:
            for dash in _dashes(part, 5 * _FINER):
                draw.line(dash, colour, 2 * _FINER)
        for x, y in part if len(points) <= 2 * MOST_COLUMNS else part[-1:]:
            draw.ellipse((x - 2.5 * _FINER, y - 2.5 * _FINER, x + 2.5 * _FINER, y + 2.5 * _FINER), colour)


def _dashes(points: Sequence[tuple[float, float]], length: float) -> Iterator[list[tuple[float, float]]]:
    "Every second piece of `length` of a line."
    xy = np.array(points)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    for start in np.arange(0, along[-1], 2 * length):
        ends = (start, *along[(along > start) & (along < start + length)], min(start + length, along[-1]))
        yield [(float(np.interp(e, along, xy[:, 0])), float(np.interp(e, along, xy[:, 1]))) for e in ends]


def _unbroken(points: Sequence[tuple[float, float] | None]) -> Iterator[list[tuple[float, float]]]:
    part: list[tuple[float, float]] = []
    for point in [*points, None]:
        if point is not None:
            part.append(point)
        elif part:
            yield part
            part = []
