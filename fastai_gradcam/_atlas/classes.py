"""Mean maps, and how far each map is from the mean of its class; part after part, so that memory does not grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["MapStatistics", "Parts", "shares", "statistics"]

# Gives the parts from the beginning: where the rows of each stand in the table, its maps and its features.
Parts = Callable[[], Iterator[tuple[slice, np.ndarray, np.ndarray]]]


@dataclass
class MapStatistics:
    """`mean`: each class's mean map `(K, h, w)`, whose cells add up to 1; NaN for a class without any map.

    `distance`: `(N,)`, the share of an image's attention (0…1) that lies elsewhere than in the mean of its class, NaN
    for an empty map.
    """

    mean: np.ndarray
    distance: np.ndarray


def shares(maps: np.ndarray) -> np.ndarray:
    """Maps `(n, h, w)` as rows `(n, h·w)` of shares of their mass; NaN where there is none."""
    flat = maps.reshape(len(maps), math.prod(maps.shape[1:])).astype(np.float32)  # there may be none
    flat = np.where(np.isfinite(flat).all(1, keepdims=True), flat, 0).clip(0)
    mass = flat.sum(1, keepdims=True)
    return np.divide(flat, mass, out=np.full_like(flat, np.nan), where=mass > 0)


def statistics(parts: Parts, codes: np.ndarray) -> MapStatistics:
    """Reads the parts twice. `codes`: the class of each row, −1 for none."""
    classes = int(codes.max(initial=-1)) + 1
    totals, counts, space = np.zeros((classes, 0)), np.zeros(classes), (0, 0)
    for rows, maps, _ in parts():
        space = maps.shape[1:]
        totals = totals if totals.shape[1] else np.zeros((classes, maps[0].size))
        p, own = shares(maps), codes[rows]
        used = np.isfinite(p[:, 0]) & (own >= 0)
        np.add.at(totals, own[used], p[used])
        np.add.at(counts, own[used], 1)
    mean = np.divide(totals, counts[:, None], out=np.full_like(totals, np.nan), where=counts[:, None] > 0)
    distance = np.full(len(codes), np.nan, np.float32)
    for rows, maps, _ in parts():
        own = codes[rows]
        known = np.flatnonzero(own >= 0)
        distance[rows.start + known] = np.abs(shares(maps)[known] - mean[own[known]]).sum(1) / 2
    return MapStatistics(mean.reshape(classes, *space).astype(np.float32), distance)
