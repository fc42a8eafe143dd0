"""From an item to what the model takes, and back to a picture, through fastai's transforms."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fastai.data.core import Datasets, TfmdLists
from fastai.data.load import DataLoader, SkipItemException
from fastai.torch_core import to_device
from fastai.vision.core import PILImage
from PIL import Image
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError, NoFileError
from .._watch.images import to_image

__all__ = ["as_item", "encode", "item_name", "loader_of", "opened", "picture", "read"]


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
            f"{array.shape}."
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


def loader_of(dls: Any, item: Any) -> DataLoader:
    """A loader of the one `item` through the validation transforms of `dls`.

    A data set of plain PyTorch has none: its items are tensors as it gives them. Raises `GradCAMTypeError` for an item that
    the data does not take.
    """
    if not isinstance(dls.valid_ds, (Datasets, TfmdLists)):
        if isinstance(item, Tensor):
            return dls.test_dl([(item,)], num_workers=0)
        raise GradCAMTypeError(
            f"This learner's data, a {type(dls.valid_ds).__name__}, has no transforms that would open an image: give the "
            f"tensor (C, H, W) that the model takes, got {_short(item)}."
        )
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


def picture(dl: DataLoader, batch: tuple[Any, ...]) -> Image.Image:
    "A batch of one as the model sees it, with the batch transforms (normalisation) undone: an RGB image."
    try:
        decoded = dl.decode(batch)
    except Exception:
        # Pipelines of a user's own need not know the way back; the input itself is then the nearest to show.
        decoded = batch
    x = decoded[0] if isinstance(decoded, (tuple, list)) else decoded
    return to_image(x[0].detach().cpu().as_subclass(Tensor))


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
