"""What `fastai-gradcam demo` and `train` do: fine-tune a network on a folder of images with the callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastai.vision.all  # noqa: F401  (gives Learner its schedules, its progress bar and its export)
import torch
import torchvision
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.core import imagenet_stats
from fastai.vision.learner import vision_learner
from torch import nn

from .._errors import one_of
from .._fastai.items import opened
from ..callback import GradCAMCallback
from .folders import ImageFolder

__all__ = ["scratch_learner", "train"]


def train(
    folder: ImageFolder,
    *,
    arch: str = "resnet34",
    epochs: int = 5,
    size: int = 224,
    bs: int = 32,
    lr: float = 2e-3,
    scratch: dict[str, Any] | None = None,
    augment: bool = True,
    layer: int | str | None = None,
    n: int = 16,
    method: str = "gradcam",
    out: Path,
    name: str | None = None,
    num_workers: int = 0,
    seed: int = 42,
    say: Callable[[str], None] = print,
) -> Learner:
    """Fine-tune `arch` on `folder` and watch; the trained learner, whose `grad_cam.run` is the run below `out`.

    With pretrained weights: `fine_tune(epochs, lr)`. Where they cannot be had, that is said in a line, and the
    whole network is trained from the start by `fit_one_cycle`, with what `scratch` has instead of the other
    settings. Raises `ValueError` for an unknown network, one that `vision_learner` cannot cut, and numbers that make
    no training.
    """
    for what, number in (("epochs", epochs), ("size", size), ("bs", bs), ("lr", lr), ("n", n)):
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{what} must be positive, got {number}.")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}: a network leaves no cell of a smaller image.")
    if num_workers < 0:
        raise ValueError(f"workers must be 0 or more, got {num_workers}.")
    network = _network(arch)
    if name is not None and Path(out, name).exists():
        raise ValueError(f"There is a run {name!r} in {str(out)!r} already: choose another name.")
    with _naming_broken_images(folder.items):
        set_seed(seed)
        images, others = map(len, folder.splitter(folder.items))
        if not others:
            raise ValueError(
                f"There are no images to validate on below {str(folder.path)!r}: give a class at least two."
            )
        if bs > images:
            # fastai leaves out what does not fill a batch, here all there is.
            say(f"batches of {images}, not {bs}: there are no more images to train on")
            bs = images
        dls = folder.dataloaders(size, bs, num_workers, augment)
        watch = GradCAMCallback(
            n=min(n, others), layer=layer, method=method, masks=folder.masks, path=out, name=name, seed=seed
        )
        learn, pretrained = _learner(dls, network, folder.path, watch, say)
        settings = {"epochs": epochs, "lr": lr} if pretrained else {"epochs": epochs, "lr": lr, **(scratch or {})}
        watched = f"{n} of {others} others" if n < others else f"all {others} others"
        say(f"training {arch} on {images} images, watching {watched}")
        say(f"grids appear in {Path(out, name or '<time>')}/frames while it learns")
        if pretrained:
            learn.fine_tune(settings["epochs"], settings["lr"])
        else:
            learn.fit_one_cycle(settings["epochs"], settings["lr"])
    return learn


def _network(arch: str) -> str | Callable[..., nn.Module]:
    "torchvision's builder of that name, or the name itself where timm has it."
    builders = [n for n in torchvision.models.list_models() if callable(getattr(torchvision.models, n, None))]
    if arch in builders:
        return getattr(torchvision.models, arch)
    try:
        import timm
    except ImportError:
        hint = " timm's networks need `pip install timm`."
    else:
        if timm.is_model(arch):
            return arch
        hint = ""
    raise ValueError(one_of("network", arch, builders) + hint)


def _learner(
    dls: DataLoaders,
    network: str | Callable[..., nn.Module],
    path: Path,
    watch: GradCAMCallback,
    say: Callable[[str], None],
) -> tuple[Learner, bool]:
    common: dict[str, Any] = {"metrics": accuracy, "path": path, "cbs": watch}
    try:
        return vision_learner(dls, network, pretrained=True, **common), True
    except Exception as error:
        # No network, a proxy, a model without weights: each library has an error of its own for it.
        why = f"{type(error).__name__}: {_first_line(error)}"
    try:
        learn = scratch_learner(dls, network, **common)
    except (StopIteration, RuntimeError) as error:
        raise ValueError(
            f"vision_learner cannot cut {getattr(network, '__name__', network)} into a body and a head that run: choose "
            "another network, such as resnet34 (docs/models.md names those that it cannot cut)."
        ) from error
    say(f"no pretrained weights ({why}): training from scratch")
    return learn, False


def scratch_learner(dls: DataLoaders, arch: str | Callable[..., nn.Module], **kwargs: Any) -> Learner:
    """A `vision_learner` without pretrained weights, set up to learn from few pictures in few steps.

    Every residual block begins as the identity (Goyal et al. 2017, section 5.1), so that a deep network learns at
    first like a shallow one; the head is one linear layer without dropout; inputs are normalised; nothing is frozen.
    `kwargs` go to `vision_learner`.
    """
    # `vision_learner` itself normalises for pretrained weights only.
    if not any(isinstance(tfm, Normalize) for tfm in dls.after_batch.fs):
        dls.add_tfms([Normalize.from_stats(*imagenet_stats)], "after_batch")
    learn = vision_learner(dls, arch, pretrained=False, **{"lin_ftrs": [], "ps": 0.0, "init": None, **kwargs})
    for module in learn.model.modules():
        last = getattr(module, "bn3", getattr(module, "bn2", None)) if hasattr(module, "downsample") else None
        if last is not None:
            torch.nn.init.zeros_(last.weight)
    # Measured a fifth faster on CPUs at this size.
    learn.model.to(memory_format=torch.channels_last)
    learn.unfreeze()
    return learn


@contextmanager
def _naming_broken_images(files: Iterable[Path]) -> Iterator[None]:
    "Which of thousands of images it was that broke off, the loader does not say: the first such is looked for."
    try:
        yield
    except OSError as error:
        for file in files:
            try:
                opened(file)
            except (ValueError, FileNotFoundError) as broken:
                raise ValueError(str(broken)) from error
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:100]
