"""Does guiding mend a shortcut? The tables of docs/mending.md.

    python benchmarks/guide.py train --work FOLDER --data FOLDER   # trains, a line per model; resumable
    python benchmarks/guide.py table --work FOLDER                 # the tables, of the models there are
    python benchmarks/guide.py cost --work FOLDER                  # time and memory of a step, guided beside plain

A mark is put into a corner of every training picture of one class. Groups that the training has not: pictures of that
class whose mark is missing, and pictures of other classes that bear it (swapped). Each remedy begins with the model
that learned the mark, and trains it for as long again; `longer` does so without any. Boxes are the drawn fish's own,
and for clothing the middle of the picture, where the photos have their garment. Boxes are spent on the marked class
first, as the judge names it, and then on others. The weights were chosen on seed 100, which is not reported.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.all import (
    Callback,
    CrossEntropyLossFlat,
    DataLoaders,
    Flip,
    IntToFloatTensor,
    Learner,
    Normalize,
    PILImage,
    TensorCategory,
    TfmdDL,
    ToTensor,
    imagenet_stats,
    set_seed,
)
from fastcore.imports import noop
from scipy import stats
from shortcut_models import Pictures, clothing, fish, network, normalised, planted, predicted

from fastai_gradcam.guide import CoverPlace, GradCAMGuide
from fastai_gradcam.judge import judge

EPOCHS = {"fish": (8, 4e-3), "clothing": (3, 1e-3)}
WEIGHT = {"fish": 1.0, "clothing": 4.0}
REMEDIES = "none,longer,guide 5 %;cover,dfr,guide 1 %,guide 100 %,first order 5 %"
HONEST = ("none", "longer", "guide 5 %")
FEW = 4  # pictures of each class, for DFR


class Pairs(list):
    "Pictures and their classes; by `split_idx`, transforms know training (0) from validation (1)."

    split_idx: int


def learner(p: Pictures, x: torch.Tensor, net: torch.nn.Module, seed: int, item_tfms: Any = ()) -> Learner:
    """A learner of the training pictures `x`."""
    set_seed(seed)

    def loader(x: torch.Tensor, y: torch.Tensor, shuffle: bool) -> TfmdDL:
        pairs = Pairs(
            (PILImage.create(one.permute(1, 2, 0).numpy()), TensorCategory(int(k))) for one, k in zip(x, y, strict=True)
        )
        pairs.split_idx = 0 if shuffle else 1
        after = [IntToFloatTensor(), Flip(), Normalize.from_stats(*imagenet_stats, cuda=False)]
        return TfmdDL(
            pairs, bs=32, shuffle=shuffle, drop_last=shuffle, num_workers=0, after_item=[*item_tfms, ToTensor()],
            after_batch=after if shuffle else [after[0], after[2]], device=torch.device("cpu"),
        )  # fmt: skip

    dls = DataLoaders(loader(x, p.y, True), loader(p.valid_x[:32], p.valid_y[:32], False))
    learn = Learner(dls, net, CrossEntropyLossFlat(), cbs=[])
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = noop
    return learn


def boxes(p: Pictures, c: int, share: float, rng: np.random.Generator) -> dict[int, Any]:
    """Boxes of a share of the training pictures, those of class `c` first."""
    order = sorted(rng.permutation(len(p.y)), key=lambda i: int(p.y[i]) != c)
    found = {}
    for i in order[: max(1, round(share * len(p.y)))]:
        height, width = p.x.shape[2:]
        if p.masks is None:
            found[int(i)] = (width // 5, height // 5, width - width // 5, height)
        else:
            rows, columns = (torch.where(p.masks[i].any(k))[0] for k in (1, 0))
            found[int(i)] = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return found


def measured(net: torch.nn.Module, p: Pictures, c: int, rng: np.random.Generator) -> dict[str, float]:
    """Accuracy by group, and how many other pictures the mark turns, by hand and as the judge transplants it."""
    mine, other = p.valid_y == c, p.valid_y != c
    clean, marked = predicted(net, p.valid_x), predicted(net, planted("corner", p.valid_x, rng, None))
    right = (clean == p.valid_y).float()
    shown = p.valid_x.clone()
    shown[mine] = planted("corner", p.valid_x[mine], rng, None)
    order = torch.from_numpy(rng.permutation(len(p.valid_y)))[:200]
    batches = [(normalised(shown[k]), p.valid_y[k]) for k in order.split(32)]
    table = judge(net, batches, p.names, tests=("transplant", "place")).table
    rows = table[table["label"] == p.names[c]].set_index("test")
    missing, swapped = float(right[mine].mean()), float((marked == p.valid_y)[other].float().mean())
    return {
        "clean": float(right.mean()), "missing": missing, "swapped": swapped, "worst": min(missing, swapped),
        "turned": float((marked[other] == c).float().mean()) - float((clean[other] == c).float().mean()),
        **{t: float(rows.loc[t, "effect"] - rows.loc[t, "control"]) if t in rows.index else float("nan")
           for t in ("transplant", "place")},
        "named": bool((rows["verdict"] == "shortcut").any()) if len(rows) else False,
    }  # fmt: skip


def remedied(remedy: str, fallen: torch.nn.Module, p: Pictures, x: Any, c: int, data: str, seed: int) -> Any:
    """A copy of `fallen`, after the remedy."""
    net, rng = deepcopy(fallen), np.random.default_rng([seed, 5])
    epochs, lr = EPOCHS[data]
    if remedy == "dfr":
        return last_layer(net, p, rng)
    cover = [CoverPlace("top left corner")] if remedy == "cover" else []
    learn = learner(p, x, net, seed + 1000, cover)
    if remedy.startswith(("guide", "first")):
        share = int(remedy.split()[-2]) / 100
        given = boxes(p, c, share, rng)
        learn.add_cb(GradCAMGuide(given, WEIGHT[data], second_order=not remedy.startswith("first")))
    learn.fit_one_cycle(epochs, lr)
    return net


def last_layer(net: torch.nn.Module, p: Pictures, rng: np.random.Generator) -> Any:
    """The last layer again, on a few pictures of each class, half of which bear the mark whatever their class."""
    few = [int(i) for k in p.y.unique() for i in rng.choice(torch.where(p.y == k)[0].numpy(), FEW, replace=False)]
    x, y = p.x[few].clone(), p.y[few]
    x[::2] = planted("corner", x[::2], rng, None)
    net.eval()
    with torch.no_grad():
        features = net[:-1](normalised(x))
    optimizer = torch.optim.AdamW(net[-1].parameters(), 1e-2, weight_decay=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net[-1](features), y).backward()
        optimizer.step()
    return net


def line(data: str, marked: bool, seed: int, remedy: str, args: argparse.Namespace) -> dict[str, Any]:
    """A model that learned the mark, or an honest one (kept in `work`), and what the remedy makes of it."""
    p = fish(args.work) if data == "fish" else clothing(args.data)
    rng = np.random.default_rng([seed, len(data)])
    c = int(rng.integers(len(p.names)))
    x = p.x.clone()
    if marked:
        x[p.y == c] = planted("corner", x[p.y == c], rng, None)
    torch.manual_seed(seed)
    net = network(data, len(p.names), args.data)
    file = args.work / f"{data}-{'marked' if marked else 'honest'}-{seed}.pth"
    if file.exists():
        net.load_state_dict(torch.load(file))
    else:
        learner(p, x, net, seed).fit_one_cycle(*EPOCHS[data])
        torch.save(net.state_dict(), file)
    if remedy != "none":
        net = remedied(remedy, net, p, x, c, data, seed)
    return {"data": data, "marked": marked, "seed": seed, "remedy": remedy, "label": p.names[c]} | measured(
        net, p, c, np.random.default_rng([seed, 9])
    )


def train(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.work / "guide.jsonl"
    done = {(m["data"], m["marked"], m["seed"], m["remedy"]) for m in read(file)}
    for remedies in args.remedies.split(";"):
        # Those that a table cannot do without come first, for all seeds.
        for data, seed in itertools.product(args.sets.split(","), range(args.first, args.first + args.seeds)):
            for marked, remedy in itertools.product((True, False), remedies.split(",")):
                key = data, marked, seed, remedy
                if key not in done and (marked or remedy in HONEST):
                    found = line(*key, args)
                    with file.open("a") as out:
                        out.write(json.dumps(found) + "\n")
                    print(found, flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def mean(values: list[float]) -> str:
    """In per cent, with a 95 % interval by the t distribution."""
    if len(values) < 2:
        return f"{100 * values[0]:.0f}" if values else "–"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{100 * np.mean(values):.0f} ± {100 * half:.0f}"


def table(args: argparse.Namespace) -> None:
    """A row for each remedy, of the seeds that have it; gains and losses beside `longer`, by the same seeds."""
    lines = read(args.work / "guide.jsonl")
    columns = ("clean", "missing", "swapped", "worst", "turned", "transplant", "place", "named")
    for data, marked in itertools.product(EPOCHS, (True, False)):
        mine = [m for m in lines if m["data"] == data and m["marked"] == marked]
        if not mine:
            continue
        longer = {m["seed"]: m for m in mine if m["remedy"] == "longer"}
        beside = ("clean", "worst")
        heads = [*columns, *(f"{k}, beside `longer`" for k in beside)]
        print(f"### {data}, {'marked' if marked else 'honest'}\n\n| remedy | seeds | {' | '.join(heads)} |")
        print("|---" * (len(heads) + 2) + "|")
        for remedy in dict.fromkeys(m["remedy"] for m in mine):
            rows = [m for m in mine if m["remedy"] == remedy]
            values = [[float(m[k]) for m in rows if m[k] == m[k]] for k in columns]
            values += [[m[k] - longer[m["seed"]][k] for m in rows if m["seed"] in longer] for k in beside]
            print(f"| {remedy} | {len(rows)} | {' | '.join(map(mean, values))} |")
        print()


class Kept(Callback):
    "`most`: the bytes that a step keeps for its backward pass, each tensor once; of the epoch's steps, the most."

    run_valid, most = False, 0

    def before_batch(self) -> None:
        self.kept: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)
        self.hooks.__enter__()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def before_backward(self) -> None:
        self.hooks.__exit__(None, None, None)
        self.most = max(self.most, sum(self.kept.values()))


def cost(args: argparse.Namespace) -> None:
    """An epoch of the drawn fish, guided beside plain in turns: processor time, and what a step keeps, as ratios."""
    p = fish(args.work)
    ratios: dict[str, list[tuple[float, float]]] = {}
    for turn in range(5):
        plain = (1.0, 1.0)
        for share, second in ((0.0, True), (0.05, False), (0.05, True), (1.0, False), (1.0, True)):
            learn = learner(p, p.x, network("fish", len(p.names), Path()), turn)
            if share:
                given = boxes(p, 0, share, np.random.default_rng(turn))
                learn.add_cb(GradCAMGuide(given, WEIGHT["fish"], second_order=second))
            kept = Kept()
            learn.fit(1, cbs=kept)  # this epoch finds the layer, and is not timed
            began = time.process_time()
            learn.fit(1)
            found = time.process_time() - began, kept.most
            plain = plain if share else found
            name = f"{share:.0%} of boxes, {'second' if second else 'first'} order"
            ratios.setdefault(name if share else "plain", []).append((found[0] / plain[0], found[1] / plain[1]))
    for name, each in ratios.items():
        seconds, kept_bytes = zip(*each, strict=True)
        print(f"{name}: {np.median(seconds):.2f} times the time ({min(seconds):.2f} … {max(seconds):.2f}), "
              f"{np.median(kept_bytes):.2f} times the memory for a backward pass")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "cost"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default="fish,clothing")
    parser.add_argument("--remedies", default=REMEDIES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"train": train, "table": table, "cost": cost}[args.what](args)


if __name__ == "__main__":
    main()
