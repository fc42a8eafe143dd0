"""Habits: groups of a class's images for which the model looks at like things in like places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .classes import Parts, shares

__all__ = ["Habits", "Model", "find", "fit", "places"]

# A class is grouped by so many of its images at most; the others join the group whose centre is nearest.
SAMPLE = 2000
LEAST = 12  # images of a class that is grouped at all
MOST = 6  # habits of a class
APART = 0.25  # the mean silhouette from which there are groups at all
_DIMENSIONS = 8


@dataclass(frozen=True)
class Model:
    """The groups of one class: images lie at `(v − mean) @ axes`, and join the nearest of the `centres` `(k, d)`.

    `apart`: how well the groups are separated, the mean silhouette, −1…1; 0 for one group.
    """

    mean: np.ndarray
    axes: np.ndarray
    centres: np.ndarray
    apart: float

    def nearest(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        "The group of each of `vectors` `(n, v)`, and the distance from its centre."
        at = (vectors - self.mean) @ self.axes
        distance = np.linalg.norm(at[:, None] - self.centres[None], axis=2)
        return distance.argmin(1), distance.min(1)


@dataclass
class Habits:
    """`habit`: `(N,)`, a row's group within its class, 0 the largest; −1 where there is no class or no map.

    `distance`: `(N,)`, from the centre of the group. `apart`: for each class, how well its groups are separated.
    """

    habit: np.ndarray
    distance: np.ndarray
    apart: np.ndarray


def vectors_of(maps: np.ndarray, features: np.ndarray) -> np.ndarray:
    "Where the model looks and what is there, `(n, cells + f)`; NaN for an empty map."
    there = np.nan_to_num(features.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return np.concatenate([shares(maps), there], 1)


def fit(vectors: np.ndarray, cells: int, seed: int = 0) -> Model:
    """Groups of the images of one class, `vectors` `(n, cells + f)`; as many as are best apart, one if none are."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    mean = vectors.mean(0)
    axes = _axes(vectors - mean, cells)
    at = (vectors - mean) @ axes
    one = Model(mean, axes, at.mean(0, keepdims=True), 0.0)
    if len(at) < LEAST or not np.isfinite(at).all() or len(np.unique(at.round(6), axis=0)) <= MOST:
        return one
    best = one
    for k in range(2, MOST + 1):
        groups = KMeans(k, n_init=4, random_state=seed).fit(at)
        apart = float(silhouette_score(at, groups.labels_, sample_size=min(len(at), 500), random_state=seed))
        if apart > max(APART, best.apart):
            best = Model(mean, axes, groups.cluster_centers_, apart)
    return best


def _axes(centred: np.ndarray, cells: int) -> np.ndarray:
    "The main axes of the maps and those of the features; either block varies by 1 in all, so that both count alike."
    blocks, width = [], centred.shape[1]
    for part in (slice(0, cells), slice(cells, width)):
        block = centred[:, part]
        if not block.shape[1]:
            continue
        _, size, directions = np.linalg.svd(block, full_matrices=False)
        total = np.sqrt((size**2).sum() / len(block))
        axes = np.zeros((width, min(_DIMENSIONS, len(size))))
        axes[part] = directions[: axes.shape[1]].T / max(total, 1e-12)
        blocks.append(axes)
    return np.concatenate(blocks, 1).astype(np.float32)


def find(parts: Parts, codes: np.ndarray, seed: int = 0) -> Habits:
    """The habits of each class; reads the parts twice. `codes` as in `statistics`."""
    classes = int(codes.max(initial=-1)) + 1
    models = _models(parts, codes, classes, seed)
    habit, distance = np.full(len(codes), -1, np.int16), np.full(len(codes), np.nan, np.float32)
    for rows, maps, features in parts():
        vectors, own = vectors_of(maps, features), codes[rows]
        usable = np.isfinite(vectors).all(1)
        for c in np.unique(own[usable & (own >= 0)]):
            mine = np.flatnonzero(usable & (own == c))
            habit[rows.start + mine], distance[rows.start + mine] = models[c].nearest(vectors[mine])
    for c in range(classes):
        mine = np.flatnonzero((codes == c) & (habit >= 0))
        sizes = np.bincount(habit[mine], minlength=1)
        rank = np.empty(len(sizes), np.int16)
        rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
        habit[mine] = rank[habit[mine]]
    return Habits(habit, distance, np.array([m.apart for m in models]))


def _models(parts: Parts, codes: np.ndarray, classes: int, seed: int) -> list[Model]:
    rng, chosen = np.random.default_rng(seed), np.zeros(len(codes), bool)
    for c in range(classes):
        mine = np.flatnonzero(codes == c)
        chosen[mine if len(mine) <= SAMPLE else rng.choice(mine, SAMPLE, replace=False)] = True
    kept: list[list[np.ndarray]] = [[] for _ in range(classes)]
    cells = 0
    for rows, maps, features in parts():
        cells = maps[0].size
        taken = np.flatnonzero(chosen[rows])
        vectors = vectors_of(maps[taken], features[taken])
        usable = np.isfinite(vectors).all(1)
        for c in np.unique(codes[rows][taken]):
            kept[c].append(vectors[usable & (codes[rows][taken] == c)])
    nothing = np.zeros((1, 1), np.float32)
    return [fit(np.concatenate(k), cells, seed) if k and sum(map(len, k)) else fit(nothing, 0, seed) for k in kept]


def places(parts: Parts, n: int, seed: int = 0) -> np.ndarray:
    """`(N, 2)` in 0…1: images lie near each other for which the model looks at like things in like places.

    The two main axes of all classes together, found on a sample; an image without a map lies in the middle.
    """
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(seed).permutation(n)[: 2 * SAMPLE]] = True
    sample, cells = [], 0
    for rows, maps, features in parts():
        taken, cells = np.flatnonzero(chosen[rows]), maps[0].size
        sample.append(vectors_of(maps[taken], features[taken]))
    vectors = np.concatenate(sample)
    vectors = vectors[np.isfinite(vectors).all(1)]
    at = np.full((n, 2), 0.5, np.float32)
    if len(vectors) < 3:
        return at
    mean = vectors.mean(0)
    axes = _axes(vectors - mean, cells)
    turn = np.linalg.svd((vectors - mean) @ axes, full_matrices=False)[2][:2].T
    if turn.shape[1] < 2:
        return at
    low, high = np.quantile((vectors - mean) @ axes @ turn, (0.005, 0.995), axis=0)
    for rows, maps, features in parts():
        found = (vectors_of(maps, features) - mean) @ axes @ turn
        at[rows] = np.nan_to_num(((found - low) / np.maximum(high - low, 1e-9)).clip(0, 1), nan=0.5)
    return at
