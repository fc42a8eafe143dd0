"""The first pass over a judging set: predictions, the hottest places of the maps, and how their patches look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import GradCAMError
from .boxes import hottest, random_beside, side_of

__all__ = ["SURE", "Batch", "Look", "Seen", "look_at", "read"]

# `(x, y)` gives the scores `(N, K)` and the maps `(N, h, w)` of the classes `y`.
Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Data = Callable[[], Iterable] | Iterable

# A class that is more probable than all others together is one that the model is sure of.
SURE = 0.5
_BINS = 4  # of each colour channel, in the histogram that patches are compared by


@dataclass(frozen=True)
class Batch:
    """Images `x` `(N, C, H, W)`, their classes `y` `(N,)`, and boolean masks `(N, H, W)`, if they are known."""

    x: Tensor
    y: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)


@dataclass
class Seen:
    """Results of the first pass for each of the `N` images, without their pixels.

    `pred`: `(N,)`. `sums`: a number per image by which it is recognised in the second pass. `hot`, `cold`: `(N, 2)`.
    `found`: `(N,)`, whether the map has a hottest box. `colours`: `(N, bins)`, a histogram of the hottest box.
    `means`: `(N, C)`, of each channel of the whole picture.
    `size`: of the pictures; `side`: of the boxes. `masks`: whether every batch has them. `classes`: K. `sure`: whether
    most of the images that are recognised have a probability above `SURE`.
    """

    y: Tensor
    pred: Tensor
    sums: Tensor
    hot: Tensor
    cold: Tensor
    found: Tensor
    colours: Tensor
    means: Tensor
    size: tuple[int, int]
    side: tuple[int, int]
    masks: bool
    classes: int
    sure: bool
    mean_maps: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def right(self) -> Tensor:
        return (self.pred == self.y) & self.found

    def judged(self, least: int) -> list[int]:
        """The classes with at least `least` images that are recognised."""
        return [c for c in range(self.classes) if int(self.right[self.y == c].sum()) >= least]


def read(data: Data) -> Iterator[Batch]:
    """The batches of `data`. Raises `GradCAMError` for what is not an image with one class."""
    for item in data() if callable(data) else data:
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            raise GradCAMError(f"A judging set gives batches (x, y) or (x, y, masks), got a {type(item).__name__}.")
        x, y, masks = (*item, None)[:3]
        if not isinstance(x, Tensor) or x.ndim != 4:
            kind = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise GradCAMError(f"Interventions need one input of pictures (N, C, H, W), got {kind}.")
        y = torch.as_tensor(y)
        if y.is_floating_point() or y.numel() != len(x):
            raise GradCAMError(
                f"Interventions need one class for each image, got targets {tuple(y.shape)} of {y.dtype}: several "
                "labels, a regression and a segmentation are not judged."
            )
        x, y = x.detach().as_subclass(Tensor), y.detach().as_subclass(Tensor).reshape(-1).long().cpu()
        yield Batch(x, y, None if masks is None else torch.as_tensor(masks).bool())


def look_at(data: Data, look: Look, generator: torch.Generator, tick: Callable[[int], None]) -> Seen:
    """Every image of `data` once. Raises `GradCAMError` for an empty set, or scores that are not `(N, K)`."""
    parts: list[tuple[Tensor, ...]] = []
    totals: dict[int, Tensor] = {}
    scale: tuple[Tensor, Tensor] | None = None
    sizes: set[tuple[int, int]] = set()
    masks, classes = True, 0
    for batch in read(data):
        x, y = batch.x, batch.y
        sizes.add((x.shape[2], x.shape[3]))
        if len(sizes) > 1:
            raise GradCAMError(f"The pictures of a judging set must have one size, got {sorted(sizes)}.")
        scores, maps = look(x, y)
        classes = _classes(scores, y)
        size = sizes.copy().pop()
        side = side_of(size)
        maps = F.interpolate(maps[:, None].float().cpu(), size=size, mode="bilinear", align_corners=False)[:, 0]
        total = maps.flatten(1).sum(1)
        found = total.isfinite() & (total > 0)
        maps = torch.where(found[:, None, None], maps, torch.zeros(()))
        top, pred = (t.cpu() for t in scores.softmax(1).max(1))
        for c in y[found & (pred == y)].unique().tolist():
            mine = found & (pred == y) & (y == c)
            totals[c] = totals.get(c, torch.zeros(size)) + (maps[mine] / total[mine, None, None]).sum(0)
        hot = hottest(maps, side)
        if scale is None:
            scale = x.float().mean((0, 2, 3)).cpu(), x.float().std((0, 2, 3)).clamp(min=1e-6).cpu()
        colours = _colours(x.float().cpu(), hot, side, scale)
        cold = random_beside(hot, size, side, generator)
        parts.append(
            (
                y,
                pred,
                top > SURE,
                x.double().sum((1, 2, 3)).cpu(),
                hot,
                cold,
                found,
                colours,
                x.float().mean((2, 3)).cpu(),
            )
        )
        masks = masks and batch.masks is not None
        tick(len(batch))
    if not parts:
        raise GradCAMError("The judging set is empty.")
    y, pred, sure, sums, hot, cold, found, colours, means = (torch.cat(part) for part in zip(*parts, strict=True))
    most = bool(sure[pred == y].float().mean() >= 0.5) if bool((pred == y).any()) else True
    return Seen(y, pred, sums, hot, cold, found, colours, means, size, side, masks, classes, most, totals)


def _classes(scores: Tensor, y: Tensor) -> int:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise GradCAMError(
            f"Interventions need a score for each of at least two classes, (N, K), got {tuple(scores.shape)}."
        )
    if int(y.max()) >= scores.shape[1] or int(y.min()) < 0:
        raise GradCAMError(
            f"The targets go from {int(y.min())} to {int(y.max())}, but there are {scores.shape[1]} scores."
        )
    return scores.shape[1]


def _colours(x: Tensor, at: Tensor, side: tuple[int, int], scale: tuple[Tensor, Tensor]) -> Tensor:
    """A joint histogram of the first three channels of each box, in quartiles of a normal distribution."""
    channels = min(3, x.shape[1])
    mean, deviation = (s[:channels, None, None] for s in scale)
    found = []
    for image, (i, j) in zip(x, at.tolist(), strict=True):
        box = (image[:channels, i : i + side[0], j : j + side[1]] - mean) / deviation
        bins = torch.bucketize(box, torch.tensor([-0.67, 0.0, 0.67]))
        codes = sum(bins[k] * _BINS**k for k in range(channels))
        found.append(torch.bincount(torch.as_tensor(codes).flatten(), minlength=_BINS**channels) / bins[0].numel())
    return torch.stack(found)
