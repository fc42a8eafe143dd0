"""`GradCAMGuide`: shows a training where to look. It changes the training, on purpose."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from fastai.learner import Learner
from fastai.torch_basics import Transform
from fastai.torch_core import TensorImage, num_distrib
from fastai.vision.core import PILImage
from torch import Tensor, nn

from ._engine.outside import attention_outside
from ._errors import GradCAMError, one_of, reason_of
from ._fastai.explain import model_input, resolve_layer
from ._fastai.fits import armed, watch_fits
from ._fastai.guided import MaskedLoader
from ._fastai.masks import Masks
from ._fastai.private import private
from ._fastai.tasks import task_of
from ._net.guard import undisturbed
from ._net.layers import Spot, unwrap
from ._net.shadow import shadow
from ._watch.faults import Faults
from ._watch.tasks import CATEGORY
from .cam import explain

__all__ = ["CoverPlace", "GradCAMGuide", "SwapColours"]

# Whether each lies below and to the right.
_CORNERS = {
    "top left corner": (False, False),
    "top right corner": (False, True),
    "bottom left corner": (True, False),
    "bottom right corner": (True, True),
}


class GradCAMGuide(Callback):
    """Adds to the loss the share of attention outside of the object. **It changes the training.**

    For the images of a batch that have a mask or a box, 1 − (the share of the true class's Grad-CAM inside of it) is
    averaged and added to the loss, `weight` times. `GradCAMCallback` watches and changes nothing; this one is there to
    change what a model looks at. Whether the model stopped *using* what it looked at, only the judge can say.

    - `masks`: as in `GradCAMCallback`, of training images: a callable `item -> mask`, a folder, a mapping, or a list
      with one for each training image. A few per cent of the images may do. Each is asked for once, before training.
      Masks pass the item and batch transforms together with their images, in the same call.
    - `weight`: how much the term counts beside the loss; 0 leaves the training as it is, to the last bit.
    - `layer`: `None` (the last with space), or one layer as `learn.gradcam` takes it.
    - `on_missing`: `"skip"` trains on images without a mask as usual, `"raise"` refuses a training that has any.
    - `second_order`: the gradient passes through the channels' weights, too; `False` takes them as constants.

    A batch that has an image with a mask is shown to the model a second time: up to the layer as it trains, after it in
    evaluation mode, because BatchNorm would mix the images there. An image whose object a transform cut off, or whose
    map is empty, adds nothing. `shares`: the mean share outside for each batch that was guided. It is off again by
    `learn.remove_cb(GradCAMGuide)`, and an exported learner is free of it. Raises `GradCAMError` before the first batch
    for masks that fit no training image, transforms that move images but not masks, MixUp and CutMix (an image of two
    has no object of its own), several inputs or targets, several labels, regression, segmentation, compiled models and
    distributed training.

    Energy loss of Rao et al. 2023, https://arxiv.org/abs/2303.11932

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.guide import GradCAMGuide
    >>> from fastai_gradcam.demo import fish_items, fish_label, fish_mask, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path, cbs=GradCAMGuide(fish_mask))
    >>> with learn.no_bar(), learn.no_logging():
    ...     learn.fit(1)
    GradCAMGuide changes this training: 29 of 29 training images have a mask, and attention of layer ...
    >>> len(learn.grad_cam_guide.shares) > 0
    True
    """

    # Before gradient accumulation (6) divides the loss and mixed precision (10) leaves autocast.
    order = 5
    run_valid = False
    remove_on_fetch = True

    def __init__(
        self,
        masks: Masks,
        weight: float = 1.0,
        layer: Any = None,
        on_missing: str = "skip",
        second_order: bool = True,
    ) -> None:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise GradCAMError(f"weight must be a number from 0 up, got {weight!r}.")
        if on_missing not in ("skip", "raise"):
            raise GradCAMError(one_of("on_missing", on_missing, ["skip", "raise"]))
        self.masks, self.weight, self.layer = masks, weight, layer
        self.on_missing, self.second_order = on_missing, second_order
        self._faults = Faults(type(self).__name__)
        self._loader: MaskedLoader | None = None
        self._spot = ""
        self._shares: list[Tensor] = []

    # fastai pickles callbacks with the learner: in this one's place goes one that does nothing.
    def __reduce_ex__(self, protocol: Any) -> Any:
        return Callback, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> GradCAMGuide:
        new = type(self)(self.masks, self.weight, self.layer, self.on_missing, self.second_order)
        new.__dict__["learn"] = deepcopy(self.learn, memo)
        return new

    @property
    def shares(self) -> list[float]:
        "The mean share (0…1) of attention outside of the masks, for each batch that was guided."
        return [float(share) for share in self._shares]

    def before_fit(self) -> None:
        # Before any `before_train`, in which MixUp puts a loss of its own in place.
        if self.weight and not hasattr(self.learn, "gather_preds"):
            self._refuse()

    def before_train(self) -> None:
        if not self.weight:
            return
        dl = self.learn.dl
        if self._loader is None or self._loader.dl is not dl:
            self._prepare(dl)
        assert self._loader is not None
        self._loader.attach()
        armed.add(self)

    def after_loss(self) -> None:
        if not self.weight or self._loader is None or self._loader.seen is None:
            return
        (masks, has), self._loader.seen = self._loader.seen, None
        if has.any():
            with self._faults.harmless("guiding this batch", raising=False):
                share = self._outside(masks, has)
                if share is not None:
                    self._shares.append(share.detach())
                    self.learn.loss_grad = self.learn.loss_grad + self.weight * share

    def after_train(self) -> None:
        self.end("finished")

    def after_fit(self) -> None:
        self.end("finished")

    def end(self, status: str) -> None:
        "The images of the loader no longer take masks along."
        armed.discard(self)
        if self._loader is not None:
            self._loader.detach()

    def trains(self, learn: Learner) -> bool:
        return self.learn is learn

    def _outside(self, masks: Tensor, has: Tensor) -> Tensor | None:
        model = unwrap(self.learn.model)
        spot = Spot(self._spot, model.get_submodule(self._spot))
        x, y = (t.as_subclass(Tensor) for t in (self.learn.xb[0], self.learn.yb[0]))
        # The whole batch, because its statistics are those of the training.
        shares = attention_outside(model, x, y, masks, spot, self.second_order)[has]
        shares = shares[shares.isfinite()]
        return shares.mean() if len(shares) else None

    def _refuse(self) -> None:
        learn = self.learn
        for cb in learn.cbs:
            if isinstance(cb, MixHandler):
                raise GradCAMError(
                    f"GradCAMGuide cannot guide a training with {type(cb).__name__}: an image made of two has no one "
                    f"true class, and no mask of its own. Take one of them away: learn.remove_cb({type(cb).__name__})."
                )
        task = task_of(learn.dls, learn.loss_func)
        if len(task.heads) != 1 or task.kind != CATEGORY or getattr(learn.dls, "n_inp", 1) != 1:
            raise GradCAMError(
                "Only a learner with one input and one class per image is guided, because the map of the true class "
                f"is; this learner has {getattr(learn.dls, 'n_inp', 1)} inputs, and its task is {task.kind!r}."
            )
        if num_distrib() > 1 or isinstance(learn.model, nn.DataParallel):
            raise GradCAMError("Guiding runs in one process and on one device; distributed training was not tried.")
        if any(hasattr(m, "_orig_mod") for m in learn.model.modules()):
            raise GradCAMError(
                "A compiled model has no second derivative; guide the plain one, and compile it after that."
            )

    def _prepare(self, dl: Any) -> None:
        "Find masks and layer, and try both, without a trace."
        learn = self.learn
        loader = MaskedLoader(dl, self.masks, getattr(learn.dls, "path", None), self.on_missing, self._faults)
        with undisturbed():
            own = private(dl.new(num_workers=0))
            loader.dl = own
            x, y = loader.trial()
            loader.dl = dl
            net = shadow(unwrap(learn.model))
            x = model_input(learn, net, (x,))
            if self.layer is None:
                names = explain(net, x, target=y.view(-1).tolist()).layers
            else:
                names = resolve_layer(learn, self.layer)
            if len(names) != 1:
                raise GradCAMError(f"layer must be one layer to guide, got {self.layer!r}.")
            self._spot = names[0]
            self._try(net, x, y.view(-1))
        self._loader = loader
        print(
            f"GradCAMGuide changes this training: {len(loader.values)} of {len(loader.names)} training images have a "
            f"mask, and attention of layer {self._spot!r} outside of it adds to the loss (weight {self.weight:g})."
        )

    def _try(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        half = torch.zeros(len(x), *x.shape[-2:], dtype=torch.bool, device=x.device)
        half[..., : x.shape[-1] // 2] = True
        spot = Spot(self._spot, net.get_submodule(self._spot))
        try:
            shares = attention_outside(net, x, y.to(x.device), half, spot, self.second_order)
            if shares.requires_grad and shares.isfinite().any():
                shares.nansum().backward()
        except GradCAMError:
            raise
        except Exception as error:
            raise GradCAMError(
                f"The attention at layer {self._spot!r} cannot be differentiated: {reason_of(error)}. Choose another "
                "layer, or second_order=False."
            ) from error


class CoverPlace(Transform):
    """An item transform that covers a corner of each training picture with another part of the same picture.

    The simpler remedy for a mark that stays in one place. `place`: as `learn.gradcam_judge` and the report name it,
    `"top left corner"`; `share` (0…0.5): of the height and width. All classes are covered alike, so that the cover
    tells nothing; validation pictures are left as they are. Raises `GradCAMError` for another place or share.

    >>> from PIL import Image
    >>> from fastai.vision.all import PILImage
    >>> from fastai_gradcam.guide import CoverPlace
    >>> picture = PILImage(Image.new("RGB", (30, 30)))
    >>> picture.paste("white", (0, 0, 10, 10))
    >>> CoverPlace("top left corner")(picture, split_idx=0).getextrema()[0]
    (0, 0)
    """

    # After resizing (1), because a place is one of the picture that the model sees; before tensors (5).
    split_idx, order = 0, 2

    def __init__(self, place: str, share: float = 1 / 3) -> None:
        super().__init__()
        if place not in _CORNERS:
            raise GradCAMError(one_of("place", place, list(_CORNERS)))
        if not 0 < share <= 0.5:
            raise GradCAMError(f"share must be above 0 and at most 0.5, got {share!r}.")
        self.place, self.share = place, share

    def encodes(self, picture: PILImage):  # type: ignore[no-untyped-def]
        # A type of what is returned would make fastai cast it.
        width, height = (max(1, round(side * self.share)) for side in picture.size)

        def corner(place: str) -> tuple[int, int]:
            below, right = _CORNERS[place]
            return right * (picture.width - width), below * (picture.height - height)

        left, top = corner(random.choice([place for place in _CORNERS if place != self.place]))
        covered = picture.copy()
        covered.paste(picture.crop((left, top, left + width, top + height)), corner(self.place))
        return covered


class SwapColours(Transform):
    """A batch transform that gives each training picture the colours of another one in its batch, drawn at random.

    The remedy for a colour cast: mean and contrast of each channel, which is what the judge's test of colours changes,
    no longer go with a class. Validation pictures are left as they are.

    >>> import torch
    >>> from fastai.vision.all import TensorImage
    >>> from fastai_gradcam.guide import SwapColours
    >>> x = TensorImage(torch.rand(2, 3, 8, 8) * torch.tensor([1, 0.5])[:, None, None, None])
    >>> means = SwapColours()(x, split_idx=0).mean((1, 2, 3))
    >>> torch.allclose(means.sort().values, x.mean((1, 2, 3)).sort().values, atol=0.02)
    True
    """

    # Before Normalize (99), while pictures are 0…1.
    split_idx, order = 0, 90

    def encodes(self, x: TensorImage):  # type: ignore[no-untyped-def]
        std, mean = torch.std_mean(x, (2, 3), keepdim=True)
        other = torch.randperm(len(x))
        return ((x - mean) / std.clamp(min=1e-6) * std[other] + mean[other]).clamp(0, 1)


watch_fits()
