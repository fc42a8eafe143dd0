"""Maps from activations and gradients: one pure function per paper, and their registry.

To add a method, write each channel's contribution to its map under its formula:

    @register("mymethod")
    def mymethod(A, G):
        "ReLU(Σ_k …). Author et al., year, equation."
        return G * A

`A` and `G` are float32 tensors `(N, C, *space)`: the activations of a layer, and the gradient of each image's score
with respect to them. The result is `(N, C, *space)`, which the engine sums over the channels (or takes the principal
component of), or the finished sum `(N, *space)`. The engine applies the ReLU, and counts what it cut off.

A method without gradients gives weights instead: `register_weights`, below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._engine.fuse import fuse, resized
from ._engine.method import MapFunction, Method, WeightFunction, first_component
from ._engine.weights import Probe
from ._errors import GradCAMError, GradCAMTypeError, one_of

__all__ = [
    "Method",
    "augmented",
    "eigen",
    "fuse",
    "methods",
    "register",
    "register_weights",
    "resolve_method",
    "smoothed",
]

methods: dict[str, Method] = {}


def register(name: str, **how: Any) -> Callable[[MapFunction], MapFunction]:
    """Decorator: make `parts(A, G)` available as `method=name`; `how`: other fields of `Method`.

    >>> from fastai_gradcam.methods import methods, register
    >>> @register("absolute")
    ... def absolute(A, G):
    ...     return (A * G).abs()
    >>> methods.pop("absolute").name
    'absolute'
    """

    def add(parts: MapFunction) -> MapFunction:
        methods[name] = Method(name, parts, **how)
        return parts

    return add


def register_weights(name: str) -> Callable[[WeightFunction], WeightFunction]:
    """Decorator: make `weigh(A, probe)`, which needs no gradient, available as `method=name`.

    `A`: one image's activations `(C, *space)`. `probe` answers what the K scores become when the image or its
    activations change (`_engine/weights.py`). The result is `(K, C)`; the map is ReLU(Σ_k w_k A_k).

    >>> from fastai_gradcam.methods import methods, register_weights
    >>> _ = register_weights("meancam")(lambda A, probe: A.flatten(1).mean(1).expand(len(probe.base), -1))
    >>> methods.pop("meancam").name
    'meancam'
    """

    def add(weigh: WeightFunction) -> WeightFunction:
        methods[name] = Method(name, lambda A, weights: weights * A, weigh=weigh)
        return weigh

    return add


def resolve_method(method: str | Method | MapFunction) -> Method:
    """The `Method` that `method` names, or a wrapper around the caller's own function.

    A name may end in `+noise`, `+aug` and `+eigen` (`smoothed`, `augmented`, `eigen` with their defaults). A callable's
    map gets no ReLU. Raises `GradCAMError` for an unknown name, with the nearest.

    >>> from fastai_gradcam.methods import resolve_method
    >>> resolve_method("layercam+aug").name
    'layercam+aug'
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str):
        if method in methods:
            return methods[method]
        base, plus, option = method.rpartition("+")
        if option in _options:
            return _options[option](base)
        if base in methods and option:
            raise GradCAMError(one_of("method option", plus + option, [f"+{o}" for o in _options]))
        raise GradCAMError(one_of("method", method, list(methods)))
    if callable(method):
        return Method(getattr(method, "__name__", "custom"), method, relu=False, collect=None)
    raise GradCAMTypeError(
        f"method must be a name ({', '.join(methods)}) or a callable (activations, gradients) -> maps, got {method!r}."
    )


# --- options of any method


def smoothed(method: str | Method | MapFunction, noise: float = 0.15, n: int = 8) -> Method:
    """`method` with the gradients averaged over `n` noisy copies of the image, and the activations of the clean one.

    `noise`: standard deviation of the Gaussian noise, as a share of the image's range of values. The noise is the same
    in every call. For `gradcam++` the second and third derivatives are averaged, too: that is Smooth Grad-CAM++, the
    method `"smoothgradcam++"`. For a method without gradients the weights are averaged. Costs `n` more passes.

    Smilkov et al. 2017, SmoothGrad, eq. 1; Omeiza et al. 2019, Smooth Grad-CAM++.

    >>> from fastai_gradcam.methods import smoothed
    >>> smoothed("gradcam", n=4).name
    'gradcam+noise(0.15, 4)'
    """
    numbers = isinstance(noise, (int, float)) and isinstance(n, int) and bool not in (type(noise), type(n))
    if not numbers or not 0 < noise < math.inf or n < 1:
        raise GradCAMError(
            f"smoothed needs noise > 0 and a whole number n ≥ 1 of copies, got noise={noise!r}, n={n!r}."
        )
    method = resolve_method(method)
    how = "" if (noise, n) == (0.15, 8) else f"({noise:g}, {n})"
    return replace(method, name=f"{method.name}+noise{how}", noise=(float(noise), n))


def augmented(method: str | Method | MapFunction) -> Method:
    """`method` averaged over six views: the image and its mirror image, each at 1, 0.9 and 1.1 times its values.

    The maps are averaged in units of the score and before the ReLU, each turned back. Outputs that have the images'
    space are turned back before they are scored: a segmentation's region or a mask is that of the image. After
    `aug_smooth` of pytorch-grad-cam, which averages maps that are scaled to 0…1 one by one. Costs five more passes.

    >>> from fastai_gradcam.methods import augmented
    >>> augmented("layercam").name
    'layercam+aug'
    """
    method = resolve_method(method)
    return replace(method, name=f"{method.name}+aug", augment=True)


def eigen(method: str | Method | MapFunction) -> Method:
    """`method` with the first principal component of its channels' contributions in place of their sum.

    Smooths: contributions of only a few channels are left out. `eigen("hirescam")` is EigenGradCAM. After
    `eigen_smooth` of pytorch-grad-cam; the component and its sign are those of Eigen-CAM, see `eigencam`.

    >>> from fastai_gradcam.methods import eigen
    >>> eigen("hirescam").name
    'hirescam+eigen'
    """
    method = resolve_method(method)
    return replace(method, name=f"{method.name}+eigen", collect=first_component)


_options: dict[str, Callable[[str], Method]] = {"noise": smoothed, "aug": augmented, "eigen": eigen}


# --- with gradients


def _over_space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@register("gradcam")
def gradcam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k (1/Z Σ_ij g_kij) A_k). Selvaraju et al. 2017, Grad-CAM, eq. 1 and 2."
    return G.mean(_over_space(G), keepdim=True) * A


def smooth_gradcam_plus_plus(A: Tensor, Gs: Tensor) -> Tensor:
    """ReLU(Σ_k w_k A_k), w_k = Σ_ij a·ReLU(D¹), a = D² / (2D² + (Σ_ab A_kab) D³), D^p: the mean of g^p over the copies.

    Omeiza et al. 2019, Smooth Grad-CAM++, but for two things. The paper has D¹ in the numerator of a: its weights have
    no units of the score, and a channel that hardly matters weighs as much as one that decides; with D² this is
    Grad-CAM++ where all copies are alike. And the derivatives are those of exp(y), as in Grad-CAM++, whose factor
    exp(y) is another for each copy: the copy with the highest score would be heard alone, and nothing smoothed. Here
    all count the same.
    """
    # In units of each image's largest gradient: g³ underflows in float32 where the quotient is fine.
    unit = Gs.abs().amax((0, *range(2, Gs.ndim)), keepdim=True)[0]
    u = Gs / torch.where(unit > 0, unit, 1)
    D2, D3 = (u**2).mean(0), (u**3).mean(0) * unit
    denominator = 2 * D2 + A.sum(_over_space(A), keepdim=True) * D3
    a = torch.where(denominator != 0, D2 / torch.where(denominator != 0, denominator, 1), 0)
    return (a * Gs.mean(0).relu()).sum(_over_space(A), keepdim=True) * A


@register("gradcam++", averaged=smooth_gradcam_plus_plus)
def gradcam_plus_plus(A: Tensor, G: Tensor) -> Tensor:
    """ReLU(Σ_k w_k A_k), w_k = Σ_ij a·ReLU(g), a = g² / (2g² + (Σ_ab A_kab) g³), 0 where g = 0.

    Chattopadhay et al. 2018, Grad-CAM++, eq. 5 and 19, for the score exp(y), whose factor exp(y) scales the map only
    and is left out.
    """
    total = A.sum(_over_space(A), keepdim=True)
    # g² is divided out of numerator and denominator: g³ underflows in float32 where the quotient is fine.
    denominator = 2 + total * G
    a = torch.where((G != 0) & (denominator != 0), 1 / torch.where(denominator != 0, denominator, 1), 0)
    return (a * G.relu()).sum(_over_space(G), keepdim=True) * A


@register("xgradcam")
def xgradcam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k w_k A_k), w_k = Σ_ij g·A / Σ_ab A, 0 where Σ A = 0. Fu et al. 2020, XGrad-CAM, eq. 8."
    total = A.sum(_over_space(A), keepdim=True)
    weighted = (G * A).sum(_over_space(A), keepdim=True)
    return torch.where(total != 0, weighted / torch.where(total != 0, total, 1), 0) * A


@register("hirescam")
def hirescam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k g_k ⊙ A_k). Draelos & Carin 2020, HiResCAM, eq. 3."
    return G * A


@register("layercam")
def layercam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU(Σ_k ReLU(g_k) ⊙ A_k). Jiang et al. 2021, LayerCAM, eq. 5 and 6."
    return G.relu() * A


@register("gradcam_elementwise")
def gradcam_elementwise(A: Tensor, G: Tensor) -> Tensor:
    "Σ_k ReLU(g_k ⊙ A_k). pytorch-grad-cam, GradCAMElementWise."
    return (G * A).relu()


@register("eigencam", collect=first_component)
def eigencam(A: Tensor, G: Tensor) -> Tensor:
    """ReLU of the projection of A on the first right singular vector of A as a (Z × C) matrix, per image.

    Muhammad & Yeasin 2020, Eigen-CAM, eq. 2 to 4. The sign of a singular vector is arbitrary: the one is taken under
    which the projection's sum is not negative.
    """
    return A


@register("eigengradcam", collect=first_component)
def eigengradcam(A: Tensor, G: Tensor) -> Tensor:
    "ReLU of the first principal component of g ⊙ A, as in `eigencam`. pytorch-grad-cam, EigenGradCAM."
    return G * A


methods["smoothgradcam++"] = replace(smoothed("gradcam++"), name="smoothgradcam++")


# --- without gradients


@register_weights("scorecam")
def scorecam(A: Tensor, probe: Probe) -> Tensor:
    """w_k = softmax_k(y(x ∘ s(up(A_k)))), s: to 0…1 by minimum and maximum. Wang et al. 2020, Score-CAM, algorithm 1.

    The score of the baseline, which the paper subtracts, is the same for all channels and falls out of the softmax.
    Under a channel without contrast nothing of the image is left: one pass serves all of these.
    """
    size = probe.x.shape[1:]
    flat = A.flatten(1)
    contrast = flat.amax(1) > flat.amin(1)
    alive, blank = contrast.nonzero()[:, 0], (~contrast).nonzero()[:, 0]

    def masked(channels: Tensor) -> Tensor:
        masks = resized(A[None, channels], size)[0]
        low = masks.amin(tuple(range(1, masks.ndim)), keepdim=True)
        masks = masks - low
        high = masks.amax(tuple(range(1, masks.ndim)), keepdim=True)
        return probe.x * (masks / torch.where(high > 0, high, 1))[:, None].to(probe.x.dtype)

    seen = probe.inputs(masked, torch.cat([alive, blank[:1]]))
    scores = seen.new_empty(len(seen), len(A))
    scores[:, alive] = seen[:, : len(alive)]
    scores[:, blank] = seen[:, len(alive) :]
    return scores.softmax(1)


@register_weights("ablationcam")
def ablationcam(A: Tensor, probe: Probe) -> Tensor:
    """w_k = (y - y_k) / |y|, y_k: the score with channel k set to zero. Desai & Ramaswamy 2020, Ablation-CAM, eq. 3.

    The paper divides by y, which it takes to be positive; a score below zero would turn the map around. A channel that
    is zero already changes nothing and needs no pass.
    """
    alive = (A.flatten(1) != 0).any(1).nonzero()[:, 0]
    drop = torch.zeros(len(probe.base), len(A), device=A.device)
    drop[:, alive] = probe.base[:, None] - probe.without(alive)
    base = probe.base.abs()[:, None]
    return torch.where(base > 0, drop / torch.where(base > 0, base, 1), 0)
