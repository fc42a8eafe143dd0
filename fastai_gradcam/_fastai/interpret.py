"""`learn.show_gradcam()` beside `show_results`, and `interp.plot_top_gradcams(k)` beside `plot_top_losses`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastcore.basics import patch
from torch import Tensor, nn

from .._engine.guard import evaluating
from .._engine.layers import unwrap
from ..cam import gradcam as cams_of
from ..learner import CAM, CAMList, explained_images, resolve_layer
from ..targets import main_output
from .items import encode, for_model, item_name, picture, read
from .tasks import task_of

__all__: list[str] = []

_BOTH = object()


@patch
def show_gradcam(
    self: Learner,
    ds_idx: int = 1,
    dl: Any = None,
    max_n: int = 9,
    shuffle: bool = True,
    target: Any = None,
    layer: Any = None,
    method: Any = "gradcam",
    nrows: int | None = None,
    ncols: int | None = None,
) -> CAMList:
    """Where the model looks on up to `max_n` images of a data set, with their labels: the sister of `show_results`.

    `ds_idx`: 0 the training images, as validation sees them, 1 the validation images; or `dl`, a loader. `shuffle`: other
    images each time, drawn without touching the random number generators of the training. `target`, `layer`,
    `method`: as in `learn.gradcam`. `nrows`, `ncols`: how the pictures stand; `.show(figsize=…)` of the result draws them
    by matplotlib. Raises `ValueError` for numbers below 1, a data set that does not exist, and where there are no images.
    """
    _from_one_up(max_n=max_n, nrows=nrows, ncols=ncols)
    if dl is None:
        known = len(self.dls.loaders)
        if not isinstance(ds_idx, int) or not -known <= ds_idx < known:
            raise ValueError(f"There is no data set {ds_idx!r}: the learner's are {_listed(known)}.")
        dl = self.dls[ds_idx]
    size = len(dl.dataset)
    if not size:
        raise ValueError(f"Data set {ds_idx} has no images to show.")
    count = min(max_n, size)
    chosen = random.Random().sample(range(size), count) if shuffle else list(range(count))
    return _in_rows(_cams(self, dl, chosen, target, layer, method), nrows, ncols)


@patch
def plot_top_gradcams(
    self: ClassificationInterpretation,
    k: int = 9,
    largest: bool = True,
    layer: Any = None,
    method: Any = "gradcam",
    nrows: int | None = None,
    ncols: int | None = None,
) -> CAMList:
    """The `k` images with the largest losses, each with the map of what was predicted and of what is true.

    `largest=False` takes the smallest losses. What fastai v1 had as `plot_top_losses(heatmap=True)`. A right
    prediction has one map. `nrows`, `ncols`: as in `learn.show_gradcam`. Raises `TypeError` for a learner without one
    category per image, `ValueError` for numbers below 1.
    """
    _from_one_up(k=k, nrows=nrows, ncols=ncols)
    task = task_of(self.learn.dls, self.learn.loss_func)
    if task.kind != "category":
        raise TypeError(f"plot_top_gradcams compares two classes of an image; this learner's task is {task.kind!r}.")
    _, worst = self.top_losses(min(k, len(self.losses)), largest)
    return _in_rows(_cams(self.learn, self.dl, worst.tolist(), _BOTH, layer, method), nrows, ncols)


def _from_one_up(**numbers: Any) -> None:
    for name, number in numbers.items():
        optional = number is None and name in ("nrows", "ncols")
        if not optional and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"{name} must be a number from 1 up, got {number!r}.")


def _listed(known: int) -> str:
    return ", ".join(["0 (training)", "1 (validation)", *map(str, range(2, known))][:known])


def _in_rows(cams: CAMList, nrows: int | None, ncols: int | None) -> CAMList:
    "`cams`, in as many columns as asked for, or as so many rows make."
    columns = ncols if ncols is not None or nrows is None else -(-len(cams) // nrows)
    return cams if columns is None else CAMList(cams.cams, columns)


def _still(dls: Any, dl: Any) -> Any:
    "`dl` in order and without augmentation: the training images go through the validation transforms."
    dataset = dl.dataset
    if getattr(dataset, "split_idx", None) == 0 and hasattr(dataset, "items"):
        return dls.test_dl(dataset.items, with_labels=True, num_workers=0, shuffle=False)
    return dl.new(shuffle=False, drop_last=False, num_workers=0)


def _cams(learn: Learner, dl: Any, indices: Sequence[int], target: Any, layer: Any, method: Any) -> CAMList:
    "The `CAM`s of some of a loader's images. `target` `_BOTH`: of the predicted and of the true class."
    model, task = unwrap(learn.model), task_of(learn.dls, learn.loss_func)
    layers = None if layer is None else resolve_layer(learn, layer)
    found: list[CAM] = []
    with evaluating(model):
        # Making a loader draws random numbers.
        dl = _still(learn.dls, dl)
        items = getattr(dl.dataset, "items", None)
        for at, i in enumerate(indices):
            name = item_name(None if items is None else getattr(items, "iloc", items)[i], i)
            batch = encode(dl, read(dl, i, name), name)
            x, y = for_model(batch, model), batch[-1] if len(batch) > 1 else None
            wanted = _both(model, x, y) if target is _BOTH else task.target(target, len(indices), slice(at, at + 1))
            cams = cams_of(model, x, layer=layers, target=wanted, method=method)
            actual = None if y is None else task.label(y[0])
            words = [task.in_words(target, at, len(indices))] if callable(target) else None
            explained = explained_images(
                cams, [picture(dl, batch)], task, target is None or target is _BOTH, actual, words
            )
            found += next(explained)
    per_image = len(found) // max(1, len(indices))
    return CAMList(found, per_image if per_image * len(indices) == len(found) and per_image > 1 else None)


def _both(model: nn.Module, x: Tensor, y: Any) -> Tensor:
    with torch.no_grad():
        predicted = main_output(model(x)).argmax(1)
    return torch.stack([predicted.cpu(), y.reshape(1).cpu().as_subclass(Tensor)], 1)
