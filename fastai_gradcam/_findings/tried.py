"""Findings that were tried: shortcuts that an intervention confirmed, in words; all others stay quiet hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .._run.words import brief
from .rows import per_cent

__all__ = ["HINT", "TITLE", "tried", "with_interventions"]

TITLE = "A shortcut, confirmed by changing images"
LOW, HIGH = 0.6, 1.0
HINT = 0.49
"""The highest severity of a finding that no intervention confirmed."""

# The intervention, its result, and the control; `{n}` images of other classes, `{c}` the class.
_SAYS = {
    "transplant": "the patch where {its} map is hottest ({area} of the picture), pasted into {n} images of other "
    "classes, turned {effect} of them into {c}; other patches of the same images turned {control}",
    "exchange": "the patch where {its} map is hottest ({area} of the picture), put over that of {n} images of other "
    "classes, turned {effect} of them into {c}; other patches of the same images turned {control}",
    "keep": "the patch where {its} map is hottest ({area} of the picture), put in its place on {n} images of other "
    "classes, turned {effect} of them into {c}; other patches of the same images turned {control}",
    "place": "the {place} of {its} images, put in its place on {n} images of other classes, turned {effect} of them "
    "into {c}; the same corner of a third class turned {control}",
    "border": "the border of {its} images, put on {n} images of other classes, turned {effect} of them into {c}; that "
    "of a third class turned {control}",
    "colour": "the mean and the contrast of {its} colours, given to {n} images of other classes, turned {effect} of "
    "them into {c}; those of a third class turned {control}",
    "blur": "blurring the background of {n} images of other classes turned {effect} of them into {c}; blurring their "
    "object turned {control}",
    "swap": "{its} background, put behind the object of {n} images of other classes, turned {effect} of them into {c}; "
    "the background of a third class turned {control}",
}

# The next step, and the code that takes it: the learner is the user's `learn`, `boxes` are theirs to draw.
_MENDS = {
    "cover": "cover it in the training images, train on, and judge again: from fastai_gradcam.guide import CoverPlace; "
    "learn.dls.train.after_item.add(CoverPlace({place})); learn.fine_tune(2);",
    "guide": "draw boxes = {file name: (x0, y0, x1, y1)} around the object on a few training images, train on, and "
    "judge again: from fastai_gradcam.guide import GradCAMGuide; "
    "learn.fine_tune(2, cbs=GradCAMGuide(boxes));",
    "colour": "exchange colours among the training images, train on, and judge again: from fastai_gradcam.guide import "
    "SwapColours; learn.dls.train.after_batch.add(SwapColours()); learn.fine_tune(2);",
}


def with_interventions(
    found: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, pd.DataFrame],
    labels: Sequence[str | None],
    frame: int,
    layer: str,
    most: int,
) -> list[dict[str, Any]]:
    """`found` with at most `HINT` each, unless most of its classes are confirmed, and rows for confirmed shortcuts.

    `verdicts`: the tables `verdicts`, `pooled` and `classes` of the run. `labels`: of the panel's images. `most`: if
    more classes than this are confirmed, one row speaks for all of them; so it does if only all classes together are.
    """
    each, together = (tried(verdicts[name], verdicts["classes"]) for name in ("verdicts", "pooled"))
    rows = []
    for row in found:
        concerned = {labels[i] for i in row["items"] if i < len(labels)}
        agreed = bool(together) or (bool(concerned) and 2 * len(concerned & each.keys()) > len(concerned))
        quiet = not agreed and row["kind"] != "non_finite"
        rows.append({**row, "severity": min(row["severity"], HINT) if quiet else row["severity"]})
    if together and not 0 < len(each) <= most:
        groups = [(["" if each else label for label in together], next(iter(together.values())))]
    else:
        groups = [([label], told) for label, told in each.items()]
        if len(each) > most:
            best = max(each.values(), key=_excess)
            groups = [(list(each), best)]
    for group, told in groups:
        whole = group == [""]
        items = tuple(i for i, label in enumerate(labels) if whole or label in group)
        subject = "All classes together" if whole else _classes(group, told)
        evidence = {"images": len(items), "of": len(items), "by_item": {}, "tests": told["tests"], "labels": group}
        evidence |= {k: told[k] for k in ("test", "effect", "control", "low", "high")}
        rows.append(
            {
                "kind": "confirmed",
                "severity": LOW + (HIGH - LOW) * min(1.0, max(0.0, _excess(told))),
                "frame": frame,
                "layer": layer,
                "label": group[0] if len(group) == 1 else "",
                "items": items,
                "text": f"{subject}: {told['says']}{_next_step(told)}",
                "evidence": evidence,
            }
        )
    return rows


def _classes(group: Sequence[str], told: Mapping[str, Any]) -> str:
    return brief(group[0]) if len(group) == 1 else f"{len(group)} classes, such as {brief(told['label'])}"


def _next_step(told: Mapping[str, Any]) -> str:
    "Where what was found is no part of the object: the code that mends it, and judges again."
    remedy = _MENDS.get("cover" if told["test"] == "place" and told["place"] else told["test"], _MENDS["guide"])
    return f". If that is no part of the object, {remedy} learn.gradcam_judge()".replace("{place}", repr(told["place"]))


def _excess(told: Mapping[str, Any]) -> float:
    return told["effect"] - told["control"]


def tried(verdicts: pd.DataFrame, classes: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """For each class with a confirmed shortcut, its strongest test, and in `says` what was done and what came of it."""
    about = {row["label"]: row for row in classes[classes["area"].notna()].to_dict("records")}
    found: dict[str, dict[str, Any]] = {}
    for label, rows in verdicts[verdicts["verdict"] == "shortcut"].groupby("label", sort=False):
        put = rows[rows["test"].isin(list(_SAYS))]
        if put.empty:
            continue
        best = put.loc[(put["effect"] - put["control"]).idxmax()].to_dict()
        known = about.get(label, next(iter(about.values()), {}) if not label else {})
        says = _SAYS[best["test"]].format(
            n=int(best["images"]),
            c=brief(label) if label else "the class",
            its="its" if label else "a class's",
            effect=per_cent(best["effect"]),
            control=per_cent(best["control"]),
            area=per_cent(known.get("area", float("nan"))),
            place=(known.get("place") if label else "") or "corner",
        )
        place = (known.get("place") or "") if label else ""
        found[label] = {**best, "place": place, "says": says, "tests": list(rows["test"])}
    return found
