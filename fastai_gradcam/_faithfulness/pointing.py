"""Energy and peak of a map against a mask of the object."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._errors import GradCAMError, GradCAMTypeError
from .common import Classes, Given, Scores, given, mean_of, register, resized

__all__ = ["energy_pointing", "pointing_hit"]


@register(better=1, masks=True)
def energy_pointing(
    model: nn.Module | None,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    masks: Tensor,
    *,
    per_area: bool = False,
) -> Scores:
    """The share of a map's mass that lies on the object, Σ_mask M / Σ M; higher is better.

    `masks`: bool `(N, H, W)`, true on the object; the map is upsampled to it bilinearly and cut at zero. Range 0…1.
    `per_area`: divided by the object's share of the image: 1 is what a constant map has, 1 / area the most there is.
    `model` and `target` are not used; all metrics take them. NaN where the map is empty or not finite, and where the
    mask is empty. `.figure`: the mean. Pitfalls: the share grows with the object, so look at `per_area`, too; it says
    where the map lies, not whether the model uses what lies there.

    Wang et al. 2020, Score-CAM, https://arxiv.org/abs/1910.01279, section 4.3.

    >>> import torch
    >>> from fastai_gradcam.faithfulness import energy_pointing
    >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> mask[:, :, :2] = True
    >>> float(energy_pointing(None, torch.rand(1, 3, 4, 4), torch.ones(1, 4, 4), None, mask))
    0.5
    """
    asked, masks = _with_masks(x, maps, masks)
    mass = resized(asked.maps, masks.shape[1:]).clamp(min=0).double().flatten(1)
    inside, area = masks.flatten(1), masks.flatten(1).double().mean(1)
    share = (mass * inside).sum(1) / mass.sum(1)
    share = share / area if per_area else share
    return asked.scores(torch.where((area > 0) & (mass.sum(1) > 0), share, torch.nan), mean_of)


@register(better=1, masks=True)
def pointing_hit(
    model: nn.Module | None,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    masks: Tensor,
    *,
    tolerance: float = 0,
) -> Scores:
    """The pointing game: whether a map's peak lies on the object, or within `tolerance` pixels of it. Higher is better.

    `masks`: bool `(N, H, W)`; the map is upsampled to it bilinearly. 1 or 0; where several pixels share the maximum,
    the share of them that hits. The paper's tolerance is 15 pixels. `model` and `target` are not used. NaN where the
    map is empty (it has no peak) or not finite, and where the mask is empty: without an object there is nothing to hit
    or to miss. `.figure`: hits / (hits + misses).

    Zhang et al. 2016, Excitation backprop, https://arxiv.org/abs/1608.00507, section 4.2.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam.faithfulness import pointing_hit
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, maps, masks = torch.rand(1, 3, 16, 16), torch.zeros(1, 4, 4), torch.zeros(1, 16, 16, dtype=torch.bool)
    >>> maps[0, 0, 0], masks[0, :8, :8] = 1.0, True
    >>> pointing_hit(model, x, maps, 0, masks=masks).tolist()
    [1.0]
    """
    asked, masks = _with_masks(x, maps, masks)
    if not tolerance >= 0:
        raise GradCAMError(f"tolerance must be a number of pixels, at least 0, got {tolerance!r}.")
    heat = resized(asked.maps, masks.shape[1:]).flatten(1)
    top = heat.amax(1, keepdim=True)
    peaks = (heat == top) & (top > 0)
    near = _widened(masks, tolerance).flatten(1)
    hit = (peaks & near).sum(1) / peaks.sum(1)
    return asked.scores(torch.where(masks.flatten(1).any(1) & peaks.any(1), hit, torch.nan), mean_of)


def _with_masks(x: Tensor, maps: Tensor, masks: Tensor) -> tuple[Given, Tensor]:
    asked = given(x, maps, None)
    if not isinstance(masks, Tensor):
        raise GradCAMTypeError(f"masks must be a bool tensor (N, H, W), got {type(masks).__name__}.")
    if masks.ndim != x.ndim - 1 or len(masks) != len(x):
        raise GradCAMError(
            f"masks must be (N, *space), one for each of {len(x)} images, empty where there is none, "
            f"got shape {tuple(masks.shape)}."
        )
    return asked, masks.to(asked.x.device).bool()


def _widened(masks: Tensor, tolerance: float) -> Tensor:
    "All pixels at most `tolerance` from a mask's."
    radius = int(tolerance)
    if radius == 0:
        return masks
    if masks.ndim != 3:
        raise GradCAMError("tolerance is for images (N, H, W).")
    steps = torch.arange(-radius, radius + 1, device=masks.device)
    disc = (steps[:, None] ** 2 + steps**2 <= tolerance**2).float()
    return F.conv2d(masks[:, None].float(), disc[None, None], padding=radius)[:, 0] > 0.5
