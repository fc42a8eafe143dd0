"""Which images of a data set make a panel, and what they are called."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from .._errors import spelled

__all__ = ["is_stream", "label_reader", "name_of", "spread"]

# Labels are read to spread the panel over the classes; beyond this many, a sample of the items says enough.
_MOST_LABELS_READ = 4096


def spread(size: int, label_of: Callable[[int], str], n: int, seed: int) -> list[int]:
    "`n` of `size` indices, each class as often as any other, grouped by class."
    if n >= size:
        return sorted(range(size), key=lambda i: (label_of(i), i))
    shuffled = random.Random(seed).sample(range(size), size)
    by_class = defaultdict(list)
    for i in shuffled[: max(n, _MOST_LABELS_READ)]:
        by_class[label_of(i)].append(i)
    # One round after the other takes an image of each class; which classes come in the last, shorter round is up
    # to the seed as well.
    order = random.Random(seed).sample(sorted(by_class), len(by_class))
    rounds = max(map(len, by_class.values()))
    dealt = [(label, by_class[label][k]) for k in range(rounds) for label in order if k < len(by_class[label])]
    return [i for _, i in sorted(dealt[:n])]


def is_stream(dataset: Any) -> bool:
    "Whether single images cannot be read by their number, even where a data set knows how many there are."
    readable = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return isinstance(dataset, IterableDataset) or not readable


def label_reader(dataset: Any) -> Callable[[int], str]:
    "The label of an item without its image; empty where the data set does not keep the two apart."
    inner, indices = _subset(dataset)
    if indices is not None:
        read = label_reader(inner)
        return lambda i: read(int(indices[i]))
    column = _labels(dataset)
    if column is None or len(column) != len(dataset) or (isinstance(column, Tensor) and column.ndim > 1):
        return lambda i: ""
    return lambda i: str(column[i].item() if isinstance(column[i], Tensor) else column[i])


def name_of(dataset: Any, index: int) -> str:
    "The file of an item, below the data set's folder, where it is known; else its index."
    inner, indices = _subset(dataset)
    if indices is not None:
        return name_of(inner, int(indices[index]))
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and isinstance(samples[index], tuple) and isinstance(samples[index][0], (str, Path)):
        file, root = Path(samples[index][0]), getattr(dataset, "root", None)
        return spelled(str(file.relative_to(root) if root is not None and file.is_relative_to(root) else file))
    return f"item {index}"


def _subset(dataset: Any) -> tuple[Any, Sequence[int] | None]:
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    return (inner, indices) if inner is not None and indices is not None else (dataset, None)


def _labels(dataset: Any) -> Any:
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, tuple):
        return tensors[-1]
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        # Without its transform, which would want the images.
        dataset = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        return next((dataset[name] for name in ("labels", "label") if name in columns), None)
    return next((v for name in ("targets", "labels") if hasattr(v := getattr(dataset, name, None), "__len__")), None)
