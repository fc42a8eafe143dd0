"""In the notebook: `learn.gradcam(img)`, `learn.show_gradcam()` and `interp.plot_top_gradcams(k)`."""

from __future__ import annotations

import random
from typing import Any

from fastai.interpret import Interpretation
from fastai.learner import Learner
from fastcore.basics import patch

from ._errors import GradCAMError
from ._fastai import check  # noqa: F401  (learn.gradcam_check)
from ._fastai.atlas import gradcam_atlas as gradcam_atlas  # patches Learner
from ._fastai.cams import CAM, CAMList
from ._fastai.explain import BOTH, Seen, explain, resolve_layer, see, see_item
from ._fastai.items import is_one_item, item_name
from ._fastai.judging import gradcam_judge as gradcam_judge  # patches Learner
from ._fastai.private import private
from ._watch.tasks import as_list
from .methods import resolve_method

__all__ = ["CAM", "CAMList", "resolve_layer"]

# How many maps of the highest losses stand side by side.
_COLUMNS = 4


@patch
def gradcam(
    self: Learner, item: Any, target: Any = None, layer: Any = None, method: Any = "gradcam", input: int = 0
) -> CAM | CAMList:
    """Where the model looks on `item`: a `CAM`, or a `CAMList` for several items, classes or layers.

    - `item`: a path, string, PIL image, uint8 array or tensor, bytes, an item as the data set gives it
      (`learn.dls.valid_ds[0]`), or a list of these; with several inputs, a tuple with one for each. Goes through the
      validation transforms, as in `learn.predict`.
    - `target`: `None` (the predicted class; of several labels, each predicted one; of a segmentation, the one with the
      largest region), a label, an index, a list for several classes, a list of lists, a tensor or an array with a row
      for each item, `contrast` or `segment` of labels, or a callable `output -> (N,)` scores. A regression has
      `"score"` and `"-score"`, of several outputs `"score 1"` and `"-score 1"`.
    - `layer`: `None` (the last with space), an int `i` (`learn.model[0][i]`; a body with one child alone stands for
      that child), `"all"` (each of these, at least four), a dotted name, a module, or a list of these.
    - `method`: a name in `fastai_gradcam.methods.methods`, or a callable `(activations, gradients) -> maps`.
    - `input`: of a learner with several inputs, the one that is shown and explained; 0 is the first image.

    Raises `GradCAMError` (a `ValueError`; for a wrong type also a `TypeError`, for a missing file also a
    `FileNotFoundError`), naming what was given and what would do, for an item that is not an image, a label or index
    outside of the vocabulary, or a layer that does not exist or has no space.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> cam = learn.gradcam(dls.valid_ds.items[0], target="Trout")
    >>> cam.label, tuple(cam.map.shape), cam.pred in dls.vocab
    ('Trout', (2, 2), True)
    >>> len(learn.gradcam(dls.valid_ds.items[:2], target=["Trout", "Shrimp"]))  # two images, two classes
    4
    """
    one = is_one_item(self.dls, item)
    items = [item] if one else as_list(item) or []
    if not items:
        raise GradCAMError("There is no image in []: give at least one.")
    resolve_method(method)

    def seen() -> list[Seen]:
        return [see_item(self, it, i, input) for i, it in enumerate(items)]

    per_item = explain(self, seen, len(items), target, layer, method, input)
    found = [cam for cams in per_item for cam in cams]
    asked_for_one = one and all(as_list(given) is None for given in (target, layer))
    if len(found) == 1 and asked_for_one and not (isinstance(layer, str) and layer == "all"):
        return found[0]
    counts = {len(cams) for cams in per_item}
    side_by_side = max(counts) > 1 and len(counts) == 1 and not (len(items) == 1 and max(counts) > 5)
    return CAMList(found, max(counts) if side_by_side else None)


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

    `ds_idx`: 0 the training images, as validation sees them, 1 the validation images; or `dl`, a loader. `shuffle`:
    other images each time, drawn without touching the random number generators of the training. `target`, `layer`,
    `method`: as in `learn.gradcam`. `nrows`, `ncols`: how the pictures stand; `.show(figsize=…)` of the result draws
    them by matplotlib. Raises `GradCAMError` for numbers below 1, a data set that does not exist, and where there are
    no images.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> cams = learn.show_gradcam(max_n=3, shuffle=False)
    >>> len(cams), cams[0].image.size
    (3, (64, 64))
    """
    _from_one_up(max_n=max_n, nrows=nrows, ncols=ncols)
    if dl is None:
        known = len(self.dls.loaders)
        if not isinstance(ds_idx, int) or not -known <= ds_idx < known:
            raise GradCAMError(f"There is no data set {ds_idx!r}: the learner's are {_listed(known)}.")
        dl = self.dls[ds_idx]
    size = len(dl.dataset)
    if not size:
        raise GradCAMError(f"Data set {ds_idx} has no images to show.")
    count = min(max_n, size)
    chosen = random.Random().sample(range(size), count) if shuffle else list(range(count))
    per_item = explain(self, lambda: _seen(self, dl, chosen), count, target, layer, method)
    return _in_rows(per_item, nrows, ncols)


@patch
def plot_top_gradcams(
    self: Interpretation,
    k: int = 9,
    largest: bool = True,
    layer: Any = None,
    method: Any = "gradcam",
    nrows: int | None = None,
    ncols: int | None = None,
) -> CAMList:
    """The `k` images with the largest losses, each with the map of what was predicted and of what is true.

    `largest=False` takes the smallest losses. fastai v1 had this as `plot_top_losses(heatmap=True)`. A right
    prediction has one map; of several labels, each that was predicted or is true has one, and a regression has that of
    its score. Below each stands its label with its loss. `nrows`, `ncols`: as in `learn.show_gradcam`; by default four
    stand side by side. Raises `GradCAMError` for numbers below 1.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> from fastai.interpret import ClassificationInterpretation
    >>> with learn.no_bar():
    ...     interp = ClassificationInterpretation.from_learner(learn)
    >>> cams = interp.plot_top_gradcams(2)
    >>> len(cams) in (2, 3, 4)  # one map for a right prediction, two for a wrong one
    True
    """
    _from_one_up(k=k, nrows=nrows, ncols=ncols)
    losses, worst = (found.tolist() for found in self.top_losses(min(k, len(self.losses)), largest)[:2])
    learn = self.learn
    per_item = explain(learn, lambda: _seen(learn, self.dl, worst), len(worst), BOTH, layer, method)
    for cams, loss in zip(per_item, losses, strict=True):
        for cam in cams:
            cam.loss = loss
    return _in_rows(per_item, nrows, ncols or (None if nrows else _COLUMNS), tile=176)


def _from_one_up(**numbers: Any) -> None:
    for name, number in numbers.items():
        optional = number is None and name in ("nrows", "ncols")
        if not optional and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise GradCAMError(f"{name} must be a number from 1 up, got {number!r}.")


def _listed(known: int) -> str:
    return ", ".join(["0 (training)", "1 (validation)", *map(str, range(2, known))][:known])


def _seen(learn: Learner, dl: Any, indices: list[int]) -> list[Seen]:
    "Some of a loader's images, in order and without augmentation: those of training as validation sees them."
    dataset = dl.dataset
    if getattr(dataset, "split_idx", None) == 0 and hasattr(dataset, "items"):
        dl = learn.dls.test_dl(dataset.items, with_labels=True, num_workers=0, shuffle=False)
    else:
        dl = dl.new(shuffle=False, drop_last=False, num_workers=0)
    items = getattr(dl.dataset, "items", None)
    names = [item_name(None if items is None else getattr(items, "iloc", items)[i], i) for i in indices]
    dl = private(dl)
    return [see(learn, dl, i, name) for i, name in zip(indices, names, strict=True)]


def _in_rows(per_item: list[list[CAM]], nrows: int | None, ncols: int | None, tile: int = 208) -> CAMList:
    "The `CAM`s in as many columns or rows as asked for; else those of one image side by side."
    found = [cam for cams in per_item for cam in cams]
    if ncols is None and nrows is not None:
        ncols = -(-len(found) // nrows)
    counts = {len(cams) for cams in per_item}
    side_by_side = max(counts) if len(counts) == 1 and max(counts) > 1 else None
    return CAMList(found, ncols if ncols is not None else side_by_side, tile)
