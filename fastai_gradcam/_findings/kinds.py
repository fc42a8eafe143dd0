"""The kinds of findings: each a function under `@finding(name, lowest and highest severity, title)`.

To add one, write such a function: it returns the images concerned and what to say of them. Within its range, severity
grows with the share and the number of the images of a class that are concerned, and with their mean `strength`. `lacks`
says why a kind cannot be looked for in a run, so that "not found" is never said of what was not looked for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from .._run.words import brief
from .panel import Panel
from .registry import answers, finding, frames, kinds, masks, nothing
from .rows import Groups, Hits, by_class, explained, in_place, per_cent, places_of, where

__all__ = ["kinds"]


@finding("non_finite", 1.0, 1.0, "Maps that are not finite", nothing)
def non_finite(panel: Panel) -> Hits:
    "The maps hold NaN or infinity."
    hits = panel.last[~panel.last["finite"]]
    bad = set(panel.rows["frame"][~panel.rows["finite"] & panel.rows["item"].isin(hits.index)])
    whole = [frame for frame in panel.frames if frame not in bad]
    since = min((frame for frame in bad if not whole or frame > whole[-1]), default=panel.frame)
    groups = [("", hits.assign(strength=1.0, since=since))] if len(hits) else []
    return Hits(groups, lambda group, e: f"the map holds NaN or infinity, since frame {since}", frame="since")


@finding("mostly_wrong", 0.3, 0.49, "Most of the panel is wrong", answers)
def mostly_wrong(panel: Panel) -> Hits:
    "The model is wrong on most of the panel, however confident it is."
    judged = panel.last[panel.last["correct"].notna()]
    hits = judged[judged["correct"] == 0]
    enough = len(judged) >= panel.thresholds.class_images and len(hits) > panel.thresholds.mostly * len(judged)
    groups = [("", hits.assign(strength=1.0))] if enough else []
    right = len(judged) - len(hits)

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        return (
            "wrong, so the maps show what guesses are made of; find out first why the model is right on only "
            f"{right} of {len(judged)} images of the panel"
        )

    return Hits(groups, say, of=len(judged))


@finding("shortcut", 0.6, 1.0, "A shortcut, perhaps", masks)
def shortcut(panel: Panel) -> Hits:
    "Most images that are right and confident have little attention on the object."
    t = panel.thresholds
    on, area = panel.last["mask_share"], panel.last["mask_area"]
    known = panel.sure & on.notna() & (area > 0) & (area < 1)
    judged = panel.last[known].assign(density=(on * (1 - area) / (area * (1 - on)))[known])
    hits = judged[judged["density"] < t.dense]
    enough = len(judged) >= t.dense_images and 2 * len(hits) >= len(judged)
    # Average over all confident images, not only the hits.
    hits = hits.assign(strength=1 - judged["density"].clip(upper=t.dense).mean() / t.dense)

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        return (
            f"{_say_outside(group, e)}; so it is in {e['images']} of the {e['of']} images that are right and "
            "this sure: is there a tag, a watermark or a telling background beside it?"
        )

    return Hits([("", hits)] if enough and len(hits) else [], say, of=len(judged))


@finding("outside", 0.1, 0.9, "Looks outside the object", masks)
def outside(panel: Panel) -> Hits:
    "Right and confident while looking outside the object."
    hits = panel.last[panel.off_object & panel.sure]
    hits = hits[~hits.index.isin(panel.found_as("shortcut"))]
    return Hits(by_class(hits.assign(strength=1 - hits["mask_share"] / hits["limit"])), _say_outside)


def _say_outside(group: pd.DataFrame, e: dict[str, Any]) -> str:
    covers = f", which covers {per_cent(e['mask_area'])} of the picture" if "mask_area" in e else ""
    place = f"; it is centred {where(group)}" if where(group) else ""
    sure, share = per_cent(e["pred_prob"]), per_cent(e["mask_share"])
    return f"{sure} sure and right, but only {share} of the attention is on the object{covers}{place}"


@finding("corner", 0.4, 0.8, "Looks into one corner")
def corner(panel: Panel) -> Hits:
    "The attention is in one corner across the images of a class, or else of the panel."
    t, seen = panel.thresholds, _off_object_and_likely(panel)
    y, x = seen["centroid_y"], seen["centroid_x"]
    hits = seen.assign(
        corner=[_corner(*centroid, t.corner) for centroid in zip(y, x, strict=True)],
        strength=1 - 2 * np.maximum(_to_edge(y), _to_edge(x)),
    )
    alike = [group for _, group in hits[hits["corner"] != ""].groupby("corner")]

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        places = set(group["corner"])
        place = f"the {places.pop()} corner" if len(places) == 1 else "one corner in each class"
        return f"the attention is in {place}{_how_sure(e)}; is there a tag, a watermark or a telling background?"

    return Hits(_without(_shared(panel, alike), panel.found_as("shortcut", "outside")), say)


@finding("border", 0.4, 0.8, "Looks at the border")
def border(panel: Panel) -> Hits:
    """The attention is on the border across the images of a class, or else of the panel.

    For the panel as a whole it does not matter whether the predictions are right or likely.
    """
    t, even = panel.thresholds, panel.even_border
    limit = t.border if even is None else even + (1 - even) * t.border_excess

    def on_border(images: pd.DataFrame) -> list[pd.DataFrame]:
        hits = images[images["border_share"] >= limit] if even != 1 else panel.none
        return [hits.assign(strength=hits["border_share"])]

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        chance = "" if even is None else f" (spread evenly it would be {per_cent(even)})"
        share = per_cent(e["border_share"])
        return f"{share} of the attention is on the border of the picture{chance}{_how_sure(e)}"

    groups = _shared(panel, on_border(_off_object_and_likely(panel)))
    groups = groups or [("", hits) for hits in on_border(_off_object(panel)) if _most(panel, hits, len(panel.last))]
    return Hits(_without(groups, panel.found_as("shortcut", "outside", "corner")), say)


def _off_object(panel: Panel) -> pd.DataFrame:
    return panel.last[~(panel.last["mask_share"] >= panel.last["limit"])]


def _off_object_and_likely(panel: Panel) -> pd.DataFrame:
    images = _off_object(panel)
    return images[(images["correct"] != 0) & ~(images["pred_prob"] < panel.thresholds.likely)]


def _shared(panel: Panel, alike: list[pd.DataFrame]) -> Groups:
    "Groups of images that look at one place and are most of a class, or else most of the panel."
    sizes = panel.last["label"].value_counts()
    found = [(label, group) for hits in alike for label, group in by_class(hits) if _most(panel, group, sizes[label])]
    return found or [("", hits) for hits in alike if _most(panel, hits, len(panel.last))]


def _most(panel: Panel, group: pd.DataFrame, of: int) -> bool:
    t = panel.thresholds
    return len(group) >= t.class_images and len(group) >= t.class_share * of


def _without(groups: Groups, found: set[int]) -> Groups:
    "The groups that are not wholly in findings already."
    return [(label, group) for label, group in groups if not found.issuperset(group.index)]


def _to_edge(centroid: Any) -> Any:
    return np.minimum(centroid, 1 - centroid)


def _corner(y: float, x: float, margin: float) -> str:
    if not (_to_edge(y) <= margin and _to_edge(x) <= margin):
        return ""
    return f"{'upper' if y < 0.5 else 'lower'} {'left' if x < 0.5 else 'right'}"


def _how_sure(e: dict[str, Any]) -> str:
    return f", {per_cent(e['pred_prob'])} sure" if "pred_prob" in e else ""


@finding("empty", 0.1, 0.8, "Empty maps")
def empty(panel: Panel) -> Hits:
    "Nothing in the map speaks for the explained class."
    hits = panel.last[panel.last["evidence"] == 0]
    # If another class is predicted, it is no wonder that nothing speaks for the explained one.
    hits = hits.assign(strength=np.where(hits["correct"] == 0, 0.25, 1.0))

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        if (group["correct"] == 1).all() and (group["negative_share"] > 0.5).all():
            against = per_cent(group["negative_share"].mean())
            return (
                f"the map is empty though the answer is right: averaged over the picture, {against} of it speaks "
                f"against {explained(group)}, which Grad-CAM cuts off. Its positive parts are shown by "
                "method='layercam' or 'gradcam_elementwise'"
            )
        return f"the map is empty: nothing that this method shows speaks for {explained(group)}"

    return Hits(by_class(hits), say)


@finding("left_object", 0.2, 0.7, "Attention left the object", masks)
def left_object(panel: Panel) -> Hits:
    "The attention stayed on the object once and moved off it."
    t, found = panel.thresholds, {}
    for item, rows in panel.same_target():
        rows = rows[~(rows["epoch"] < 0) & ~np.isnan(rows["mask_share"])]
        frames, shares = rows["frame"], rows["mask_share"]
        if len(shares) < 3 or frames[-1] != panel.frame or not panel.off_object[item]:
            continue
        # Attention counts as held at the lower share of two successive frames; a wrong frame counts as 0.
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
    hits = panel.with_numbers(found)
    hits = hits[~hits.index.isin(panel.found_as("shortcut", "outside"))]

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        now, before = per_cent(e["mask_share"]), per_cent(e["mask_share_before"])
        at = {int(frame) for frame in group["frame_before"]}
        when = f"in frame {at.pop()}" if len(at) == 1 else "at best"
        return f"the attention moved off the object: {before} of it was there {when}, {now} in frame {panel.frame}"

    return Hits(by_class(hits), say, frame="fell_in")


_FEW_PLACES = 4  # more of them in one sentence would not be read


@finding("wrong", 0.2, 0.7, "Wrong, and where it looked", answers)
def wrong(panel: Panel) -> Hits:
    "Wrong and confident, and where it looked."
    hits = panel.last[(panel.last["correct"] == 0) & (panel.last["pred_prob"] >= panel.thresholds.confident)]
    strength = hits["pred_prob"] * np.where(panel.off_object[hits.index], 1.0, 0.6)

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        text = f"{_taken_for(group)} ({per_cent(e['pred_prob'])} sure)"
        blank = int((group["evidence"] == 0).sum())
        if blank == len(group):
            return f"{text}; {'its map is' if blank == 1 else 'their maps are'} empty"
        return text + _where_it_looked(group, e) + (f"; {blank} of the maps {_are(blank)} empty" if blank else "")

    return Hits(by_class(hits.assign(strength=strength)), say)


def _taken_for(group: pd.DataFrame) -> str:
    preds = group["pred"].value_counts()
    pred, most = str(preds.index[0]), 2 * preds.iloc[0] > len(group)
    if not pred or not (len(preds) == 1 or most):
        return "wrong"
    return f"taken for {brief(pred)}" if len(preds) == 1 else f"mostly taken for {brief(pred)}"


def _where_it_looked(group: pd.DataFrame, e: dict[str, Any]) -> str:
    if "mask_share" in e:
        return f"; of what speaks for {explained(group)}, {per_cent(e['mask_share'])} is on the object"
    places = places_of(group)
    if not len(places):
        return ""
    centred = f"; what speaks for {explained(group)} is centred"
    if len(places) == 1:
        return f"{centred} {in_place(places.index[0])}"
    listed = [f"{n} {in_place(place)}" for place, n in places.items()] if len(places) <= _FEW_PLACES else []
    words = ": " + ", ".join(listed).replace(" part of the picture", "") if listed else ""
    return f"{centred} in different places{words}"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


@finding("unsettled", 0.1, 0.5, "Attention still moves", frames)
def unsettled(panel: Panel) -> Hits:
    "The attention of much of the panel still moves late in training."
    t, found = panel.thresholds, {}
    late = panel.frames[-max(2, math.ceil(len(panel.frames) * t.late - 1e-9)) :]
    for item, rows in panel.same_target():
        # The first of them has nothing of its class before it.
        after_first = rows[1:][rows["frame"][1:] >= late[0]]
        similarity, shift = (_mean_of_several(after_first[name]) for name in ("similarity_prev", "centroid_shift"))
        if similarity < t.settled_similarity or shift > t.settled_shift:
            strength = np.nanmax([t.settled_similarity - similarity, shift - t.settled_shift])
            found[item] = {"similarity_late": similarity, "shift_late": shift, "strength": strength}
    enough = len(panel.frames) >= t.late_frames and len(found) >= t.late_share * len(panel.last)
    hits = panel.with_numbers(found if enough else {}).assign(late_from=late[0])

    def say(group: pd.DataFrame, e: dict[str, Any]) -> str:
        said = []
        if "similarity_late" in e:
            said.append(f"the maps of two frames correlate by {e['similarity_late']:.2f}")
        if "shift_late" in e:
            said.append(f"their centre moves by {per_cent(e['shift_late'])} of the picture")
        frames = f"frames {late[0]} to {panel.frame}"
        return f"the attention still moves in {frames}: on average {' and '.join(said)}"

    return Hits(by_class(hits), say)


def _mean_of_several(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) > 1 else math.nan
