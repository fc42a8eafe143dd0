"""From an item to what the model takes, and back to a picture, through fastai's transforms."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.core import Datasets, TfmdLists
from fastai.data.load import DataLoader, SkipItemException
from fastai.data.transforms import Normalize
from fastai.torch_core import to_device
from fastai.vision.core import PILBase, PILImage
from PIL import Image
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError, NoFileError, spelled
from .._watch.images import to_image
from .._watch.nested import tensors
from .._watch.tasks import as_list

__all__ = ["as_item", "encode", "is_one_item", "item_name", "loader_of", "normalisation", "opened", "picture", "read"]


def as_item(item: Any) -> Any:
    """Convert what `learn.gradcam` takes to something that a validation pipeline can open.

    PIL images, arrays and tensors (uint8 `(H, W)`, `(H, W, C)` or `(C, H, W)`) become the bytes of an image file, which
    the pipeline opens in its own mode, colour or grey; all else is unchanged. Raises `GradCAMError` for an array that
    is not an image.
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
        raise GradCAMError(
            f"An image as an array or tensor must be uint8 (H, W), (H, W, C) or (C, H, W), got {array.dtype} "
            f"{array.shape}. Give the image before its transforms; a normalised batch goes to gradcam(learn.model, x)."
        )
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels))


def opened(path: Path) -> Image.Image:
    "The image file `path`, decoded. Raises `FileNotFoundError` or `GradCAMError` with its name."
    if not path.exists():
        raise NoFileError(f"There is no image file {str(path)!r}.")
    try:
        return PILImage.create(path)
    except Exception as error:
        raise GradCAMError(f"The file {str(path)!r} cannot be read as an image: {error}") from error


def is_one_item(dls: Any, item: Any) -> bool:
    """Whether `item` is one item and not a list of several: of several inputs, or as the data set gives it, it is a
    tuple.
    """
    if as_list(item) is None:
        return True
    return isinstance(item, tuple) and (_inputs(dls) > 1 or _is_sample(dls, item))


def _inputs(dls: Any) -> int:
    return getattr(dls, "n_inp", 1)


def _is_sample(dls: Any, item: Any) -> bool:
    "Whether `item` is what the data set gives: inputs, opened already, and targets."
    n = _inputs(dls)
    if not isinstance(item, tuple) or len(item) <= n or not isinstance(item[0], (Image.Image, Tensor, np.ndarray)):
        return False
    target = item[-1]
    if isinstance(target, (Image.Image, str, Path)):
        return type(target).__name__ == "PILMask"
    return not isinstance(target, (Tensor, np.ndarray)) or target.ndim < 3


def loader_of(dls: Any, item: Any) -> DataLoader:
    """A loader of the one `item` through the validation transforms of `dls`.

    A data set of plain PyTorch has none: its items are tensors as it gives them. Raises `GradCAMTypeError` for an item
    that the data does not take.
    """
    if _is_sample(dls, item):
        return _new(dls, [tuple(item[: _inputs(dls)])])
    if not isinstance(dls.valid_ds, (Datasets, TfmdLists)):
        parts = item if isinstance(item, tuple) else (item,)
        if all(isinstance(part, Tensor) for part in parts):
            return _new(dls, [parts])
        raise GradCAMTypeError(
            f"This learner's data, a {type(dls.valid_ds).__name__}, has no transforms that would open an image: give "
            f"the tensor (C, H, W) that the model takes, got {_short(item)}."
        )
    if isinstance(item, tuple) and _inputs(dls) > 1:
        return _loader_of_parts(dls, item)
    if _is_open(dls, item):
        return _new(dls, [(torch.as_tensor(item),)])
    return _opening(dls, item)


def _new(dls: Any, samples: list[Any]) -> DataLoader:
    "A loader of items that are opened already."
    if isinstance(dls.valid, DataLoader):
        return dls.valid.new(samples, num_workers=0, shuffle=False, drop_last=False)
    return DataLoader(samples, bs=1, num_workers=0)


def _is_open(dls: Any, item: Any) -> bool:
    "Whether `item` is a tensor such as the learner's own opener makes (bands, spectrograms)."
    if not isinstance(item, (Tensor, np.ndarray)) or item.dtype in (torch.uint8, np.uint8):
        return False
    try:
        known = dls.valid_ds[0][0]
    except Exception:
        return False
    return isinstance(known, Tensor) and known.ndim == item.ndim


def _opening(dls: Any, item: Any) -> DataLoader:
    "A loader of an item that the validation pipeline opens."
    source = as_item(item)
    try:
        return dls.test_dl([source], num_workers=0)
    except Exception as error:
        refused = error
    # A pipeline that opens paths may not accept bytes; an image skips its opening step.
    if isinstance(source, bytes):
        with suppress(Exception):
            return dls.test_dl([PILImage.create(source)], num_workers=0)
    raise GradCAMTypeError(
        "An item must be what the learner's data takes: a path, str, PIL image, uint8 array or tensor, or bytes for a "
        f"learner of images, got {_short(item)}."
    ) from refused


def _loader_of_parts(dls: Any, item: tuple[Any, ...]) -> DataLoader:
    "A loader of one item that is given input by input, each opened as the learner opens that input."
    lists = dls.valid_ds.tls[: _inputs(dls)]
    if len(item) != len(lists):
        raise GradCAMTypeError(f"An item of this learner has {len(lists)} inputs, got {len(item)}: {_short(item)}.")
    own = []
    for one, part in zip(lists, item, strict=True):
        if isinstance(part, (Image.Image, Tensor, np.ndarray)) and not isinstance(part, PILBase):
            part = part if isinstance(part, Tensor) and part.dtype != torch.uint8 else as_item(part)
        new = one._new([part], split_idx=1)
        # Whatever finds the file of this input in a row of the data is passed by: the file is given.
        opener = next((k for k, t in enumerate(new.tfms.fs) if _opens(t)), None)
        first = opener if opener is not None and isinstance(part, (str, Path, bytes)) else new.infer_idx(part)
        new.tfms.fs = new.tfms.fs[first:]
        own.append(new)
    return dls.valid.new(Datasets(tls=own), num_workers=0, shuffle=False, drop_last=False)


def _opens(transform: Any) -> bool:
    "Whether a transform is the `create` of a class of images."
    return str(getattr(transform, "name", "")).endswith(".create")


def _short(item: Any) -> str:
    text = " ".join(repr(item).split())
    return text if len(text) <= 60 else f"{type(item).__name__} {text[:60]}…"


def read(dl: DataLoader, index: int, name: str) -> Any:
    """Item `index` of `dl`, decoded, before its item and batch transforms.

    Not through the loader's iterator, which would start worker processes and draw random numbers. Raises
    `GradCAMError` with the item's `name` where it cannot be read.
    """
    # The split tells random transforms to be still; the loader sets it when it starts to iterate.
    dl.before_iter()
    try:
        return dl.create_item(index)
    except SkipItemException:
        raise GradCAMError(f"Image {name!r} is skipped by the data pipeline.") from None
    except Exception as error:
        raise GradCAMError(f"Image {name!r} cannot be read: {type(error).__name__}: {error}") from error


def encode(dl: DataLoader, sample: Any, name: str) -> tuple[Any, ...]:
    """The `sample` that `read` gave as a batch of one, on `dl`'s device, after `dl`'s item and batch transforms.

    Raises `GradCAMError` with the item's `name` where the transforms refuse it.
    """
    try:
        sample = dl.after_item(sample)
    except SkipItemException:
        raise GradCAMError(f"Image {name!r} is skipped by the item transforms.") from None
    except Exception as error:
        raise GradCAMError(f"Image {name!r} fails in the item transforms: {type(error).__name__}: {error}") from error
    batch = dl.do_batch([sample])
    if getattr(dl, "device", None) is not None:
        batch = to_device(batch, dl.device)
    return dl.after_batch(batch)


def picture(dl: DataLoader, batch: tuple[Any, ...], at: int = 0) -> Image.Image:
    "Input `at` of a batch of one as the model sees it, with batch transforms (normalisation) undone: an RGB image."
    try:
        decoded = dl.decode(batch)
    except Exception:
        # A user's own pipeline need not know the way back; the input itself is then the nearest to show.
        decoded = batch
    x = decoded[at] if isinstance(decoded, (tuple, list)) else decoded
    if isinstance(x, Mapping):
        x = next((t for t in tensors(x) if t.ndim > 3), x)
    if isinstance(x, (tuple, list)):
        raise GradCAMError(
            f"Input {at} is a {type(x).__name__} of {len(x)} parts, and each image must be an input of its own: give "
            f"the data a block for each, with n_inp={len(x)}, or set learn.xb in a callback's before_batch, with a "
            "model that takes them one by one."
        )
    if not isinstance(x, Tensor) or x.ndim < 3:
        raise GradCAMError(
            f"Input {at} is not an image: {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}. Grad-CAM "
            "explains learners of images; a learner of tables or text has no place to show."
        )
    return to_image(x[0].detach().cpu().as_subclass(Tensor))


def normalisation(dls: Any) -> tuple[Any, Any]:
    "The mean and standard deviation by which the data pipeline normalises, `None` where it does not."
    for transform in getattr(getattr(dls, "after_batch", None), "fs", []):
        if isinstance(transform, Normalize):
            return transform.mean.detach().flatten().tolist(), transform.std.detach().flatten().tolist()
    return None, None


def item_name(item: Any, index: int, root: Path | None = None) -> str:
    "A name for an item that a person recognises: its path below `root`, its text, or its number."
    if isinstance(item, (str, Path)):
        path = Path(item)
        try:
            return spelled(path.relative_to(root).as_posix() if root is not None else path.as_posix())
        except ValueError:
            return spelled(path.as_posix())
    first = (
        item.iloc[0] if hasattr(item, "iloc") and len(item) else item[0] if isinstance(item, tuple) and item else None
    )
    return spelled(str(first)) if isinstance(first, (str, Path)) else f"item {index}"
