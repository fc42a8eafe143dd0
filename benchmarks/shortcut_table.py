"""The table of `shortcuts.py`: which models fell, what the judge names, and thresholds that are fixed on even seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from shortcut_models import LOCAL, SIGNALS, TAGS

from fastai_gradcam._judge.rule import Row, Suspicion, verdicts_together, with_verdicts
from fastai_gradcam.judge import Rule

FALLEN, SPARED = 0.5, 0.1
STEPS = ("judge", "blind", "early", "peers")


def key_of(m: dict) -> tuple[str, str, int]:
    return m["data"], m["signal"], m["seed"]


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def kind(m: dict) -> str:
    if m["signal"] == "none":
        return "honest"
    gain = m["turned"] - m["before"]
    return "fallen" if gain >= FALLEN else "spared" if gain < SPARED else "between"


def named(m: dict, rule: Rule) -> set[str]:
    """The classes with a shortcut by `rule`; "" if all classes together have one."""
    known = {label: Suspicion(**s) for label, s in m["suspicion"].items()}
    found = _named(m["rows"], known, rule)
    each, together = ([Row(**{**row, "verdict": "undecided"}) for row in m[k]] for k in ("rows", "pooled"))
    judged = verdicts_together(together, each, list(known.values()), rule) if known else []
    return found | {row.label for row in judged if row.verdict == "shortcut"}


def _named(rows: list[dict], suspicion: dict[str, Suspicion], rule: Rule) -> set[str]:
    found = set()
    for label, mine in itertools.groupby(rows, key=lambda row: row["label"]):
        known = [Row(**{**row, "verdict": "undecided"}) for row in mine]
        found |= {row.label for row in with_verdicts(known, suspicion[label], rule) if row.verdict == "shortcut"}
    return found


def hit(m: dict, found: set[str]) -> bool:
    """Whether the right class is among those found: any, if each has a tag of its own."""
    return bool(found) if m["signal"] == TAGS else m["label"] in found


def first_alarm(m: dict, rule: Rule) -> float | None:
    """When the right class was first named by two judgements in succession, as a share of the training."""
    return next(((k + 2) / len(m["early"]) for k, found in enumerate(alarms(m, rule)) if hit(m, found)), None)


def alarms(m: dict, rule: Rule) -> list[set[str]]:
    """The classes named by two judgements in succession, from the second one on."""
    each = [named(quarter, rule) for quarter in m["early"]]
    return [a & b for a, b in itertools.pairwise(each)]


def fixed_rule(models: list[dict]) -> Rule:
    """The thresholds with the most detections among those with at most 5 % of false alarms, which is the goal.

    If those that are shipped are among the best, they stay; else the middle of the best is taken.
    """

    def score(rule: Rule) -> int:
        false = [bool(named(m, rule)) for m in models if kind(m) == "honest"]
        hits = sum(hit(m, named(m, rule)) for m in models if kind(m) == "fallen")
        return hits if sum(false) <= 0.05 * len(false) else -sum(false)

    keys = ("excess", "plain", "together", "low", "colour")
    grid = itertools.product((0.2, 0.3), (0.25, 0.35, 0.45, 0.55), (0.2, 0.3, 0.4), (0.05, 0.07, 0.1), (1.0, 1.5, 2.0))
    rules = [(values, replace(Rule(), **dict(zip(keys, values, strict=True)))) for values in grid]
    scored = [(score(rule), values, rule) for values, rule in rules]
    best = max(one for one, _, _ in scored)
    if score(Rule()) >= best:
        return Rule()
    tied = [(np.array(values), rule) for score, values, rule in scored if score == best]
    middle = np.mean([values for values, _ in tied], axis=0)
    return min(tied, key=lambda pair: float(np.abs((pair[0] - middle) / middle).sum()))[1]


def interval(hits: int, n: int) -> str:
    """Wilson's 95 % interval."""
    if not n:
        return "–"
    z, share = 1.96, hits / n
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (min(1.0, max(0.0, (middle + k * half) / (1 + z * z / n))) for k in (-1, 1))
    return f"{hits} of {n} ({low:.0%}–{high:.0%})"


def tables(work: Path) -> str:
    """Both halves of the models in Markdown, with intervals."""
    taken = {step: {key_of(m): m for m in read(work / f"{step}.jsonl")} for step in STEPS}
    models = [{**m, **taken["judge"][k]} for m in read(work / "train.jsonl") if (k := key_of(m)) in taken["judge"]]
    for m in models:
        for step in STEPS[1:]:
            m |= taken[step].get(key_of(m), {})
    rule, shipped = fixed_rule([m for m in models if m["seed"] % 2 == 0]), Rule()
    lines = []
    for title, odd in (("Odd seeds (reported)", 1), ("Even seeds (thresholds fixed here)", 0)):
        part = [m for m in models if m["seed"] % 2 == odd]
        lines += [f"### {title}: {len(part)} models", "", *_table(part, rule), "", *_when(part, rule), ""]
    lines += [f"Thresholds fixed on even seeds: {'those shipped' if rule == shipped else rule}."]
    passes, share = max(m["passes"] for m in models), np.median([m["judging"] / m["training"] for m in models])
    return "\n".join(
        [*lines, f"Passes: at most {passes:.2f}. Judging took {share:.0%} of the training (median, processor time)."]
    )


def _groups(part: list[dict]) -> dict[str, list[dict]]:
    fallen = [m for m in part if kind(m) == "fallen"]
    marked = [m for m in part if m["signal"] != TAGS]
    return {
        "fallen for a local mark": [m for m in fallen if m["signal"] in LOCAL],
        **{f"fallen for {s}": [m for m in fallen if m["signal"] == s] for s in SIGNALS},
        "fallen for a tag in each class": [m for m in fallen if m["signal"] == TAGS],
        "honest": [m for m in part if kind(m) == "honest"],
        "marked, turned between 10 and 50 points": [m for m in marked if kind(m) == "between"],
        "marked, not fallen": [m for m in marked if kind(m) == "spared"],
        "a tag in each class, turned less than 50 points": [m for m in part if m["signal"] == TAGS and m not in fallen],
    }


def _table(part: list[dict], rule: Rule) -> Iterator[str]:
    yield "| models | judge, right class | judge, another class | findings | clusters | property score |"
    yield "|---|---|---|---|---|---|"
    for name, group in _groups(part).items():
        n = len(group)
        if not n:
            continue
        right = interval(sum(hit(m, named(m, rule)) for m in group), n)
        other = interval(sum(bool(named(m, rule) - {m["label"]}) for m in group), n)
        if name == "honest":
            right = ""
        elif group[0]["signal"] == TAGS:
            other = ""  # each class is a right one
        others = [[bool(m[k]) for m in group if k in m] for k in ("findings", "clusters", "property")]
        yield f"| {name} | {right} | {other} | " + " | ".join(interval(sum(k), len(k)) for k in others) + " |"


def _when(part: list[dict], rule: Rule) -> Iterator[str]:
    masked = [m for m in part if "blind" in m]
    for name, group in (("fallen", [m for m in masked if kind(m) == "fallen"]),
                        ("honest", [m for m in masked if kind(m) == "honest"])):  # fmt: skip
        found = [named(m["blind"], rule) for m in group]
        named_ = sum(bool(f) if name == "honest" else hit(m, f) for m, f in zip(group, found, strict=True))
        yield f"Fish judged without their masks, {name}: {interval(named_, len(group))} named."
    yield ""
    watched = [m for m in part if "early" in m]
    alarmed = [first_alarm(m, rule) for m in watched if kind(m) == "fallen"]
    caught = [e for e in alarmed if e is not None]
    if caught:
        yield f'First alarm with `judge="every"`: median {np.median(caught):.0%} of the training, in {len(caught)} of '
        yield f"{len(alarmed)} fallen models."
    false = [any(alarms(m, rule)) for m in watched if kind(m) == "honest"]
    yield f"Honest models with an alarm after any epoch: {interval(sum(false), len(false))}."
