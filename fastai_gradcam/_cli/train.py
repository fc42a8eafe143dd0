"""`fastai-gradcam demo` and `train`: fine-tune a network on a folder of images with the callback."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastai.vision.all  # noqa: F401  (gives Learner its schedules, its progress bar and its export)
import torchvision
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.learner import vision_learner
from torch import nn

from .. import demo
from .._errors import GradCAMError, one_of
from .._fastai.items import opened
from .._fastai.scratch import scratch_learner
from ..callback import GradCAMCallback
from ..findings import checks_in_words, checks_of
from ..methods import resolve_method
from ..run import Run
from .folders import ImageFolder, check_writable, read_folder
from .terminal import progress, say

__all__ = ["Training", "run_demo", "run_train", "train"]

# Findings that the terminal says; the report has all.
_MOST_FOUND = 3


# --- the commands


def run_demo(options: Namespace) -> int:
    resolve_method(options.method)
    count = demo.PER_SPECIES if options.per_species is None else options.per_species
    if count < 2:
        raise GradCAMError(f"--per-species must be at least 2, one to learn from and one to validate on, got {count}.")
    # A folder for each count: training would read all images of a larger set drawn there before.
    images = options.out / ("images-shortcut" if options.shortcut else "images") / f"seed-{options.seed}-{count}-each"
    total = count * len(demo.species)
    say(options, f"drawing {total} fish in {images} …")
    with progress(total) as advance:
        demo.make_fish(images, per_species=count, seed=options.seed, shortcut=options.shortcut, advance=advance)
    return _run(options, images, options.out / "runs", demo.recipe(options.arch, _given(options)))


def run_train(options: Namespace) -> int:
    resolve_method(options.method)
    if options.export is not None:
        if options.export.is_dir():
            raise GradCAMError(f"--export is the learner's file; {str(options.export)!r} is a folder.")
        check_writable(options.export, "file", "--export")
    return _run(options, options.data, options.out or options.data / "gradcam", _given(options))


def _given(options: Namespace) -> dict[str, Any]:
    return {k: getattr(options, k) for k in ("epochs", "size", "bs", "lr", "layer") if getattr(options, k) is not None}


def _run(options: Namespace, data: Path, out: Path, settings: dict[str, Any]) -> int:
    "Train on `data` with the callback, and say where the pictures are."
    check_writable(out)
    training = Training(
        out=out,
        arch=options.arch,
        name=options.name,
        n=options.n,
        method=options.method,
        workers=options.workers,
        seed=options.seed,
        **settings,
    )
    # fastai's table and bars must not mix with the JSON that a script reads.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        learn = train(read_folder(data, options.seed), training, lambda words: say(options, words))
        export = getattr(options, "export", None)
        if export:
            export.parent.mkdir(parents=True, exist_ok=True)
            learn.export(export.resolve())
    run = learn.grad_cam.run
    print(json.dumps(_facts(run), ensure_ascii=False) if options.json else "\n".join(["", *_conclusion(run, export)]))
    return 0


def _facts(run: Run) -> dict[str, Any]:
    shares = _shares_on_object(run)
    return {
        "run": str(run.path),
        "metrics": run.frames[-1]["metrics"],
        "mask_share": shares[-1] if shares else None,
        "status": run.status,
    }


def _conclusion(run: Run, export: Path | None) -> Iterator[str]:
    "The lines that end a training: how good it is, what was found, where it is, and what to do next."
    right = run.frames[-1]["metrics"].get("accuracy")
    if right is not None:
        yield f"accuracy on the validation images: {right:.0%}"
    if shares := _shares_on_object(run):
        words = " → ".join(f"{s:.0%}" for s in shares)
        yield f"share of the attention that lies on the object, frame by frame: {words}"
    found = run.findings()["text"].tolist()
    for text in found[:_MOST_FOUND]:
        yield f"finding: {text}"
    if not found:
        yield f"no finding. {checks_in_words(checks_of(run))}"
    elif len(found) > _MOST_FOUND:
        yield f"         and {len(found) - _MOST_FOUND} more in the report"
    yield f"grids:   {run.path / 'frames'}"
    for what, file in (("report: ", "report.html"), ("course: ", "evolution.png")):
        if (run.path / file).exists():
            yield f"{what} {run.path / file}"
    if export:
        yield f"learner: {export}"
        yield f"next:    open the report in a browser, or: fastai-gradcam explain {export} IMAGE"
    else:
        yield "next:    open the report in a browser"


def _shares_on_object(run: Run) -> list[float]:
    "The panel's mean `mask_share` in each frame; empty without masks."
    shares = run.history.groupby("frame")["mask_share"].mean()
    return [] if shares.isna().all() else [float(s) for s in shares]


# --- the training


@dataclass(frozen=True)
class Training:
    """How to train and watch; runs are written below `out`.

    `scratch` holds the settings that replace others if no pretrained weights can be had. Raises `GradCAMError` for
    numbers that make no training.
    """

    out: Path
    arch: str = "resnet34"
    epochs: int = 5
    size: int = 224
    bs: int = 32
    lr: float = 2e-3
    scratch: dict[str, Any] | None = None
    augment: bool = True
    layer: int | str | None = None
    n: int = 16
    method: str = "gradcam"
    name: str | None = None
    workers: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("epochs", "size", "bs", "lr", "n"):
            number = getattr(self, name)
            if not (number > 0 and math.isfinite(number)):
                raise GradCAMError(f"{name} must be positive, got {number}.")
        if self.size < 32:
            raise GradCAMError(
                f"size must be at least 32 pixels, got {self.size}: a network leaves no cell of a smaller image."
            )
        if self.workers < 0:
            raise GradCAMError(f"workers must be 0 or more, got {self.workers}.")
        if self.name is not None and (self.out / self.name).exists():
            raise GradCAMError(f"There is a run {self.name!r} in {str(self.out)!r} already: choose another name.")


def train(folder: ImageFolder, given: Training, say: Callable[[str], None] = print) -> Learner:
    """Fine-tune `given.arch` on `folder` and watch. Returns the trained learner; its `grad_cam.run` is the run.

    With pretrained weights: `fine_tune(epochs, lr)`. Without them a line says so, and the whole network is trained
    from scratch by `fit_one_cycle`. Raises `GradCAMError` for an unknown network, and for one that `vision_learner`
    cannot cut.
    """
    network = _network(given.arch)
    with _naming_broken_images(folder.items):
        set_seed(given.seed)
        images, others = map(len, folder.splitter(folder.items))
        if not others:
            raise GradCAMError(
                f"There are no images to validate on below {str(folder.path)!r}: give a class at least two."
            )
        bs = min(given.bs, images)
        if bs < given.bs:
            # fastai drops a batch that is not full, which here is the only one.
            say(f"batches of {images}, not {given.bs}: there are no more images to train on")
        n = min(given.n, others)
        watch = GradCAMCallback(
            n=n,
            layer=given.layer,
            method=given.method,
            masks=folder.masks,
            path=given.out,
            name=given.name,
            seed=given.seed,
        )
        dls = folder.dataloaders(given.size, bs, given.workers, given.augment)
        learn, pretrained = _learner(dls, network, folder.path, watch, say)
        watched = f"{n} of the {others} validation images" if n < others else f"all {others} validation images"
        say(f"training {given.arch} on {images} images, watching {watched}")
        if pretrained:
            say("the first epoch trains only the head, with the body frozen")
            learn.fine_tune(given.epochs, given.lr, cbs=_SayWhere(say))
        else:
            scratch = {"epochs": given.epochs, "lr": given.lr, **(given.scratch or {})}
            learn.fit_one_cycle(scratch["epochs"], scratch["lr"], cbs=_SayWhere(say))
    return learn


class _SayWhere(Callback):
    "Says once where the grids appear: the run's folder has its name as soon as the frame before training is taken."

    order = GradCAMCallback.order + 1

    def __init__(self, say: Callable[[str], None]) -> None:
        self.announce: Callable[[str], None] | None = say

    def before_train(self) -> None:
        if self.announce is not None:
            self.announce(f"grids appear in {self.learn.grad_cam.run.path / 'frames'} during training")
            self.announce = None


def _network(arch: str) -> str | Callable[..., nn.Module]:
    "torchvision's builder of that name, or the name itself if timm has it."
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
    raise GradCAMError(one_of("network", arch, builders) + hint)


def _learner(
    dls: DataLoaders,
    network: str | Callable[..., nn.Module],
    path: Path,
    watch: GradCAMCallback,
    say: Callable[[str], None],
) -> tuple[Learner, bool]:
    "A learner, and whether it has pretrained weights."
    common: dict[str, Any] = {"metrics": accuracy, "path": path, "cbs": watch}
    try:
        return vision_learner(dls, network, pretrained=True, **common), True
    except Exception as error:
        # No network connection, a proxy, a model without weights: each library raises an error of its own.
        why = f"{type(error).__name__}: {_first_line(error)}"
    try:
        learn = scratch_learner(dls, network, **common)
    except (StopIteration, RuntimeError) as error:
        raise GradCAMError(
            f"vision_learner cannot cut {getattr(network, '__name__', network)} into a body and a head that run: "
            "choose another network, such as resnet34 (docs/models.md names those that it cannot cut)."
        ) from error
    say(f"no pretrained weights ({why}): training from scratch")
    return learn, False


@contextmanager
def _naming_broken_images(files: Iterable[Path]) -> Iterator[None]:
    "The loader does not say which image failed, so open them one by one and name the first bad one."
    try:
        yield
    except OSError as error:
        for file in files:
            try:
                opened(file)
            except (ValueError, FileNotFoundError) as broken:
                raise GradCAMError(str(broken)) from error
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:100]
