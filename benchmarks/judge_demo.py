"""The demo: is its tag named, when, is the honest one silent, and what does judging cost? For docs/judging.md.

python benchmarks/judge_demo.py --work FOLDER --seeds 3   # a line per training, then the medians

Trains as `fastai-gradcam demo` does, with `--shortcut` and without, given the masks of the fish and not, and judges at
every epoch and at the end. Seconds are processor time; the share is that of the judgement at the end in the training
without any judging.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastai_gradcam import GradCAMCallback, demo
from fastai_gradcam._cli import train as training
from fastai_gradcam._cli.folders import read_folder
from fastai_gradcam._run.verdicts import read_table
from fastai_gradcam._watch.judging import Judging


def trained(work: Path, seed: int, shortcut: bool, masks: bool, arch: str, each: int) -> dict[str, Any]:
    """One training of the demo: the classes named at the end, the first alarm, and the seconds of each part."""
    images = work / f"images-{seed}-{each}-{'shortcut' if shortcut else 'honest'}"
    demo.make_fish(images, per_species=each, seed=seed, shortcut=shortcut)
    spent: list[tuple[int | None, float]] = []
    judge = Judging.judge

    def timed(self: Judging, frame: int | None, *args: Any) -> None:
        began = time.process_time()
        judge(self, frame, *args)
        spent.append((frame, time.process_time() - began))

    Judging.judge = timed
    training.GradCAMCallback = partial(GradCAMCallback, judge="every", show=False)
    name = f"{seed}-{'shortcut' if shortcut else 'honest'}-{'masks' if masks else 'none'}-{time.time():.0f}"
    given = training.Training(work / "runs", arch=arch, name=name, seed=seed, **demo.recipe(arch, {}))
    began = time.process_time()
    with redirect_stdout(sys.stderr):
        folder = read_folder(images, seed)
        learn = training.train(folder if masks else replace(folder, masks=None), given, lambda words: None)
    whole = time.process_time() - began
    Judging.judge = judge
    run = learn.grad_cam.run
    found = run.findings()
    alarms = read_table(run.path, "alarms")["frame"]
    end = sum(seconds for frame, seconds in spent if frame is None)
    return {
        "seed": seed, "shortcut": shortcut, "masks": masks, "named": found["label"][found["severity"] >= 0.5].tolist(),
        "epoch": int(alarms.min()) if len(alarms) else None,
        "epochs": learn.n_epoch, "end": end, "share": end / (whole - sum(seconds for _, seconds in spent)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--per-species", type=int, default=demo.PER_SPECIES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    kinds = list(product((True, False), (False, True)))
    for seed in range(args.seeds):
        for shortcut, masks in kinds:
            found.append(trained(args.work, seed, shortcut, masks, args.arch, args.per_species))
            print(found[-1], flush=True)
    for shortcut, masks in kinds:
        mine = [m for m in found if (m["shortcut"], m["masks"]) == (shortcut, masks)]
        epochs = [m["epoch"] for m in mine if m["epoch"] is not None]
        when = f", median epoch {median(epochs):g} of {mine[0]['epochs']}" if epochs else ""
        named = sum(bool(m["named"]) for m in mine)
        kind = f"{'--shortcut' if shortcut else 'honest'}, {'with' if masks else 'no'} masks"
        print(f"{kind}: named in {named} of {len(mine)}, an alarm in {len(epochs)}{when}")
    seconds, share = (median(m[k] for m in found) for k in ("end", "share"))
    print(f"judge='end': {seconds:.1f} s, {share:.0%} of the training")


if __name__ == "__main__":
    main()
