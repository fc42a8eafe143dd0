"""Two runs on the same panel, frame against frame."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..render import DEFAULT_ALPHA, DEFAULT_CMAP, FAINT, INK, PAPER, Cell, font, grid, wrap
from .series import Course, evenly, items_of, prediction, scale_of, title
from .sheet import MOST_COLUMNS, Head, Sheet, overlays

if TYPE_CHECKING:
    from ..run import Run

__all__ = ["compare"]

ONE, OTHER = "#0969da", "#bc4c00"
# A picture is judged by its mean colours on a grid of so many blocks a side, and by how far, of 255, one of them is off:
# one photo at 96 to 224 pixels by at most 22, two photos by at least 93, a tag on a fish's tray by 78.
_BLOCKS = 16
_OTHER_PICTURE = 40
# What says nothing about the maps, and the layers, which are named anyway.
_NO_DIFFERENCE = ("path", "name", "resume", "show", "loggers", "on_error", "layer")


def compare(
    run: Run,
    other: Run | str | Path,
    frame: int | None = None,
    items: Sequence[int] | None = None,
    layer: str | None = None,
    columns: int = MOST_COLUMNS,
    tile: int | None = None,
    alpha: float = DEFAULT_ALPHA,
    cmap: str = DEFAULT_CMAP,
    scale: str = "map",
) -> Image.Image:
    """Two runs on the same panel, frame against frame: for each image a row of `run` above one of `other`, RGB.

    `other`: a run, or the folder of one. A column holds the frames of both after as many epochs of training; where a run has none, its cell is empty. Of
    more than `columns`, evenly spread ones that both have are drawn, and the last of each run. Under each image stand
    the curves of both. Above all, what the runs are, and which settings differ. `frame`: only this frame of each
    (negative counts from the last), side by side. `layer`: default the last of each run; `items`, `tile`, `scale` and
    the rest as in `evolution`, `scale` over both runs: two networks' maps are in units of their own.

    The images are compared as well as their names: of those that are not the same picture (another file of that name,
    another crop) a warning tells, and they are marked. Another size is the same picture. Raises `ValueError` where
    the panels have different names.
    """
    other = type(run)(other) if isinstance(other, (str, Path)) else other
    _same_names(run, other)
    items = items_of(run, items)
    courses = [Course(run, layer), Course(other, layer)]
    names = _two_names(run, other)
    changed = _not_the_same(courses, items)
    if changed:
        listed = ", ".join(f"{i} ({_brief(run.panel[i]['name'])})" for i in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        warnings.warn(
            f"{len(changed)} of {len(items)} images are not the same picture in {names[0]!r} and {names[1]!r}, though they "
            f"have the same names: {listed}{more}. Other files, or other transforms: their maps say little about each other.",
            stacklevel=3,
        )
    if frame is not None:
        return _pair(courses, names, frame, items, changed, tile or 160, alpha, cmap)
    about = _two_runs(courses, names, [-1, -1])
    top = scale_of(courses, items, scale)
    trained = [_epochs_trained(c) for c in courses]
    shown = _shared(trained[0], trained[1], columns)
    masked = any(c.masked for c in courses)
    curves = [("prob", False, "probability of the class"), ("mask_share", True, "attention on the object")][
        : 1 + masked
    ]
    head: Head = [
        *([((colour, letter), part) for part in parts[:1]] + [(None, part) for part in parts[1:]]
          for colour, letter, parts in zip((ONE, OTHER), "AB", about, strict=True)),
        [((FAINT, "dashed" if dashed else "solid"), words) for _, dashed, words in curves],
    ]  # fmt: skip
    page = Sheet(head, len(items), len(shown), 2, run.panel[0], tile)
    page.headings(_titles(courses, trained, shown))
    for place, item in enumerate(items):
        page.label(place, courses[0].label(item), "not the same picture in A and B" if item in changed else "")
        lines = []
        for row, (course, epochs, colour) in enumerate(zip(courses, trained, (ONE, OTHER), strict=True)):
            at = {c: epochs.index(e) for c, e in enumerate(shown) if e in epochs}
            overlays(page, place, row, course, item, at, alpha, cmap, top(item), ("AB"[row], colour))
            every = np.interp(epochs, shown, range(len(shown)))
            lines += [(every, course.values(item, column), colour, dashed) for column, dashed, _ in curves]
        page.curves(place, lines)
    return page.image


def _pair(
    courses: Sequence[Course],
    names: Sequence[str],
    frame: int,
    items: Sequence[int],
    changed: Sequence[int],
    tile: int,
    alpha: float,
    cmap: str,
) -> Image.Image:
    "One frame of each of two runs: a cell of the one beside a cell of the other."
    chosen = []
    for course in courses:
        number = course.run._frame(frame)["frame"]
        course.run.maps(number)  # says what is wrong with a frame that was left out
        chosen.append([f["frame"] for f in course.frames].index(number))
    cells = []
    for i in items:
        for course, k, name in zip(courses, chosen, names, strict=True):
            rows = course.history[course.history["frame"] == course.frames[k]["frame"]]
            answer = prediction(rows.drop_duplicates("item").set_index("item"), i)
            note = "not the same picture" if i in changed else name
            cells.append(Cell(course.image(i), course.maps[k][i], course.label(i), *answer, note=note))
    heading = "\n".join(
        f"{side}: {' · '.join(parts)}"
        for side, parts in zip(("Left", "Right"), _two_runs(courses, names, chosen), strict=True)
    )
    cut = len(cells) if len(items) < 5 else 2 * -(-len(items) // 2)
    blocks = [grid(c, columns=2, tile=tile, alpha=alpha, cmap=cmap) for c in (cells[:cut], cells[cut:]) if c]
    return _side_by_side(blocks, heading, tile)


def _side_by_side(blocks: Sequence[Image.Image], heading: str, tile: int) -> Image.Image:
    "Blocks of pairs under one heading, and further from each other than the two of a pair."
    gap, text = tile // 16, font(tile // 11)
    apart = 3 * gap * (len(blocks) - 1)
    # One narrow block makes room for the longest part of the heading, within reason.
    longest = max(text.getlength(part) for line in heading.split("\n") for part in line.split(" · "))
    width = max(sum(b.width for b in blocks) + apart, math.ceil(min(longest, 3 * tile)) + 2 * gap)
    lines = wrap(heading, text, width - 2 * gap)
    line = round(text.size * 1.4)
    top = gap + len(lines) * line
    page = Image.new("RGB", (width, top + max(b.height for b in blocks)), PAPER)
    draw = ImageDraw.Draw(page)
    for i, words in enumerate(lines):
        draw.text((gap, gap + i * line), words, INK if words.startswith(("Left: ", "Right: ")) else FAINT, text)
    x = 0
    for block in blocks:
        page.paste(block, (x, top))
        x += block.width + 3 * gap
    return page


def _same_names(run: Run, other: Run) -> None:
    ours, theirs = [p["name"] for p in run.panel], [p["name"] for p in other.panel]
    if ours == theirs:
        return
    differ = [f"{a!r} and {b!r}" for a, b in zip(ours, theirs, strict=False) if a != b]
    first = (
        f" The first that differ are {differ[0]}." if differ else f" They have {len(ours)} and {len(theirs)} images."
    )
    raise ValueError(
        f"The runs {run.name!r} and {other.name!r} watch different images; give both the same items= or seed=.{first}"
    )


def _two_names(run: Run, other: Run) -> tuple[str, str]:
    "The runs' names; with the folder that holds each where they are the same."
    if run.name != other.name:
        return run.name, other.name
    ours, theirs = (one.path.resolve().parent.name for one in (run, other))
    return f"{ours}/{run.name}", f"{theirs}/{run.name}"


def _not_the_same(courses: Sequence[Course], items: Sequence[int]) -> list[int]:
    "Those of `items` whose picture is another one in the other run, whatever the sizes; of one that is lost nobody knows."
    apart = {i: np.abs(np.subtract(*(_thumbnail(c.image(i)) for c in courses))).max() for i in items}
    return [i for i in items if apart[i] > _OTHER_PICTURE and not any(i in c.grey for c in courses)]


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((_BLOCKS, _BLOCKS), Image.Resampling.BOX), dtype=np.float32)


def _two_runs(courses: Sequence[Course], names: Sequence[str], frames: Sequence[int]) -> list[list[str]]:
    "For each of two runs: its name and network, its layer, the settings in which they differ, one frame's metrics."
    settings = [c.run.settings for c in courses]
    keys = [k for k in {**settings[0], **settings[1]} if k not in _NO_DIFFERENCE]
    differ = [k for k in keys if settings[0].get(k) != settings[1].get(k)]
    sizes = [f"{c.panel[0]['width']}×{c.panel[0]['height']} px" for c in courses]
    said = []
    for course, k, name, own, size in zip(courses, frames, names, settings, sizes, strict=True):
        parts = [f"{name} ({course.run.info['arch']})", f"layer {course.layer}"]
        parts += [size] if len(set(sizes)) > 1 else []
        parts += [f"{key} {own.get(key)}" for key in differ]
        metrics = [f"{key} {v:.3g}" for key, v in course.frames[k]["metrics"].items() if v is not None]
        when = title(course.frames[k], course.several)
        parts += [f"{when}: {metrics[0]}", *metrics[1:]] if metrics else [when]
        said.append(parts)
    return said


def _epochs_trained(course: Course) -> list[int]:
    "For each complete frame, how many epochs of training lie before it, over all fits."
    before, epochs = 0, dict[int, int]()
    for fit_number in sorted({f["fit"] for f in course.all_frames}):
        frames = [f for f in course.all_frames if f["fit"] == fit_number]
        epochs |= {f["frame"]: before + f["epoch"] + 1 for f in frames}
        before += 1 + max(f["epoch"] for f in frames)
    return [epochs[f["frame"]] for f in course.frames]


def _shared(one: Sequence[int], other: Sequence[int], columns: int) -> list[int]:
    "The epochs to draw: of those that both have, evenly spread ones; and the last of each."
    both = sorted({*one} & {*other}) or sorted({*one, *other})
    ends = {one[-1], other[-1]} - {*both}
    return sorted({both[i] for i in evenly(len(both), columns - len(ends))} | ends)


def _titles(courses: Sequence[Course], trained: Sequence[Sequence[int]], shown: Sequence[int]) -> list[str]:
    "A heading for each column: the frames' own where both runs call them the same, else how long was trained."
    several = any(c.several for c in courses)
    own = [
        {e: title(f, several) for e, f in zip(epochs, c.frames, strict=True)}
        for c, epochs in zip(courses, trained, strict=True)
    ]
    if all(own[0].get(e, own[1].get(e)) == own[1].get(e, own[0].get(e)) for e in shown):
        return [own[0].get(e) or own[1][e] for e in shown]
    return ["before" if e == 0 else f"{e} epoch{'s' * (e > 1)}" for e in shown]


def _brief(name: str) -> str:
    return name if len(name) <= 60 else f"…{name[-59:]}"
