"""Words on pictures: the font, and texts that fit a width."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

__all__ = ["font", "shorten", "wrap"]


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships DejaVu Sans, which has far more scripts than Pillow's own font.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def shorten(words: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`words` on one line of at most `width` pixels.

    The middle gives way: long names differ at their ends, and there a percentage stands.
    """
    words = " ".join(words.split())
    if font.getlength(words) <= width:
        return words

    def with_letters(n: int) -> str:
        end = n // 2
        return f"{words[: n - end].rstrip()}…{words[len(words) - end :].lstrip()}"

    # Binary search: labels may have hundreds of characters.
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(with_letters(middle)) <= width:
            low = middle
        else:
            high = middle - 1
    return with_letters(low)


def wrap(words: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    "`words` on lines of at most `width` pixels, broken between parts that ` · ` separates; `\\n` starts a line."
    lines = []
    for paragraph in filter(None, words.split("\n")):
        line = ""
        for part in paragraph.split(" · "):
            joined = f"{line} · {part}" if line else part
            if line and font.getlength(joined) > width:
                lines.append(line)
                joined = part
            line = joined
        lines.append(shorten(line, font, width))
    return lines
