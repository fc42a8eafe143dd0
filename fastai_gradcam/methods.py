"""Maps from activations and gradients: one pure function per paper, and their registry.

To add a method, write its map before the final ReLU under its formula:

    @register("mymethod")
    def mymethod(A, G):
        "ReLU(Σ_k …). Author et al., year, equation."
        return (G * A).sum(1)

`A` and `G` are float32 tensors `(N, C, *space)`: the activations of a layer, and the gradient of each image's score
with respect to them. The result is `(N, *space)`. The engine applies the ReLU, and counts what it cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .suggest import one_of

__all__ = ["Method", "methods", "register", "resolve_method"]

MapFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    "A named method: `signed(A, G)` is the map before its final ReLU, calling it applies the ReLU."

    name: str
    signed: MapFunction
    relu: bool = True

    def __call__(self, A: Tensor, G: Tensor) -> Tensor:
        signed = self.signed(A, G)
        return signed.relu() if self.relu else signed


methods: dict[str, Method] = {}


def register(name: str) -> Callable[[MapFunction], MapFunction]:
    "Decorator: make `signed(A, G)` available as `method=name`."

    def add(signed: MapFunction) -> MapFunction:
        methods[name] = Method(name, signed)
        return signed

    return add


def resolve_method(method: str | MapFunction) -> Method:
    """The `Method` that `method` names, or a wrapper around the caller's own function.

    A callable's map is taken as it is, without a ReLU. Raises `ValueError` for an unknown name, with the nearest.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str):
        if method not in methods:
            raise ValueError(one_of("method", method, list(methods)))
        return methods[method]
    if callable(method):
        return Method(getattr(method, "__name__", "custom"), method, relu=False)
    raise TypeError(
        f"method must be a name ({', '.join(methods)}) or a callable (activations, gradients) -> maps, got {method!r}."
    )


def _over_space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _weighted(A: Tensor, weights: Tensor) -> Tensor:
    "Σ_k w_k A_k for weights `(N, C, 1, …)`."
    return (weights * A).sum(1)


@register("gradcam")
def gradcam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k (1/Z Σ_ij g_kij) A_k). Selvaraju et al. 2017, Grad-CAM, eq. 1 and 2."
    return _weighted(A, G.mean(_over_space(G), keepdim=True))


@register("gradcam++")
def gradcam_plus_plus(A: Tensor, G: Tensor) -> Tensor:
    """ReLU(Σ_k w_k A_k), w_k = Σ_ij a·ReLU(g), a = g² / (2g² + (Σ_ab A_kab) g³), 0 where g = 0.

    Chattopadhay et al. 2018, Grad-CAM++, eq. 5 and 19, for the score exp(y), whose factor exp(y) scales the map only
    and is left out.
    """
    total = A.sum(_over_space(A), keepdim=True)
    # g² is divided out of numerator and denominator: g³ underflows in float32 where the quotient is fine.
    denominator = 2 + total * G
    a = torch.where((G != 0) & (denominator != 0), 1 / torch.where(denominator != 0, denominator, 1), 0)
    return _weighted(A, (a * G.relu()).sum(_over_space(G), keepdim=True))


@register("xgradcam")
def xgradcam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k w_k A_k), w_k = Σ_ij g·A / Σ_ab A, 0 where Σ A = 0. Fu et al. 2020, XGrad-CAM, eq. 8."
    total = A.sum(_over_space(A), keepdim=True)
    weighted = (G * A).sum(_over_space(A), keepdim=True)
    return _weighted(A, torch.where(total != 0, weighted / torch.where(total != 0, total, 1), 0))


@register("hirescam")
def hirescam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k g_k ⊙ A_k). Draelos & Carin 2020, HiResCAM, eq. 3."
    return (G * A).sum(1)


@register("layercam")
def layercam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k ReLU(g_k) ⊙ A_k). Jiang et al. 2021, LayerCAM, eq. 5 and 6."
    return (G.relu() * A).sum(1)


@register("gradcam_elementwise")
def gradcam_elementwise(A: Tensor, G: Tensor) -> Tensor:
    "Σ_k ReLU(g_k ⊙ A_k). pytorch-grad-cam, GradCAMElementWise."
    return (G * A).relu().sum(1)


@register("eigencam")
def eigencam(A: Tensor, G: Tensor) -> Tensor:
    """ReLU of the projection of A on the first right singular vector of A as a (Z × C) matrix, per image.

    Muhammad & Yeasin 2020, Eigen-CAM, eq. 2 to 4. The sign of a singular vector is arbitrary: the one is taken under
    which the projection's sum is not negative.
    """
    return _first_component(A)


@register("eigengradcam")
def eigengradcam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU of the first principal component of g ⊙ A, as in `eigencam`. pytorch-grad-cam, EigenGradCAM."
    return _first_component(G * A)


def _first_component(x: Tensor) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)  # (N, Z, C)
    # A network that diverged would make the decomposition raise.
    flat = torch.nan_to_num(flat)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    projection = u[:, :, 0] * s[:, :1]
    sign = torch.where(projection.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return (projection * sign).unflatten(1, x.shape[2:])
