"""Sanity checks: a map must change with the network's weights and with the class that it explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .._net.guard import undisturbed
from .._net.layers import unwrap
from .._net.shadow import shadow
from ..cam import gradcam
from .common import Classes, Given, Scores, asking, given, mean_of, of_target, register

__all__ = ["random_logit", "randomisation", "spearman"]

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]
BINS = 100  # of the histogram, as in Quantus


@register(better=1, explains=True)
def randomisation(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    *,
    layer: str | nn.Module | None = None,
    method: str = "gradcam",
    explain: Explain | None = None,
    stages: int = 4,
    seed: int = 0,
    batch: int = 64,
) -> Scores:
    """eMPRT: how much more complex a map becomes when all of the network's weights are random; higher is better.

    (H(M') - H(M)) / H(M), M: `maps`, M': the map of the network with random weights, H: the entropy of a map's values
    in a histogram of 100 bins from its lowest to its highest. Range -1…∞; around 0 for a map that does not depend on
    the weights. NaN where a map is not finite or constant. `maps`: `(N, *space)` at the layer's own resolution, made
    with the same `layer` and `method`, or by `explain(model, x, target)`, which makes maps in any other way. Weights
    are redrawn in a copy of the model, from the input upwards (`reset_parameters`, or a shuffle where a module has
    none) in `stages` steps; from the output downwards, early features would stay and keep maps similar.

    `.figure`: a dict of `emprt`, the mean; for each stage `share`, how much of the modules is random, and `similarity`,
    the mean Spearman correlation of cells with `maps`; `shuffled`, the same at the last stage with another image's map.
    Pitfalls: two maps hot in the middle correlate, whatever the weights: compare `similarity` with `shuffled`.

    Hedström et al. 2024, eMPRT, https://arxiv.org/abs/2401.06465, equation 5; Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292; bottom-up after Binder et al. 2023, https://arxiv.org/abs/2211.12486.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import randomisation
    >>> randomisation(model, x, maps, target).shape
    torch.Size([2])
    """
    with asking(model, batch) as ask:
        asked = given(x, maps, target, ask)
    maker = explain or _maker(model, asked.x, asked.target, layer, method)
    redrawn, flat = _redrawn(model, asked, maker, stages, seed, batch), asked.maps.flatten(1)
    made = redrawn[-1][1]
    others = _mean(spearman(flat, made.roll(1, 0))[asked.fine]) if len(flat) > 1 else float("nan")
    before, after = histogram_entropy(flat), histogram_entropy(made)
    value = torch.where(before > 0, (after - before) / before, torch.nan)
    similar = [1.0, *(_mean(spearman(flat, m)[asked.fine]) for _, m in redrawn)]
    about = {"share": [0.0, *(share for share, _ in redrawn)], "similarity": similar, "shuffled": others}
    return asked.scores(value, lambda v: {"emprt": mean_of(v), **about})


@register(better=-1, explains=True)
def random_logit(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Classes,
    *,
    layer: str | nn.Module | None = None,
    method: str = "gradcam",
    explain: Explain | None = None,
    seed: int = 0,
    batch: int = 64,
) -> Scores:
    """How similar the map of another class is, one that is drawn at random for each image; lower is better.

    Spearman correlation of the cells of `maps` with those of the other class's map, -1…1; `layer`, `method` and
    `explain` as in `randomisation`. NaN where one of the two is constant, empty or not finite. `.figure`: the mean.
    Pitfalls: two classes may rightly have one object as their evidence, for and against. A method that ignores the
    class, such as `eigencam`, has 1.

    Sixt et al. 2020, When explanations lie, https://arxiv.org/abs/1912.09818, section 5.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import gradcam
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> x, target = torch.rand(2, 3, 16, 16), torch.tensor([0, 3])
    >>> maps = gradcam(model, x, target=target).maps[0]
    >>> from fastai_gradcam.faithfulness import random_logit
    >>> random_logit(model, x, maps, target).shape
    torch.Size([2])
    """
    with asking(model, batch) as ask:
        asked = given(x, maps, target, ask)
        probs = ask(asked.x)
        of_target(probs, asked.target)
    classes = probs.shape[1]
    if classes < 2:
        raise GradCAMError("random_logit needs a model with two classes or more.")
    maker = explain or _maker(model, asked.x, asked.target, layer, method)
    with torch.inference_mode(False):
        other = _another_class(asked.target, classes, seed)
        made = _made(maker, model, asked.x, other, batch)
    _same_shape(asked.maps, made)
    return asked.scores(spearman(asked.maps.flatten(1), made.flatten(1)), _mean)


def _another_class(target: Tensor, classes: int, seed: int) -> Tensor:
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(target))]
    drawn = torch.stack([torch.randint(classes - 1, (), generator=g) for g in generators]).to(target.device)
    return drawn + (drawn >= target)


def _same_shape(maps: Tensor, made: Tensor) -> None:
    if maps.shape != made.shape:
        raise GradCAMError(
            f"maps have {maps[0].numel()} cells, those made here {made[0].numel()}: give maps at the layer's own "
            "resolution, made with the same layer= and method=, or explain=."
        )


def _maker(model: nn.Module, x: Tensor, target: Tensor, layer: str | nn.Module | None, method: str) -> Explain:
    "Maps of `method` at `layer`, which is named once: a random network might have another default."
    name = gradcam(model, x[:2], layer=layer, target=target[:2]).layers[0]
    return lambda net, x, target: gradcam(net, x, layer=name, target=target, method=method).maps[0]


def _redrawn(
    model: nn.Module, asked: Given, explain: Explain, stages: int, seed: int, batch: int
) -> list[tuple[float, Tensor]]:
    "For each stage the share of the modules that is random, and the maps `(N, cells)`."
    if stages < 1:
        raise GradCAMError(f"stages must be at least 1, got {stages!r}.")
    made = []
    with torch.inference_mode(False), undisturbed():
        for share, net in _randomised(model, stages, seed):
            maps = _made(explain, net, asked.x, asked.target, batch)
            _same_shape(asked.maps, maps)
            made.append((share, maps.flatten(1)))
    return made


def _made(explain: Explain, model: nn.Module, x: Tensor, target: Tensor, batch: int) -> Tensor:
    parts = zip(x.split(batch), target.split(batch), strict=True)
    return torch.cat([explain(model, a, t) for a, t in parts]).detach().float()


def _randomised(model: nn.Module, stages: int, seed: int) -> Iterator[tuple[float, nn.Module]]:
    "A copy of the model with more and more random weights, and the share of its modules that has them."
    net = shadow(unwrap(model), own_weights=True)
    modules = [m for m in net.modules() if any(True for _ in m.parameters(recurse=False))]
    if not modules:
        raise GradCAMError("randomisation needs a model with weights, and this one has none.")
    done = 0
    torch.manual_seed(seed)
    for stage in range(1, min(stages, len(modules)) + 1):
        until = round(len(modules) * stage / min(stages, len(modules)))
        for module in modules[done:until]:
            reset = getattr(module, "reset_parameters", None)
            with torch.no_grad():
                if callable(reset):
                    reset()
                else:
                    for p in module.parameters(recurse=False):
                        p.copy_(p.flatten()[torch.randperm(p.numel()).to(p.device)].view_as(p))
        done = until
        yield done / len(modules), net


# --- similarity and complexity


def spearman(a: Tensor, b: Tensor) -> Tensor:
    "Rank correlation of the rows of `(N, cells)`, ties at their mean rank; NaN where a row is constant or not finite."
    centred = [r - r.mean(1, keepdim=True) for r in (_ranks(a), _ranks(b))]
    norms = [r.norm(dim=1) for r in centred]
    product = norms[0] * norms[1]
    finite = a.isfinite().all(1) & b.isfinite().all(1) & (product > 0)
    return torch.where(finite, (centred[0] * centred[1]).sum(1) / product, torch.nan).float()


def _ranks(values: Tensor) -> Tensor:
    rows = []
    for row in values.double():
        _, inverse, counts = row.nan_to_num().unique(return_inverse=True, return_counts=True)
        rows.append((counts.cumsum(0) - (counts - 1) / 2.0)[inverse])
    return torch.stack(rows).double()


def histogram_entropy(flat: Tensor) -> Tensor:
    "-Σ p log p over 100 bins from each row's lowest to its highest value; 0 for a constant row."
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    place = (flat - low) / torch.where(high > low, high - low, 1) * BINS
    place = place.nan_to_num().long().clamp(0, BINS - 1)
    counts = torch.zeros(len(flat), BINS, device=flat.device).scatter_add_(1, place, torch.ones_like(flat))
    entropy = torch.special.entr(counts / flat.shape[1]).sum(1)
    return torch.where(flat.isfinite().all(1), entropy, torch.nan)


def _mean(values: Tensor) -> float:
    return mean_of(values[values.isfinite()])
