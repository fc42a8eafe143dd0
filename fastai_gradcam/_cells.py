"""The arithmetic behind `measures`: maps as flat cells, and numbers of many maps at once."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ._errors import GradCAMError

Space = tuple[int, ...]

NAN = float("nan")
CONCENTRATED = 10  # per cent of cells
TOP = 20  # per cent of cells
# Pillow resizes in float32: pixels this close to the highest are as high.
SAME_HEIGHT = 1e-6


def finite_cells(map: ArrayLike, dims: int | None) -> tuple[np.ndarray, Space]:
    """`map` as float64 `(…, n)`, all NaN where one cell is not finite; and the shape of its space."""
    map = np.asarray(map, dtype=np.float64)
    dims = min(2, map.ndim) if dims is None else dims
    if not 1 <= dims <= map.ndim:
        raise GradCAMError(f"a map of shape {map.shape} has no {max(dims, 1)} axes of space")
    space = map.shape[map.ndim - dims :]
    flat = map.reshape(*map.shape[: map.ndim - dims], -1)
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.abs(flat).sum(-1, keepdims=True))
    return (flat if finite.all() else np.where(finite, flat, NAN)), space


def cells_of(map: ArrayLike, dims: int | None) -> tuple[np.ndarray, Space]:
    flat, space = finite_cells(map, dims)
    return np.maximum(flat, 0.0), space


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), NAN), where=np.greater(whole, 0))


def shares_of(cells: np.ndarray) -> np.ndarray:
    return divide(cells, cells.sum(-1, keepdims=True))


def entropy_of(shares: np.ndarray) -> np.ndarray:
    n = shares.shape[-1]
    if n == 1:
        return np.full(shares.shape[:-1], NAN)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.minimum(np.abs((shares * logs).sum(-1)) / np.log(n), 1.0)


def count_of(n: int, per_cent: int) -> int:
    return -(-n * per_cent // 100)


def concentration_of(shares: np.ndarray) -> np.ndarray:
    n = shares.shape[-1]
    k = count_of(n, CONCENTRATED)
    return np.minimum(np.partition(shares, n - k, axis=-1)[..., n - k :].sum(-1), 1.0)


@lru_cache(maxsize=64)
def border_of(space: Space) -> np.ndarray:
    border = np.ones(space, dtype=bool)
    border[(slice(1, -1),) * len(space)] = False
    return border.ravel()


def border_share_of(shares: np.ndarray, space: Space) -> np.ndarray:
    return np.minimum(shares[..., border_of(space)].sum(-1), 1.0)


def centroid_of(shares: np.ndarray, space: Space) -> tuple[np.ndarray, np.ndarray]:
    lead = shares.shape[:-1]
    if len(space) < 2:
        return np.full(lead, NAN), np.full(lead, NAN)
    h, w = space[-2:]
    seen = shares.reshape(*lead, -1, h, w).sum(-3)
    return seen.sum(-1) @ centres(h), seen.sum(-2) @ centres(w)


@lru_cache(maxsize=64)
def centres(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.maximum(np.minimum(divide((a * b).sum(-1), norms), 1.0), -1.0)


def deviations_of(cells: np.ndarray) -> np.ndarray:
    # Over the maximum a constant map is exactly 1, so that its deviations are 0 and not a rounded mean's.
    scaled = divide(cells, cells.max(-1, keepdims=True))
    return scaled - scaled.sum(-1, keepdims=True) / scaled.shape[-1]


def top_of(cells: np.ndarray) -> np.ndarray:
    n = cells.shape[-1]
    k = count_of(n, TOP)
    lowest = np.partition(cells, n - k, axis=-1)[..., n - k, None]
    return (cells >= lowest) & (cells > 0)


def iou_of(top: np.ndarray, other: np.ndarray) -> np.ndarray:
    both, either = (top & other).sum(-1), (top | other).sum(-1)
    defined = top.any(-1) & other.any(-1)
    return np.divide(both, either, out=np.full(np.shape(both), NAN), where=defined)


# A cell far below the peak vanishes in float32, as it should.
@np.errstate(under="ignore")
def against_mask(map: ArrayLike, mask: ArrayLike) -> tuple[float, bool | float]:
    map, inside = np.asarray(map), np.asarray(mask) != 0
    if inside.shape != map.shape and (map.ndim != 2 or inside.ndim != 2):
        raise GradCAMError(f"a mask of shape {inside.shape} cannot be laid over a map of shape {map.shape}")
    cells, space = cells_of(map, map.ndim)
    peak = cells.max()
    if not peak > 0 or not inside.any():
        return NAN, NAN
    pixels = (cells / peak).reshape(space)
    if inside.shape != space:
        small = Image.fromarray(pixels.astype(np.float32))
        pixels = np.asarray(small.resize(inside.shape[::-1], Image.Resampling.BILINEAR))
    share = pixels[inside].sum(dtype=np.float64) / pixels.sum(dtype=np.float64)
    highest = pixels >= pixels.max() * (1 - SAME_HEIGHT)
    hit = 2 * (highest & inside).sum() >= highest.sum()
    return min(float(share), 1.0), bool(hit)
