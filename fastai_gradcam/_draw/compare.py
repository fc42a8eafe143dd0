"""Two runs on the same panel, frame against frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .._errors import GradCAMError, warn
from .._run.reader import RunFiles
from .._run.words import brief
from ..render import DEFAULT_ALPHA, DEFAULT_CMAP, FAINT, INK, PAPER, Cell, Style, font, grid, wrap
from .curves import Curve
from .picture import picture
from .series import KEYS, Series, evenly, items_of, scale_of
from .sheet import MOST_COLUMNS, Head, Plan, Sheet, draw_row

__all__ = ["compare"]

MARKS = (("#0969da", "A"), ("#bc4c00", "B"))
# The curves: column, whether dashed, words.
_CURVES = [("prob", False, "probability of the class"), ("mask_share", True, "attention on the object")]
# Two pictures are compared by their mean colours on a grid of so many blocks a side, and by the largest difference of
# a block, of 255: one photo at 96 to 224 pixels differs by at most 22, two photos by at least 93, a tag on a fish's
# tray by 78.
_BLOCKS = 16
_OTHER_PICTURE = 40
# Settings that say nothing about the maps, and the layers, which are named anyway.
_NO_DIFFERENCE = ("path", "name", "resume", "show", "loggers", "on_error", "layer")


def compare(
    run: RunFiles,
    other: RunFiles | str | Path,
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

    `other`: a run, or the folder of one. A column holds the frames of both after as many epochs of training; if a run
    has none there, its cell is empty. At most `columns` are drawn: evenly spread ones that both have, and the last of
    each run. Under each image stand the curves of both. The head says what the runs are and which settings differ.
    `frame`: only this frame of each (negative counts from the last), side by side. `layer`: default the last of each
    run; `items`, `tile`, `scale` and the rest as in `evolution`, `scale` over both runs: two networks' maps have
    different units.

    The images are compared as well as their names: those that differ (another file of that name, another crop) are
    marked, with a warning. Another size is the same picture. Raises `GradCAMError` if the panels have different names.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import Watch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x, labels = torch.rand(2, 3, 32, 32), ["cat", "dog"]
    >>> with Watch(model, x, labels=labels, vocab=labels, path="runs", name="one") as watch:
    ...     watch(0, {"valid_loss": 0.7})
    >>> with Watch(model, x, labels=labels, vocab=labels, path="runs", name="other") as other:
    ...     other(0, {"valid_loss": 0.6})
    >>> from fastai_gradcam.comparison import compare
    >>> page = compare(watch.run, other.run, tile=64)
    >>> page.save("compared.png")
    """
    other = RunFiles(other) if isinstance(other, (str, Path)) else other
    _same_names(run, other)
    items = items_of(run, items)
    both = [Series(run, layer), Series(other, layer)]
    names = _two_names(run, other)
    changed = _changed_pictures(both, items)
    if changed:
        _warn_of(changed, names, both[0], len(items))
    if frame is not None:
        return picture(_pair(both, names, frame, items, changed, tile or 160, alpha, cmap))
    return picture(_course(both, names, items, changed, columns, tile, alpha, cmap, scale))


def _course(
    both: Sequence[Series],
    names: Sequence[str],
    items: Sequence[int],
    changed: Sequence[int],
    columns: int,
    tile: int | None,
    alpha: float,
    cmap: str,
    scale: str,
) -> Image.Image:
    "For each image a row of the one run above one of the other, with the curves of both below."
    top = scale_of(both, items, scale)
    trained = [_epochs_trained(one) for one in both]
    shown = _shared(trained[0], trained[1], columns)
    curves = _CURVES[: 1 + any(one.masked for one in both)]
    head: Head = [*_head(both, names, curves), [((cmap, "colours"), KEYS[scale])]]
    sheet = Sheet(Plan.of(both[0].size, len(items), len(shown), 2, tile), head, _titles(both, trained, shown))
    for place, item in enumerate(items):
        classes = dict.fromkeys(one.classes_of(item, range(len(one.frames))) for one in both)
        warning = "not the same picture in A and B" if item in changed else ""
        sheet.label(place, both[0].label(item), "; ".join(filter(None, (warning, *classes))), bool(warning))
        lines = []
        for row, (series, epochs, mark) in enumerate(zip(both, trained, MARKS, strict=True)):
            at = {c: epochs.index(e) for c, e in enumerate(shown) if e in epochs}
            draw_row(sheet, place, row, series, item, at, Style(alpha, cmap, top(item)))
            sheet.chip(place, row, mark)
            every = np.interp(epochs, shown, range(len(shown)))
            lines += [Curve(every, series.values(item, column), mark[0], dashed) for column, dashed, _ in curves]
        sheet.curves(place, lines)
    return sheet.image


def _head(both: Sequence[Series], names: Sequence[str], curves: Sequence[tuple[str, bool, str]]) -> Head:
    "A line for each run, and the key to the curves."
    lines: list[list] = []
    for mark, parts in zip(MARKS, _two_runs(both, names, [-1, -1]), strict=True):
        lines.append([(mark, parts[0]), *((None, part) for part in parts[1:])])
    return [*lines, [((FAINT, "dashed" if dashed else "solid"), words) for _, dashed, words in curves]]


def _pair(
    both: Sequence[Series],
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
    for series in both:
        number = series.run.frame(frame).frame
        series.run.maps(number)  # raises for a frame that was left out
        chosen.append([f.frame for f in series.frames].index(number))
    cells = []
    for i in items:
        for series, k, name in zip(both, chosen, names, strict=True):
            note = "not the same picture" if i in changed else " · ".join(filter(None, (name, series.note(i, k))))
            depth = series.info.panel[i].depth
            cells.append(Cell(series.image(i), series.maps[k][i], series.label(i), *series.answer(i, k), note, depth))
    heading = "\n".join(
        f"{side}: {' · '.join(parts)}"
        for side, parts in zip(("Left", "Right"), _two_runs(both, names, chosen), strict=True)
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


def _same_names(run: RunFiles, other: RunFiles) -> None:
    ours, theirs = ([one.name for one in each.contents().panel] for each in (run, other))
    if ours == theirs:
        return
    differ = [f"{a!r} and {b!r}" for a, b in zip(ours, theirs, strict=False) if a != b]
    first = f"The first that differ are {differ[0]}." if differ else f"They have {len(ours)} and {len(theirs)} images."
    raise GradCAMError(
        f"The runs {run.name!r} and {other.name!r} watch different images; give both the same items= or seed=. {first}"
    )


def _two_names(run: RunFiles, other: RunFiles) -> tuple[str, str]:
    "The runs' names; with the folder that holds each if they are the same."
    if run.name != other.name:
        return run.name, other.name
    ours, theirs = (one.path.resolve().parent.name for one in (run, other))
    return f"{ours}/{run.name}", f"{theirs}/{run.name}"


def _changed_pictures(both: Sequence[Series], items: Sequence[int]) -> list[int]:
    "Items whose pictures differ between the runs, ignoring size. Unreadable pictures are not compared."
    apart = {i: np.abs(np.subtract(*(_thumbnail(one.image(i)) for one in both))).max() for i in items}
    return [i for i in items if apart[i] > _OTHER_PICTURE and not any(i in one.grey for one in both)]


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((_BLOCKS, _BLOCKS), Image.Resampling.BOX), dtype=np.float32)


def _warn_of(changed: Sequence[int], names: Sequence[str], series: Series, of: int) -> None:
    listed = ", ".join(f"{i} ({brief(series.info.panel[i].name)})" for i in changed[:5])
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    warn(
        f"{len(changed)} of {of} images are not the same picture in {names[0]!r} and {names[1]!r}, though they have "
        f"the same names: {listed}{more}. Other files, or other transforms: their maps say little about each other."
    )


def _two_runs(both: Sequence[Series], names: Sequence[str], frames: Sequence[int]) -> list[list[str]]:
    "For each of two runs: its name and network, its layer, the settings in which they differ, one frame's metrics."
    settings = [one.info.settings for one in both]
    keys = [k for k in {**settings[0], **settings[1]} if k not in _NO_DIFFERENCE]
    differ = [k for k in keys if settings[0].get(k) != settings[1].get(k)]
    sizes = ["{}×{} px".format(*one.size) for one in both]
    said = []
    for series, k, name, own, size in zip(both, frames, names, settings, sizes, strict=True):
        parts = [f"{name} ({series.info.arch})", f"layer {series.layer}"]
        parts += [size] if len(set(sizes)) > 1 else []
        parts += [f"{key} {own.get(key)}" for key in differ]
        metrics = [f"{key} {v:.3g}" for key, v in series.frames[k].metrics.items() if v is not None]
        when = series.name(k)
        parts += [f"{when}: {metrics[0]}", *metrics[1:]] if metrics else [when]
        said.append(parts)
    return said


def _epochs_trained(series: Series) -> list[int]:
    "For each frame of the series, how many epochs of training lie before it, over all fits."
    before, epochs = 0, dict[int, int]()
    for fit_number in sorted({f.fit for f in series.info.frames}):
        frames = [f for f in series.info.frames if f.fit == fit_number]
        epochs |= {f.frame: before + f.epoch + 1 for f in frames}
        before += 1 + max(f.epoch for f in frames)
    return [epochs[f.frame] for f in series.frames]


def _shared(one: Sequence[int], other: Sequence[int], columns: int) -> list[int]:
    "The epochs to draw: evenly spread ones that both have, and the last of each."
    both = sorted({*one} & {*other}) or sorted({*one, *other})
    ends = {one[-1], other[-1]} - {*both}
    return sorted({both[i] for i in evenly(len(both), columns - len(ends))} | ends)


def _titles(both: Sequence[Series], trained: Sequence[Sequence[int]], shown: Sequence[int]) -> list[str]:
    "A heading for each column: the frames' own if both runs call them the same, else how long was trained."
    several = any(one.info.several_fits for one in both)
    own = [{e: one.name(k, several) for k, e in enumerate(epochs)} for one, epochs in zip(both, trained, strict=True)]
    if all(own[0].get(e, own[1].get(e)) == own[1].get(e, own[0].get(e)) for e in shown):
        return [own[0].get(e) or own[1][e] for e in shown]
    return ["before training" if e == 0 else f"{e} epoch{'s' * (e > 1)}" for e in shown]
