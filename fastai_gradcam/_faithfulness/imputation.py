"""ROAD's noisy linear imputation: missing pixels from their neighbours, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import GradCAMError, GradCAMTypeError

__all__ = ["impute"]

# The solution of an image without one known pixel, which the equation leaves open: the middle of pixel space.
UNKNOWN = 0.5
# Two rounds in float32, each to this share of the error, with the remainder taken in float64 between them.
ROUNDS = (3e-4, 1e-4)
MOST_STEPS = 500
COARSEST = 16  # cells: a grid below this height or width has none below it
# A coarser grid is worth its time where it holds this share of the missing pixels: of scattered ones it holds few.
WORTH = 0.2
# Values that are solved together: on a CPU they have to stay in its cache.
TOGETHER = {"cpu": 2 * 3 * 224 * 224, "cuda": 128 * 3 * 224 * 224}


def impute(x: Tensor, missing: Tensor, noise: float = 0.01, seed: int = 0) -> Tensor:
    """`x` with its missing pixels replaced by what their neighbours say, the imputation of ROAD.

    `x`: `(N, C, H, W)` in pixel space 0…1. `missing`: bool `(N, H, W)`, true where a pixel is unknown. Each missing
    pixel becomes the weighted mean of its up to 8 neighbours, x_i = Σ_j w_ij x_j / Σ_j w_ij with w = 1/6 for straight
    and 1/12 for diagonal neighbours inside the image, for all missing pixels at once; then Gaussian noise with standard
    deviation `noise` is added, that of image i fixed by `seed` + i. Known pixels keep their exact values. Missing
    pixels have no influence on the result. Without noise constants and, away from the border, linear ramps come back to
    1e-6.

    An image that is missing as a whole becomes 0.5, with noise. A NaN among an image's known pixels makes all of its
    missing ones NaN. The result has the type of `x` and is not clipped to 0…1. Solved by conjugate gradients with a
    multigrid preconditioner. Raises `GradCAMError` for shapes that do not fit.

    Rong et al. 2022, ROAD, section 4.2, https://arxiv.org/abs/2202.00449.

    >>> import torch
    >>> from fastai_gradcam.faithfulness import impute
    >>> missing = torch.zeros(1, 8, 8, dtype=torch.bool)
    >>> missing[:, 2:5, 2:5] = True
    >>> x = torch.full((1, 3, 8, 8), 0.25)
    >>> bool(torch.allclose(impute(x.masked_fill(missing[:, None], 9), missing, noise=0), x))
    True
    """
    if not isinstance(x, Tensor) or not isinstance(missing, Tensor):
        raise GradCAMTypeError(f"impute needs two tensors, got {type(x).__name__} and {type(missing).__name__}.")
    if x.ndim != 4 or missing.shape != (len(x), *x.shape[2:]):
        raise GradCAMError(
            "impute needs x (N, C, H, W) and missing (N, H, W), one image's pixels each, "
            f"got {tuple(x.shape)} and {tuple(missing.shape)}."
        )
    missing = missing.to(x.device).bool()
    where = missing[:, None].expand_as(x)
    filled = x.detach().clone()
    if not bool(missing.any()):
        return filled
    with torch.no_grad():
        together = max(1, TOGETHER.get(x.device.type, TOGETHER["cuda"]) // max(1, x[0].numel()))
        for at in range(0, len(x), together):
            part = slice(at, at + together)
            filled[part] = _solved(x[part].detach(), missing[part]).to(x.dtype)
        if noise:
            drawn = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed + i)) for i in range(len(x))]
            filled[where] += (noise * torch.stack(drawn)).to(x)[where]
    return filled


@dataclass
class _Level:
    """The equation of one resolution, all factors times 12 and zero where a pixel is known.

    Images are stored `(n, C, cells)` with a border of one cell all around, so that a neighbour is a shift of the flat
    memory. `diagonal`: a missing cell's sum of weights, plus the 4 by which `_add_neighbours` exceeds it. `relax`: the
    factor of a Jacobi step. Where a cell is known, residuals hold anything: `relax` keeps it out.
    """

    shape: tuple[int, int]
    diagonal: Tensor
    relax: Tensor

    def cells(self, x: Tensor) -> Tensor:
        "`(n, C, height, width)` without the border, sharing memory."
        return x.view(*x.shape[:2], *self.shape)[..., 1:-1, 1:-1]

    def times(self, x: Tensor) -> Tensor:
        return _add_neighbours(x * self.diagonal, x, self.shape[1], -1)

    def residual(self, r: Tensor, x: Tensor) -> Tensor:
        return _add_neighbours(torch.addcmul(r, self.diagonal, x, value=-1), x, self.shape[1])


def _add_neighbours(out: Tensor, x: Tensor, width: int, sign: int = 1) -> Tensor:
    "Adds `x` filtered by [1 2 1]ᵀ[1 2 1] to `out`: 12 × the weighted sum of the neighbours, and 4 × the cell itself."
    flat, inner = x.view(-1), out.view(-1)[width + 1 : -width - 1]
    rows = torch.add(flat[:-2], flat[2:]).add_(flat[1:-1], alpha=2)
    inner.add_(rows[: -2 * width], alpha=sign).add_(rows[2 * width :], alpha=sign)
    inner.add_(rows[width:-width], alpha=2 * sign)
    return out


def _quarters(cells: Tensor) -> list[Tensor]:
    return [cells[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]


def _levels(missing: Tensor, inside: Tensor) -> list[_Level]:
    "From the full resolution down; a coarse cell is missing where all four of its cells are."
    found = []
    while True:
        bordered = F.pad(missing, (1, 1, 1, 1)).flatten(2)
        shape = (missing.shape[2] + 2, missing.shape[3] + 2)
        counted = F.pad(inside, (1, 1, 1, 1)).flatten(2)
        weights = _add_neighbours(torch.zeros_like(counted), counted, shape[1]) * bordered
        relax = bordered / (weights - 4 * bordered).clamp(min=1)
        found.append(_Level(shape, weights, relax))
        if missing.shape[2] % 2 or missing.shape[3] % 2 or min(missing.shape[2:]) < COARSEST:
            return found
        below = torch.stack(_quarters(missing)).amin(0)
        if below.mean() < WORTH * missing.mean():
            return found
        missing = below
        inside = torch.stack(_quarters(inside)).amax(0)


def _cycle(levels: Sequence[_Level], r: Tensor) -> Tensor:
    "An approximate solution for the right side `r`: one symmetric V-cycle of multigrid."
    level, coarser = levels[0], levels[1:]
    x = r * level.relax
    if not coarser:
        for _ in range(8 if min(level.shape) - 2 < COARSEST else 0):
            x.addcmul_(level.relax, level.residual(r, x))
        return x
    first, *others = _quarters(level.cells(level.residual(r, x)))
    below = x.new_zeros(*x.shape[:2], coarser[0].relax.shape[2])
    summed = coarser[0].cells(below)
    summed += first
    for quarter in others:
        summed += quarter
    correction = coarser[0].cells(_cycle(coarser, below))
    for quarter in _quarters(level.cells(x)):
        quarter += correction
    return x.addcmul_(level.relax, level.residual(r, x))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # A product and its sum: on a CPU, `bmm` of several such rows takes five times as long.
    return (a * b).sum((1, 2), keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 0)


def _conjugate_gradients(levels: Sequence[_Level], r: Tensor, error: float) -> Tensor:
    "The solution for the right side `r`, until each image's error has shrunk to the share `error`."
    y = torch.zeros_like(r)
    p = _cycle(levels, r)
    now = first = _dot(r, p)
    for _ in range(MOST_STEPS):
        Ap = levels[0].times(p)
        step = _ratio(now, _dot(p, Ap))
        y.addcmul_(p, step)
        r.addcmul_(Ap, step, value=-1)
        z = _cycle(levels, r)
        before, now = now, _dot(r, z)
        if not bool((now > error**2 * first).any()):
            break
        p = z.addcmul_(p, _ratio(now, before))
    return y


def _solved(x: Tensor, missing: Tensor) -> Tensor:
    "Float64 `x`, missing pixels filled in."
    # Neighbours are shifts of flat memory: channels must not come last in it.
    x, missing = x.contiguous(), missing.contiguous()
    height, width = x.shape[2:]
    step = 1
    while step < 32 and min(height, width) >= 8 * step:
        step *= 2
    beyond = (0, -width % step, 0, -height % step)
    inside = F.pad(torch.ones_like(missing[:, None], dtype=torch.float32), beyond)
    lost = F.pad(missing[:, None].float(), beyond)
    levels = _levels(lost, inside)
    top = levels[0]
    known = ~missing[:, None]
    count = known.sum((2, 3), keepdim=True)
    middle = torch.where(known, x, 0).double().sum((2, 3), keepdim=True) / count
    middle = torch.where(count > 0, middle, UNKNOWN)
    padding = (1, beyond[1] + 1, 1, beyond[3] + 1)
    # In terms of the difference from the known pixels' mean; an image without any has no equation to solve.
    y = F.pad(torch.where(known, x - middle, 0), padding).flatten(2)
    lost = F.pad(lost, (1, 1, 1, 1)).flatten(2) * (count > 0).flatten(2)
    r = _add_neighbours(torch.zeros_like(y, dtype=torch.float32), y.float(), top.shape[1]) * lost
    y += _conjugate_gradients(levels, r, ROUNDS[0])
    r = _add_neighbours(-top.diagonal.double() * y, y, top.shape[1]) * lost
    y += _conjugate_gradients(levels, r.float(), ROUNDS[1])
    return top.cells(y)[..., :height, :width] + middle
