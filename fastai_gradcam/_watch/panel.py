"""The fixed panel: the same images in each frame, decoded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ["Panel"]


@dataclass
class Panel:
    """Images to watch: `x` as the model takes them, on the CPU, and `y` the targets for the loss.

    `x`: a tensor `(n, C, *space)`, or a tuple or a dict of inputs with `n` rows each. `y`: tensors with `n` rows each,
    none where they are not known. `names`, `labels` (`None` where unknown) and `images` (RGB, what the model sees) have
    one entry per image, `masks` a boolean `(H, W)` array or `None` for each. `at`: the position or key of the input
    that is shown and explained. `sources`: what each image is in the terms of the training's data.
    """

    x: Any
    y: tuple[Tensor, ...]
    names: list[str]
    labels: list[str | None]
    images: list[Image.Image]
    masks: list[np.ndarray | None] = field(default_factory=list)
    at: Any = 0
    sources: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)
