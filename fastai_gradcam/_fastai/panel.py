"""The fixed validation panel: the same images before training and after every epoch, decoded once."""

from __future__ import annotations

import random
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from PIL import Image
from torch import Tensor

from .items import encode, item_name, picture, read
from .masks import Masks, finder, mask_of, warn_of_shared, warn_of_unseen
from .tasks import task_of

__all__ = ["Panel", "build_panel"]

# Labels are read to spread the panel over the classes; beyond this many, a sample of the items says enough.
_MOST_LABELS_READ = 4096


@dataclass
class Panel:
    """Images to watch: `x` `(n, C, H, W)` on the CPU as the model takes it, `y` the targets `(n, …)` or `None`.

    `names`, `labels` (`None` where unknown) and `images` (RGB, what the model sees) have one entry per image,
    `masks` a boolean `(H, W)` array or `None` for each.
    """

    x: Tensor
    y: Tensor | None
    names: list[str]
    labels: list[str | None]
    images: list[Image.Image]
    masks: list[np.ndarray | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.x)


def build_panel(
    learn: Learner, n: int = 16, items: Sequence | None = None, seed: int = 12345, masks: Masks = None
) -> Panel:
    """The panel of `learn`: `items`, or `n` images of the validation set, spread over the classes by `seed`.

    `items`: indices into the validation set, or items as its data source has them (paths, rows). Raises
    `ValueError` for an empty panel, and for an image that cannot be read, with its name. A panel larger than the
    validation set takes all of it, with a warning.
    """
    dls = _of_one_process(learn.dls)
    valid = getattr(dls, "valid_ds", None)
    if items is not None:
        items = _listed(items, getattr(valid, "items", None), getattr(dls, "path", None))
        if not items:
            raise ValueError("items=[] leaves nothing to watch: give at least one image, or n= to choose for you.")
    if items is not None and not all(map(_is_index, items)):
        for i, item in enumerate(items):
            if item is None or isinstance(item, (bool, float)) or _is_index(item):
                raise TypeError(
                    f"items must be indices into the validation set, or items as the data source has them (paths, rows), "
                    f"all of one kind; items[{i}] is {item!r}."
                )
        dl, sources, indices = _loader_of(dls, items), items, list(range(len(items)))
    else:
        size = len(valid) if valid is not None else 0
        if not size:
            raise ValueError(
                "The validation set is empty, so there is nothing to watch: give the DataLoaders a validation split, or "
                "images with items=."
            )
        if not isinstance(dls.valid, DataLoader):
            raise TypeError(
                f"The validation data comes from a {type(dls.valid).__module__}.{type(dls.valid).__qualname__}; the panel "
                "needs a fastai DataLoader, such as DataLoaders.from_dsets(train, valid) makes."
            )
        dl = dls.valid.new(shuffle=False, drop_last=False, num_workers=0)
        indices = _checked(items, size) if items is not None else _spread(learn, n, seed)
        all_items = getattr(valid, "items", None)
        sources = [_at(all_items, i) for i in indices]
    root = getattr(dls, "path", None)
    names = [item_name(item, i, root) for item, i in zip(sources, indices, strict=True)]
    find, batches, found = finder(masks, None if items is None else len(items)), [], []
    unseen: list[str] = []
    for item, index, name in zip(sources, indices, names, strict=True):
        sample = read(dl, index, name)
        batches.append(encode(dl, sample, name))
        x = batches[-1][0] if isinstance(batches[-1], (tuple, list)) else batches[-1]
        found.append(None if find is None else mask_of(find, item, name, sample, dl, x.shape[-2:], unseen))
    if find is not None and all(mask is None for mask in found):
        raise ValueError(f"masks has no mask for any image of the panel, such as {names[0]!r}.")
    warn_of_shared(find)
    warn_of_unseen(unseen)
    inputs = [b[0] if isinstance(b, (tuple, list)) else b for b in batches]
    shapes = {tuple(x.shape[1:]) for x in inputs}
    if len(shapes) > 1:
        raise ValueError(
            f"The panel's images have different sizes ({', '.join(map(str, sorted(shapes)))}): give the data block an item "
            "transform that makes them one size, such as Resize."
        )
    x = torch.cat([x.detach().cpu().as_subclass(Tensor) for x in inputs])
    y = _targets(batches)
    return Panel(x, y, names, _labels(learn, y, len(x)), [picture(dl, b) for b in batches], found)


def _of_one_process(dls: DataLoaders) -> DataLoaders:
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
    if known is None or not len(known) or not isinstance(_at(known, 0), Path):
        return items
    return [_file(i, root) if isinstance(i, (str, Path)) else i for i in items]


def _file(item: str | Path, root: Path | None) -> Path:
    "A run names its images relative to `root`; the same names choose them again."
    return Path(root, item) if root is not None and not Path(item).exists() else Path(item)


def _is_index(item: Any) -> bool:
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)


def _loader_of(dls: DataLoaders, items: Sequence[Any]) -> DataLoader:
    "A loader of `items` with their labels, or without, and with a warning, where one of them has none that is known."
    try:
        dl = dls.test_dl(items, with_labels=True, num_workers=0, shuffle=False)
        for labels in getattr(dl.dataset, "tls", [])[dl.n_inp :]:
            for i in range(len(items)):
                labels[i]
        return dl
    except Exception as error:
        reason = " ".join(str(error).split())
        warnings.warn(
            f"The labels of items= could not be read ({type(error).__name__}: {reason}); the panel goes without. "
            "target='true' needs labels: give items as the data source has them, or indices into the validation set.",
            stacklevel=2,
        )
        return dls.test_dl(items, num_workers=0, shuffle=False)


def _checked(indices: Sequence[int], size: int) -> list[int]:
    for i in indices:
        if not 0 <= i < size:
            raise ValueError(f"items has index {i}, but the validation set has images 0 to {size - 1}.")
    return [int(i) for i in indices]


def _at(items: Any, index: int) -> Any:
    if items is None:
        return None
    return items.iloc[index] if hasattr(items, "iloc") else items[index]


def _spread(learn: Learner, n: int, seed: int) -> list[int]:
    "`n` indices into the validation set, each class as often as any other, grouped by class."
    valid = learn.dls.valid_ds
    if n >= len(valid):
        if n > len(valid):
            warnings.warn(f"The panel takes all {len(valid)} images of the validation set, not n={n}.", stacklevel=2)
        label_of = _labels_to_spread_over(valid, 0)
        return sorted(range(len(valid)), key=lambda i: (label_of(i), i))
    shuffled = random.Random(seed).sample(range(len(valid)), len(valid))
    by_class, label_of = defaultdict(list), _labels_to_spread_over(valid, shuffled[0])
    for i in shuffled[: max(n, _MOST_LABELS_READ)]:
        by_class[label_of(i)].append(i)
    # One round after the other takes an image of each class; which classes come in the last, shorter round is up
    # to the seed as well.
    order = random.Random(seed).sample(sorted(by_class), len(by_class))
    rounds = max(map(len, by_class.values()))
    dealt = [(label, by_class[label][k]) for k in range(rounds) for label in order if k < len(by_class[label])]
    return [i for _, i in sorted(dealt[:n])]


def _labels_to_spread_over(dataset: Any, first: int) -> Callable[[int], str]:
    """The label of an item without decoding its image, empty where the data set does not keep the two apart.

    Masks are opened from files, and no two are alike: where the label of item `first` is one, all are empty.
    """
    lists = getattr(dataset, "tls", None)
    if lists is None or len(lists) < 2:
        return lambda index: ""

    def label_of(index: int) -> Any:
        try:
            return lists[-1][index]
        except Exception:
            return ""

    return (lambda index: "") if isinstance(label_of(first), Image.Image) else lambda index: str(label_of(index))


def _targets(batches: Sequence[Any]) -> Tensor | None:
    ys = [b[-1] for b in batches if isinstance(b, (tuple, list)) and len(b) > 1]
    if len(ys) != len(batches) or not all(isinstance(y, Tensor) for y in ys):
        return None
    if len({tuple(y.shape) for y in ys}) > 1:
        return None
    return torch.cat([y.detach().cpu().as_subclass(Tensor) for y in ys])


def _labels(learn: Learner, y: Tensor | None, n: int) -> list[str | None]:
    if y is None:
        return [None] * n
    task = task_of(_of_one_process(learn.dls), learn.loss_func)
    return [task.label(one) for one in y]
