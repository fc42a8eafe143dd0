"""Masks of training images, brought through the same item and batch transforms, in the same call, as their images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.torch_core import to_device
from fastai.vision.core import PILMask, TensorImage, TensorMask
from PIL import Image
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError, reason_of
from .._watch.faults import Faults
from .items import item_name
from .masks import Masks, as_mask, asked, finder

__all__ = ["MaskedLoader"]

# The values of a mask on its way: images without one, and places that a transform adds in black, stay 0.
_OBJECT, _BESIDE = 1, 2
_TRIALS = 16  # of a transform that acts on every other image, one in 32,000 such trials sees none


class MaskedLoader:
    """The training loader `dl`, whose images take their masks along from `attach` to `detach`.

    `seen`: the masks of the newest batch, boolean `(N, H, W)` and true on the object, and which of its images have one
    with an object in sight, boolean `(N,)`. Random numbers are drawn as without masks. Raises `GradCAMError` where no
    training image has a mask, or, with `on_missing="raise"`, where one has none.
    """

    def __init__(self, dl: Any, masks: Masks, root: Any, on_missing: str, faults: Faults) -> None:
        if not isinstance(dl, TfmdDL) or not getattr(dl, "indexed", False) or getattr(dl, "bs", None) is None:
            raise GradCAMTypeError(
                f"The training data comes from a {type(dl).__name__}; guiding needs a fastai loader (TfmdDL) of items "
                "with an order, so that each image has its mask."
            )
        self.dl, self.faults = dl, faults
        self.seen: tuple[Tensor, Tensor] | None = None
        items = getattr(dl.dataset, "items", None)
        n = len(dl.dataset)
        sources = [i if items is None else getattr(items, "iloc", items)[i] for i in range(n)]
        self.names = [item_name(source, i, root) for i, source in enumerate(sources)]
        find = finder(masks, n)
        if find is None:
            raise GradCAMError("masks=None leaves nothing to guide by: give a mask or box for some training images.")
        found = [asked(find, source, name) for source, name in zip(sources, self.names, strict=True)]
        self.values = {i: value for i, value in enumerate(found) if value is not None}
        missing = [name for i, name in enumerate(self.names) if i not in self.values]
        if not self.values:
            raise GradCAMError(f"masks has no mask for any training image, such as {self.names[0]!r}.")
        if missing and on_missing == "raise":
            raise GradCAMError(
                f"{len(missing)} of {n} training images have no mask, such as {missing[0]!r}; on_missing='skip' trains "
                "on them as usual."
            )

    def attach(self) -> None:
        self.detach()
        self._before = vars(self.dl).get("create_item"), self.dl.after_batch.fs
        self.dl.create_item = _WithMask(self.dl.create_item, self.mask)
        # A list of its own: the validation loader has the same one.
        self.dl.after_batch.fs = [*self.dl.after_batch.fs, _TakesMask(self._take)]

    def detach(self) -> None:
        if (before := vars(self).pop("_before", None)) is None:
            return
        create, self.dl.after_batch.fs = before
        if create is None:
            del self.dl.create_item
        else:
            self.dl.create_item = create

    def _take(self, mask: Tensor) -> None:
        mask = mask.as_subclass(Tensor)
        self.seen = mask == _OBJECT, (mask == _OBJECT).flatten(1).any(1)

    def mask(self, index: int, image: Any) -> Any:
        "The mask of a training image for the transforms, of the image's kind. One that fails is none, with a warning."
        value, drawn = self.values.get(index), None
        if value is not None:
            with self.faults.harmless(f"the mask of {self.names[index]!r}", raising=False):
                drawn = np.where(np.asarray(as_mask(value, image, self.names[index])), _OBJECT, _BESIDE)
        if drawn is None:
            size = image.size[::-1] if isinstance(image, Image.Image) else image.shape[-2:]
            drawn = np.zeros(tuple(size))
        return _like(image, drawn.astype(np.uint8))

    def trial(self) -> tuple[Tensor, Tensor]:
        """Two images as the training gets them, and their targets.

        Raises `GradCAMError` for a mask of theirs that cannot be read, or transforms that do not take masks along: a
        drawn picture goes through them beside a mask of the same shape.
        """
        dl = self.dl
        dl.before_iter()
        first = next(iter(self.values))
        samples = [dl.create_item(i) for i in (first, (first + 1) % len(self.names))]
        if not all(isinstance(s, tuple) and len(s) == 2 for s in samples):
            raise GradCAMError("Only a learner with one input and one target per image is guided.")
        as_mask(self.values[first], samples[0][0], self.names[first])
        batch = _through(dl, samples)
        pictures = [_drawn_like(samples[0][0]) for _ in range(_TRIALS)]
        try:
            x, _, masks = _through(dl, [(p, samples[0][1], _like(p, _pattern(p))) for p in pictures])
            grey, masks = x.as_subclass(Tensor).float().mean(1), masks.as_subclass(Tensor) == _OBJECT
            agree = np.nanmean([_agreement(g, m) for g, m in zip(grey, masks, strict=True)])
        except Exception as error:
            raise GradCAMError(
                f"The transforms of the training data do not take a mask beside the image: {reason_of(error)}"
            ) from error
        if not agree > 0.6:
            raise GradCAMError(
                "A transform of the training data moves images and not their masks, so masks would lie in the wrong "
                f"place (correlation {agree:.2f} on {_TRIALS} drawn pictures). Transforms that are to move both are "
                "written for PILMask or TensorMask, too, as fastai's own are."
            )
        return batch[0].as_subclass(Tensor), torch.as_tensor(batch[1]).as_subclass(Tensor)


class _WithMask:
    "The loader's `create_item`, with the item's mask behind its parts: one call of each transform then has both."

    def __init__(self, create: Callable[[int], Any], mask: Callable[[int, Any], Any]) -> None:
        self.create, self.mask = create, mask

    def __call__(self, index: int) -> tuple[Any, ...]:
        sample = self.create(index)
        return (*sample, self.mask(index, sample[0]))


class _TakesMask:
    "The last of the batch transforms: nobody else sees the masks."

    def __init__(self, take: Callable[[Tensor], None]) -> None:
        self.take = take

    def __call__(self, batch: Any, **kwargs: Any) -> Any:
        self.take(batch[-1])
        return batch[:-1]

    def decode(self, batch: Any, **kwargs: Any) -> Any:
        return batch


def _through(dl: TfmdDL, samples: list[tuple]) -> Any:
    batch = dl.do_batch([dl.after_item(s) for s in samples])
    return dl.after_batch(batch if dl.device is None else to_device(batch, dl.device))


def _like(image: Any, mask: np.ndarray) -> Any:
    "A mask that transforms treat as they treat `image`: a plain tensor stays where it is, and so does its mask."
    if isinstance(image, Image.Image):
        return PILMask(Image.fromarray(mask))
    return TensorMask(mask) if isinstance(image, TensorImage) else torch.from_numpy(mask)


def _pattern(image: Any) -> np.ndarray:
    width, height = image.size if isinstance(image, Image.Image) else tuple(image.shape[:-3:-1])
    mask = np.full((height, width), _BESIDE, np.uint8)
    # Equal to none of its mirror images.
    mask[height // 20 : height * 2 // 5, width // 20 : width * 11 // 20] = _OBJECT
    return mask


def _drawn_like(image: Any) -> Any:
    "A picture of the kind of `image`, white on the object of `_pattern`."
    white = _pattern(image) == _OBJECT
    if isinstance(image, Image.Image):
        kind: Any = type(image)  # fastai's, with `create`
        return kind.create(np.asarray(Image.fromarray(white.astype(np.uint8) * 255).convert(image.mode)))
    light = torch.from_numpy(white).expand(image.shape)
    return torch.where(light, image.max(), image.min()).as_subclass(type(image))


def _agreement(grey: Tensor, mask: Tensor) -> float:
    "The correlation of a picture with its mask; NaN where a crop left nothing to compare."
    if mask.all() or not mask.any():
        return float("nan")
    return float(torch.corrcoef(torch.stack([grey.flatten(), mask.flatten().float()]))[0, 1].nan_to_num())
