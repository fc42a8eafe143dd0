"""A method of class activation mapping: how activations and gradients become a map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import GradCAMError

__all__ = ["MapFunction", "Method", "WeightFunction", "first_component"]

MapFunction = Callable[[Tensor, Tensor], Tensor]
# `weigh(A, probe)`: one image's activations `(C, *space)`, and a `Probe` of `weights.py`.
WeightFunction = Callable[[Tensor, Any], Tensor]


def _sum_of_channels(parts: Tensor) -> Tensor:
    return parts.sum(1)


def first_component(x: Tensor) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)  # (N, Z, C)
    # A network that diverged would make the decomposition raise.
    flat = torch.nan_to_num(flat)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    projection = u[:, :, 0] * s[:, :1]
    sign = torch.where(projection.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return (projection * sign).unflatten(1, x.shape[2:])


@dataclass(frozen=True)
class Method:
    """A named method: `signed(A, G)` is the map before its final ReLU, calling it applies the ReLU.

    `parts(A, G)`: the contributions `(N, C, *space)`, which `collect` makes a map of; with `collect=None` `parts` is
    the map. `weigh(A, probe)`: for a method without gradients, the channels' weights that take the place of `G`.
    `averaged(A, Gs)`: the contributions from the gradients `(n, N, C, *space)` of n noisy copies, where they are not
    `parts` of the mean gradient. `noise`: (share of the image's range, number of copies). `augment`: average over
    flips and brightness.

    >>> import torch
    >>> from fastai_gradcam.methods import Method
    >>> method = Method("product", lambda A, G: A * G)
    >>> A, G = torch.tensor([[[1.0, 2.0]], ]), torch.tensor([[[3.0, -1.0]]])
    >>> method.signed(A, G).tolist(), method(A, G).tolist()
    ([[3.0, -2.0]], [[3.0, 0.0]])
    """

    name: str
    parts: MapFunction
    relu: bool = True
    collect: Callable[[Tensor], Tensor] | None = _sum_of_channels
    weigh: WeightFunction | None = None
    averaged: MapFunction | None = None
    noise: tuple[float, int] | None = None
    augment: bool = False

    @property
    def __name__(self) -> str:
        return self.name

    def signed(self, A: Tensor, *Gs: Tensor) -> Tensor:
        "The map before the ReLU, `(N, *space)`, from the gradient or from those of several noisy copies."
        if len(Gs) == 1:
            parts = self.parts(A, Gs[0])
        elif self.averaged:
            parts = self.averaged(A, torch.stack(Gs))
        else:
            parts = self.parts(A, torch.stack(Gs).mean(0))
        if self.collect is None or not isinstance(parts, Tensor):
            return parts
        if parts.ndim == A.ndim:
            return self.collect(parts)
        if self.collect is not _sum_of_channels:
            raise GradCAMError(
                f"Method {self.name!r} needs each channel's contribution, (N, C, *space), got {tuple(parts.shape)}: a "
                "map that is already summed has no principal component."
            )
        return parts

    def checked(self, A: Tensor, Gs: list[Tensor], layer: str) -> Tensor:
        "`signed` in float32. Raises `GradCAMError` for a map of another shape than `(N, *space)`."
        with torch.no_grad():
            signed = self.signed(A, *Gs)
        wanted = (len(A), *A.shape[2:])
        if not isinstance(signed, Tensor) or tuple(signed.shape) != wanted:
            got = tuple(signed.shape) if isinstance(signed, Tensor) else type(signed).__name__
            raise GradCAMError(
                f"Method {self.name!r} must return maps of shape {wanted} for activations {tuple(A.shape)} of layer "
                f"{layer!r}, got {got}."
            )
        return signed.float()

    def __call__(self, A: Tensor, G: Tensor) -> Tensor:
        signed = self.signed(A, G)
        return signed.relu() if self.relu else signed
