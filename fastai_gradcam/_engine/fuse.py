"""One sharp map out of the maps of several layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError

__all__ = ["fuse", "resized"]


def fuse(cams: Sequence[Tensor]) -> Tensor:
    """Fuse the maps of several layers into one: M = early ⊙ up(M' / max M'), with M' from the deeper layers.

    `cams`: the `CAMs` of several layers, what `learn.gradcam` gives for several layers of one image and class, or
    two-dimensional maps `(N, h, w)` or `(N, K, h, w)` as a list. The map with more cells is the earlier one; among
    equals, the first. The result, a tensor, has the shape and units of the earliest. The late map says where the class
    is, the early one which details are there; where one of them is empty, so is the result. Negative values count as
    zero. Raises `GradCAMError` for maps that do not belong together.

    This library's own: the product is that of Guided Grad-CAM (Selvaraju et al. 2017, section 3.2), going from the last
    layer to the first that of Poly-CAM (Englebert et al. 2022).

    >>> import torch
    >>> from fastai_gradcam.methods import fuse
    >>> early, late = torch.ones(1, 2, 2), torch.tensor([[[2.0]]])
    >>> fuse([early, late]).tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """
    given: list[Any] = list(cams)
    if not given:
        raise GradCAMError("fuse needs the maps of at least one layer.")
    of_one_image = all(hasattr(m, "map") and hasattr(m, "image") for m in given)
    if of_one_image and len({(id(m.image), m.target, m.label) for m in given}) > 1:
        raise GradCAMError(
            "fuse needs the maps of one image and one class, got those of several: fuse them one by one."
        )
    found = [m.map if of_one_image else m for m in given]
    if not all(isinstance(m, Tensor) for m in found):
        raise GradCAMTypeError(f"fuse needs CAMs or a list of maps, got {', '.join(type(m).__name__ for m in given)}.")
    maps = sorted((m.relu() for m in found), key=lambda m: -(m if of_one_image else m[0]).numel())
    lead = maps[0].shape[: _leading(cams, maps[0], of_one_image)]
    space = maps[0].ndim - len(lead)
    if any(m.ndim != maps[0].ndim or m.shape[: len(lead)] != lead for m in maps):
        raise GradCAMError(
            "fuse needs maps of the same images and classes, one per layer, early ones first, got shapes "
            f"{', '.join(str(tuple(m.shape)) for m in maps)}. A list holds maps of two dimensions; for signals and "
            "volumes give the CAMs that gradcam made."
        )
    fused = maps[-1]
    for early in reversed(maps[:-1]):
        peak = fused.flatten(len(lead)).amax(-1).reshape(*lead, *[1] * space)
        late = (fused / torch.where(peak > 0, peak, 1)).reshape(-1, 1, *fused.shape[-space:])
        fused = early * resized(late, early.shape[-space:]).reshape(early.shape)
    return fused


def _leading(cams: Any, first: Tensor, of_one_image: bool) -> int:
    "How many dimensions of a map come before those of space."
    if of_one_image:
        return 0
    if hasattr(cams, "target"):
        return 1 if cams.target is None else cams.target.ndim
    return first.ndim - 2


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    "`x`, `(N, C, *space)`, with another size of space, linearly between the centres of cells."
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False)
