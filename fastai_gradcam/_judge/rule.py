"""From trials to verdicts: intervals by bootstrap over images, what makes a patch suspicious, and the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .look import Seen
from .trials import Trial

__all__ = [
    "Row",
    "Rule",
    "Suspicion",
    "alike",
    "distance",
    "interval",
    "measured",
    "pooled",
    "spread",
    "suspicions",
    "verdicts_together",
    "with_verdicts",
]

IMAGES = 10
SHORTCUT, CLEAR, UNDECIDED = "shortcut", "clear", "undecided"
# Losing a true part of an object loses the class, too. So what was taken away counts only where one of these, which
# put it on images of other classes, confirms it.
_CONFIRMED_BY = {
    "cover": {"transplant", "exchange", "keep", "place", "border"},
    "place_away": {"place", "border"},
    "colour_away": {"colour"},
    "blur_away": {"blur", "swap"},
}


@dataclass(frozen=True)
class Rule:
    """When a test is a `shortcut` and when it is `clear`. Shares in 0…1, fixed on models other than those reported.

    >>> from fastai_gradcam.judge import Rule
    >>> Rule(excess=0.3).excess
    0.3
    """

    images: int = IMAGES
    """So many images must have been changed, or the verdict is `undecided`."""
    excess: float = 0.2
    """`shortcut`: by so much the effect must exceed its control …"""
    plain: float = 0.25
    """… or by so much, if a patch may well be a true part of the object. It is less likely to be …"""
    area: float = 0.07
    """… if the patch is no larger than this share of the picture …"""
    alike: float = 0.45
    """… and patches of the class resemble each other by so much (`Suspicion.alike`). A tag is the same everywhere."""
    stands_out: float = 0.15
    """Without that, the class must also stand out from the others by so much (`Suspicion.stands_out`)."""
    together: float = 0.3
    """`shortcut` of all classes together, by `exchange`: by so much. None stands out where each has a tag."""
    low: float = 0.07
    """`shortcut`: the lower end of the interval must be above this."""
    clear: float = 0.2
    """`clear`: the upper end of the interval is below this."""
    colour: float = 1.5
    """`shortcut` of `colour`: the class's mean colour must be so far from every other class's (`Suspicion.colour`), or
    a colour of its own is not what turned them."""


@dataclass(frozen=True)
class Suspicion:
    """Thresholds that make the hot patches of a class suspicious, beyond their effect.

    `area`: share of the picture. `alike`: how much more the patches of the class's images resemble each other than the
    patches of other classes, as an intersection of colour histograms, −1…1. `spread`: the mean distance of the patches
    from their mean place, as a share of the picture (0: always in one place; chance: about 0.3). `stands_out`: by how
    much the excess of a transplanted patch is above the median of the other classes. `colour`: the distance of the
    class's mean colour from the nearest other class's, in standard deviations of an image within its class.

    >>> from fastai_gradcam.judge import Suspicion
    >>> Suspicion(area=0.04, alike=0.6, spread=0.02, stands_out=0.5, colour=0.7).spread
    0.02
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
    verdict: str = UNDECIDED

    @property
    def excess(self) -> float:
        return self.effect - self.control


def interval(
    excess: np.ndarray, source: np.ndarray, rng: np.random.Generator, draws: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of the mean of `excess`, by a bootstrap over the images `source` that the trials come from.

    For its lower end, images without an effect are added to those drawn from, at least one and so many that there are
    `IMAGES`: a handful of images that agree is not certain.
    """
    sources, index = np.unique(source, return_inverse=True)
    n = len(sources)
    sums, counts = np.bincount(index, excess, n), np.bincount(index, minlength=n)
    added = max(1, IMAGES - n)

    def ends(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        drawn = rng.integers(len(sums), size=(draws, n))
        return np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))

    cautious = ends(np.append(sums, np.zeros(added)), np.append(counts, np.full(added, len(excess) / n)))
    low, high = ends(sums, counts)
    return float(min(low, cautious[0])), float(high)


def measured(label: str, test: str, trials: Sequence[Trial], rng: np.random.Generator) -> Row:
    """The row of one class and test, before there is a verdict."""
    if not trials:
        return Row(label, test, 0, np.nan, np.nan, np.nan, np.nan)
    effect, control = (np.array([getattr(t, k) for t in trials], float) for k in ("effect", "control"))
    low, high = interval(effect - control, np.array([t.source for t in trials]), rng)
    return Row(label, test, len(trials), float(effect.mean()), float(control.mean()), low, high)


def with_verdicts(rows: Sequence[Row], suspicion: Suspicion, rule: Rule) -> list[Row]:
    """The rows of one class with their verdicts, in their order."""
    confirmed = {row.test for row in rows if row.test not in _CONFIRMED_BY and _is_shortcut(row, suspicion, rule)}
    found = []
    for row in rows:
        needs = _CONFIRMED_BY.get(row.test, confirmed)
        if _is_shortcut(row, suspicion, rule) and needs & confirmed:
            found.append(replace(row, verdict=SHORTCUT))
        else:
            clear = row.images >= rule.images and row.high < rule.clear
            found.append(replace(row, verdict=CLEAR if clear else UNDECIDED))
    return found


def verdicts_together(
    rows: Sequence[Row], of_classes: Sequence[Row], each: Sequence[Suspicion], rule: Rule
) -> list[Row]:
    """The rows of all classes together with their verdicts. `exchange` must turn images in most classes, not in one."""
    turned = [row.excess > 0 for row in of_classes if row.test == "exchange" and row.images]
    few = 2 * sum(turned) <= len(turned)
    found = with_verdicts(rows, pooled(each), rule)
    return [replace(r, verdict=UNDECIDED) if few and r.test == "exchange" else r for r in found]


def _is_shortcut(row: Row, suspicion: Suspicion, rule: Rule) -> bool:
    needed = rule.excess
    if row.test in ("transplant", "keep"):
        alien = suspicion.alike >= rule.alike and suspicion.area <= rule.area
        needed = rule.excess if alien else rule.plain if suspicion.stands_out >= rule.stands_out else np.inf
    if row.test == "exchange":
        # A part of an object in the place of another's may turn an image, too; but it does not in most classes.
        needed = np.inf if row.label else rule.together
    if row.test == "colour" and not suspicion.colour >= rule.colour:
        return False
    return row.images >= rule.images and row.excess >= needed and row.low > rule.low


def suspicions(seen: Seen, rows: Mapping[int, Sequence[Row]]) -> dict[int, Suspicion]:
    """The suspicion of each class of `rows`."""
    right, y = seen.right.numpy(), seen.y.numpy()
    colours, means = seen.colours.numpy(), seen.means.numpy()
    centres = (seen.hot.numpy() + np.array(seen.side) / 2) / np.array(seen.size)
    area = seen.side[0] * seen.side[1] / (seen.size[0] * seen.size[1])
    excess = {c: row.excess for c, mine in rows.items() for row in mine if row.test == "transplant" and row.images}
    found = {}
    for c in rows:
        mine, rest = right & (y == c), [v for k, v in excess.items() if k != c]
        found[c] = Suspicion(
            area,
            alike(colours[mine], colours[right & (y != c)]),
            spread(centres[mine]),
            excess.get(c, np.nan) - (float(np.median(rest)) if rest else 0.0),
            distance(means, y, c),
        )
    return found


def pooled(each: Sequence[Suspicion]) -> Suspicion:
    """The suspicion of all classes together: the mean of theirs. None of them stands out from the others."""
    means = {f: float(np.mean([getattr(s, f) for s in each])) for f in Suspicion.__dataclass_fields__}
    return Suspicion(**{**means, "stands_out": 0.0})


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
    """The Mahalanobis distance from the mean colour of class `label` to that of the nearest other class.

    `means`: `(N, C)`. The covariance is that of images about the mean of their class.
    """
    centre = {c: means[classes == c].mean(0) for c in np.unique(classes)}
    if label not in centre or len(centre) < 2:
        return float("nan")
    about = means - np.stack([centre[c] for c in classes])
    covariance = about.T @ about / max(len(means) - len(centre), 1)
    ridge = 1e-3 * np.trace(covariance) / len(covariance) + 1e-12
    inverse = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
    apart = [centre[label] - other for c, other in centre.items() if c != label]
    return float(min(np.sqrt(d @ inverse @ d) for d in apart))


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(a[:, None], b[None]).sum(2)
