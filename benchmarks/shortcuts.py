"""How many shortcuts the judge names, and how many it names where there is none.

    python benchmarks/shortcuts.py train --work FOLDER --data FOLDER   # models, and what turns them
    python benchmarks/shortcuts.py judge --work FOLDER --data FOLDER   # the judge at the end of their training
    python benchmarks/shortcuts.py blind --work FOLDER --data FOLDER   # … without the masks of the fish
    python benchmarks/shortcuts.py early --work FOLDER --data FOLDER   # … and four times in it
    python benchmarks/shortcuts.py peers --work FOLDER --data FOLDER   # what others make of them
    python benchmarks/shortcuts.py table --work FOLDER                 # the tables of docs/judging.md

Each step writes a file of its own, a line per model, and goes on where it was stopped. After a change of the judge
`judge.jsonl` is removed and made again, in minutes; after a change of the rule alone, only the table is. `--data`: a
folder with `clothing` and `torch_home` (photos and the pretrained SqueezeNet).

A model has *fallen* for a signal if the signal, put on other classes' validation pictures, turns at least half of them
into its class, beyond those taken for it anyway. It is *honest* if it was trained without one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shortcut_models import (
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
from shortcut_table import key_of, read, tables

from fastai_gradcam.judge import Verdicts, judge

DOC = Path(__file__).parents[1] / "docs/judging.md"
MARK = "<!-- benchmarks/shortcuts.py -->"


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


def blind(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """The same without masks."""
    net, p, batches, _ = trained_model(data, signal, seed, args)
    return {"blind": _results(judge(net, [batch[:2] for batch in batches], p.names))} if p.masks is not None else {}


def early(data: str, signal: str, seed: int, args: argparse.Namespace) -> dict:
    """Judge one model at each quarter of its training by half of the images, as `judge="every"` does."""
    net, p, batches, quarters = trained_model(data, signal, seed, args)
    found = []
    for quarter in quarters:
        net.load_state_dict(quarter)
        found.append(_results(judge(net, batches[: len(batches) // 2], p.names)))
    return {"early": found}


def _results(verdicts: Verdicts) -> dict:
    return {
        "rows": verdicts.table.to_dict("records"), "pooled": verdicts.pooled.to_dict("records"),
        "suspicion": {k: asdict(s) for k, s in verdicts.suspicion.items()},
    }  # fmt: skip


def weights(work: Path, data: str, signal: str, seed: int) -> Path:
    return work / f"{data}-{signal}-{seed}.pt"


# Each step writes a line per model into a file of its own.
STEPS: dict[str, Callable[..., dict]] = {
    "train": one_model, "judge": judgement, "blind": blind, "early": early, "peers": peers
}  # fmt: skip


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
    if args.what != "table":
        return run(args.what, args)
    text = tables(args.work)
    print(text)
    before, _, rest = DOC.read_text().partition(MARK)
    DOC.write_text(f"{before}{MARK}\n{text}\n{MARK}{rest.partition(MARK)[2]}")


if __name__ == "__main__":
    main()
