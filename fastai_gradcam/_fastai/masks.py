"""Masks of the objects on the panel's images, brought through the same transforms as the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.load import DataLoader
from fastai.torch_core import to_device
from fastai.vision.core import PILMask
from PIL import Image, ImageDraw

from .._errors import GradCAMError, GradCAMTypeError
from .._watch.faults import warn
from .._watch.tasks import as_list

__all__ = ["Masks", "as_mask", "asked", "finder", "mask_of", "warn_of_shared", "warn_of_unseen"]

Masks = None | str | Path | Mapping[Any, Any] | Callable[[Any], Any] | Sequence[Any] | np.ndarray | torch.Tensor


def finder(masks: Masks, items: int | None = None) -> Callable[[Any, str], Any] | None:
    """`masks` as a function from an item and its name to what was given for it, `None` where there are no masks.

    `masks`: a callable `item -> mask`; a folder that holds a mask under each image's name or relative path, with any
    image suffix; a mapping from an item's path, name or file name; or, for so many `items` as were given, a list with
    an entry for each, to be asked for in their order. A mask is a path, an image or array of the original image's size
    (any value but 0 is object), a box `(x0, y0, x1, y1)` or a list of boxes in pixels of the original image, `[]` for
    an image without an object, or `None` for one of which nothing is known. Raises `ValueError` for a folder that does
    not exist and `TypeError` for anything else.
    """
    if masks is None:
        return None
    if callable(masks):
        return lambda item, name: masks(item)
    if isinstance(masks, Mapping):
        return lambda item, name: next((masks[k] for k in _keys(item, name) if k in masks), None)
    if isinstance(masks, (str, Path)):
        if not Path(masks).is_dir():
            raise GradCAMError(f"masks={str(masks)!r} is not a folder.")
        return _Folder(Path(masks))
    entries = list(masks) if isinstance(masks, (np.ndarray, torch.Tensor)) and masks.ndim else as_list(masks)
    if entries is None:
        raise GradCAMTypeError(
            "masks must be a callable item -> mask, a folder, a mapping to masks or boxes, or a list with one for each "
            f"of items=, got {masks!r:.200}."
        )
    if items is None:
        raise GradCAMError(
            f"masks is a list of {len(entries)}, and which images the panel takes is not said: give items=, one for "
            "each mask, or a callable item -> mask."
        )
    if len(entries) != items:
        raise GradCAMError(
            f"masks has {len(entries)} entries for {items} items=: give one for each, None where there is none."
        )
    in_order = iter(entries)
    return lambda item, name: next(in_order)


def mask_of(
    find: Callable[[Any, str], Any],
    item: Any,
    name: str,
    sample: Any,
    dl: DataLoader,
    size: Sequence[int],
    unseen: list[str] | None = None,
) -> np.ndarray | None:
    """The mask of `item` as a boolean `(H, W)` array that is true on the object, as the model sees it, or `None`.

    `sample`: the item as `dl` decoded it, before its transforms; `size`: `(H, W)` of the model's input. Where nothing
    of an object is left, and none was not said by `[]`, the name is added to `unseen`. Raises `ValueError` with the
    item's name for a mask that is missing, of another size than its image, the image itself, or cannot be read.
    """
    value = asked(find, item, name)
    if value is None:
        return None
    if _no_boxes(value):
        return np.zeros(tuple(size), dtype=bool)
    mask = _through_pipeline(value, dl, sample[0], name, size)
    if unseen is not None and not mask.any():
        unseen.append(name)
    return mask


def asked(find: Callable[[Any, str], Any], item: Any, name: str) -> Any:
    """The mask that was given for `item`, in whatever form, or `None`.

    Raises `GradCAMError` with the item's name where asking fails, or the mask is the image itself.
    """
    try:
        value = find(item, name)
    except Exception as error:
        raise GradCAMError(f"masks failed for image {name!r}: {type(error).__name__}: {error}") from error
    if isinstance(value, (str, Path)) and _is_file_of(item, Path(value)):
        raise GradCAMError(
            f"The mask of image {name!r} is the image itself: masks= gives the file {str(value)!r} for it."
        )
    return value


def warn_of_unseen(unseen: Sequence[str]) -> None:
    "One warning for all images of which the mask is empty."
    if not unseen:
        return
    listed = ", ".join(map(repr, unseen[:3])) + (f" and {len(unseen) - 3} more" if len(unseen) > 3 else "")
    warn(
        f"The mask is empty, as the model sees it, for {len(unseen)} of the panel's images: {listed}. Their mask_share "
        "stays undefined. Either there is no object (then [] says so), or the transforms cut it off.",
    )


def warn_of_shared(find: Callable[[Any, str], Any] | None) -> None:
    """One warning for images of the panel that took one mask, as those in different folders that have the same file
    name.
    """
    shared = (
        [(file, names) for file, names in find.taken.items() if len(names) > 1] if isinstance(find, _Folder) else []
    )
    if shared:
        file, names = shared[0]
        warn(
            f"{sum(len(names) for _, names in shared)} of the panel's images share a mask with another: "
            f"{' and '.join(map(repr, names[:2]))} both take {str(file)!r}. If each has its own, give the masks the "
            "images' relative paths, or say by a callable which belongs to which.",
        )


def _no_boxes(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) and np.shape(value) in ((0,), (0, 4))


def _keys(item: Any, name: str) -> list[Any]:
    path = Path(name)
    keys = [str(item), name, path.name, path.stem]
    return [item, *keys] if isinstance(item, (str, Path, int)) else keys


class _Folder:
    "Masks in a folder, under each image's relative path or its file name; `taken`: which images took each of them."

    def __init__(self, path: Path):
        self.path = path
        self.taken: dict[Path, list[str]] = {}

    def __call__(self, item: Any, name: str) -> Path | None:
        found = self._find(item, Path(name))
        if found is not None:
            self.taken.setdefault(found, []).append(name)
        return found

    def _find(self, item: Any, name: Path) -> Path | None:
        # A path from elsewhere would lead out of the folder, back to the photo.
        leads_out = name.is_absolute() or ".." in name.parts
        image = None
        for relative in [Path(name.name)] if leads_out else [name, Path(name.name)]:
            for suffix in (relative.suffix, ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"):
                candidate = self.path / relative.with_suffix(suffix)
                if not candidate.is_file():
                    continue
                if not _is_file_of(item, candidate):
                    return candidate
                image = candidate  # masks may lie beside the photos, under another suffix
        return image


def _is_file_of(item: Any, file: Path) -> bool:
    try:
        return isinstance(item, (str, Path)) and file.samefile(item)
    except OSError:
        return False


def as_mask(value: Any, image: Any, name: str) -> Image.Image:
    """A mask as it may be given, as an 8-bit image of 0 and 1 (the object), of the size of `image`, a decoded item.

    Raises `GradCAMError` with the image's `name` for a mask of another size, or one that cannot be read.
    """
    original = image.size if isinstance(image, Image.Image) else tuple(image.shape[:-3:-1])
    if _no_boxes(value):
        return Image.new("L", original)
    try:
        mask = _as_image(value, original)
    except Exception as error:
        raise GradCAMError(f"The mask of image {name!r} cannot be read: {error}") from error
    if mask.size != tuple(original):
        (width, height), (wide, high) = mask.size, original
        raise GradCAMError(f"The mask of image {name!r} is {width}×{height} pixels, its image {wide}×{high}.")
    return mask


def _through_pipeline(value: Any, dl: DataLoader, image: Any, name: str, size: Sequence[int]) -> np.ndarray:
    mask = as_mask(value, image, name)
    # fastai's transforms know masks by their type: cropped and warped with the image, never blended or normalised.
    sample = dl.after_item((image, PILMask(mask)))
    batch = dl.do_batch([sample])
    if getattr(dl, "device", None) is not None:
        batch = to_device(batch, dl.device)
    seen = dl.after_batch(batch)[1]
    seen = torch.as_tensor(seen).reshape(seen.shape[-2:]).cpu().numpy() > 0
    if seen.shape != tuple(size):
        raise GradCAMError(
            f"After the transforms, the mask of image {name!r} is {seen.shape[1]}×{seen.shape[0]} pixels and its image "
            f"{size[1]}×{size[0]}: one of the transforms does not know masks."
        )
    return seen


def _as_image(value: Any, size: tuple[int, int]) -> Image.Image:
    "A mask as an 8-bit image of 0 and 1."
    lossy = isinstance(value, (str, Path)) and Path(value).suffix.lower() in (".jpg", ".jpeg")
    if isinstance(value, (str, Path)):
        value = Image.open(value)
    if isinstance(value, Image.Image):
        array = np.asarray(value)
        if array.ndim == 3:
            # Grey would round the darkest colours to black; what lies over the colours is opacity.
            array = array[..., : array.shape[2] - (value.mode in ("LA", "RGBA", "PA"))].max(2)
    else:
        array = np.asarray(value)
        if array.shape == (4,) or (array.ndim == 2 and array.shape[1] == 4 and tuple(array.shape) != size[::-1]):
            return _boxes(array.reshape(-1, 4), size)
    if array.ndim != 2:
        raise GradCAMError(f"a mask is (H, W), a box (x0, y0, x1, y1) or a list of boxes, got shape {array.shape}")
    # A JPEG's black is not quite 0.
    return Image.fromarray((array > 127 if lossy else array != 0).astype(np.uint8))


def _boxes(boxes: np.ndarray, size: tuple[int, int]) -> Image.Image:
    # The one pixel in the corner is never an object; the whole of an image in shares often is.
    if (boxes >= 0).all() and (boxes <= 1).all():
        first = tuple(boxes[0].tolist())
        raise GradCAMError(
            f"the box {first} seems to be in shares of the image (0…1); boxes are in pixels, here of "
            f"{size[0]}×{size[1]}: {tuple(round(v * s) for v, s in zip(first, size * 2, strict=True))}"
        )
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for x0, y0, x1, y1 in boxes.tolist():
        if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
            raise GradCAMError(f"the box {(x0, y0, x1, y1)} does not lie in an image of {size[0]}×{size[1]} pixels")
        draw.rectangle((math.floor(x0), math.floor(y0), math.ceil(x1) - 1, math.ceil(y1) - 1), fill=1)
    return mask
