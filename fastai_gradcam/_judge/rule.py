"""From trials to verdicts: intervals by bootstrap over images, what makes a patch suspicious, and the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .interventions import PUT, interventions
from .trials import Trial

__all__ = ["Row", "Rule", "Suspicion", "alike", "distance", "interval", "rows_of", "spread"]

SHORTCUT, CLEAR, UNDECIDED = "shortcut", "clear", "undecided"
# The intervention on images of other classes that must confirm what was taken away from images of the class.
_CONFIRMED_BY = {"cover": "transplant", "place_away": "place", "colour_away": "colour", "blur_away": "blur"}


@dataclass(frozen=True)
class Rule:
    """When a test is a `shortcut` and when it is `clear`. Shares in 0…1, fixed on models other than those reported."""

    images: int = 5
    """So many images must have been changed, or the verdict is `undecided`."""
    excess: float = 0.2
    """`shortcut`: by so much the effect must exceed its control …"""
    low: float = 0.1
    """… and the lower end of the interval must be above this."""
    clear: float = 0.2
    """`clear`: the upper end of the interval is below this."""
    colour: float = 2.0
    """`shortcut` of `colour`: the class's mean colour must be so far from the other classes' (`Suspicion.colour`), or
    a colour that others lack is not what turned them."""


@dataclass(frozen=True)
class Suspicion:
    """What makes the hot patches of a class suspicious beyond their effect.

    `area`: share of the picture. `alike`: how much more the patches of the class's images resemble each other than the
    patches of other classes, as an intersection of colour histograms, −1…1. `spread`: the mean distance of the patches
    from their mean place, as a share of the picture (0: always in one place; chance: about 0.3). `stands_out`: by how
    much the excess of a transplanted patch is above the median of the other classes. `colour`: the distance of the
    class's mean colour from that of the others, in standard deviations of an image within its class.
    """

    area: float
    alike: float
    spread: float
    stands_out: float
    colour: float


@dataclass(frozen=True)
class Row:
    """A line of `verdicts.csv`: the shares of images for which the change and its control had an effect.

    `low`, `high`: a 95 % interval of effect − control.
    """

    label: str
    test: str
    images: int
    effect: float
    control: float
    low: float
    high: float
    verdict: str


def interval(excess: np.ndarray, source: np.ndarray, rng: np.random.Generator, draws: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the mean of `excess`, by a bootstrap over the images `source` that the trials come from.

    An image without an effect is added to those drawn from, so that a handful of images that agree is not certain.
    """
    sources, index = np.unique(source, return_inverse=True)
    sums = np.append(np.bincount(index, excess, len(sources)), 0.0)
    counts = np.append(np.bincount(index, minlength=len(sources)), len(excess) / len(sources))
    drawn = rng.integers(len(sums), size=(draws, len(sources)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def rows_of(
    trials: Sequence[Trial],
    tests: Sequence[str],
    names: Mapping[int, str],
    colour: Mapping[int, float],
    rule: Rule,
    seed: int,
) -> list[Row]:
    """A row for each class in `names` and each test, in their order. `colour`: each class's distance from others."""
    rows: list[Row] = []
    for label, name in names.items():
        confirmed: set[str] = set()
        found: list[Row] = []
        for test in sorted(tests, key=lambda t: (interventions[t].direction != PUT, tests.index(t))):
            mine = [t for t in trials if t.test == test and t.label == label]
            row = _row(name, test, mine, rule, confirmed, np.random.default_rng([seed, label]))
            if test == "colour" and row.verdict == SHORTCUT and colour[label] < rule.colour:
                row = replace(row, verdict=UNDECIDED)
            if row.verdict == SHORTCUT:
                confirmed.add(test)
            found.append(row)
        rows += sorted(found, key=lambda row: tests.index(row.test))
    return rows


def _row(
    name: str, test: str, trials: Sequence[Trial], rule: Rule, confirmed: set[str], rng: np.random.Generator
) -> Row:
    if not trials:
        return Row(name, test, 0, np.nan, np.nan, np.nan, np.nan, UNDECIDED)
    effect, control = (np.array([getattr(t, k) for t in trials], float) for k in ("effect", "control"))
    low, high = interval(effect - control, np.array([t.source for t in trials]), rng)
    share, beside = float(effect.mean()), float(control.mean())
    needs = _CONFIRMED_BY.get(test)
    verdict = UNDECIDED
    if len(trials) >= rule.images:
        if share - beside >= rule.excess and low > rule.low and (needs is None or needs in confirmed):
            verdict = SHORTCUT
        elif high < rule.clear:
            verdict = CLEAR
    return Row(name, test, len(trials), share, beside, low, high, verdict)


def alike(mine: np.ndarray, others: np.ndarray) -> float:
    """How much more histograms `mine` `(n, bins)` overlap with each other than with `others`, −1…1."""
    n = len(mine)
    if n < 2 or not len(others):
        return float("nan")
    within = _overlap(mine, mine)
    return float((within.sum() - np.trace(within)) / (n * (n - 1)) - _overlap(mine, others).mean())


def spread(places: np.ndarray) -> float:
    """The mean distance of `places` `(n, 2)` from their mean."""
    return float(np.linalg.norm(places - places.mean(0), axis=1).mean()) if len(places) else float("nan")


def distance(means: np.ndarray, classes: np.ndarray, label: int) -> float:
    """The Mahalanobis distance between the mean colour of class `label` and the mean of the other classes' means.

    `means`: `(N, C)`. The covariance is that of images about the mean of their class.
    """
    centre = {c: means[classes == c].mean(0) for c in np.unique(classes)}
    rest = [m for c, m in centre.items() if c != label]
    if label not in centre or not rest:
        return float("nan")
    about = means - np.stack([centre[c] for c in classes])
    covariance = about.T @ about / max(len(means) - len(centre), 1)
    ridge = 1e-3 * np.trace(covariance) / len(covariance) + 1e-12
    apart = centre[label] - np.mean(rest, axis=0)
    return float(np.sqrt(apart @ np.linalg.solve(covariance + ridge * np.eye(len(covariance)), apart)))


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(a[:, None], b[None]).sum(2)
