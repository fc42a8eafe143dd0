"""The demo: is its tag named, when, is the honest one silent, and what does judging cost? For docs/judging.md.

python benchmarks/judge_demo.py --work FOLDER   # a line per training, then the medians

Trains as `fastai-gradcam demo` does, with `--shortcut` and without, but without the masks of the fish, and judges at
every epoch and at the end; then once more with masks. Seconds are processor time; the share is that of the judgement
at the end in the training without any judging.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastai_gradcam import GradCAMCallback, Run, demo
from fastai_gradcam._cli import train as training
from fastai_gradcam._cli.folders import read_folder
from fastai_gradcam._run.verdicts import read_table
from fastai_gradcam._watch.judging import Judging, images_for


def trained(work: Path, seed: int, shortcut: bool, arch: str, each: int) -> dict[str, Any]:
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
    name = f"{seed}-{'shortcut' if shortcut else 'honest'}-{time.time():.0f}"
    given = training.Training(work / "runs", arch=arch, name=name, seed=seed, **demo.recipe(arch, {}))
    began = time.process_time()
    with redirect_stdout(sys.stderr):
        learn = training.train(replace(read_folder(images, seed), masks=None), given, lambda words: None)
    whole = time.process_time() - began
    Judging.judge = judge
    run = learn.grad_cam.run
    alarms = read_table(run.path, "alarms")["frame"]
    end = sum(seconds for frame, seconds in spent if frame is None)
    found = {
        "seed": seed, "shortcut": shortcut, "named": named(run),
        "epoch": int(alarms.min()) if len(alarms) else None,
        "epochs": learn.n_epoch, "end": end, "share": end / (whole - sum(seconds for _, seconds in spent)),
    }  # fmt: skip
    # The same model, by as many images, and masks.
    learn.gradcam_judge(n=images_for(learn.n_epoch * len(learn.dls.train_ds)), masks=demo.fish_mask)
    return {**found, "with masks": named(run)}


def named(run: Run) -> list[str]:
    """The labels of the loud findings; "" is all classes together."""
    found = run.findings()
    return found["label"][found["severity"] >= 0.5].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4], help="0 and 1 helped to set the rule")
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--per-species", type=int, default=demo.PER_SPECIES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    for seed in args.seeds:
        for shortcut in (True, False):
            found.append(trained(args.work, seed, shortcut, args.arch, args.per_species))
            print(found[-1], flush=True)
    for shortcut in (True, False):
        mine = [m for m in found if m["shortcut"] == shortcut]
        epochs = [m["epoch"] for m in mine if m["epoch"] is not None]
        when = f", median epoch {median(epochs):g} of {mine[0]['epochs']}" if epochs else ""
        without, masks = (sum(bool(m[k]) for m in mine) for k in ("named", "with masks"))
        kind = "--shortcut" if shortcut else "honest"
        print(f"{kind}, {len(mine)} trainings: named in {without} without masks, in {masks} with them;")
        print(f"an alarm, without masks, in {len(epochs)}{when}")
    seconds, share = (median(m[k] for m in found) for k in ("end", "share"))
    print(f"judge='end': {seconds:.1f} s, {share:.0%} of the training")


if __name__ == "__main__":
    main()
