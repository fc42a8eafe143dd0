"""Numbers about a map: where its mass lies, how it changed, and how it agrees with a mask.

A map is a non-negative array: `(h, w)` for an image, any number of spatial axes otherwise.

- Negative cells count as zero; only `negative_share` reads the sign.
- An undefined number is NaN, without a warning: every number but `evidence` of a map that is all zero, every
  number of a map that holds a NaN or an infinity, the correlation with a constant map.
- Only `evidence` depends on a map's scale.
- Without `dims` the last two axes are space (of a 1-D map its only one) and those before them are kept: an
  `(n, h, w)` array gives `n` numbers. `dims=3` makes a `(d, h, w)` volume one map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._cells import (
    NAN,
    against_mask,
    border_of,
    border_share_of,
    cells_of,
    centroid_of,
    concentration_of,
    deviations_of,
    divide,
    entropy_of,
    finite_cells,
    iou_of,
    pearson,
    shares_of,
    top_of,
)

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


def evidence(map: ArrayLike, dims: int | None = None) -> Numbers:
    """`ΣL`: how much speaks for the class, in the map's own units; 0 for an empty map.

    >>> from fastai_gradcam.measures import evidence
    >>> float(evidence([[0, 1], [2, 5]]))
    8.0
    """
    cells, _ = cells_of(map, dims)
    return cells.sum(-1)[()]


def negative_share(signed_map: ArrayLike, dims: int | None = None) -> Numbers:
    """Share (0…1) of the absolute mass of a map *before its ReLU* that is negative: against the class.

    >>> from fastai_gradcam.measures import negative_share
    >>> float(negative_share([[3, -1], [0, 0]]))
    0.25
    """
    signed, _ = finite_cells(signed_map, dims)
    against = np.maximum(-signed, 0.0).sum(-1)
    return divide(against, np.abs(signed).sum(-1))[()]


def entropy(map: ArrayLike, dims: int | None = None) -> Numbers:
    """`−Σ p log p / log n`: 0 when one cell holds everything, 1 when all `n` are alike; NaN for `n = 1`.

    >>> from fastai_gradcam.measures import entropy
    >>> float(entropy([[1, 1], [1, 1]])), float(entropy([[1, 0], [0, 0]]))
    (1.0, 0.0)
    """
    return entropy_of(shares_of(cells_of(map, dims)[0]))[()]


def concentration(map: ArrayLike, dims: int | None = None) -> Numbers:
    """Share (0…1) of mass in the highest 10 % of cells: the `⌈n/10⌉` highest of `n`, so at least one.

    >>> from fastai_gradcam.measures import concentration
    >>> float(concentration([[3, 1], [0, 0]]))  # one of four cells is the highest 10 %
    0.75
    """
    return concentration_of(shares_of(cells_of(map, dims)[0]))[()]


def border_share(map: ArrayLike, dims: int | None = None) -> Numbers:
    """Share (0…1) of mass in the outermost ring of cells (of a volume: its shell).

    Evenly spread attention gives the ring's own share of cells: 0.75 on 4×4, 0.49 on 7×7. Where an axis has
    one or two cells all cells are border.

    >>> from fastai_gradcam.measures import border_share
    >>> float(border_share([[1, 1, 1], [1, 2, 1], [1, 1, 1]]))
    0.8
    """
    cells, space = cells_of(map, dims)
    return border_share_of(shares_of(cells), space)[()]


def centroid(map: ArrayLike, dims: int | None = None) -> tuple[Numbers, Numbers]:
    """`(y, x)`, the centre of mass in 0…1 of height and width; cell `i` of `h` is centred at `(i + 0.5)/h`.

    A volume is seen along its first axes: its centroid is that of the last two. A 1-D map has none: NaN, NaN.

    >>> from fastai_gradcam.measures import centroid
    >>> [float(c) for c in centroid([[0, 0], [0, 1]])]
    [0.75, 0.75]
    """
    cells, space = cells_of(map, dims)
    y, x = centroid_of(shares_of(cells), space)
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
    (cells, space), (others, other_space) = cells_of(map, dims), cells_of(other, dims)
    if space != other_space:
        return NAN
    return pearson(deviations_of(cells), deviations_of(others))[()]


def iou_top(map: ArrayLike, other: ArrayLike, dims: int | None = None) -> Numbers:
    """Intersection over union (0…1) of the highest 20 % of cells of two maps; NaN where their spaces differ.

    The highest cells are those at least as high as the `⌈n/5⌉`-th and above zero. Ties with it all belong, so
    that a mirrored map gives the mirrored cells.

    >>> from fastai_gradcam.measures import iou_top
    >>> float(iou_top([[0, 1, 2, 3, 4, 9]], [[0, 1, 2, 3, 9, 4]]))  # the two highest of six cells
    1.0
    """
    (cells, space), (others, other_space) = cells_of(map, dims), cells_of(other, dims)
    if space != other_space:
        return NAN
    return iou_of(top_of(cells), top_of(others))[()]


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
    return against_mask(map, mask)[0]


def pointing_hit(map: ArrayLike, mask: ArrayLike) -> bool | float:
    """Whether the peak of one map, enlarged as for `mask_share`, lies inside `mask`; NaN where undefined.

    If several pixels are equally high, at least half of them must lie inside.

    >>> from fastai_gradcam.measures import pointing_hit
    >>> import numpy as np
    >>> mask = np.zeros((4, 4), bool)
    >>> mask[:, :2] = True  # the left half
    >>> bool(pointing_hit([[9, 0], [0, 0]], mask)), bool(pointing_hit([[0, 9], [0, 0]], mask))
    (True, False)
    """
    return against_mask(map, mask)[1]


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
    cells, space = cells_of(map, dims)
    row: dict[str, float | bool] = dict.fromkeys(MEASURES, NAN)
    row["evidence"] = total = float(cells.sum(-1))
    if total != total:
        return row
    if signed_negative_share is not None:
        row["negative_share"] = float(signed_negative_share)
    shares, deviations = shares_of(cells), deviations_of(cells)
    y, x = centroid_of(shares, space)
    row["entropy"] = float(entropy_of(shares))
    row["concentration"] = float(concentration_of(shares))
    row["border_share"] = float(border_share_of(shares, space))
    row["centroid_y"], row["centroid_x"] = float(y), float(x)
    if previous is not None:
        before, before_space = cells_of(previous, np.ndim(previous))
        row["centroid_shift"] = float(centroid_shift((y, x), centroid_of(shares_of(before), before_space)))
        if before_space == space:
            row["similarity_prev"] = float(pearson(deviations, deviations_of(before)))
            row["iou_prev"] = float(iou_of(top_of(cells), top_of(before)))
    if first is not None and np.shape(first) == space:
        row["similarity_first"] = float(pearson(deviations, deviations_of(cells_of(first, dims)[0])))
    if mask is not None and (dims == 2 or np.shape(mask) == space):
        row["mask_share"], row["pointing_hit"] = against_mask(map, mask)
    return row


def ring_share(space: Sequence[int]) -> float:
    "The share of a map's cells in its outermost ring: the border share of evenly spread attention."
    return float(border_of(tuple(space)).mean())
