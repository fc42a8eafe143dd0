"""How many shortcuts the judge names, and how many it names where there is none.

    python benchmarks/shortcuts.py train --work FOLDER --data FOLDER   # a line in models.jsonl and weights per model
    python benchmarks/shortcuts.py judge --work FOLDER --data FOLDER   # a line in judged.jsonl for each of them
    python benchmarks/shortcuts.py table --work FOLDER                 # thresholds by even seeds, a report of odd ones

Each step goes on where it was stopped. After a change of the judge, `judged.jsonl` is removed and made again, in
minutes; after a change of the rule alone, the table is. `--data`: a folder with `clothing` and `torch_home` (photos and
the pretrained SqueezeNet). A model has *fallen* for a signal if the signal, put on other classes' validation pictures,
turns at least half of them into its class, beyond those taken for it anyway. It is *honest* if it was trained without
one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
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
    Pictures,
    clothing,
    fashion,
    fish,
    network,
    normalised,
    planted,
    predicted,
    train,
)
from shortcut_peers import focused_cluster, library_findings, property_score

from fastai_gradcam._judge.rule import Row, Suspicion, with_verdicts
from fastai_gradcam.judge import Rule, judge

EARLY = ("transplant", "place", "border", "colour")
FALLEN, SPARED = 0.5, 0.1


def plan(seeds: int) -> list[tuple[str, str, int]]:
    """Data set, signal and seed of each model: a third of them without a signal, seeds outermost."""
    found = []
    for seed in range(seeds):
        for data in RECIPES:
            marks = [s for s in SIGNALS if s != "blur" or data == "fish"]
            found += [(data, marks[(2 * seed + k) % len(marks)], seed) for k in (0, 1)] + [(data, "none", seed)]
    return found


def pictures(data: str, signal: str, seed: int, args: argparse.Namespace) -> tuple[Pictures, int, Pictures, Any]:
    """The pictures with the signal in one class, that class, the pictures without it, and the generator behind them."""
    rng = np.random.default_rng([seed, len(data), len(signal)])
    plain = {"fish": lambda: fish(args.work), "clothing": lambda: clothing(args.data), "fashion": fashion}[data]()
    c = int(rng.integers(len(plain.names)))
    p = replace(plain, x=plain.x.clone(), valid_x=plain.valid_x.clone())
    if signal != "none":
        for x, y, masks in ((p.x, p.y, p.masks), (p.valid_x, p.valid_y, p.valid_masks)):
            x[y == c] = planted(signal, x[y == c], rng, None if masks is None else masks[y == c])
    return p, c, plain, rng


def one_model(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """Train one model, keep its weights at each quarter of the training, measure the truth, and ask the peers."""
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
        "data": data, "signal": signal, "seed": seed, "label": None if signal == "none" else p.names[c],
        "accuracy": float((predicted(net, p.valid_x) == p.valid_y).float().mean()), "training": training,
    }  # fmt: skip
    if signal != "none":
        other = p.valid_y != c
        marked = planted(signal, plain.valid_x[other], rng, None if p.valid_masks is None else p.valid_masks[other])
        found["before"] = float((predicted(net, p.valid_x[other]) == c).float().mean())
        found["turned"] = float((predicted(net, marked) == c).float().mean())
    with tempfile.TemporaryDirectory() as folder:
        found["findings"] = library_findings(net, p, Path(folder), seed)
    found["clusters"] = focused_cluster(net, p)
    found["property"] = property_score(p.x, p.y)
    return found


def one_judgement(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """Judge one trained model at each quarter, as `judge="every"` does, and at the end."""
    p, *_ = pictures(data, signal, seed, args)
    kept = torch.load(weights(args.work, data, signal, seed))
    batches = [
        (normalised(p.valid_x[k]), p.valid_y[k], *(() if p.valid_masks is None else (p.valid_masks[k],)))
        for k in kept["order"].split(32)
    ]
    net, early = network(data, len(p.names), args.data).eval(), []
    for weights_ in kept["quarters"]:
        net.load_state_dict(weights_)
        verdicts = judge(net, batches[: len(batches) // 2], p.names, tests=EARLY)
        early.append([{**row, **asdict(verdicts.suspicion[row["label"]])} for row in verdicts.table.to_dict("records")])
    began = time.process_time()
    verdicts = judge(net, batches, p.names)
    return {
        "data": data, "signal": signal, "seed": seed, "images": verdicts.images, "passes": verdicts.passes,
        "judging": time.process_time() - began, "rows": verdicts.table.to_dict("records"),
        "pooled": verdicts.pooled.to_dict("records"), "early": early,
        "suspicion": {k: asdict(s) for k, s in verdicts.suspicion.items()},
    }  # fmt: skip


def weights(work: Path, data: str, signal: str, seed: int) -> Path:
    return work / f"{data}-{signal}-{seed}.pt"


def run(work: Callable[..., dict], file: Path, args: argparse.Namespace) -> None:
    """`work` for each model that has no line in `file`, until the minutes are over."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    done, began = {key_of(m) for m in read(file)}, time.time()
    for key in plan(args.seeds):
        if time.time() - began > 60 * args.minutes:
            break
        if key not in done and (work is one_model or weights(args.work, *key).exists()):
            found = work(*key, args)
            with file.open("a") as out:
                out.write(json.dumps(found) + "\n")
            print(*key, f"{time.time() - began:.0f} s", flush=True)


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


def named(m: dict, rule: Rule, rows: list[dict] | None = None, suspicion: dict | None = None) -> set[str]:
    """The classes with a shortcut by `rule`."""
    rows, suspicion = m["rows"] if rows is None else rows, m["suspicion"] if suspicion is None else suspicion
    found = set()
    for label, mine in itertools.groupby(rows, key=lambda row: row["label"]):
        known = [Row(**{**row, "verdict": "undecided"}) for row in mine]
        judged = with_verdicts(known, Suspicion(**suspicion[label]), rule)
        found |= {row.label for row in judged if row.verdict == "shortcut"}
    return found


def first_alarm(m: dict, rule: Rule) -> float | None:
    """When the right class was first named by two judgements in succession, as a share of the training."""
    return next(((k + 2) / len(m["early"]) for k, found in enumerate(alarms(m, rule)) if m["label"] in found), None)


def alarms(m: dict, rule: Rule) -> list[set[str]]:
    """The classes named by two judgements in succession, from the second one on."""
    each = [named(m, rule, *_split(rows)) for rows in m["early"]]
    return [a & b for a, b in itertools.pairwise(each)]


def fixed_rule(models: list[dict]) -> Rule:
    """The thresholds with the most detections among those with the fewest false alarms; of equals, the middle one."""
    grid = itertools.product((0.15, 0.2, 0.25, 0.3), (0.5, 0.6, 0.7), (0.05, 0.1, 0.15), (1.0, 1.5, 2.0))
    scored = []
    for values in grid:
        rule = replace(Rule(), **dict(zip(("excess", "plain", "low", "colour"), values, strict=True)))
        false = sum(bool(named(m, rule)) for m in models if kind(m) == "honest")
        hits = sum(m["label"] in named(m, rule) for m in models if kind(m) == "fallen")
        scored.append(((-false, hits), values, rule))
    best = max(score for score, _, _ in scored)
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
    judged = {key_of(m): m for m in read(args.work / "judged.jsonl")}
    models = [{**m, **judged[key_of(m)]} for m in read(args.work / "models.jsonl") if key_of(m) in judged]
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
            **{f"fallen for {s}": [m for m in part if kind(m) == "fallen" and m["signal"] == s] for s in SIGNALS},
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
            right = sum(m["label"] in named(m, rule) for m in group)
            other = sum(bool(named(m, rule) - {m["label"]}) for m in group)
            peers = [sum(bool(m[k]) for m in group) for k in ("findings", "clusters", "property")]
            print(f"| {name} | {'' if name == 'honest' else interval(right, n)} | {interval(other, n)} | "
                  + " | ".join(interval(k, n) for k in peers) + " |")  # fmt: skip
        early = [first_alarm(m, rule) for m in part if kind(m) == "fallen"]
        caught = [e for e in early if e is not None]
        if caught:
            print(f"\nFirst alarm with `judge=\"every\"`: median {np.median(caught):.0%} of the training, in "
                  f"{len(caught)} of {len(early)} fallen models.")  # fmt: skip
        false = [any(alarms(m, rule)) for m in part if kind(m) == "honest"]
        print(f"Honest models with an alarm after any epoch: {interval(sum(false), len(false))}.\n")
    share = [m["judging"] / m["training"] for m in models]
    print(f"Passes: at most {max(m['passes'] for m in models):.2f}.")
    print(f"Judging took {np.median(share):.0%} of the training "
          f"(median, processor time).")  # fmt: skip


def _split(rows: list[dict]) -> tuple[list[dict], dict]:
    keys = Suspicion.__dataclass_fields__
    suspicion = {row["label"]: {k: row[k] for k in keys} for row in rows}
    return [{k: v for k, v in row.items() if k not in keys} for row in rows], suspicion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "judge", "table"))
    parser.add_argument("--work", type=Path, required=True, help="a folder for models.jsonl and drawn pictures")
    parser.add_argument("--data", type=Path, help="a folder with clothing/ and torch_home/")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many; a later call goes on")
    args = parser.parse_args()
    if args.what == "train":
        run(one_model, args.work / "models.jsonl", args)
    elif args.what == "judge":
        run(one_judgement, args.work / "judged.jsonl", args)
    else:
        table(args)


if __name__ == "__main__":
    main()
