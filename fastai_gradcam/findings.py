"""What in a run deserves a second look: a short table in words, drawn from its history."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ._errors import one_of

__all__ = ["COLUMNS", "KINDS", "Thresholds", "findings"]

COLUMNS = ("kind", "severity", "frame", "layer", "label", "items", "text", "evidence")

# Each kind with the range of its severity. Within it, severity grows with the share and the number of the
# images of a class that are concerned, and with how far they are past the threshold.
KINDS = {
    "non_finite": (1.0, 1.0),  # the maps hold NaN or infinity
    "shortcut": (0.6, 1.0),  # right and confident across the panel, with little attention on the objects
    "outside": (0.1, 0.9),  # right and confident while looking outside the object
    "corner": (0.4, 0.8),  # attention in one corner across the images of a class
    "border": (0.4, 0.8),  # attention on the border across the images of a class
    "empty": (0.1, 0.8),  # nothing speaks for the explained class
    "left_object": (0.2, 0.7),  # attention stayed on the object once and moved off it
    "wrong": (0.2, 0.7),  # wrong, and where it looked
    "unsettled": (0.1, 0.5),  # attention still moves late in training
}


@dataclass(frozen=True)
class Thresholds:
    """When something is a finding. All shares and probabilities are in 0…1."""

    confident: float = 0.8
    """`shortcut`, `outside`, `wrong`: a prediction counts as confident from this probability."""
    dense: float = 2.0
    """`shortcut`: where the attention on the object is less than this many times as dense as beside it (per area;
    1 is even attention), it is hardly the object that decides. The median of
    an honest training on the fish demo was 2.3 to 10; with tags it was 0.2 to 1.5 where the tag had taken over, and up
    to 2.7, untold, in pretrained networks that went on using the fish as well. Needs the mask's area."""
    dense_images: int = 5
    """`shortcut`: so many confident and right images are needed, of which at least half are below `dense`. One
    image alone says little: honest networks look beside the object at times."""
    on_object: float = 0.2
    """`outside`, `left_object`, `corner`, `border`: an image with less of its attention inside the mask looks
    outside the object. Meant for objects that cover a tenth to a third of the picture; used where no area is given."""
    over_chance: float = 0.75
    """The same where the mask's area is given: less than this times the area, as 1 is what attention that is
    spread evenly would give."""
    likely: float = 0.5
    """`corner`, `border`: predictions of a lower probability are passed over."""
    class_images: int = 3
    """`corner`, `border`: so many images of a class must agree. Of the other kinds, classes of fewer images share
    a row."""
    class_share: float = 0.6
    """`corner`, `border`: such a share of the images of a class must agree."""
    corner: float = 0.3
    """`corner`: on both axes the centroid is this near to an edge of the picture (0.5 is the middle)."""
    border: float = 0.9
    """`border`: so much of the attention is in the outermost ring of cells; used where no shape is given."""
    border_excess: float = 0.6
    """The same where the map's shape is given: so far on the way from even attention (0) to all of it (1)."""
    fall: float = 0.3
    """`left_object`: the share inside the mask is lower by this than it was in two successive frames of the
    training, in which the image was not wrong. In one frame alone it may have been there by chance. It must also
    have ended outside the object, by `over_chance` or `on_object` …"""
    fall_to: float = 0.5
    """… and be at most this part of what it was."""
    late: float = 1 / 3
    """`unsettled`: the last part of the frames that counts as late, at least two of them."""
    late_frames: int = 5
    """`unsettled`: runs with fewer frames are passed over."""
    late_share: float = 0.25
    """`unsettled`: such a share of the panel must still move: that of a few images does in any training."""
    settled_similarity: float = 0.5
    """`unsettled`: the mean correlation of a frame's map with the one before is below this …"""
    settled_shift: float = 0.15
    """… or the mean shift of the centroid is above this, in 0…1 of the picture."""
    classes: int = 3
    """When more classes than this share a kind of finding, one row speaks for all of them."""
    rows: int = 12
    """The table ends after so many rows."""


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

    `history`: as in history.csv; columns that are missing or empty are passed over. Judged is the last frame,
    and how it came about; of a frame before training only whether its maps are finite. `mask_areas`: the
    share of the picture that an item's mask covers, `{item: 0…1}`, so that attention on the object is judged
    against chance. `map_shapes`: `{layer: (h, w)}`, so that attention on the border is. `layer`: the one to
    judge, by default the last; `ValueError` when the history has none of that name. Of several classes for an
    image, the map of its label is judged, else that of its prediction, else the first.

    A row stands for the images of a class, or of several (`label` is then ""). `severity`: 0…1, in the range
    that `KINDS` gives. `frame`: the one to look at. `items`: the images, as indices into the panel. `text`:
    in words, not escaped for any markup. `evidence`: `images`, `of` (so many were judged), the means over
    these images of the numbers behind it, and `by_item` with those of each.
    """
    t = thresholds
    rows = _tidy(history, layer)
    if rows.empty:
        return _table([])
    panel = _Panel(rows, t, mask_areas or {}, map_shapes or {})
    found = list(_non_finite(panel))
    if panel.trained:
        shortcut, outside = _shortcut(panel), _outside(panel)
        if len(shortcut):
            found += _rows(panel, "shortcut", [("", shortcut)], _say_shortcut)
        outside = outside[~outside.index.isin(shortcut.index)]
        found += _rows(panel, "outside", _by_class(outside), _say_outside)
        told = {*shortcut.index, *outside.index}
        found += _places(panel, told)
        found += _rows(panel, "empty", _by_class(_empty(panel)), _say_empty)
        left = _left_object(panel)
        found += _rows(panel, "left_object", _by_class(left[~left.index.isin(told)]), _say_left_object)
        found += _rows(panel, "wrong", _by_class(_wrong(panel)), _say_wrong)
        found += _rows(panel, "unsettled", _by_class(_unsettled(panel)), _say_unsettled)
    found.sort(key=lambda row: (-row["severity"], list(KINDS).index(row["kind"]), row["items"]))
    return _table(found[: t.rows])


def _table(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame({name: [row[name] for row in rows] for name in COLUMNS}, columns=list(COLUMNS))


# ---- the history, made ready

NUMBERS = (
    "frame epoch item prob pred_prob evidence border_share centroid_y centroid_x centroid_shift "
    "similarity_prev mask_share"
).split()
WORDS = ("layer", "label", "target", "pred")
TRUTH = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


def _tidy(history: pd.DataFrame, layer: str | None) -> pd.DataFrame:
    """One row for each frame and item of one layer, each column there and typed; `correct` 1, 0 or NaN."""
    rows = pd.DataFrame(index=range(len(history)))
    for name in NUMBERS:
        given = history[name].to_numpy() if name in history else np.nan
        rows[name] = pd.to_numeric(pd.Series(given, index=rows.index), errors="coerce").astype("float64")
    for name in WORDS:
        given = history[name].tolist() if name in history else [""] * len(rows)
        rows[name] = pd.Series(["" if _missing(o) else str(o) for o in given], index=rows.index, dtype=object)
    given = history["correct"].tolist() if "correct" in history else [""] * len(rows)
    rows["correct"] = [TRUTH.get(str(o).strip().lower(), np.nan) for o in given]
    rows["finite"] = np.isfinite(rows["evidence"]) if "evidence" in history else True
    rows[NUMBERS] = rows[NUMBERS].replace([np.inf, -np.inf], np.nan)
    rows = rows.dropna(subset=["frame", "item"])
    rows[["frame", "item"]] = rows[["frame", "item"]].astype(int)
    layers = list(dict.fromkeys(rows["layer"]))
    if layer is not None and layers and layer not in layers:
        raise ValueError(one_of("layer", layer, layers))
    if layers:
        rows = rows[rows["layer"] == (layers[-1] if layer is None else layer)]
    of_label, of_pred = rows["target"] == rows["label"], rows["target"] == rows["pred"]
    rows = rows.assign(rank=np.select([of_label, of_pred], [0, 1], 2))
    return rows.sort_values(["frame", "item", "rank"], kind="stable").drop_duplicates(["frame", "item"])


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or value != value


class _Panel:
    """The rows of one layer, the last frame's by item, and what an image's attention is compared with."""

    def __init__(
        self,
        rows: pd.DataFrame,
        thresholds: Thresholds,
        mask_areas: Mapping[int, float],
        map_shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self.rows, self.thresholds = rows, thresholds
        self.frames = sorted(rows["frame"].unique().tolist())
        self.frame, self.layer = self.frames[-1], rows["layer"].iloc[0]
        self.last = rows[rows["frame"] == self.frame].set_index("item")
        self.trained = not (self.last["epoch"] < 0).all()
        areas = pd.Series({int(item): float(area) for item, area in mask_areas.items()}, dtype="float64")
        self.last["mask_area"] = areas.reindex(self.last.index)
        self.last["limit"] = (self.last["mask_area"] * thresholds.over_chance).fillna(thresholds.on_object)
        records = rows.to_records(index=False)
        self.by_item = {item: records[records["item"] == item] for item in self.last.index}
        shape = map_shapes.get(self.layer)
        self.even_border = None if shape is None else _ring(shape)

    @property
    def off_object(self) -> pd.Series:
        return self.last["mask_share"] < self.last["limit"]

    @property
    def sure(self) -> pd.Series:
        """The images of the last frame that are right and confident."""
        return (self.last["correct"] == 1) & (self.last["pred_prob"] >= self.thresholds.confident)


def _ring(shape: Sequence[int]) -> float:
    return 1 - math.prod(max(n - 2, 0) / n for n in shape)


# ---- what is looked for: images of the last frame, each with `strength` (0…1) and the numbers behind it


def _non_finite(panel: _Panel) -> Iterator[dict]:
    hits = panel.last[~panel.last["finite"]]
    if hits.empty:
        return
    bad = set(panel.rows["frame"][~panel.rows["finite"] & panel.rows["item"].isin(hits.index)])
    whole = [frame for frame in panel.frames if frame not in bad]
    since = min(frame for frame in bad if not whole or frame > whole[-1])
    text = f"{_count(len(hits), len(panel.last))}: the map holds NaN or infinity, since frame {since}"
    label = hits["label"].iloc[0] if hits["label"].nunique() == 1 else ""
    numbers = {"images": len(hits), "of": len(panel.last), "since": since}
    yield _row(panel, "non_finite", 1.0, since, label, hits.index, text, numbers)


def _shortcut(panel: _Panel) -> pd.DataFrame:
    """The images with little attention on the object, if they are most of those that are right and confident."""
    t = panel.thresholds
    on, area = panel.last["mask_share"], panel.last["mask_area"]
    known = panel.sure & on.notna() & (area > 0) & (area < 1)
    judged = panel.last[known].assign(density=(on * (1 - area) / (area * (1 - on)))[known])
    hits = judged[judged["density"] < t.dense]
    if len(judged) < t.dense_images or 2 * len(hits) < len(judged):
        return judged.iloc[:0]
    # The images that are not concerned weigh as the others do: by how much of the sure ones it is.
    return hits.assign(sure=len(judged), strength=1 - judged["density"].clip(upper=t.dense).mean() / t.dense)


def _outside(panel: _Panel) -> pd.DataFrame:
    hits = panel.last[panel.off_object & panel.sure]
    return hits.assign(strength=1 - hits["mask_share"] / hits["limit"])


def _empty(panel: _Panel) -> pd.DataFrame:
    hits = panel.last[panel.last["evidence"] == 0]
    # Where another class is predicted, it is no wonder that nothing speaks for the explained one.
    return hits.assign(strength=np.where(hits["correct"] == 0, 0.25, 1.0))


def _wrong(panel: _Panel) -> pd.DataFrame:
    hits = panel.last[(panel.last["correct"] == 0) & (panel.last["pred_prob"] >= panel.thresholds.confident)]
    return hits.assign(strength=hits["pred_prob"] * np.where(panel.off_object[hits.index], 1.0, 0.6))


def _left_object(panel: _Panel) -> pd.DataFrame:
    t, found = panel.thresholds, {}
    for item, rows in _same_target(panel):
        rows = rows[~(rows["epoch"] < 0) & ~np.isnan(rows["mask_share"])]
        frames, shares = rows["frame"], rows["mask_share"]
        if len(shares) < 3 or frames[-1] != panel.frame or not panel.off_object[item]:
            continue
        # Of two frames the lower share is where the attention stayed; a frame that was wrong holds none.
        held = np.where(rows["correct"][:-1] == 0, 0.0, shares[:-1])
        held = np.minimum(held[:-1], held[1:])
        best = int(held.argmax())
        fall = held[best] - shares[-1]
        if fall >= t.fall and shares[-1] <= t.fall_to * held[best]:
            steepest = best + 2 + int(np.diff(shares[best + 1 :]).argmin())
            found[item] = {
                "mask_share_before": held[best],
                "frame_before": int(frames[best + 1]),
                "fell_in": int(frames[steepest]),
                "strength": fall,
            }
    return _with(panel, found)


def _unsettled(panel: _Panel) -> pd.DataFrame:
    t, found = panel.thresholds, {}
    if len(panel.frames) < t.late_frames:
        return panel.last.iloc[:0]
    late = panel.frames[-max(2, math.ceil(len(panel.frames) * t.late - 1e-9)) :]
    for item, rows in _same_target(panel):
        # The first of them has nothing of its class before it.
        rows = rows[1:][rows["frame"][1:] >= late[0]]
        similarity, shift = (_mean_of_several(rows[name]) for name in ("similarity_prev", "centroid_shift"))
        if similarity < t.settled_similarity or shift > t.settled_shift:
            found[item] = {
                "similarity_late": similarity,
                "shift_late": shift,
                "late_from": late[0],
                "strength": np.nanmax([t.settled_similarity - similarity, shift - t.settled_shift]),
            }
    if len(found) < t.late_share * len(panel.last):
        return panel.last.iloc[:0]
    return _with(panel, found)


def _same_target(panel: _Panel) -> Iterator[tuple[int, np.recarray]]:
    """Each item of the last frame with its rows back to where another class was explained: the maps of two
    classes differ without anything having moved."""
    for item, rows in panel.by_item.items():
        other = np.flatnonzero(rows["target"] != rows["target"][-1])
        yield item, rows[other[-1] + 1 if len(other) else 0 :]


def _mean_of_several(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) > 1 else math.nan


def _with(panel: _Panel, found: dict[int, dict]) -> pd.DataFrame:
    if not found:
        return panel.last.iloc[:0]
    return panel.last.loc[list(found)].join(pd.DataFrame.from_dict(found, orient="index"))


Groups = list[tuple[str, pd.DataFrame]]


def _by_class(hits: pd.DataFrame) -> Groups:
    return list(hits.groupby("label"))


def _places(panel: _Panel, told: set[int]) -> Iterator[dict]:
    """Corners and borders that the images of a class share, or else those of the panel: not of images on the
    object, and not where `told` holds all of them."""
    t, last = panel.thresholds, panel.last
    seen = last[(last["correct"] != 0) & ~(last["pred_prob"] < t.likely) & ~(last["mask_share"] >= last["limit"])]
    y, x = seen["centroid_y"], seen["centroid_x"]
    corners = seen.assign(
        corner=[_corner(*centroid, t.corner) for centroid in zip(y, x, strict=True)],
        strength=1 - 2 * np.maximum(_to_edge(y), _to_edge(x)),
    )
    corners = [group for _, group in corners[corners["corner"] != ""].groupby("corner")]
    corners = _untold(_shared(panel, corners), told)
    yield from _rows(panel, "corner", corners, _say_corner)

    even = panel.even_border
    limit = t.border if even is None else even + (1 - even) * t.border_excess
    border = seen[seen["border_share"] >= limit]
    if even != 1:
        told = told.union(*(group.index for _, group in corners))
        border = _untold(_shared(panel, [border.assign(strength=border["border_share"])]), told)
        yield from _rows(panel, "border", border, _say_border)


def _shared(panel: _Panel, alike: list[pd.DataFrame]) -> Groups:
    """Of images that look at one place, the groups that make out most of a class, or else of the panel."""
    t = panel.thresholds

    def most(group: pd.DataFrame, of: int) -> bool:
        return len(group) >= t.class_images and len(group) >= t.class_share * of

    sizes = panel.last["label"].value_counts()
    classes = [(label, group) for hits in alike for label, group in _by_class(hits) if most(group, sizes[label])]
    return classes or [("", hits) for hits in alike if most(hits, len(panel.last))]


def _untold(groups: Groups, told: set[int]) -> Groups:
    return [(label, group) for label, group in groups if not told.issuperset(group.index)]


def _to_edge(centroid: Any) -> Any:
    return np.minimum(centroid, 1 - centroid)


def _corner(y: float, x: float, margin: float) -> str:
    if not (_to_edge(y) <= margin and _to_edge(x) <= margin):
        return ""
    return f"{'upper' if y < 0.5 else 'lower'} {'left' if x < 0.5 else 'right'}"


# ---- rows and words

# Columns of the hits that are numbers behind a finding. Frames have no mean.
BEHIND = (
    "prob pred_prob mask_share mask_area density border_share centroid_y centroid_x mask_share_before "
    "similarity_late shift_late"
).split()
BEHIND_FRAMES = ("frame_before", "fell_in", "late_from")

_FEW_PLACES = 4  # more of them in one sentence would not be read

Say = Callable[[_Panel, pd.DataFrame, dict], str]


def _rows(panel: _Panel, kind: str, groups: Groups, say: Say) -> Iterator[dict]:
    """A row for each class, or one for all where there are many classes; classes of few images share one."""
    t = panel.thresholds
    if len({label for label, _ in groups}) > t.classes:
        groups = [("", pd.concat([group for _, group in groups]))]
    few = [group for _, group in groups if len(group) < t.class_images]
    if len(few) > 1:
        groups = [pair for pair in groups if len(pair[1]) >= t.class_images] + [("", pd.concat(few))]
    low, high = KINDS[kind]
    for label, group in groups:
        judged = panel.last[panel.last["label"] == label] if label else panel.last
        n, of = len(group), int(group["sure"].iloc[0]) if kind == "shortcut" else len(judged)
        strength = float(group["strength"].fillna(0).clip(0, 1).mean())
        # One odd image says less than three that agree.
        severity = low + (high - low) * strength * (n / of) * n / (n + 1)
        evidence = _evidence(group, of)
        frame = int(group["fell_in"].mode().iloc[0]) if kind == "left_object" else panel.frame
        text = f"{_subject(label, group, judged)}: {say(panel, group, evidence)}"
        yield _row(panel, kind, severity, frame, label, group.index, text, evidence)


def _evidence(group: pd.DataFrame, of: int) -> dict:
    means = {name: float(group[name].mean()) for name in BEHIND if name in group and group[name].notna().any()}
    by_item = {}
    for item, row in group.sort_index().iterrows():
        by_item[int(item)] = {name: float(row[name]) for name in means if not _missing(row[name])}
        by_item[int(item)] |= {name: int(row[name]) for name in BEHIND_FRAMES if name in row}
    return {"images": len(group), "of": of, **means, "by_item": by_item}


def _row(
    panel: _Panel,
    kind: str,
    severity: float,
    frame: int,
    label: str,
    items: Iterable[int],
    text: str,
    evidence: dict,
) -> dict:
    items = tuple(sorted(int(item) for item in items))
    values = (kind, float(severity), int(frame), panel.layer, label, items, text, evidence)
    return dict(zip(COLUMNS, values, strict=True))


def _subject(label: str, group: pd.DataFrame, judged: pd.DataFrame) -> str:
    count = _count(len(group), len(judged))
    classes = group["label"].nunique()
    if label:
        return f"{_name(label)} ({count})"
    return f"{classes} of {judged['label'].nunique()} classes ({count})" if classes > 1 else count


def _count(n: int, of: int) -> str:
    return f"{n} of {of} images" if of > 1 else "1 image"


def _name(label: str) -> str:
    """A label for a sentence: on one line and not longer than that sentence."""
    label = " ".join(label.split())
    return label if len(label) <= 60 else label[:59] + "…"


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _where(group: pd.DataFrame) -> str:
    """The place that the centroids of a group share, or nothing."""
    places = _places_of(group)
    return _in_place(places.index[0]) if len(places) == 1 and places.iloc[0] == len(group) else ""


def _places_of(group: pd.DataFrame) -> pd.Series:
    """How many centroids of a group lie in which part of the picture, the most common part first."""
    names = []
    for y, x in zip(group["centroid_y"], group["centroid_x"], strict=True):
        if _missing(y) or _missing(x):
            continue
        row = "upper" if y < 0.4 else "lower" if y > 0.6 else ""
        column = "left" if x < 0.4 else "right" if x > 0.6 else ""
        names.append(" ".join(filter(None, (row, column))) or "middle")
    return pd.Series(names, dtype=object).value_counts()


def _in_place(place: str) -> str:
    return f"in the {place}" if place == "middle" else f"in the {place} part of the picture"


def _say_shortcut(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    return (
        f"{_say_outside(panel, group, e)}; so it is in {e['images']} of the {e['of']} images that are right and "
        "this sure: is there a tag, a watermark or a telling background beside it?"
    )


def _say_outside(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    covers = f", which covers {_per_cent(e['mask_area'])} of the picture" if "mask_area" in e else ""
    where = f"; it is centred {_where(group)}" if _where(group) else ""
    sure, share = _per_cent(e["pred_prob"]), _per_cent(e["mask_share"])
    return f"{sure} sure and right, but only {share} of the attention is on the object{covers}{where}"


def _say_corner(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    places = set(group["corner"])
    corner = f"the {places.pop()} corner" if len(places) == 1 else "one corner in each class"
    return f"the attention is in {corner}{_how_sure(e)}; is there a tag, a watermark or a telling background?"


def _say_border(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    even = panel.even_border
    chance = "" if even is None else f" (spread evenly it would be {_per_cent(even)})"
    share = _per_cent(e["border_share"])
    return f"{share} of the attention is on the border of the picture{chance}{_how_sure(e)}"


def _how_sure(e: dict) -> str:
    return f", {_per_cent(e['pred_prob'])} sure" if "pred_prob" in e else ""


def _say_empty(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    return f"the map is empty: nothing in the picture speaks for {_explained(group)}"


def _explained(group: pd.DataFrame) -> str:
    targets = set(group["target"])
    target = targets.pop() if len(targets) == 1 else ""
    return _name(target) if target else "the class that is explained"


def _say_left_object(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    now, before = _per_cent(e["mask_share"]), _per_cent(e["mask_share_before"])
    at = {int(frame) for frame in group["frame_before"]}
    when = f"in frame {at.pop()}" if len(at) == 1 else "at best"
    return f"the attention moved off the object: {before} of it was there {when}, {now} in frame {panel.frame}"


def _say_wrong(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    preds = group["pred"].value_counts()
    pred, most = preds.index[0], 2 * preds.iloc[0] > len(group)
    taken = f"taken for {_name(pred)}" if len(preds) == 1 else f"mostly taken for {_name(pred)}" if most else ""
    text = f"{taken if pred and taken else 'wrong'} ({_per_cent(e['pred_prob'])} sure)"
    empty = int((group["evidence"] == 0).sum())
    if empty == len(group):
        return f"{text}; {'its map is' if empty == 1 else 'their maps are'} empty"
    if "mask_share" in e:
        text += f"; of what speaks for {_explained(group)}, {_per_cent(e['mask_share'])} is on the object"
    elif len(places := _places_of(group)) == 1:
        text += f"; what speaks for {_explained(group)} is centred {_in_place(places.index[0])}"
    elif len(places):
        listed = (
            [f"{count} {_in_place(place)}" for place, count in places.items()] if len(places) <= _FEW_PLACES else []
        )
        text += f"; what speaks for {_explained(group)} is centred in different places"
        text += (": " + ", ".join(listed).replace(" part of the picture", "")) if listed else ""
    return text + (f"; {empty} of the maps {'is' if empty == 1 else 'are'} empty" if empty else "")


def _say_unsettled(panel: _Panel, group: pd.DataFrame, e: dict) -> str:
    said = []
    if "similarity_late" in e:
        said.append(f"the maps of two frames correlate by {e['similarity_late']:.2f}")
    if "shift_late" in e:
        said.append(f"their centre moves by {_per_cent(e['shift_late'])} of the picture")
    late = f"frames {group['late_from'].iloc[0]} to {panel.frame}"
    return f"the attention still moves in {late}: on average {' and '.join(said)}"
