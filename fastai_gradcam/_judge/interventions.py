"""Changes to images that show what a class depends on, each with a control of the same area and kind.

An intervention is a function from `Pairs` to two batches: the images changed, and the same images changed the control's
way. All of them copy, blur or rescale content of images, so it does not matter how the input is normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Intervention", "Pairs", "interventions"]

PUT, TAKE = "put on", "taken away"


@dataclass(frozen=True)
class Pairs:
    """Images to change, each with images that lend content; all `(N, C, H, W)`, in the model's units.

    `x`: the images that are changed. `partner`: the first lender. `other`: a second one, for controls.
    `hot`, `cold`: `(N, 2)`, the top left corners of the hottest box and of a random box beside it, in the image of the
    class that is tested. `seat`: `(N, 2)`, that of the hottest box of `x`. `at`: `(N, 2)`, a random corner.
    `side`: height and width of all boxes. `region`, `opposite`: `(N, H, W)` bool, where the class looks, and a region
    of the same area where it does not. `mask`, `partner_mask`, `other_mask`: `(N, H, W)` bool, true on the object;
    `None` if masks are unknown.
    """

    x: Tensor
    partner: Tensor
    other: Tensor
    hot: Tensor
    cold: Tensor
    at: Tensor
    side: tuple[int, int]
    region: Tensor
    opposite: Tensor
    seat: Tensor
    mask: Tensor | None = None
    partner_mask: Tensor | None = None
    other_mask: Tensor | None = None


Change = Callable[[Pairs], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Intervention:
    """An entry of the registry.

    `direction`: `"put on"` (images of other classes are changed; the effect is how many turn into the class) or
    `"taken away"` (images of the class are changed; the effect is how many are lost). `rounds`: how often each image of
    the set is changed, if the budget allows. `region`: which of `boxes.places_of` is changed. `lender`: whether the
    partner shows the class that is tested (`put on` without one tests all classes at once). `mate`: whether `other`
    must be of the same class as `x`, for its control. `masks`: whether it needs masks; `blind`: whether it stands in
    for those that do, and is held only where masks are not known.
    """

    name: str
    change: Change
    direction: str
    rounds: float
    region: str = "corner"
    lender: bool = True
    mate: bool = False
    masks: bool = False
    blind: bool = False


interventions: dict[str, Intervention] = {}


def _intervention(name: str, direction: str, rounds: float, **kwargs: Any) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        interventions[name] = Intervention(name, change, direction, rounds, **kwargs)
        return change

    return register


# --- patches


@_intervention("transplant", PUT, 2)
def transplant(p: Pairs) -> tuple[Tensor, Tensor]:
    """The hottest box of an image of the class, pasted anywhere; control: a random box of the same image, there."""
    return pasted(p.x, p.at, p.partner, p.hot, p.side), pasted(p.x, p.at, p.partner, p.cold, p.side)


@_intervention("exchange", PUT, 1, blind=True)
def exchange(p: Pairs) -> tuple[Tensor, Tensor]:
    """The hottest box of an image becomes that of an image of the class; control: a random box of the same image."""
    return pasted(p.x, p.seat, p.partner, p.hot, p.side), pasted(p.x, p.seat, p.partner, p.cold, p.side)


@_intervention("keep", PUT, 0.5)
def keep(p: Pairs) -> tuple[Tensor, Tensor]:
    """The hottest box alone is kept, in its place, and the rest is another image; control: a random box is kept."""
    return pasted(p.x, p.hot, p.partner, p.hot, p.side), pasted(p.x, p.cold, p.partner, p.cold, p.side)


@_intervention("cover", TAKE, 0.25)
def cover(p: Pairs) -> tuple[Tensor, Tensor]:
    """The hottest box is covered with what another image has there; control: a random box is."""
    return pasted(p.x, p.hot, p.partner, p.hot, p.side), pasted(p.x, p.cold, p.partner, p.cold, p.side)


def pasted(x: Tensor, at: Tensor, source: Tensor, start: Tensor, side: tuple[int, int]) -> Tensor:
    """A copy of `x` where the box at `at` is the box of `source` at `start`."""
    out, (h, w) = x.clone(), side
    for k, ((i, j), (a, b)) in enumerate(zip(at.tolist(), start.tolist(), strict=True)):
        out[k, :, i : i + h, j : j + w] = source[k, :, a : a + h, b : b + w]
    return out


# --- places


@_intervention("place", PUT, 1)
def place(p: Pairs) -> tuple[Tensor, Tensor]:
    """The corner where the class looks most, put on others at its place; control: the same corner of a third class."""
    return where(p.region, p.partner, p.x), where(p.region, p.other, p.x)


@_intervention("border", PUT, 1, region="border")
def border(p: Pairs) -> tuple[Tensor, Tensor]:
    """The border of the class's images, put on others; control: the border of a third class."""
    return place(p)


@_intervention("place_away", TAKE, 0.25, region="densest")
def place_away(p: Pairs) -> tuple[Tensor, Tensor]:
    """The corner or border where the class looks, replaced by another image's; control: another one of its area."""
    return where(p.region, p.partner, p.x), where(p.opposite, p.partner, p.x)


def where(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """`inside` where the `(N, H, W)` mask is true, else `outside`."""
    return torch.where(mask[:, None], inside, outside)


# --- colour


@_intervention("colour", PUT, 1)
def colour(p: Pairs) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of an image of the class, given to others; control: those of a third class."""
    return recoloured(p.x, p.partner), recoloured(p.x, p.other)


@_intervention("colour_away", TAKE, 0.25, mate=True)
def colour_away(p: Pairs) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel become another class's; control: those of another image of the class."""
    return recoloured(p.x, p.partner), recoloured(p.x, p.other)


def recoloured(x: Tensor, like: Tensor) -> Tensor:
    """`x` with the mean and the standard deviation that each channel has in `like`."""
    mean, deviation = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    new_mean, new_deviation = like.mean((2, 3), keepdim=True), like.std((2, 3), keepdim=True)
    flat = deviation < 1e-6 * (1 + mean.abs())
    scale = torch.where(flat, torch.zeros_like(deviation), new_deviation / deviation.clamp(min=1e-12))
    return (x - mean) * scale + new_mean


# --- background and object, if masks are known


@_intervention("blur", PUT, 1, lender=False, masks=True)
def blur(p: Pairs) -> tuple[Tensor, Tensor]:
    """The background of other classes' images is blurred; control: their object is."""
    return blur_away(p)


@_intervention("blur_away", TAKE, 0.25, masks=True)
def blur_away(p: Pairs) -> tuple[Tensor, Tensor]:
    """The background of the class's images is blurred; control: their object is."""
    assert p.mask is not None
    soft = blurred(p.x)
    return where(p.mask, p.x, soft), where(p.mask, soft, p.x)


@_intervention("swap", PUT, 1, masks=True)
def swap(p: Pairs) -> tuple[Tensor, Tensor]:
    """The object of an image of another class on a background of the class; control: on one of a third class."""
    assert p.mask is not None and p.partner_mask is not None and p.other_mask is not None
    return where(p.mask, p.x, emptied(p.partner, p.partner_mask)), where(p.mask, p.x, emptied(p.other, p.other_mask))


def blurred(x: Tensor) -> Tensor:
    """`x` under a Gaussian with a standard deviation of 1/24 of the shorter side."""
    sigma = min(x.shape[2:]) / 24
    reach = max(1, min(round(3 * sigma), min(x.shape[2:]) - 1))
    steps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-(steps**2) / (2 * sigma**2), 0)
    weight = kernel.expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), weight[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), weight[..., None], groups=x.shape[1])


def emptied(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the object is filled with the mean of the background."""
    beside = (~mask)[:, None].to(x.dtype)
    mean = (x * beside).sum((2, 3), keepdim=True) / beside.sum((2, 3), keepdim=True).clamp(min=1)
    return where(mask, mean.expand_as(x), x)
