"""From the images that a finding concerns to rows of the table: grouping, severity, evidence, and words they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .._run.words import brief
from .panel import Panel, is_missing

__all__ = ["COLUMNS", "Groups", "Hits", "Kind", "by_class", "count", "explained", "in_place", "per_cent", "places_of"]
__all__ += ["rows_of", "where"]

COLUMNS = ("kind", "severity", "frame", "layer", "label", "items", "text", "evidence")

# Columns of the images concerned that are numbers behind a finding. Frames have no mean.
BEHIND = (
    "prob pred_prob mask_share mask_area density border_share centroid_y centroid_x mask_share_before "
    "similarity_late shift_late"
).split()
BEHIND_FRAMES = ("frame_before", "fell_in", "late_from", "since")

Groups = list[tuple[str, pd.DataFrame]]


@dataclass(frozen=True)
class Hits:
    """The images that a finding concerns.

    `groups`: labels with their images, rows of `Panel.last` with `strength` (0…1) and the numbers behind it; the label
    is "" for images of several classes. `say(images, evidence)`: the row's words, after its subject. `frame`: the
    column with the frame to look at, default the last frame. `of`: how many images were judged, default all of the
    class.
    """

    groups: Groups
    say: Callable[[pd.DataFrame, dict[str, Any]], str]
    frame: str = ""
    of: int | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of finding: its name and title, the range of its severity, and the function that looks for it.

    `lacks(panel)`: why it cannot be looked for in this run, such as "no masks", or nothing.
    """

    name: str
    low: float
    high: float
    title: str
    look: Callable[[Panel], Hits]
    lacks: Callable[[Panel], str]


def by_class(hits: pd.DataFrame) -> Groups:
    return list(hits.groupby("label"))


def rows_of(kind: Kind, hits: Hits, panel: Panel) -> Iterator[dict[str, Any]]:
    "A row for each class, or one for all if there are many classes; classes of few images share one."
    t, groups = panel.thresholds, hits.groups
    if len({label for label, _ in groups}) > t.classes:
        groups = [("", pd.concat([group for _, group in groups]))]
    few = [group for _, group in groups if len(group) < t.class_images]
    if len(few) > 1:
        groups = [pair for pair in groups if len(pair[1]) >= t.class_images] + [("", pd.concat(few))]
    for label, group in groups:
        judged = panel.last[panel.last["label"] == label] if label else panel.last
        of = len(judged) if hits.of is None else hits.of
        evidence = _evidence(group, of)
        values = (
            kind.name,
            _severity(kind, group, of),
            int(group[hits.frame].mode().iloc[0]) if hits.frame else panel.frame,
            panel.layer,
            label or _only(group["label"]),
            tuple(sorted(int(item) for item in group.index)),
            f"{_subject(label, group, judged)}: {hits.say(group, evidence)}",
            evidence,
        )
        yield dict(zip(COLUMNS, values, strict=True))


def _severity(kind: Kind, group: pd.DataFrame, of: int) -> float:
    strength, n = float(group["strength"].fillna(0).clip(0, 1).mean()), len(group)
    # One odd image says less than three that agree.
    return kind.low + (kind.high - kind.low) * strength * (n / of) * n / (n + 1)


def _evidence(group: pd.DataFrame, of: int) -> dict[str, Any]:
    means = {name: float(group[name].mean()) for name in BEHIND if name in group and group[name].notna().any()}
    by_item = {}
    for item, row in group.sort_index().iterrows():
        by_item[int(item)] = {name: float(row[name]) for name in means if not is_missing(row[name])}
        by_item[int(item)] |= {name: int(row[name]) for name in BEHIND_FRAMES if name in row}
    return {"images": len(group), "of": of, **means, "by_item": by_item}


def _only(labels: pd.Series) -> str:
    return labels.iloc[0] if labels.nunique() == 1 else ""


def _subject(label: str, group: pd.DataFrame, judged: pd.DataFrame) -> str:
    images, classes = count(len(group), len(judged)), group["label"].nunique()
    if label:
        return f"{brief(label)} ({images})"
    return f"{classes} of {judged['label'].nunique()} classes ({images})" if classes > 1 else images


# --- words


def count(n: int, of: int) -> str:
    return f"{n} of {of} images" if of > 1 else "1 image"


def per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"


def explained(group: pd.DataFrame) -> str:
    "The class whose maps these are."
    target = _only(group["target"])
    return brief(target) if target else "the class that is explained"


def where(group: pd.DataFrame) -> str:
    "The place that the centroids of a group share, or nothing."
    places = places_of(group)
    return in_place(places.index[0]) if len(places) == 1 and places.iloc[0] == len(group) else ""


def places_of(group: pd.DataFrame) -> pd.Series:
    "How many centroids of a group lie in which part of the picture, the most common part first."
    names = []
    for y, x in zip(group["centroid_y"], group["centroid_x"], strict=True):
        if is_missing(y) or is_missing(x):
            continue
        row = "upper" if y < 0.4 else "lower" if y > 0.6 else ""
        column = "left" if x < 0.4 else "right" if x > 0.6 else ""
        names.append(" ".join(filter(None, (row, column))) or "middle")
    return pd.Series(names, dtype=object).value_counts()


def in_place(place: str) -> str:
    return f"in the {place}" if place == "middle" else f"in the {place} part of the picture"
