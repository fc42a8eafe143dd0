"""A panel from the data set that a trainer validates on, as its model takes it."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import GradCAMError, GradCAMTypeError
from .._net.shadow import copied
from .choose import is_stream, label_reader, name_of, spread
from .faults import warn
from .given import number_of, panel_of, task_of
from .judging import BATCH, JudgingSet
from .panel import Panel
from .tasks import Task

__all__ = ["Asked", "Source", "judging_set", "make_panel", "private", "read_by"]

_LABELS = ("labels", "label", "label_ids", "target", "targets", "y")
_IMAGES = ("pixel_values", "image", "images", "x", "inputs")
# Longer lists and dicts are data, which reading does not change.
_SHORT = 256


@dataclass
class Source:
    """The validation data, as far as a trainer knows it.

    `dataset`: its data set, `None` where it has none. `collate`: samples to a batch. `vocab`: the names of the classes
    as the model has them. `mean`, `std`: what pixels were normalised by, `None` where the trainer does not know.
    `train`: the data set that it trains on.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    vocab: Sequence[Any] | None = None
    mean: Any = None
    std: Any = None
    train: Any = None


def read_by(source: Source) -> list[Any]:
    "All that runs when the data set is read: its class, and what it keeps but the data, such as transforms."
    kept = vars(source.dataset).values() if hasattr(source.dataset, "__dict__") else ()
    return [type(source.dataset), *(value for value in kept if not _is_data(value)), source.collate]


@dataclass
class Asked:
    "The user's wishes for the panel: see `fastai_gradcam.lightning.GradCAMCallback`."

    n: int = 16
    items: Sequence[Any] | None = None
    seed: int = 12345
    masks: Sequence[Any] | None = None
    vocab: Sequence[Any] | None = None
    mean: Any = None
    std: Any = None
    inputs: Callable[[Any], tuple[Any, Any]] | None = None
    loss_func: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.items is None and (not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1):
            raise GradCAMError(f"n must be a number of images from 1 up, got {self.n!r}.")
        if self.masks is not None and self.items is None:
            raise GradCAMError("masks= needs items=: a mask for each of the images that you name there.")


def make_panel(source: Source, asked: Asked, model: nn.Module) -> tuple[Panel, Task]:
    "The panel of `source`, and what its model is asked. Raises `GradCAMError` where there are no images to watch."
    samples, names = _samples(source.dataset, asked)
    x, y = _reader(asked, model)(source.collate(samples))
    if number_of(x) != len(samples):
        raise GradCAMError(
            f"{len(samples)} samples of the validation set became a batch of {number_of(x)} images: give "
            "inputs=, a callable batch -> (x, labels)."
        )
    vocab = asked.vocab if asked.vocab is not None else source.vocab or _names(source.dataset)
    found = _normalisation(source.dataset)
    mean = next((m for m in (asked.mean, source.mean, found[0]) if m is not None), None)
    std = next((s for s in (asked.std, source.std, found[1]) if s is not None), None)
    given = {"y": y} if y is None or isinstance(y, Tensor) else {"labels": y}
    panel = panel_of(x, None, given.get("labels"), vocab, given.get("y"), asked.masks, mean, std)
    panel = replace(panel, names=names)
    return panel, task_of(panel, vocab, asked.loss_func)


def judging_set(source: Source, asked: Asked, model: nn.Module, n: int, vocab: Sequence[Any] | None) -> JudgingSet:
    """Up to `n` images of the validation set, each class as often as any other, read a batch at a time.

    Raises `GradCAMError` where there is no such set.
    """
    dataset = source.dataset
    if dataset is None or is_stream(dataset):
        raise GradCAMError("Only a trainer with a validation set, of which single images can be read, is judged.")
    chosen = spread(len(dataset), label_reader(dataset), n, asked.seed)
    # Images of one batch lend each other content, so they must not come class by class.
    random.Random(asked.seed).shuffle(chosen)
    read, names = _reader(asked, model), None if vocab is None else [str(v) for v in vocab]

    def data() -> Iterator[tuple[Any, Tensor]]:
        own = private(dataset)
        for start in range(0, len(chosen), BATCH):
            x, y = read(source.collate([own[i] for i in chosen[start : start + BATCH]]))
            if y is None:
                raise GradCAMError("Only a validation set whose labels are known is judged.")
            x = next(iter(x.values())) if isinstance(x, Mapping) and len(x) == 1 else x
            yield x, y if isinstance(y, Tensor) else torch.tensor([_index(label, names) for label in y])

    return JudgingSet(data, names)


def _index(label: Any, names: list[str] | None) -> int:
    return names.index(str(label)) if names is not None and str(label) in names else int(label)


def _reader(asked: Asked, model: nn.Module) -> Callable[[Any], tuple[Any, Any]]:
    return asked.inputs or (lambda batch: _inputs(batch, model))


def _samples(dataset: Any, asked: Asked) -> tuple[list[Any], list[str]]:
    items = None if asked.items is None else list(asked.items)
    if items is not None and not items:
        raise GradCAMError("items=[] leaves nothing to watch: give at least one image, or n= to choose for you.")
    if items is not None and not all(map(_is_index, items)):
        return items, [f"item {i}" for i in range(len(items))]
    if dataset is None:
        raise GradCAMError(
            "The trainer has no validation set to take images from: give it one, or samples as it would give with "
            "items=[(image, label), …]."
        )
    if is_stream(dataset):
        raise GradCAMTypeError(
            f"The validation data is a stream ({type(dataset).__name__}), from which no images can be chosen: give "
            "samples of it with items=[(image, label), …]."
        )
    size = len(dataset)
    if not size:
        raise GradCAMError("The validation set is empty, so there is nothing to watch: give samples with items=.")
    for i in items or ():
        if not 0 <= i < size:
            raise GradCAMError(f"items has index {i}, but the validation set has images 0 to {size - 1}.")
    if items is None:
        if asked.n > size:
            warn(f"The panel takes all {size} images of the validation set, not n={asked.n}.")
        items = spread(size, label_reader(dataset), asked.n, asked.seed)
    own = private(dataset)
    return [own[int(i)] for i in items], [name_of(dataset, int(i)) for i in items]


def private(dataset: Any) -> Any:
    "The data set with states of its own (generators, counters, transforms), so that reading it is not noticed."
    if isinstance(dataset, (list, tuple, Tensor, np.ndarray)) or not hasattr(dataset, "__dict__"):
        return dataset
    try:
        own = copy.copy(dataset)
        for name, value in vars(dataset).items():
            if isinstance(value, torch.utils.data.Dataset):
                vars(own)[name] = private(value)
            elif _is_short_list(value) and any(isinstance(v, torch.utils.data.Dataset) for v in value):
                vars(own)[name] = [private(v) for v in value]
            elif not _is_data(value):
                with suppress(Exception):  # a lock, an open file: it alone is shared
                    vars(own)[name] = copied(value)
    except Exception:
        # It cannot be copied. The random numbers of the process are kept from it all the same.
        return dataset
    return own


def _is_short_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= _SHORT


def _is_data(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return len(value) > _SHORT or any(isinstance(v, (Tensor, np.ndarray)) for v in value)
    if isinstance(value, (Tensor, np.ndarray, torch.utils.data.DataLoader)):
        return True
    return type(value).__module__.split(".")[0] in ("pyarrow", "pandas")


def _is_index(item: Any) -> bool:
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)


# --- a batch in two parts: what the model takes, and the answers


def _inputs(batch: Any, model: nn.Module) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        return _from_mapping(batch, model)
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (list, tuple)) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    if isinstance(batch, (list, tuple)):
        # Images first, then what is known of them: the label, and perhaps an index or a name.
        count = next((i for i, part in enumerate(batch) if not _is_image(part)), len(batch))
        if 0 < count < len(batch):
            return batch[0] if count == 1 else tuple(batch[:count]), batch[count]
    raise GradCAMTypeError(
        f"A batch of the validation set is a {type(batch).__name__}, of which it is not known what the model takes: "
        "give inputs=, a callable batch -> (x, labels)."
    )


def _from_mapping(batch: Mapping[str, Any], model: nn.Module) -> tuple[Any, Any]:
    y = next((batch[name] for name in _LABELS if name in batch), None)
    parameters = inspect.signature(model.forward).parameters
    taken = {k: v for k, v in batch.items() if k in parameters and k not in _LABELS and isinstance(v, Tensor)}
    if any(_is_image(v) for v in taken.values()):
        return taken, y
    images = [batch[name] for name in _IMAGES if name in batch] or [v for v in batch.values() if _is_image(v)]
    if not images:
        raise GradCAMError(
            f"A batch of the validation set has {', '.join(map(str, batch))}, and none of them is a tensor of images: "
            "give inputs=, a callable batch -> (x, labels)."
        )
    return images[0], y


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 4


# --- what data sets say of themselves


def _names(dataset: Any) -> Sequence[Any] | None:
    "The names of the classes, as the data sets of torchvision and of the datasets library have them."
    while dataset is not None:
        features = getattr(dataset, "features", None)
        if isinstance(features, Mapping):
            return next((n for k in _LABELS if (n := getattr(features.get(k), "names", None))), None)
        classes = getattr(dataset, "classes", None)
        if isinstance(classes, (list, tuple)) and classes:
            return classes
        dataset = getattr(dataset, "dataset", None)
    return None


def _normalisation(dataset: Any) -> tuple[Any, Any]:
    "Mean and standard deviation of a `Normalize` among the data set's transforms, `None` where there is none."
    while dataset is not None:
        transform = getattr(dataset, "transform", None)
        for step in getattr(transform, "transforms", [transform]):
            mean, std = getattr(step, "mean", None), getattr(step, "std", None)
            if mean is not None and std is not None:
                return mean, std
        dataset = getattr(dataset, "dataset", None)
    return None, None
