"""Findings: which images of a run deserve a second look, and why, in a short table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from ._errors import GradCAMError, warn
from ._findings.kinds import kinds
from ._findings.panel import Panel, tidy
from ._findings.rows import COLUMNS, rows_of
from ._findings.thresholds import Thresholds
from ._findings.tried import HIGH, LOW, TITLE, with_interventions
from ._run.reader import RunFiles
from ._run.verdicts import read_table

__all__ = [
    "COLUMNS",
    "KINDS",
    "TITLES",
    "TRIED_TITLES",
    "Thresholds",
    "checks",
    "checks_in_words",
    "checks_of",
    "findings",
    "findings_of",
]

# Each kind with the range of its severity, and with its title.
KINDS = {kind.name: (kind.low, kind.high) for kind in kinds.values()} | {"confirmed": (LOW, HIGH)}
TITLES = {kind.name: kind.title for kind in kinds.values()}
# Found by changing images, not in a history.
TRIED_TITLES = {"confirmed": TITLE}

DEFAULTS = Thresholds()


def findings(
    history: pd.DataFrame,
    *,
    thresholds: Thresholds = DEFAULTS,
    mask_areas: Mapping[int, float] | None = None,
    map_shapes: Mapping[str, Sequence[int]] | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Images and classes worth a look, the most severe first, as a table with `COLUMNS`.

    `history`: as in history.csv; columns that are missing or empty are passed over. Findings describe the last frame
    and its history. If there is only the frame before training, only NaN or infinity is reported. `mask_areas`: the
    share of the picture that an item's mask covers, `{item: 0…1}`, so that attention on the object is judged against
    chance. `map_shapes`: `{layer: (h, w)}`, so that attention on the border is judged against chance,
    too. `layer`: the one to judge, default the last; `GradCAMError` if the history has none of that name. Where an
    image has several classes, the map of its label is judged, else that of its prediction, else the first.

    A row stands for the images of a class, or of several (`label` is then ""). `severity`: 0…1, in the range that
    `KINDS` gives. `frame`: the one to look at. `items`: the images, as indices into the panel. `text`: in words, not
    escaped for any markup. `evidence`: `images`, `of` (how many were judged), the means over these images of the
    numbers behind it, and `by_item` with those of each.

    >>> import pandas as pd
    >>> from fastai_gradcam.findings import findings
    >>> row = {"frame": 1, "epoch": 0, "item": 0, "label": "Trout", "target": "Trout", "evidence": 0.0, "correct": True}
    >>> findings(pd.DataFrame([row]))["text"][0]
    'Trout (1 image): the map is empty: nothing that this method shows speaks for Trout'
    """
    rows = tidy(history, layer)
    found: list[dict[str, Any]] = []
    if not rows.empty:
        panel = Panel(rows, thresholds, mask_areas or {}, map_shapes or {})
        for kind in kinds.values():
            if not kind.lacks(panel):
                hits = kind.look(panel)
                panel.found[kind.name] = {item for _, group in hits.groups for item in group.index}
                found += rows_of(kind, hits, panel)
    return _table(found, thresholds)


def checks(history: pd.DataFrame, thresholds: Thresholds = DEFAULTS, layer: str | None = None) -> dict[str, str]:
    """The checks that `findings` makes of a history, by title, and why it cannot: `{title: ""}` or `{title: reason}`.

    >>> import pandas as pd
    >>> from fastai_gradcam.findings import checks
    >>> checks(pd.DataFrame([{"frame": 1, "epoch": 0, "item": 0, "evidence": 1.0}]))["Looks outside the object"]
    'no labels'
    """
    rows = tidy(history, layer)
    if rows.empty:
        return dict.fromkeys(TITLES.values(), "no frame after training")
    panel = Panel(rows, thresholds, {}, {})
    return {kind.title: kind.lacks(panel) for kind in kinds.values()}


def checks_of(run: RunFiles, thresholds: Thresholds = DEFAULTS) -> dict[str, str]:
    "As `checks`, for a run: also whether images were changed to try what a class depends on, and if not, why."
    reason = ""
    if read_table(run.path).empty:
        left_out = read_table(run.path, "classes")
        whole = left_out.loc[left_out["label"] == "", "left_out"].tolist()
        reason = whole[0].rstrip(".") if whole else "no class was judged" if len(left_out) else "no judging"
    return {**checks(run.history, thresholds), TITLE: reason}


def checks_in_words(checked: Mapping[str, str]) -> str:
    """The things that were looked for and those that could not be, in one or two sentences.

    >>> from fastai_gradcam.findings import checks_in_words
    >>> checks_in_words({"Empty maps": "", "Looks outside the object": "no masks"})
    'Looked for: empty maps. Not looked for: looks outside the object (no masks).'
    """
    done = [title for title, lack in checked.items() if not lack]
    lacks: dict[str, list[str]] = {}
    for title, lack in checked.items():
        if lack:
            lacks.setdefault(lack, []).append(title)
    said = [f"Looked for: {_listed(done)}."] if done else []
    parts = [f"{_listed(titles)} ({lack})" for lack, titles in lacks.items()]
    return " ".join([*said, *([f"Not looked for: {'; '.join(parts)}."] if parts else [])])


def _listed(titles: Sequence[str]) -> str:
    return "; ".join(title[0].lower() + title[1:] for title in titles)


def findings_of(run: RunFiles, thresholds: Thresholds | None = None, layer: str | None = None) -> pd.DataFrame:
    """The findings of a run, judged against the areas of its masks, the shape of its maps, and its verdicts.

    A severity of 0.5 or more is kept for shortcuts that an intervention confirmed (kind `confirmed`, and hints about
    the same classes) and for maps that are not finite. A mask that cannot be read is left out with a warning.
    """
    info = run.contents()
    if layer is not None and layer not in info.layers:
        raise GradCAMError(f"The run has no layer {layer!r}; it has {', '.join(info.layers)}.")
    t = thresholds or DEFAULTS
    found = findings(run.history, thresholds=t, mask_areas=_mask_areas(run), map_shapes=_map_shapes(run), layer=layer)
    rows = with_interventions(
        found.to_dict("records"),
        {name: read_table(run.path, name) for name in ("verdicts", "pooled", "classes")},
        [item.label for item in info.panel],
        info.complete[-1].frame if info.complete else 0,
        layer or (info.layers[-1] if info.layers else ""),
        t.classes,
    )
    return _table(rows, t)


def _table(rows: list[dict[str, Any]], t: Thresholds) -> pd.DataFrame:
    order = ["confirmed", *kinds]
    rows = sorted(rows, key=lambda row: (-row["severity"], order.index(row["kind"]), row["items"]))[: t.rows]
    return pd.DataFrame({name: [row[name] for row in rows] for name in COLUMNS}, columns=list(COLUMNS))


def _mask_areas(run: RunFiles) -> dict[int, float]:
    areas = {}
    for item in range(len(run.contents().panel)):
        try:
            mask = run.mask(item)
        except GradCAMError as error:
            warn(f"The mask of image {item} is left out: {error}")
            continue
        if mask is not None and mask.any():
            areas[item] = float(mask.mean())
    return areas


def _map_shapes(run: RunFiles) -> dict[str, tuple[int, ...]]:
    for frame in reversed(run.contents().complete):
        with suppress(GradCAMError):  # a damaged file; any other frame's maps have the same shape
            return {layer: maps.shape[-2:] for layer, maps in run.maps(frame.frame).items()}
    return {}
