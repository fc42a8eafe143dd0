"""Numbers about a map: where its mass lies, how it changed, and how it agrees with a mask.

A map is a non-negative array: `(h, w)` for an image, any number of spatial axes otherwise.

- Negative cells count as zero; only `negative_share` reads the sign.
- What is undefined is NaN, without a warning: every number but `evidence` of a map that is all zero, every
  number of a map that holds a NaN or an infinity, the correlation with a constant map.
- Only `evidence` depends on a map's scale.
- Without `dims` the last two axes are space (of a 1-D map its only one) and those before them are kept: an
  `(n, h, w)` array gives `n` numbers. `dims=3` makes a `(d, h, w)` volume one map.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ._errors import GradCAMError

__all__ = [
    "MEASURES",
    "border_share",
    "centroid",
    "centroid_shift",
    "concentration",
    "entropy",
    "evidence",
    "iou_top",
    "mask_share",
    "measure",
    "negative_share",
    "pointing_hit",
    "similarity",
]

# Columns of history.csv, in their order there.
MEASURES = (
    "evidence",
    "negative_share",
    "entropy",
    "concentration",
    "border_share",
    "centroid_y",
    "centroid_x",
    "centroid_shift",
    "similarity_prev",
    "similarity_first",
    "iou_prev",
    "mask_share",
    "pointing_hit",
)

# A float for one map, an array for several (as in numpy reductions).
Numbers = Any
Space = tuple[int, ...]

NAN = float("nan")
CONCENTRATED = 10  # per cent of cells
TOP = 20  # per cent of cells
# Pillow resizes in float32: pixels this close to the highest are as high.
SAME_HEIGHT = 1e-6


def evidence(map: ArrayLike, dims: int | None = None) -> Numbers:
    """`ΣL`: how much speaks for the class, in the map's own units; 0 for an empty map.

    >>> from fastai_gradcam.measures import evidence
    >>> float(evidence([[0, 1], [2, 5]]))
    8.0
    """
    cells, _ = _cells(map, dims)
    return cells.sum(-1)[()]


def negative_share(signed_map: ArrayLike, dims: int | None = None) -> Numbers:
    """Share (0…1) of the absolute mass of a map *before its ReLU* that is negative: against the class.

    >>> from fastai_gradcam.measures import negative_share
    >>> float(negative_share([[3, -1], [0, 0]]))
    0.25
    """
    signed, _ = _finite(signed_map, dims)
    against = np.maximum(-signed, 0.0).sum(-1)
    return _divide(against, np.abs(signed).sum(-1))[()]


def entropy(map: ArrayLike, dims: int | None = None) -> Numbers:
    """`−Σ p log p / log n`: 0 when one cell holds everything, 1 when all `n` are alike; NaN for `n = 1`.

    >>> from fastai_gradcam.measures import entropy
    >>> float(entropy([[1, 1], [1, 1]])), float(entropy([[1, 0], [0, 0]]))
    (1.0, 0.0)
    """
    return _entropy(_shares(_cells(map, dims)[0]))[()]


def concentration(map: ArrayLike, dims: int | None = None) -> Numbers:
    """Share (0…1) of mass in the highest 10 % of cells: the `⌈n/10⌉` highest of `n`, so at least one.

    >>> from fastai_gradcam.measures import concentration
    >>> float(concentration([[3, 1], [0, 0]]))  # one of four cells is the highest 10 %
    0.75
    """
    return _concentration(_shares(_cells(map, dims)[0]))[()]


def border_share(map: ArrayLike, dims: int | None = None) -> Numbers:
    """Share (0…1) of mass in the outermost ring of cells (of a volume: its shell).

    Evenly spread attention gives the ring's own share of cells: 0.75 on 4×4, 0.49 on 7×7. Where an axis has
    one or two cells all cells are border.

    >>> from fastai_gradcam.measures import border_share
    >>> float(border_share([[1, 1, 1], [1, 2, 1], [1, 1, 1]]))
    0.8
    """
    cells, space = _cells(map, dims)
    return _border_share(_shares(cells), space)[()]


def centroid(map: ArrayLike, dims: int | None = None) -> tuple[Numbers, Numbers]:
    """`(y, x)`, the centre of mass in 0…1 of height and width; cell `i` of `h` is centred at `(i + 0.5)/h`.

    A volume is seen along its first axes: its centroid is that of the last two. A 1-D map has none: NaN, NaN.

    >>> from fastai_gradcam.measures import centroid
    >>> [float(c) for c in centroid([[0, 0], [0, 1]])]
    [0.75, 0.75]
    """
    cells, space = _cells(map, dims)
    y, x = _centroid(_shares(cells), space)
    return y[()], x[()]


def centroid_shift(here: tuple[Numbers, Numbers], there: tuple[Numbers, Numbers]) -> Numbers:
    """Euclidean distance between two `(y, x)` centroids, in 0…1 units of each axis: at most √2.

    >>> from fastai_gradcam.measures import centroid_shift
    >>> float(centroid_shift((0.25, 0.25), (0.25, 0.75)))
    0.5
    """
    y, x = (np.subtract(a, b) for a, b in zip(here, there, strict=True))
    return np.hypot(y, x)[()]


def similarity(map: ArrayLike, other: ArrayLike, dims: int | None = None) -> Numbers:
    """Pearson correlation (−1…1) of two maps' cells; NaN where one is constant or their spaces differ.

    >>> from fastai_gradcam.measures import similarity
    >>> round(float(similarity([[0, 1], [2, 3]], [[0, 2], [4, 6]])), 3), round(float(similarity([[0, 1]], [[1, 0]])), 3)
    (1.0, -1.0)
    """
    (cells, space), (others, other_space) = _cells(map, dims), _cells(other, dims)
    if space != other_space:
        return NAN
    return _pearson(_deviations(cells), _deviations(others))[()]


def iou_top(map: ArrayLike, other: ArrayLike, dims: int | None = None) -> Numbers:
    """Intersection over union (0…1) of the highest 20 % of cells of two maps; NaN where their spaces differ.

    The highest cells are those at least as high as the `⌈n/5⌉`-th and above zero. Ties with it all belong, so
    that a mirrored map gives the mirrored cells.

    >>> from fastai_gradcam.measures import iou_top
    >>> float(iou_top([[0, 1, 2, 3, 4, 9]], [[0, 1, 2, 3, 9, 4]]))  # the two highest of six cells
    1.0
    """
    (cells, space), (others, other_space) = _cells(map, dims), _cells(other, dims)
    if space != other_space:
        return NAN
    return _iou(_top(cells), _top(others))[()]


def mask_share(map: ArrayLike, mask: ArrayLike) -> float:
    """Share (0…1) of one map's mass inside `mask`: the energy-based pointing game of Wang et al. 2020.

    `mask`: `(H, W)`, non-zero is inside, at any resolution: the map is enlarged to it bilinearly, as its
    overlay is drawn. A mask of the map's own shape is used as it is, whatever the number of axes. NaN when
    the mask is empty: there is nothing to look at. `ValueError` when one cannot be laid over the other.

    >>> from fastai_gradcam.measures import mask_share
    >>> import numpy as np
    >>> mask = np.zeros((4, 4), bool)
    >>> mask[:, :2] = True  # the left half
    >>> round(float(mask_share([[1, 0], [1, 0]], mask)), 2), round(float(mask_share([[1, 1], [1, 1]], mask)), 2)
    (0.88, 0.5)
    """
    return _against_mask(map, mask)[0]


def pointing_hit(map: ArrayLike, mask: ArrayLike) -> bool | float:
    """Whether the peak of one map, enlarged as for `mask_share`, lies inside `mask`; NaN where undefined.

    Of several pixels that are equally high at least half must lie inside.

    >>> from fastai_gradcam.measures import pointing_hit
    >>> import numpy as np
    >>> mask = np.zeros((4, 4), bool)
    >>> mask[:, :2] = True  # the left half
    >>> bool(pointing_hit([[9, 0], [0, 0]], mask)), bool(pointing_hit([[0, 9], [0, 0]], mask))
    (True, False)
    """
    return _against_mask(map, mask)[1]


def measure(
    map: ArrayLike,
    signed_negative_share: float | None = None,
    previous: ArrayLike | None = None,
    first: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> dict[str, float | bool]:
    """All numbers of one map, `{column of history.csv: value}` in the order of `MEASURES`; undefined is NaN.

    All axes of `map` are space. `signed_negative_share`: `negative_share` of the map before its ReLU.
    `previous`, `first`: the map of this image and class in the previous and the first frame. `mask`: as for
    `mask_share`; an image's mask says nothing about a volume or a 1-D map.

    >>> from fastai_gradcam.measures import measure
    >>> import numpy as np
    >>> numbers = measure(np.array([[0.0, 1.0], [0.0, 3.0]]), 0.1)
    >>> numbers["evidence"], numbers["centroid_x"], numbers["similarity_prev"]
    (4.0, 0.75, nan)
    """
    map = np.asarray(map)
    dims = map.ndim
    cells, space = _cells(map, dims)
    row: dict[str, float | bool] = dict.fromkeys(MEASURES, NAN)
    row["evidence"] = total = float(cells.sum(-1))
    if total != total:
        return row
    if signed_negative_share is not None:
        row["negative_share"] = float(signed_negative_share)
    shares, deviations = _shares(cells), _deviations(cells)
    y, x = _centroid(shares, space)
    row["entropy"] = float(_entropy(shares))
    row["concentration"] = float(_concentration(shares))
    row["border_share"] = float(_border_share(shares, space))
    row["centroid_y"], row["centroid_x"] = float(y), float(x)
    if previous is not None:
        before, before_space = _cells(previous, np.ndim(previous))
        row["centroid_shift"] = float(centroid_shift((y, x), _centroid(_shares(before), before_space)))
        if before_space == space:
            row["similarity_prev"] = float(_pearson(deviations, _deviations(before)))
            row["iou_prev"] = float(_iou(_top(cells), _top(before)))
    if first is not None and np.shape(first) == space:
        row["similarity_first"] = float(_pearson(deviations, _deviations(_cells(first, dims)[0])))
    if mask is not None and (dims == 2 or np.shape(mask) == space):
        row["mask_share"], row["pointing_hit"] = _against_mask(map, mask)
    return row


def _finite(map: ArrayLike, dims: int | None) -> tuple[np.ndarray, Space]:
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


def _cells(map: ArrayLike, dims: int | None) -> tuple[np.ndarray, Space]:
    flat, space = _finite(map, dims)
    return np.maximum(flat, 0.0), space


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), NAN), where=np.greater(whole, 0))


def _shares(cells: np.ndarray) -> np.ndarray:
    return _divide(cells, cells.sum(-1, keepdims=True))


def _entropy(shares: np.ndarray) -> np.ndarray:
    n = shares.shape[-1]
    if n == 1:
        return np.full(shares.shape[:-1], NAN)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.minimum(np.abs((shares * logs).sum(-1)) / np.log(n), 1.0)


def _count(n: int, per_cent: int) -> int:
    return -(-n * per_cent // 100)


def _concentration(shares: np.ndarray) -> np.ndarray:
    n = shares.shape[-1]
    k = _count(n, CONCENTRATED)
    return np.minimum(np.partition(shares, n - k, axis=-1)[..., n - k :].sum(-1), 1.0)


def ring_share(space: Sequence[int]) -> float:
    "The share of a map's cells in its outermost ring: the border share of evenly spread attention."
    return float(_border(tuple(space)).mean())


@lru_cache(maxsize=64)
def _border(space: Space) -> np.ndarray:
    border = np.ones(space, dtype=bool)
    border[(slice(1, -1),) * len(space)] = False
    return border.ravel()


def _border_share(shares: np.ndarray, space: Space) -> np.ndarray:
    return np.minimum(shares[..., _border(space)].sum(-1), 1.0)


def _centroid(shares: np.ndarray, space: Space) -> tuple[np.ndarray, np.ndarray]:
    lead = shares.shape[:-1]
    if len(space) < 2:
        return np.full(lead, NAN), np.full(lead, NAN)
    h, w = space[-2:]
    seen = shares.reshape(*lead, -1, h, w).sum(-3)
    return seen.sum(-1) @ _centres(h), seen.sum(-2) @ _centres(w)


@lru_cache(maxsize=64)
def _centres(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.maximum(np.minimum(_divide((a * b).sum(-1), norms), 1.0), -1.0)


def _deviations(cells: np.ndarray) -> np.ndarray:
    # Over the maximum a constant map is exactly 1, so that its deviations are 0 and not a rounded mean's.
    scaled = _divide(cells, cells.max(-1, keepdims=True))
    return scaled - scaled.sum(-1, keepdims=True) / scaled.shape[-1]


def _top(cells: np.ndarray) -> np.ndarray:
    n = cells.shape[-1]
    k = _count(n, TOP)
    lowest = np.partition(cells, n - k, axis=-1)[..., n - k, None]
    return (cells >= lowest) & (cells > 0)


def _iou(top: np.ndarray, other: np.ndarray) -> np.ndarray:
    both, either = (top & other).sum(-1), (top | other).sum(-1)
    defined = top.any(-1) & other.any(-1)
    return np.divide(both, either, out=np.full(np.shape(both), NAN), where=defined)


# A cell far below the peak vanishes in float32, as it should.
@np.errstate(under="ignore")
def _against_mask(map: ArrayLike, mask: ArrayLike) -> tuple[float, bool | float]:
    map, inside = np.asarray(map), np.asarray(mask) != 0
    if inside.shape != map.shape and (map.ndim != 2 or inside.ndim != 2):
        raise GradCAMError(f"a mask of shape {inside.shape} cannot be laid over a map of shape {map.shape}")
    cells, space = _cells(map, map.ndim)
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
