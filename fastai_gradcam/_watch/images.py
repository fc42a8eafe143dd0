"""Tensors as pictures."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..render import slices

__all__ = ["to_image"]


def to_image(x: Tensor) -> Image.Image:
    """A `(C, H, W)` tensor as an RGB image: integers are 0…255, floats 0…1 or stretched over their range.

    A volume `(C, D, H, W)` gives four slices.
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
