"""The table behind `learn.gradcam_check`: methods and layers beside baselines, with intervals, and a sentence."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError, one_of
from ..cam import gradcam
from ..methods import Method, resolve_method
from .baselines import baseline, baselines
from .common import Classes, Given, Probability, asking, given
from .common import metrics as registry
from .intervals import Interval, interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEWEST", "LEAST", "check"]

# A smaller difference in probability counts as none. Networks that have learned nothing differ by less:
# the table "Networks that have learned nothing" of docs/faithfulness.md is of others.
LEAST = 0.01
# With fewer images the bootstrap's intervals are too narrow to be trusted.
FEWEST = 30
METRICS = ("road", "deletion", "insertion")
# A quarter of the papers' steps: the table is about differences between maps of the same images.
SHORTER: dict[str, dict[str, Any]] = {
    "road": {"shares": (0.1, 0.3, 0.7, 0.9)},
    "deletion": {"steps": 14},
    "insertion": {"steps": 14},
}
# A map of ones is a baseline of drop and increase only: for an order of pixels it is the random one.
RIVALS = ("random", "centre", "edges", "another")
_WORDS = {
    "random": "a random map",
    "centre": "a centre blob",
    "edges": "the image's edges",
    "another": "another image's map",
    "ones": "a map of ones",
}


@dataclass(frozen=True)
class _Row:
    method: str
    layer: str
    metric: str
    baseline: str
    score: Interval
    rival: float
    difference: Interval

    @property
    def verdict(self) -> str:
        if self.difference.images < FEWEST:
            return "undecided"
        if self.difference.low > LEAST:
            return "better"
        return "no better" if self.difference.high <= LEAST else "undecided"


@dataclass
class _Scored:
    "Maps and their baselines, scored once each."

    model: nn.Module
    asked: Given
    masks: Tensor | None
    how: dict[str, Any]
    known: dict[tuple, Tensor] = field(default_factory=dict)

    def __call__(self, metric: str, maps: Tensor, *of: Any) -> Tensor:
        key = (metric, *of)
        if key not in self.known:
            function = registry[metric].function
            taken = inspect.signature(function).parameters
            how = {"masks": self.masks, **self.how, **SHORTER.get(metric, {})}
            fits = {name: value for name, value in how.items() if name in taken}
            self.known[key] = function(self.model, self.asked.x, maps, self.asked.target, **fits)
        return self.known[key]

    def rows(self, method: str, layer: str, maps: Tensor, metric: str, rivals: Sequence[str]) -> list[_Row]:
        "One map beside each of the baselines."
        sign, seed = registry[metric].better, self.how["seed"]
        own, made = self(metric, maps, method, layer), []
        for name in rivals:
            # A baseline that does not look at the map is the same for all maps of its size.
            of = (name, method, layer) if name == "another" else (name, maps.shape)
            rival = self(metric, baseline(name, self.asked.x, maps, seed), *of)
            difference = interval(sign * own, sign * rival, seed=seed)
            score, its = interval(own, seed=seed), interval(rival, draws=1).mean
            made.append(_Row(method, layer, metric, name, score, its, difference))
        return made


def check(
    model: nn.Module,
    x: Tensor,
    target: Classes = None,
    *,
    methods: Sequence[Any] = ("gradcam",),
    layers: Sequence[str | nn.Module | None] = (None,),
    metrics: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    masks: Tensor | None = None,
    mean: Any = None,
    std: Any = None,
    seed: int = 0,
    batch: int = 32,
    probability: Probability | None = None,
) -> pd.DataFrame:
    """Methods and layers beside baselines, on the images `x`: a row per method, layer, metric and baseline.

    `x`: `(N, C, H, W)`; `target`: LongTensor `(N,)`, `None` for the predicted classes. `methods`, `layers`: as
    `method=` and `layer=` of `gradcam`, each several. `metrics`: names, default `("road", "deletion", "insertion")`
    with a part of their steps; the first one gives the verdict. `baselines`: names, default all. `masks`: bool
    `(N, H, W)`, for `energy_pointing` and `pointing_hit`. `mean`, `std`: from pixels to `x`.

    Columns: `method, layer, metric, images, score, low, high`, the mean with its 95 % bootstrap interval over images;
    `baseline, baseline_score`; `difference, difference_low, difference_high`, paired, positive where the map is the
    better one; `verdict`: `"better"` where the whole interval is above 0.01, `"no better"` where none of it is; else,
    and with fewer than 30 images, `"undecided"`. `.attrs["verdict"]`: sentences for a person. Raises `GradCAMError` for
    names that do not exist.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam.faithfulness import check
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 2))
    >>> table = check(model, torch.rand(4, 3, 16, 16), metrics=["insertion"])
    >>> list(table.baseline)
    ['random', 'centre', 'edges', 'another', 'ones']
    >>> print(table.attrs["verdict"])
    4 images are too few for a verdict: take 30 or more, 100 if there are as many.
    """
    use, rivals = _named(metrics, masks), _rivals(baselines)
    if not methods or not layers:
        raise GradCAMError("A check needs at least one method and one layer.")
    with asking(model, batch, probability) as ask:
        asked = given(x, torch.zeros(len(x), *[1] * (x.ndim - 2)), target, ask)
    how = {"mean": mean, "std": std, "seed": seed, "batch": batch, "probability": probability}
    scored, rows = _Scored(model, asked, masks, how), []
    for way in map(resolve_method, methods):
        for layer, maps in _maps(model, asked, way, layers, batch):
            rows += [row for metric in use for row in scored.rows(way.name, layer, maps, metric, rivals)]
    return _frame(rows, _sentences([r for r in rows if r.metric == use[0]], scored.known, use[0], len(x), seed))


def _named(metrics: Sequence[str] | None, masks: Tensor | None) -> list[str]:
    use = list(METRICS if metrics is None else metrics)
    if not use:
        raise GradCAMError("A check needs at least one metric.")
    for name in use:
        if name not in registry or registry[name].explains:
            raise GradCAMError(one_of("metric", name, [n for n, m in registry.items() if not m.explains]))
        if registry[name].masks and masks is None:
            raise GradCAMError(f"Metric {name!r} needs masks of the objects.")
    return use


def _rivals(names: Sequence[str] | None) -> list[str]:
    rivals = list(baselines if names is None else names)
    if not rivals:
        raise GradCAMError("A check needs at least one baseline.")
    for name in rivals:
        if name not in baselines:
            raise GradCAMError(one_of("baseline", name, list(baselines)))
    return rivals


def _maps(
    model: nn.Module, asked: Given, method: Method, layers: Sequence[Any], batch: int
) -> list[tuple[str, Tensor]]:
    x, target = asked.x, asked.target
    names = [gradcam(model, x[:2], layer=layer, target=target[:2]).layers[0] for layer in layers]
    made = [
        gradcam(model, a, layer=names, target=t, method=method).maps
        for a, t in zip(x.split(batch), target.split(batch), strict=True)
    ]
    return [(name, torch.cat(parts)) for name, parts in zip(names, zip(*made, strict=True), strict=True)]


def _frame(rows: list[_Row], verdict: str) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(
        [
            {
                **{"method": r.method, "layer": r.layer, "metric": r.metric, "images": r.score.images},
                **{"score": r.score.mean, "low": r.score.low, "high": r.score.high},
                **{"baseline": r.baseline, "baseline_score": r.rival, "difference": r.difference.mean},
                **{"difference_low": r.difference.low, "difference_high": r.difference.high, "verdict": r.verdict},
            }
            for r in rows
        ]
    )
    frame.attrs["verdict"] = verdict
    return frame


# --- in words


def _sentences(rows: list[_Row], known: dict[tuple, Tensor], metric: str, images: int, seed: int) -> str:
    if images < FEWEST:
        return f"{images} images are too few for a verdict: take {FEWEST} or more, 100 if there are as many."
    told = [r for r in rows if r.baseline in RIVALS or metric in ("average_drop", "increase")] or rows
    placed: dict[tuple[str, str], list[_Row]] = {}
    for row in told:
        placed.setdefault((row.method, row.layer), []).append(row)
    said = [_sentence(method, layer, of) for (method, layer), of in placed.items()]
    if len(placed) > 1:
        said.append(_best(list(placed), known, metric, seed))
    return f"By {metric} on {images} images: " + " ".join(said)


def _sentence(method: str, layer: str, rows: list[_Row]) -> str:
    where = f"at layer {layer!r} {method} is"
    answered = [r for r in rows if math.isfinite(r.difference.mean)]
    if not answered:
        return f"{where} without an answer: its maps are not finite."
    hardest, *_ = answered = sorted(answered, key=lambda r: r.difference.mean)
    lost = [r for r in answered if r.verdict == "no better"]
    d = (lost or answered)[0].difference
    numbers = f"difference {d.mean:+.3f}, 95 % interval {d.low:+.3f} to {d.high:+.3f}"
    if lost:
        return f"{where} no better than {' or '.join(_WORDS[r.baseline] for r in lost)} ({numbers})."
    if all(r.verdict == "better" for r in answered):
        return f"{where} better than all baselines; the nearest is {_WORDS[hardest.baseline]} ({numbers})."
    return f"{where} not told from {_WORDS[hardest.baseline]} by so few images ({numbers})."


def _best(pairs: list[tuple[str, str]], known: dict[tuple, Tensor], metric: str, seed: int) -> str:
    sign = registry[metric].better
    ranked = sorted(pairs, key=lambda pair: -sign * interval(known[(metric, *pair)], draws=1).mean)
    (method, layer), (second, its) = ranked[:2]
    lead = interval(sign * known[metric, method, layer], sign * known[metric, second, its], seed=seed)
    sure = "which is" if lead.low > 0 else "which is not"
    return (
        f"The best is {method} at layer {layer!r}, ahead of {second} at layer {its!r} by {lead.mean:.3f}, {sure} more "
        f"than chance (95 % interval {lead.low:+.3f} to {lead.high:+.3f})."
    )
