"""A small learner on drawn tensors for the atlas's tests, and processes that make its atlas. Run by test_atlas.py.

python atlases.py killed OUT MOMENTS…     makes atlases in processes that kill themselves, and resumes them
torchrun --nproc_per_node 2 atlases.py shared OUT
"""

import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from killed import killing_itself
from torch import nn

import fastai_gradcam.learner  # noqa: F401
from fastai_gradcam.atlas import Atlas

WHOLE = "whole"


def atlas_learner(path, n=90, bs=4, seed=0):
    "Two classes by where a square is; `bs` 4 makes many parts of few images."
    set_seed(seed)
    items = []
    for i in range(n):
        x = torch.rand(3, 16, 16) * 0.3
        x[:, :6, (i % 2) * 10 : (i % 2) * 10 + 6] += 0.7
        items.append((x, i % 2))
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 2)
    )
    # Bright on the left speaks for the one, bright on the right for the other: right without a training.
    with torch.no_grad():
        model[0].weight.abs_()
        sides = torch.tensor([3.0, 3.0, -2.0, -2.0]).repeat(4 * 6) + torch.rand(96)
        model[5].weight.copy_(torch.stack([sides, sides.flip(0)]))
    dls = DataLoaders.from_dsets(items[:8], items, bs=bs, device="cpu", num_workers=0)
    dls.vocab = ["left", "right"]
    learn = Learner(dls, model, CrossEntropyLossFlat(), path=Path(path))
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    return learn


def made(learn, name, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return learn.gradcam_atlas(name=name, **{"judge": False, **settings})


def differences(one, other):
    "The differences between two atlases: rows, or maps to the last bit."
    found = [c for c in one.table if not one.table[c].equals(other.table[c])]
    if [m.tobytes() for m in one.maps()] != [m.tobytes() for m in other.maps()]:
        found.append("maps")
    if not np.array_equal(one.habits.habit, other.habits.habit):
        found.append("habits")
    return found


def killed(out, moments):
    "Makes the whole atlas in one process, and the same ones in processes that are killed once and once more."
    learn = atlas_learner(out)
    whole = made(learn, WHOLE)
    for moment in moments:
        name = f"killed-{moment}"
        for again in (moment, moment // 2):
            child = os.fork()
            if not child:
                killing_itself(again)
                made(learn, name, resume=True)
                os._exit(3)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"moment {again}: {status}"
        atlas = made(learn, name, resume=True)
        print(f"moment {moment}: missing {atlas.missing}, differences: {differences(whole, atlas)}")


def shared(out):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    learn = atlas_learner(out)
    made(learn, "shared")
    lost = made(learn, "lost") if not rank else None
    torch.distributed.barrier()
    atlas = Atlas(learn.path / "gradcam/shared")
    print(f"rank {rank}: missing {atlas.missing}, manifest {(atlas.path / 'atlas.json').exists()}", flush=True)
    if lost is not None:
        print(f"lost: missing {lost.missing == list(range(1, lost.plan.parts, 2))}", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)  # forked below, which threads do not survive
    what, out, *moments = sys.argv[1:]
    killed(out, map(int, moments)) if what == "killed" else shared(out)
