"""A folder of images as `DataLoaders`: a folder per class, with or without splits, or the layout of the fish set."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import get_image_files, parent_label
from fastai.vision.augment import Flip, Resize, aug_transforms
from fastai.vision.data import ImageBlock

from .._errors import GradCAMError
from .._fish.layout import fish_mask

__all__ = ["ImageFolder", "check_writable", "read_folder"]

_TRAIN, _VALID = ("train", "training"), ("valid", "val", "validation", "test")

# Indices of the training images, and of those for validation.
Split = tuple[list[int], list[int]]


@dataclass
class ImageFolder:
    """A folder's images: `items`, the `splitter` into training and validation, and `masks` (`None` without any).

    `held_out`: the images of the validation folder, or all of them if there is none.
    """

    path: Path
    items: list[Path]
    splitter: Callable[[Sequence[Path]], Split]
    held_out: list[Path]
    masks: Callable[[Path], Path | None] | None = None

    def dataloaders(self, size: int, bs: int, num_workers: int = 0, augment: bool = True) -> DataLoaders:
        """`DataLoaders` of images of `size` × `size` pixels.

        With `augment`, images are cropped, and in training rotated, zoomed, relit and flipped. Without it they are
        squeezed, so that their edges are kept, and in training only flipped.
        """
        block = DataBlock(
            blocks=(ImageBlock, CategoryBlock),
            get_items=lambda _: self.items,
            get_y=parent_label,
            splitter=self.splitter,
            item_tfms=Resize(size, "crop" if augment else "squish"),
            batch_tfms=aug_transforms() if augment else [Flip()],
        )
        return block.dataloaders(self.path, bs=bs, num_workers=num_workers)


def read_folder(path: str | Path, seed: int = 42) -> ImageFolder:
    """The images below `path`, each labelled by the folder that it lies in.

    Knows `train`/`valid` folders (also `val`, `validation`, `test`); a plain tree of one folder per class, of which a
    fifth, chosen by `seed`, is for validation; and the layout of Kaggle's fish set, whose `<Species> GT` folders are
    masks and never classes. Raises `GradCAMError` if there is no such folder, no image, or only one class.
    """
    path = Path(path)
    if not path.is_dir():
        raise GradCAMError(f"There is no folder {str(path)!r}.")
    runs = {file.parent for file in path.rglob("run.json")}
    # A run may have been saved below the images; its pictures are not training data.
    files = sorted(f for f in get_image_files(path) if runs.isdisjoint(f.parents))
    names = {f.parent for f in files}
    # A folder "<Name> GT" beside a folder "<Name>" holds its masks.
    masks = {p for p in names if p.name.endswith(" GT") and p.with_name(p.name[:-3]) in names}
    items = [f for f in files if f.parent not in masks]
    # In Kaggle's set images lie in <Species>/<Species>; files directly in the outer folder are samples of the same
    # fish.
    doubled = [f for f in items if f.parent.name == f.parent.parent.name and f.parent.parent != path]
    items = doubled if masks and doubled else items
    classes = sorted({parent_label(f) for f in items})
    if not items:
        raise GradCAMError(f"There are no images below {str(path)!r}: expected a folder of images per class.")
    if len(classes) < 2:
        raise GradCAMError(
            f"All images below {str(path)!r} are of one class, {classes[0]!r}: expected a folder of images per class."
        )
    top = {f.relative_to(path).parts[0].lower(): f.relative_to(path).parts[0] for f in items}
    train = next((top[t] for t in _TRAIN if t in top), None)
    valid = next((top[v] for v in _VALID if v in top), None)
    if train and valid:
        items = [f for f in items if f.relative_to(path).parts[0] in (train, valid)]
        splitter = _by_first_folder(path, train, valid)
        held_out = [items[i] for i in splitter(items)[1]]
    else:
        splitter, held_out = _a_fifth_of_each(seed), items
    return ImageFolder(path, items, splitter, held_out, fish_mask if masks else None)


def _by_first_folder(path: Path, train: str, valid: str) -> Callable[[Sequence[Path]], Split]:
    "Like fastai's GrandparentSplitter, for classes at any depth."

    def split(items: Sequence[Path]) -> Split:
        first = [f.relative_to(path).parts[0] for f in items]
        return [i for i, name in enumerate(first) if name == train], [i for i, n in enumerate(first) if n == valid]

    return split


def _a_fifth_of_each(seed: int) -> Callable[[Sequence[Path]], Split]:
    "A random fifth of each class, at least one image of each class that has several; a plain 20 % can miss a class."

    def split(items: Sequence[Path]) -> Split:
        draw, valid = random.Random(seed), set[int]()
        for label in sorted({parent_label(f) for f in items}):
            own = [i for i, f in enumerate(items) if parent_label(f) == label]
            # The only image of a class is for training.
            valid.update(draw.sample(own, min(len(own) - 1, max(1, round(len(own) / 5)))))
        return [i for i in range(len(items)) if i not in valid], sorted(valid)

    return split


def check_writable(path: Path, kind: str = "folder", option: str = "--out") -> None:
    "Raises `GradCAMError` before the work where its result could not be written in `path`."
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    right = nearest.is_file() if kind == "file" and nearest == path else nearest.is_dir()
    if not (right and os.access(nearest, os.W_OK)):
        raise GradCAMError(f"{str(path)!r} cannot be written: name another {kind} with {option}.")
