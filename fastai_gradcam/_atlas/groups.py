"""The tables of classes and of habits, from rows, statistics of maps, and what interventions found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .classes import MapStatistics
from .habits import Habits

__all__ = ["CLASS_COLUMNS", "FLAGGED", "GROUP_COLUMNS", "class_table", "group_table"]

CLASS_COLUMNS = ["label", "images", "accuracy", "prob", "spread", "border_share", "mask_share", "typical", "atypical"]
GROUP_COLUMNS = [
    *"label habit images share accuracy rest purity taken_for mask_share apart suspicion".split(),
    *"test trials effect control verdict flagged typical text".split(),
]
# A habit is flagged from this suspicion, and only in a class with a shortcut that interventions confirmed.
FLAGGED = 0.05
_TYPICAL = 6


def class_table(table: pd.DataFrame, labels: list[str], maps: MapStatistics) -> pd.DataFrame:
    """A row per class, `CLASS_COLUMNS`. `table`: rows of images; `labels`: the classes in order of their codes."""
    rows = []
    for label in labels:
        mine = table[table["label"] == label]
        order = _nearest(mine.index.to_numpy(), maps.distance)
        rows.append(
            {
                "label": label,
                "images": len(mine),
                "accuracy": _share(mine["correct"]),
                **{name: _mean(mine[name]) for name in ("prob", "border_share", "mask_share")},
                "spread": _mean(maps.distance[order]),
                "typical": [int(table["index"][i]) for i in order[:_TYPICAL]],
                "atypical": [int(table["index"][i]) for i in order[::-1][:_TYPICAL]],
            }
        )
    return pd.DataFrame(rows, columns=CLASS_COLUMNS)


def group_table(
    table: pd.DataFrame, labels: list[str], habits: Habits, verdicts: pd.DataFrame, trials: pd.DataFrame
) -> pd.DataFrame:
    """A row per class and habit, `GROUP_COLUMNS`, the most suspicious first.

    `verdicts`, `trials`: of the interventions, without rows where nothing was judged.
    """
    rows = []
    index = table["index"].to_numpy()
    for code, label in enumerate(labels):
        own = np.flatnonzero((table["label"] == label).to_numpy())
        own = own[habits.habit[own] >= 0]
        for habit in np.unique(habits.habit[own]):
            inside = habits.habit[own] == habit
            row = _about(table.iloc[own[inside]], table.iloc[own[~inside]], float(habits.apart[code]))
            row |= {"label": label, "habit": int(habit), "share": len(own[inside]) / len(own)}
            row |= _judged(label, index[own[inside]], verdicts, trials)
            shortcut = ((verdicts["label"] == label) & (verdicts["verdict"] == "shortcut")).any()
            row["flagged"] = bool(shortcut and row["suspicion"] >= FLAGGED)
            row["typical"] = [int(index[i]) for i in _nearest(own[inside], habits.distance)[:10]]
            rows.append(row | {"text": _in_words(row)})
    found = pd.DataFrame(rows, columns=GROUP_COLUMNS).astype({"flagged": bool})
    return found.sort_values(["suspicion", "images"], ascending=[False, True], kind="stable", ignore_index=True)


def _about(mine: pd.DataFrame, rest: pd.DataFrame, apart: float) -> dict[str, Any]:
    said = mine["pred"].astype(str).value_counts()
    wrong = mine.loc[(~mine["correct"]).fillna(False), "pred"].astype(str).value_counts()
    return {
        "images": len(mine),
        "accuracy": _share(mine["correct"]),
        "rest": _share(rest["correct"]),
        "purity": float(said.iloc[0] / len(mine)) if len(said) else np.nan,
        "taken_for": str(wrong.index[0]) if len(wrong) else "",
        "mask_share": _mean(mine["mask_share"]),
        "apart": apart,
        "suspicion": _suspicion(mine["correct"], rest["correct"], apart),
    }


def _suspicion(mine: pd.Series, rest: pd.Series, apart: float) -> float:
    """How much less often a habit is right than the rest of its class, times how well its class falls apart, 0…1.

    Both shares are drawn towards one half, as if two more images had been seen, so that a handful does not lead.
    """
    if not len(rest) or not len(mine):
        return 0.0
    here, there = ((float(c.sum()) + 1) / (c.count() + 2) for c in (mine, rest))
    return max(0.0, there - here) * max(0.0, apart)


def _judged(label: str, images: np.ndarray, verdicts: pd.DataFrame, trials: pd.DataFrame) -> dict[str, Any]:
    "The verdicts of interventions on the class, and with content of this habit's images: in the test that said most."
    own = verdicts[verdicts["label"] == label]
    if not len(own):
        return {"test": "", "trials": 0, "effect": np.nan, "control": np.nan, "verdict": ""}
    confirmed = own[own["verdict"] == "shortcut"]
    row = (confirmed if len(confirmed) else own).assign(excess=lambda t: t["effect"] - t["control"])
    test = row.sort_values("excess", ascending=False)["test"].iloc[0]
    held = trials[(trials["label"] == label) & (trials["test"] == test) & trials["index"].isin(images)]
    kinds = set(own["verdict"])
    verdict = next((kind for kind in ("shortcut", "undecided") if kind in kinds), "clear")
    effects = {name: _mean(held[name]) for name in ("effect", "control")}
    return {"test": str(test), "trials": len(held), **effects, "verdict": verdict}


def _in_words(row: dict[str, Any]) -> str:
    words = f"{row['images']} images ({row['share']:.0%}) of {row['label']!r}"
    if np.isfinite(row["accuracy"]):
        words += f": {row['accuracy']:.0%} are right"
        words += f", of the others {row['rest']:.0%}" if np.isfinite(row["rest"]) else ""
    if row["taken_for"]:
        words += f"; the wrong ones are mostly taken for {row['taken_for']!r}"
    if row["verdict"] == "shortcut":
        words += f". The class has a shortcut (test {row['test']!r})"
        if row["trials"]:
            words += (
                f"; in {row['trials']} trials with these images {row['effect']:.0%} had an effect, of the controls "
                f"{row['control']:.0%}"
            )
    elif row["verdict"]:
        words += f". Interventions on the class: {row['verdict']}"
    return words + "."


def _nearest(rows: np.ndarray, distance: np.ndarray) -> np.ndarray:
    "Those of `rows` that have a distance, the nearest first."
    known = rows[np.isfinite(distance[rows])]
    return known[np.argsort(distance[known], kind="stable")]


def _share(correct: pd.Series) -> float:
    return float(correct.sum() / correct.count()) if correct.count() else np.nan


def _mean(values: Any) -> float:
    values = np.asarray(values, float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
