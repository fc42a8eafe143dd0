"""The fixed validation panel of a learner: which images, and what is known of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from PIL import Image
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError, reason_of
from .._watch.choose import is_stream, spread
from .._watch.faults import warn
from .._watch.nested import joined, mapped, tensors
from .._watch.panel import Panel
from .explain import Seen, image_at, see
from .items import as_item, item_name
from .masks import Masks, finder, mask_of, warn_of_shared, warn_of_unseen
from .private import private
from .tasks import task_of

__all__ = ["build_panel", "chosen_of", "item_at", "of_one_process", "refuse_own_pictures"]


@dataclass
class _Chosen:
    "The images of a panel: a loader, their indices in it, what each is in the data's own terms, and its name."

    dl: DataLoader
    indices: list[int]
    sources: list[Any]
    names: list[str]


def build_panel(
    learn: Learner,
    n: int = 16,
    items: Sequence | None = None,
    seed: int = 12345,
    masks: Masks = None,
    need_labels: bool = True,
) -> Panel:
    """The panel of `learn`: `items`, or `n` images of the validation set, spread over the classes by `seed`.

    `items`: indices into the validation set, or items as its data source has them (paths, rows). Raises `GradCAMError`
    for an empty panel, and for an image that cannot be read, with its name. A panel larger than the validation set
    takes all of it, with a warning; so does one whose labels cannot be read, if it needs them (`need_labels`).
    """
    _refuse_what_is_no_image(learn.dls)
    dls = of_one_process(learn.dls)
    chosen = _choose(dls, n, items, seed, need_labels)
    find = finder(masks, None if items is None else len(chosen.names))
    seen: list[Seen] = []
    found: list[np.ndarray | None] = []
    unseen: list[str] = []
    at = 0
    dl = private(chosen.dl)
    for index, source, name in zip(chosen.indices, chosen.sources, chosen.names, strict=True):
        one = see(learn, dl, index, name)
        at = image_at(one.x)
        size = one.image.size[::-1]
        found.append(None if find is None else mask_of(find, source, name, one.sample, dl, size, unseen))
        seen.append(one)
    if find is not None and all(mask is None for mask in found):
        raise GradCAMError(f"masks has no mask for any image of the panel, such as {chosen.names[0]!r}.")
    warn_of_shared(find)
    warn_of_unseen(unseen)
    y = _targets(seen)
    sources = [i if s is None else s for s, i in zip(chosen.sources, chosen.indices, strict=True)]
    return Panel(
        _inputs(seen), y, chosen.names, _labels(learn, y, len(seen)), [s.image for s in seen], found, at, sources
    )


def chosen_of(learn: Learner, n: int, seed: int, dl: DataLoader | None = None) -> _Chosen:
    "`n` images of the loader `dl` (default: the validation set's), spread over the classes by `seed`."
    dls = learn.dls if dl is None else DataLoaders(dl, dl, path=learn.dls.path)
    return _choose(of_one_process(dls), n, None, seed, True)


def _choose(dls: DataLoaders, n: int, items: Any, seed: int, need_labels: bool) -> _Chosen:
    "`items`, or `n` images of the validation set."
    valid, root = getattr(dls, "valid_ds", None), getattr(dls, "path", None)
    if items is not None:
        items = _listed(items, getattr(valid, "items", None), root)
        if not items:
            raise GradCAMError("items=[] leaves nothing to watch: give at least one image, or n= to choose for you.")
        if not all(map(_is_index, items)):
            _check_kinds(items)
            names = [item_name(item, i, root) for i, item in enumerate(items)]
            return _Chosen(_loader_of(dls, items, need_labels), list(range(len(items))), items, names)
    if valid is not None and is_stream(valid):
        raise GradCAMTypeError(
            f"The validation data is a stream ({type(valid).__name__}), from which no images can be chosen: give the "
            "DataLoaders a validation set with a length and an order."
        )
    size = len(valid) if valid is not None else 0
    if not size:
        raise GradCAMError(
            "The validation set is empty, so there is nothing to watch: give the DataLoaders a validation split, or "
            "images with items=."
        )
    if not isinstance(dls.valid, DataLoader):
        raise GradCAMTypeError(
            f"The validation data comes from a {type(dls.valid).__module__}.{type(dls.valid).__qualname__}; the panel "
            "needs a fastai DataLoader, such as DataLoaders.from_dsets(train, valid) makes."
        )
    dl = dls.valid.new(shuffle=False, drop_last=False, num_workers=0)
    indices = _checked(items, size) if items is not None else _spread(valid, n, seed)
    sources = [item_at(getattr(valid, "items", None), i) for i in indices]
    return _Chosen(dl, indices, sources, [item_name(s, i, root) for s, i in zip(sources, indices, strict=True)])


def _check_kinds(items: Sequence[Any]) -> None:
    for i, item in enumerate(items):
        if item is None or isinstance(item, (bool, float)) or _is_index(item):
            raise GradCAMTypeError(
                "items must be indices into the validation set, or items as the data source has them (paths, rows), "
                f"all of one kind; items[{i}] is {item!r}."
            )


def _inputs(seen: Sequence[Seen]) -> Any:
    shapes = {tuple(tuple(t.shape[1:]) for t in tensors(s.x)) for s in seen}
    if len(shapes) > 1:
        sizes = ", ".join(" and ".join(map(str, shape)) for shape in sorted(shapes))
        raise GradCAMError(
            f"The panel's images have different sizes ({sizes}): give the data block an item transform that makes them "
            "one size, such as Resize."
        )
    x = joined([mapped(lambda t: t.detach().cpu().as_subclass(Tensor), s.x) for s in seen])
    return x[0] if len(x) == 1 and isinstance(x[0], Tensor) else x


def _refuse_what_is_no_image(dls: Any) -> None:
    "Tables and texts fail somewhere in their own transforms, with words that say nothing of images."
    # By name: importing fastai's tables and texts takes seconds.
    kinds = {c.__name__ for c in type(getattr(dls, "valid", None)).__mro__}
    found = kinds & {"TabDataLoader", "LMDataLoader", "SortedDL"}
    if found:
        raise GradCAMTypeError(
            f"This learner's data ({found.pop()}) is a table or a text: Grad-CAM shows where a model looks on an "
            "image, and there is none."
        )


def of_one_process(dls: DataLoaders) -> DataLoaders:
    "`dls` without fastai's wrapping for distributed training, which deals items to processes and makes no new loaders."
    loaders = getattr(dls, "loaders", [])
    # It needs accelerate, which fastai does not; without it imported no loader is one of its kind.
    distributed = sys.modules.get("fastai.distributed")
    kind = getattr(distributed, "DistributedDL", ())
    if not any(isinstance(dl, kind) for dl in loaders):
        return dls
    return DataLoaders(*(dl.dl if isinstance(dl, kind) else dl for dl in loaders), path=dls.path)


def _listed(items: Any, known: Any, root: Path | None) -> list:
    "`items` as a list; text that names a file as a path where the data's own (`known`) are paths, also below `root`."
    if isinstance(items, (str, Path)):
        items = [items]
    if hasattr(items, "iloc") and hasattr(items, "columns"):
        return [items.iloc[i] for i in range(len(items))]
    items = items.tolist() if isinstance(items, (Tensor, np.ndarray)) else list(items)
    if known is None or not len(known) or not isinstance(item_at(known, 0), Path):
        return items
    return [_file(i, root) if isinstance(i, (str, Path)) else i for i in items]


def _file(item: str | Path, root: Path | None) -> Path:
    "A run names its images relative to `root`; the same names choose them again."
    return Path(root, item) if root is not None and not Path(item).exists() else Path(item)


def _is_index(item: Any) -> bool:
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)


def _loader_of(dls: DataLoaders, items: Sequence[Any], need_labels: bool) -> DataLoader:
    "A loader of `items` with their labels, or without, and with a warning, where one of them has none that is known."
    try:
        dl = dls.test_dl(items, with_labels=True, num_workers=0, shuffle=False)
        for labels in getattr(dl.dataset, "tls", [])[dl.n_inp :]:
            for i in range(len(items)):
                labels[i]
        return dl
    except Exception as error:
        if need_labels:
            warn(
                f"The labels of items= could not be read ({reason_of(error)}); the panel goes without. target='true' "
                "needs labels: give items as the data source has them, or indices into the validation set."
            )
        return dls.test_dl([as_item(i) for i in items], num_workers=0, shuffle=False)


def _checked(indices: Sequence[int], size: int) -> list[int]:
    for i in indices:
        if not 0 <= i < size:
            raise GradCAMError(f"items has index {i}, but the validation set has images 0 to {size - 1}.")
    return [int(i) for i in indices]


def item_at(items: Any, index: int) -> Any:
    if items is None:
        return None
    return items.iloc[index] if hasattr(items, "iloc") else items[index]


def _spread(valid: Any, n: int, seed: int) -> list[int]:
    "`n` indices into the data set `valid`, each class as often as any other, grouped by class."
    if n > len(valid):
        warn(f"The panel takes all {len(valid)} images of the validation set, not n={n}.")
    return spread(len(valid), _labels_to_spread_over(valid), n, seed)


def _labels_to_spread_over(dataset: Any) -> Callable[[int], str]:
    """The label of an item without decoding its image, empty where the data set does not keep the two apart.

    Masks are opened from files, and no two are alike: where the first label is one, all are empty.
    """
    lists = getattr(dataset, "tls", None)
    if lists is None or len(lists) < 2:
        return lambda index: ""

    def label_of(index: int) -> Any:
        try:
            return lists[-1][index]
        except Exception:
            return ""

    return (lambda index: "") if isinstance(label_of(0), Image.Image) else lambda index: str(label_of(index))


def _targets(seen: Sequence[Seen]) -> tuple[Tensor, ...]:
    "Each target of all images; none where one is not a tensor, or they differ in shape."
    each = [s.y for s in seen]
    if not all(isinstance(y, Tensor) for ys in each for y in ys):
        return ()
    if len({tuple(tuple(y.shape) for y in ys) for ys in each}) > 1:
        return ()
    return joined([tuple(y.detach().cpu().as_subclass(Tensor) for y in ys) for ys in each])


def _labels(learn: Learner, y: tuple[Tensor, ...], n: int) -> list[str | None]:
    if not y:
        return [None] * n
    task = task_of(of_one_process(learn.dls), learn.loss_func)
    codes = task.heads[0].vocab
    if y[0].ndim > 2 and codes and len(codes) == 2 and set(y[0].unique().tolist()) == {0, 255}:
        warn(
            "The masks of the panel hold the values 0 and 255, and the data has 2 codes, 0 and 1: 255 is none of them. "
            "Divide the masks by 255 where they are opened."
        )
    return [task.label([t[i] for t in y]) for i in range(n)]


def refuse_own_pictures(learn: Learner) -> None:
    "A run saved among the images is read as more of them by the next `get_image_files`."
    for dataset in (getattr(learn.dls, "train_ds", None), getattr(learn.dls, "valid_ds", None)):
        items = getattr(dataset, "items", None)
        folders = {i.parent for i in (() if items is None or hasattr(items, "iloc") else items) if isinstance(i, Path)}
        for folder in folders:
            if (folder.parent / "run.json").exists() and folder.name in ("panel", "frames"):
                raise GradCAMError(
                    f"The learner's data holds pictures that a run of this callback saved: {str(folder)!r} is read as "
                    "a class. Move the runs out of the images' folder, and give the callback path= elsewhere."
                )
