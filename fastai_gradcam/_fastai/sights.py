"""From batches to parts of an atlas: prediction, loss, map and its numbers, all from one look at each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import Tensor, nn

from .._atlas.store import MEASURED, ROW_COLUMNS
from .._engine.method import Method
from .._errors import GradCAMError
from .._watch.look import losses
from .._watch.nested import on_device_of, tensors
from .._watch.tasks import Task
from ..cam import CAMs
from ..cam import explain as explain_inputs
from ..measures import border_share, centroid, concentration, entropy, evidence, mask_share, pointing_hit
from ..methods import resolve_method
from ..render import slices
from .explain import image_at
from .items import item_name, read
from .masks import mask_of
from .panel import item_at
from .prepare import prepared, split

__all__ = ["Sight", "Viewer"]

# Numbers that what the model sees in a place is kept in; random projections keep distances.
_FEATURES = 48


@dataclass
class Sight:
    "A batch as it was seen: its rows, maps `(n, h, w)` in shares of their peaks, and features `(n, f)`."

    rows: pd.DataFrame
    maps: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def joined(parts: list[Sight]) -> Sight:
        rows = pd.concat([p.rows for p in parts], ignore_index=True)
        return Sight(rows, *(np.concatenate([getattr(p, k) for p in parts]) for k in ("maps", "features")))


@dataclass
class Viewer:
    """Looks at batches of `dl`. `net`: a shadow of the model; `find`: masks, as `_fastai.masks.finder` gives them.

    Used inside of `undisturbed`.
    """

    learn: Learner
    net: nn.Module
    task: Task
    dl: DataLoader
    loss: Any
    layer: list[str] | None
    target: Any
    method: Any
    find: Callable[[Any, str], Any] | None = None
    space: tuple[int, ...] | None = None
    _kept: list[Tensor] = field(default_factory=list)

    def see(self, batch: Any, images: range) -> Sight:
        "A batch, which holds the `images` of the data set. Raises `GradCAMError` for what an atlas cannot hold."
        xb, yb = prepared(self.learn, self.net, *split(self.learn, batch))
        found = tensors(yb) + tensors(xb)
        if not found or len(found[0]) != len(images):
            got = len(found[0]) if found else 0
            raise GradCAMError(
                f"A batch has {got} images where the data set has {len(images)} ({images.start} to {images.stop - 1}): "
                "images that the data pipeline skips cannot be in an atlas."
            )
        cams, ready = self._look(xb, yb, images)
        maps = cams.maps[0].detach().cpu().numpy()
        maps = slices(maps) if maps.ndim == 4 else maps
        self._check(cams, maps)
        features = _features(self._kept, cams.maps[0])
        self._kept.clear()
        rows = self._answers(cams, yb, images) | self._numbers(maps, cams, images, ready)
        peak = np.where(np.isfinite(maps).all((1, 2)), maps.max((1, 2)), np.nan)
        scale = np.where(peak > 0, peak, 1)[:, None, None]
        rows |= {"index": list(images), "name": [self.name(i) for i in images], "peak": peak}
        return Sight(pd.DataFrame(rows, columns=ROW_COLUMNS), maps / scale, features)

    def _look(self, xb: tuple[Any, ...], yb: tuple[Any, ...], images: range) -> tuple[CAMs, Any]:
        ready = on_device_of(self.net, xb)
        x = ready[0] if len(ready) == 1 and isinstance(ready[0], Tensor) else ready
        asked = self.target
        if not callable(asked):
            ys = [y.as_subclass(Tensor) for y in yb if isinstance(y, Tensor)]
            asked = self.task.asked(asked, len(self.dl.dataset), slice(images.start, images.stop), ys)
        # Methods with noise draw the same for an image whoever looks at it.
        torch.manual_seed(images.start)
        how = _keeping(resolve_method(self.method), self._kept)
        return explain_inputs(self.net, x, layer=self.layer, target=asked, method=how, input=image_at(ready)), x

    def _check(self, cams: CAMs, maps: np.ndarray) -> None:
        if len(cams.maps) != 1 or (cams.target is not None and cams.target.ndim == 2):
            raise GradCAMError(
                f"An atlas has one map for each image: layer={self.layer!r}, target={self.target!r} gives several. "
                "Name one layer, and one class or 'pred'."
            )
        if maps.ndim != 3:
            raise GradCAMError(f"Layer {cams.layers[0]!r} gives maps of shape {maps.shape[1:]}, an atlas has (h, w).")
        self.space = self.space or maps.shape[1:]
        if maps.shape[1:] != self.space:
            raise GradCAMError(
                f"Maps have different sizes, {self.space} and {maps.shape[1:]}: give the data an item transform that "
                "makes the images one size, such as Resize."
            )
        self.layer = cams.layers

    def name(self, index: int) -> str:
        return item_name(self.source(index), index, getattr(self.learn.dls, "path", None))

    def source(self, index: int) -> Any:
        return item_at(getattr(self.dl.dataset, "items", None), index)

    def _answers(self, cams: CAMs, yb: tuple[Any, ...], images: range) -> dict[str, Any]:
        task, n = self.task, len(images)
        ys = [y.detach().cpu().as_subclass(Tensor) for y in yb if isinstance(y, Tensor)]
        rows: dict[str, Any] = {"label": [task.label([y[i] for y in ys]) or "" for i in range(n)]}
        answers = task.answers(cams.output, ys)
        for name, missing in (("pred", ""), ("pred_prob", None), ("correct", None)):
            got = [missing] * n if answers is None else [getattr(a, name) for a in answers]
            rows[name] = [missing if g is None else g for g in got]
        rows["loss"] = losses(self.loss, cams.output, ys, n)
        if cams.target is None:
            words = [task.in_words(self.target, i, len(self.dl.dataset)) or "" for i in images]
            return rows | {"target": words, "prob": [None] * n}
        columns = cams.target.cpu()
        probs = task.probabilities(cams.output)
        prob = [None] * n if probs is None else probs[torch.arange(n), columns].tolist()
        return rows | {"target": [task.name(int(c)) for c in columns], "prob": prob}

    def _numbers(self, maps: np.ndarray, cams: CAMs, images: range, x: Any) -> dict[str, Any]:
        y, x_ = centroid(maps)
        values = (evidence(maps), cams.negative_share[0].cpu().numpy(), entropy(maps), concentration(maps))
        rows = dict(zip(MEASURED, (*values, border_share(maps), y, x_), strict=True))
        inside = list(self._inside(maps, images, x))
        return rows | {"mask_share": [m for m, _ in inside], "pointing_hit": [float(hit) for _, hit in inside]}

    def _inside(self, maps: np.ndarray, images: range, x: Any) -> Iterator[tuple[float, float]]:
        for map, i in zip(maps, images, strict=True):
            mask = None
            if self.find is not None:
                name, size = self.name(i), tensors(x)[0].shape[-2:]
                mask = mask_of(self.find, self.source(i), name, read(self.dl, i, name), self.dl, size, [])
            yield (np.nan, np.nan) if mask is None else (mask_share(map, mask), float(pointing_hit(map, mask)))


def _keeping(how: Method, kept: list[Tensor]) -> Method:
    "The same method; the first activations that it is given are kept."

    def keep(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        def kept_of(A: Tensor, G: Tensor) -> Any:
            if not kept:
                kept.append(A)
            return function(A, G)  # type: ignore[misc]

        return None if function is None else kept_of

    return replace(how, parts=keep(how.parts), averaged=keep(how.averaged))  # type: ignore[arg-type]


def _features(kept: list[Tensor], maps: Tensor) -> np.ndarray:
    "The layer's features where the model looks: mean activations `(n, C)`, weighted by the map, of length 1."
    A = kept[0]
    if A.shape[2:] != maps.shape[1:]:
        return np.zeros((len(maps), 0), np.float32)
    weights = (maps / maps.flatten(1).sum(1).clamp_min(1e-12).view(-1, *[1] * (maps.ndim - 1))).flatten(1)
    found = torch.einsum("nci,ni->nc", A.flatten(2), weights)
    found = found / found.norm(dim=1, keepdim=True).clamp_min(1e-12)
    if found.shape[1] > _FEATURES:
        draw = torch.Generator().manual_seed(0)
        found = found @ (torch.randn(found.shape[1], _FEATURES, generator=draw) / _FEATURES**0.5).to(found)
    return found.cpu().numpy()
