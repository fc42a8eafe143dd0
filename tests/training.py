"""Tiny trainings for the tests, and everything that a training leaves behind, to compare bit by bit."""

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import ImageDataLoaders, Resize, accuracy, set_seed, vision_learner
from fastcore.imports import noop
from torch import nn

from fastai_gradcam import GradCAMCallback, Run

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def tiny(pretrained=False):
    "Three convolutions with BatchNorm, in blocks that can be frozen one by one; `vision_learner` cuts off the head."
    blocks, channels = [], 3
    for out in (8, 8, 12):
        blocks.append(nn.Sequential(nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)))
        channels = out
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def tiny_learner(folder, path, *, item_tfms=None, batch_tfms=None, num_workers=0, arch=tiny, bs=4, cbs=None, **kwargs):
    """A seeded learner on `folder` (`train`, `valid`) on the CPU, with fastai's head: BatchNorm and dropout.

    Callbacks are added behind the seeding, so that learners with and without one are the same otherwise.
    """
    set_seed(7)
    dls = ImageDataLoaders.from_folder(
        folder,
        valid="valid",
        item_tfms=Resize(32) if item_tfms is None else item_tfms,
        batch_tfms=batch_tfms,
        bs=bs,
        num_workers=num_workers,
        device=torch.device("cpu"),
    )
    kwargs = {"pretrained": False, "metrics": accuracy, "path": Path(path), **kwargs}
    if arch is tiny:
        kwargs["cut"] = -3
    learn = vision_learner(dls, arch, **kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = noop  # a function of a module, which an exported learner can name
    set_seed(11)
    return learn.add_cbs(cbs)


def left_by(learn):
    "Everything that a training leaves behind, as a flat `{name: value}`."
    recorder = learn.recorder
    found = {f"weight {k}": v for k, v in learn.model.state_dict().items()}
    found |= flat("optimiser", learn.opt.state_dict())
    found |= flat("values", list(recorder.values)) | flat("losses", list(recorder.losses))
    found |= flat("lrs", list(recorder.lrs)) | random_states()
    found["train loader"] = learn.dls.train.rng.getstate()
    found["valid loader"] = learn.dls.valid.rng.getstate()
    found |= {f"requires_grad {k}": p.requires_grad for k, p in learn.model.named_parameters()}
    found |= {f"training {k}": m.training for k, m in learn.model.named_modules()}
    return found


def random_states():
    found = {"python": random.getstate(), "torch": torch.get_rng_state()}
    found |= flat("numpy", list(np.random.get_state()))
    if torch.cuda.is_initialized():
        found |= flat("cuda", torch.cuda.get_rng_state_all())
    return found


def state_around(model):
    "Everything that a frame must leave as it was, as a flat `{name: value}` of copies."
    found = random_states()
    for name, p in model.named_parameters():
        found |= {f"requires_grad {name}": p.requires_grad, f"value {name}": p.detach().clone()}
        found[f"grad {name}"] = None if p.grad is None else p.grad.detach().clone()
        found[f"grad object {name}"] = id(p.grad)
    for name, m in model.named_modules():
        found[f"training {name}"] = m.training
        found |= {f"{hooks} {name}": tuple(map(id, getattr(m, hooks).values())) for hooks in HOOKS}
        for key, buffer in m._buffers.items():
            found[f"buffer {name}.{key}"] = None if buffer is None else buffer.clone()
            found[f"buffer object {name}.{key}"] = id(buffer)
    found["grad mode"], found["inference mode"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    for kind in ("cpu", "cuda"):
        found[f"autocast {kind}"] = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
    found["autocast cache"] = torch.is_autocast_cache_enabled()
    cudnn = torch.backends.cudnn
    found["cudnn"] = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)
    return found


def flat(name, value):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(f"{name}.{key}", item).items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "L":
        return {k: v for i, item in enumerate(value) for k, v in flat(f"{name}.{i}", item).items()} | {
            f"{name} count": len(value)
        }
    return {name: value}


def differences(one, other):
    "Names of what is not the same to the last bit."
    return sorted(k for k in one.keys() | other.keys() if k not in one or k not in other or not same(one[k], other[k]))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


def watch(learn, fit=lambda learn: learn.fit(1, 1e-2), **settings):
    "The run of the learner after `fit` with the callback. A warning of the callback's own is an error."
    learn.add_cb(GradCAMCallback(**{"n": 4, "show": False, **settings}))
    said = heard(learn, fit)
    assert said == [], said
    return learn.grad_cam.run


def heard(learn, fit=lambda learn: learn.fit(1, 1e-2)):
    "The warnings that the callback gives while `fit` runs; all others go on to whoever waits for them."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(learn)
    ours = [w for w in said if "GradCAMCallback" in str(w.message)]
    with Quiet():
        for w in said:
            if w not in ours:
                warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return [str(w.message) for w in ours]


def places(run):
    "The fit and epoch of each frame."
    return [(f["fit"], f["epoch"]) for f in run.frames]


def statuses(run):
    return [f["status"] for f in run.frames]


def assert_whole(path, killed=False):
    """Every file of a run is readable: each complete frame has grid, maps and rows, and there is nothing else.

    `killed`: files of the frame that was being written may lie there, which the run does not name.
    """
    run = Run(path)
    complete = [f["frame"] for f in run.frames if f["status"] == "ok"]
    assert [f["frame"] for f in run.frames] == list(range(len(run.frames)))
    assert all(f["error"] for f in run.frames if f["status"] != "ok")
    for folder, kind in (("frames", "png"), ("maps", "npz")):
        names = sorted(p.name for p in (run.path / folder).iterdir())
        if killed:
            names = [name for name in names if f"frame-{len(run.frames):03d}" not in name]
        assert names == [f"frame-{k:03d}.{kind}" for k in complete]
    for k in complete:
        run.grid(k)
        assert all(len(maps) == len(run.panel) for maps in run.maps(k).values())
    rows = run.history.groupby("frame").size()
    assert sorted(rows.index) == complete
    assert not complete or set(rows) == {len(run.panel) * len(run.layers)}
    for item in range(len(run.panel)):
        run.image(item)
    return run


class Quiet(warnings.catch_warnings):
    "Warnings that torch and fastai give on a machine without a GPU, left out."

    def __enter__(self):
        log = super().__enter__()
        for words in ("CUDA is not available", ".*GradScaler.*", ".*pin_memory.*"):
            warnings.filterwarnings("ignore", message=words)
        return log


@pytest.fixture(autouse=True)
def one_thread():
    "On networks this small, threads only wait for each other."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
