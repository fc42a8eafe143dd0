"""How many shortcuts the judge names, and how many it names where there is none.

    python benchmarks/shortcuts.py train --work FOLDER --data FOLDER   # models, and what turns them
    python benchmarks/shortcuts.py judge --work FOLDER --data FOLDER   # the judge at the end of their training
    python benchmarks/shortcuts.py early --work FOLDER --data FOLDER   # … and four times in it
    python benchmarks/shortcuts.py peers --work FOLDER --data FOLDER   # what others make of them
    python benchmarks/shortcuts.py table --work FOLDER                 # thresholds by even seeds, a report of odd ones

Each step writes a file of its own, a line per model, and goes on where it was stopped. After a change of the judge
`judge.jsonl` is removed and made again, in minutes; after a change of the rule alone, only the table is. `--data`: a
folder with `clothing` and `torch_home` (photos and the pretrained SqueezeNet).

A model has *fallen* for a signal if the signal, put on other classes' validation pictures, turns at least half of them
into its class, beyond those taken for it anyway. It is *honest* if it was trained without one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shortcut_models import (
    LOCAL,
    RECIPES,
    SIGNALS,
    TAGS,
    Pictures,
    clothing,
    fashion,
    fish,
    network,
    normalised,
    planted,
    predicted,
    tagged,
    train,
)
from shortcut_peers import focused_cluster, library_findings, property_score

from fastai_gradcam._judge.rule import Row, Suspicion, pooled, with_verdicts
from fastai_gradcam.judge import Rule, Verdicts, judge

EARLY = ("transplant", "exchange", "place", "border", "colour")
FALLEN, SPARED = 0.5, 0.1


def plan(seeds: int) -> list[tuple[str, str, int]]:
    """Data set, signal and seed of each model: a quarter of them without a signal, seeds outermost."""
    found = []
    for seed in range(seeds):
        for data in RECIPES:
            marks = [s for s in SIGNALS if s != "blur" or data == "fish"]
            found += [(data, marks[(2 * seed + k) % len(marks)], seed) for k in (0, 1)]
            found += [(data, "none", seed), (data, TAGS, seed)]
    return found


def pictures(data: str, signal: str, seed: int, args: argparse.Namespace) -> tuple[Pictures, int, Pictures, Any]:
    """The pictures with the signal in one class, that class, the pictures without it, and the generator behind them."""
    rng = np.random.default_rng([seed, len(data), len(signal)])
    plain = {"fish": lambda: fish(args.work), "clothing": lambda: clothing(args.data), "fashion": fashion}[data]()
    c = int(rng.integers(len(plain.names)))
    p = replace(plain, x=plain.x.clone(), valid_x=plain.valid_x.clone())
    if signal == TAGS:
        p.x, p.valid_x = tagged(p.x, p.y, rng), tagged(p.valid_x, p.valid_y, rng)
    elif signal != "none":
        for x, y, masks in ((p.x, p.y, p.masks), (p.valid_x, p.valid_y, p.valid_masks)):
            x[y == c] = planted(signal, x[y == c], rng, None if masks is None else masks[y == c])
    return p, c, plain, rng


def one_model(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """Train one model, keep its weights at each quarter of the training, and measure the truth."""
    torch.manual_seed(seed)
    p, c, plain, rng = pictures(data, signal, seed, args)
    order = torch.from_numpy(rng.permutation(len(p.valid_y)))[:200]
    net, kept = network(data, len(p.names), args.data), []

    def keep(epoch: int) -> None:
        if (epoch + 1) % max(1, RECIPES[data][0] // 4) == 0:
            kept.append({k: v.clone() for k, v in net.state_dict().items()})

    began = time.process_time()
    train(net, data, p.x, p.y, seed, keep)
    training = time.process_time() - began
    torch.save({"order": order, "quarters": kept}, weights(args.work, data, signal, seed))
    found = {
        "label": None if signal == "none" else p.names[c],
        "accuracy": float((predicted(net, p.valid_x) == p.valid_y).float().mean()), "training": training,
    }  # fmt: skip
    if signal == TAGS:
        others = (p.valid_y + torch.from_numpy(rng.integers(1, len(p.names), len(p.valid_y)))) % len(p.names)
        found["label"] = ""
        found["before"] = float((predicted(net, plain.valid_x) == others).float().mean())
        found["turned"] = float((predicted(net, tagged(plain.valid_x, others, rng)) == others).float().mean())
    elif signal != "none":
        other = p.valid_y != c
        marked = planted(signal, plain.valid_x[other], rng, None if p.valid_masks is None else p.valid_masks[other])
        found["before"] = float((predicted(net, p.valid_x[other]) == c).float().mean())
        found["turned"] = float((predicted(net, marked) == c).float().mean())
    return found


def trained_model(data: str, signal: str, seed: int, args: argparse.Namespace) -> tuple[Any, Pictures, list, list]:
    """The trained network, its pictures, the judging set in batches, and the weights at each quarter."""
    p, *_ = pictures(data, signal, seed, args)
    kept = torch.load(weights(args.work, data, signal, seed))
    net = network(data, len(p.names), args.data).eval()
    net.load_state_dict(kept["quarters"][-1])
    masks = p.valid_masks
    order = kept["order"].split(32)
    batches = [(normalised(p.valid_x[k]), p.valid_y[k], *(() if masks is None else (masks[k],))) for k in order]
    return net, p, batches, kept["quarters"]


def peers(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """Three other ways to find a shortcut, tried on one trained model."""
    net, p, *_ = trained_model(data, signal, seed, args)
    return {
        "findings": library_findings(net, p, args.work),
        "clusters": focused_cluster(net, p),
        "property": property_score(p.x, p.y),
    }


def judgement(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """Judge one trained model, as `judge="end"` does."""
    net, p, batches, _ = trained_model(data, signal, seed, args)
    began = time.process_time()
    verdicts = judge(net, batches, p.names)
    spent = time.process_time() - began
    return {"images": verdicts.images, "passes": verdicts.passes, "judging": spent, **_results(verdicts)}


def early(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """Judge one model at each quarter of its training by half of the images, as `judge="every"` does."""
    net, p, batches, quarters = trained_model(data, signal, seed, args)
    found = []
    for quarter in quarters:
        net.load_state_dict(quarter)
        found.append(_results(judge(net, batches[: len(batches) // 2], p.names, tests=EARLY)))
    return {"early": found}


def _results(verdicts: Verdicts) -> dict:
    return {
        "rows": verdicts.table.to_dict("records"), "pooled": verdicts.pooled.to_dict("records"),
        "suspicion": {k: asdict(s) for k, s in verdicts.suspicion.items()},
    }  # fmt: skip


def weights(work: Path, data: str, signal: str, seed: int) -> Path:
    return work / f"{data}-{signal}-{seed}.pt"


# Each step writes a line per model into a file of its own.
STEPS: dict[str, Callable[..., dict]] = {"train": one_model, "judge": judgement, "early": early, "peers": peers}


def run(step: str, args: argparse.Namespace) -> None:
    """One step for each model that has not taken it, until the minutes are over."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    file, began = args.work / f"{step}.jsonl", time.time()
    done = {key_of(m) for m in read(file)}
    for key in plan(args.seeds):
        if time.time() - began > 60 * args.minutes:
            break
        if key not in done and args.only in (None, key[1]) and (step == "train" or weights(args.work, *key).exists()):
            found = dict(zip(("data", "signal", "seed"), key, strict=True)) | STEPS[step](*key, args)
            with file.open("a") as out:
                out.write(json.dumps(found) + "\n")
            print(step, *key, f"{time.time() - began:.0f} s", flush=True)


def key_of(m: dict) -> tuple[str, str, int]:
    return m["data"], m["signal"], m["seed"]


# --- the table


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
    return found | (_named(m["pooled"], {"": pooled(list(known.values()))}, rule) if known else set())


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


def table(args: argparse.Namespace) -> None:
    taken = {step: {key_of(m): m for m in read(args.work / f"{step}.jsonl")} for step in STEPS}
    models = [{**m, **taken["judge"][k]} for k, m in taken["train"].items() if k in taken["judge"]]
    for m in models:
        m |= taken["early"].get(key_of(m), {}) | taken["peers"].get(key_of(m), {})
    rule = fixed_rule([m for m in models if m["seed"] % 2 == 0])
    shipped = Rule()
    print(f"Thresholds fixed on even seeds: {rule}\nShipped: {'the same' if rule == shipped else shipped}\n")
    for title, part in (
        ("Odd seeds (reported)", [m for m in models if m["seed"] % 2]),
        ("Even seeds (thresholds fixed here)", [m for m in models if m["seed"] % 2 == 0]),
    ):
        print(f"### {title}: {len(part)} models\n")
        groups = {
            "fallen for a local mark": [m for m in part if kind(m) == "fallen" and m["signal"] in LOCAL],
            **{
                f"fallen for {s}": [m for m in part if kind(m) == "fallen" and m["signal"] == s]
                for s in (*SIGNALS, TAGS)
            },
            "honest": [m for m in part if kind(m) == "honest"],
            "marked, turned between 10 and 50 points": [m for m in part if kind(m) == "between"],
            "marked, not fallen": [m for m in part if kind(m) == "spared"],
        }
        print("| models | judge, right class | judge, another class | findings | clusters | property score |")
        print("|---|---|---|---|---|---|")
        for name, group in groups.items():
            n = len(group)
            if not n:
                continue
            right = sum(hit(m, named(m, rule)) for m in group)
            other = sum(bool(named(m, rule) - {m["label"]}) for m in group if m["signal"] != TAGS)
            others = [[bool(m[k]) for m in group if k in m] for k in ("findings", "clusters", "property")]
            print(f"| {name} | {'' if name == 'honest' else interval(right, n)} | {interval(other, n)} | "
                  + " | ".join(interval(sum(k), len(k)) for k in others) + " |")  # fmt: skip
        watched = [m for m in part if "early" in m]
        alarmed = [first_alarm(m, rule) for m in watched if kind(m) == "fallen"]
        caught = [e for e in alarmed if e is not None]
        if caught:
            print(f"\nFirst alarm with `judge=\"every\"`: median {np.median(caught):.0%} of the training, in "
                  f"{len(caught)} of {len(alarmed)} fallen models.")  # fmt: skip
        false = [any(alarms(m, rule)) for m in watched if kind(m) == "honest"]
        print(f"Honest models with an alarm after any epoch: {interval(sum(false), len(false))}.\n")
    share = [m["judging"] / m["training"] for m in models]
    print(f"Passes: at most {max(m['passes'] for m in models):.2f}.")
    print(f"Judging took {np.median(share):.0%} of the training "
          f"(median, processor time).")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*STEPS, "table"))
    parser.add_argument("--work", type=Path, required=True, help="a folder for models.jsonl and drawn pictures")
    parser.add_argument("--data", type=Path, help="a folder with clothing/ and torch_home/")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--only", choices=(*SIGNALS, TAGS, "none"), help="models with this signal, or without one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many; a later call goes on")
    args = parser.parse_args()
    table(args) if args.what == "table" else run(args.what, args)


if __name__ == "__main__":
    main()
