"""Between fastai's data and the engine: items to model inputs, model inputs to pictures, labels to classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.core import Datasets, TfmdLists
from fastai.data.load import DataLoader, SkipItemException
from fastai.torch_core import to_device
from fastai.vision.core import PILImage
from fastcore.foundation import CollBase
from PIL import Image
from torch import Tensor, nn

from .._errors import one_of
from ..render import slices

__all__ = [
    "as_item",
    "as_list",
    "class_index",
    "encode",
    "for_model",
    "item_name",
    "loader_of",
    "opened",
    "picture",
    "read",
    "vocabulary",
]


def as_item(item: Any) -> Any:
    """What `learn.gradcam` takes, as what opens an image file in a validation pipeline takes.

    PIL images, arrays and tensors (uint8 `(H, W)`, `(H, W, C)` or `(C, H, W)`) become the bytes of an image file, which
    the pipeline opens in its own mode, colour or grey; all else is unchanged. Raises `ValueError` for an array that
    is no image.
    """
    if isinstance(item, Tensor):
        item = item.detach().cpu().numpy()
    if isinstance(item, np.ndarray):
        item = _from_array(item)
    if not isinstance(item, Image.Image):
        return bytes(item) if isinstance(item, bytearray) else item
    data = io.BytesIO()
    item.convert("RGB").save(data, "PPM")
    return data.getvalue()


def _from_array(array: np.ndarray) -> Image.Image:
    channels = (1, 3, 4)
    pixels = array
    if pixels.ndim == 3 and pixels.shape[0] in channels and pixels.shape[2] not in channels:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in channels)):
        raise ValueError(
            f"An image as an array or tensor must be uint8 (H, W), (H, W, C) or (C, H, W), got {array.dtype} "
            f"{array.shape}."
        )
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels))


def opened(path: Path) -> Image.Image:
    "The image file `path`, decoded. Raises `FileNotFoundError` or `ValueError` with its name."
    if not path.exists():
        raise FileNotFoundError(f"There is no image file {str(path)!r}.")
    try:
        return PILImage.create(path)
    except Exception as error:
        raise ValueError(f"The file {str(path)!r} cannot be read as an image: {error}") from error


def loader_of(dls: Any, item: Any) -> DataLoader:
    """A loader of the one `item` through the validation transforms of `dls`.

    A data set of plain PyTorch has none: its items are tensors as it gives them. Raises `TypeError` for an item that
    the data does not take.
    """
    if not isinstance(dls.valid_ds, (Datasets, TfmdLists)):
        if isinstance(item, Tensor):
            return dls.test_dl([(item,)], num_workers=0)
        raise TypeError(
            f"This learner's data, a {type(dls.valid_ds).__name__}, has no transforms that would open an image: give the "
            f"tensor (C, H, W) that the model takes, got {_short(item)}."
        )
    source = as_item(item)
    try:
        return dls.test_dl([source], num_workers=0)
    except Exception as error:
        refused = error
    # What opens files need not know bytes; an image passes it by.
    if isinstance(source, bytes):
        with suppress(Exception):
            return dls.test_dl([PILImage.create(source)], num_workers=0)
    raise TypeError(
        "An item must be what the learner's data takes: a path, str, PIL image, uint8 array or tensor, or bytes for a "
        f"learner of images, got {_short(item)}."
    ) from refused


def _short(item: Any) -> str:
    text = " ".join(repr(item).split())
    return text if len(text) <= 60 else f"{type(item).__name__} {text[:60]}…"


def read(dl: DataLoader, index: int, name: str) -> Any:
    """Item `index` of `dl`, decoded, before its item and batch transforms.

    Not through the loader's iterator, which would start worker processes and draw random numbers. Raises
    `ValueError` with the item's `name` where it cannot be read.
    """
    # The split tells random transforms to be still; the loader sets it when it starts to iterate.
    dl.before_iter()
    try:
        return dl.create_item(index)
    except SkipItemException:
        raise ValueError(f"Image {name!r} is skipped by the data pipeline.") from None
    except Exception as error:
        raise ValueError(f"Image {name!r} cannot be read: {type(error).__name__}: {error}") from error


def encode(dl: DataLoader, sample: Any, name: str) -> tuple[Any, ...]:
    """What `read` gave as a batch of one, on `dl`'s device, after `dl`'s item and batch transforms.

    Raises `ValueError` with the item's `name` where the transforms refuse it.
    """
    try:
        sample = dl.after_item(sample)
    except SkipItemException:
        raise ValueError(f"Image {name!r} is skipped by the item transforms.") from None
    except Exception as error:
        raise ValueError(f"Image {name!r} fails in the item transforms: {type(error).__name__}: {error}") from error
    batch = dl.do_batch([sample])
    if getattr(dl, "device", None) is not None:
        batch = to_device(batch, dl.device)
    return dl.after_batch(batch)


def for_model(x: Any, model: nn.Module) -> Tensor:
    "`x` as a plain tensor on the device, and in the floating type, of `model`'s parameters."
    x = x[0] if isinstance(x, (tuple, list)) else x
    x = x.as_subclass(Tensor) if isinstance(x, Tensor) else torch.as_tensor(x)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    return x if like is None else x.to(device=like.device, dtype=like.dtype)


def picture(dl: DataLoader, batch: tuple[Any, ...]) -> Image.Image:
    "What the model saw in a batch of one: the input with its batch transforms (normalisation) undone, RGB."
    try:
        decoded = dl.decode(batch)
    except Exception:
        # Pipelines of a user's own need not know the way back; the input itself is then the nearest to show.
        decoded = batch
    x = decoded[0] if isinstance(decoded, (tuple, list)) else decoded
    return to_image(x[0].detach().cpu().as_subclass(Tensor))


def to_image(x: Tensor) -> Image.Image:
    """A `(C, H, W)` tensor as an RGB image: integers are 0…255, floats 0…1 or stretched over their range.

    Of a volume `(C, D, H, W)`, four slices.
    """
    if x.ndim == 4:
        x = torch.from_numpy(slices(x.numpy()))
    if x.is_floating_point():
        x = torch.nan_to_num(x)
        low, high = float(x.min()), float(x.max())
        if low < -0.01 or high > 1.01:
            x = (x - low) / max(high - low, 1e-12)
        x = (x.clamp(0, 1) * 255).round()
    array = x.clamp(0, 255).to(torch.uint8).numpy()
    if len(array) == 2:
        array = array[:1]
    return Image.fromarray(array[0] if len(array) == 1 else array[:3].transpose(1, 2, 0)).convert("RGB")


def as_list(value: Any) -> list | None:
    "`value` as a list where it is one in the eyes of a fastai user (list, tuple, `L`, a vocabulary), else `None`."
    return list(value) if isinstance(value, (list, tuple, CollBase)) else None


def item_name(item: Any, index: int, root: Path | None = None) -> str:
    "A name for an item that a person recognises: its path below `root`, its text, or its number."
    if isinstance(item, (str, Path)):
        path = Path(item)
        try:
            return path.relative_to(root).as_posix() if root is not None else path.as_posix()
        except ValueError:
            return path.as_posix()
    first = (
        item.iloc[0] if hasattr(item, "iloc") and len(item) else item[0] if isinstance(item, tuple) and item else None
    )
    return str(first) if isinstance(first, (str, Path)) else f"item {index}"


def vocabulary(dls: Any) -> list[str] | None:
    "The class names of a learner with one category per image, `None` for any other kind of target."
    vocab = getattr(dls, "vocab", None)
    if vocab is None:
        return None
    if (len(vocab) and isinstance(vocab[-1], (list, tuple))) or (
        type(vocab).__name__ == "CategoryMap" and not len(vocab)
    ):
        return None
    return [str(v) for v in vocab]


def class_index(target: Any, vocab: Sequence[str] | None, classes: int | None = None) -> int:
    """The index of a class given by its label or index.

    Raises `ValueError` for a label outside of `vocab` (with the nearest one), an index out of range, or a label
    where there is no vocabulary.
    """
    if isinstance(target, (bool, np.bool_)) or not isinstance(target, (str, int, np.integer)):
        raise TypeError(f"A target must be a label or an index, got {target!r}.")
    if isinstance(target, str):
        if not vocab:
            raise ValueError(f"target {target!r} is a label, but this learner has no vocabulary; give a class index.")
        if target not in vocab:
            raise ValueError(one_of("class", target, vocab))
        return list(vocab).index(target)
    many = len(vocab) if vocab else classes
    if many is not None and not 0 <= target < many:
        raise ValueError(f"target {target} is out of range: there are classes 0 to {many - 1}.")
    return int(target)
