"""The second pass over a judging set: images are paired, changed, and shown to the model, within a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .._errors import GradCAMError
from .boxes import Place, places_of, random_corners
from .interventions import PUT, Intervention, Pairs
from .look import SURE, Batch, Data, Seen, read

__all__ = ["Outcomes", "Trial", "hold"]

_PICTURES = 3  # of each class and test, before and after


@dataclass(frozen=True)
class Trial:
    """One image changed. `image` `source` index the set: the image changed, and the one whose class is tested.

    `effect`, `control`: whether the image turned into the class, which is now more probable than all others together
    (`put on`), or was lost: another class is predicted (`taken away`).
    """

    test: str
    label: int
    image: int
    source: int
    effect: bool
    control: bool


@dataclass(frozen=True)
class Shown:
    """An image before and after a change that turned it, with the class predicted for each, `(C, H, W)`."""

    before: Tensor
    after: Tensor
    was: int
    became: int


@dataclass
class Outcomes:
    """All trials; `forwards`: images shown to the model; pictures of changes that had an effect, per label and test.

    `patches`: hottest boxes of each class, `(C, h, w)`.
    """

    trials: list[Trial] = field(default_factory=list)
    forwards: int = 0
    shown: dict[tuple[int, str], list[Shown]] = field(default_factory=dict)
    patches: dict[int, list[Tensor]] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)

    def of(self, label: int, test: str) -> list[Trial]:
        """The trials of one class and test."""
        return [t for t in self.trials if t.label == label and t.test == test]


class Pairing:
    """Chooses which images of a batch are changed, and which lend content, so that all classes are tested alike."""

    def __init__(self, seen: Seen, classes: Sequence[int], rng: np.random.Generator) -> None:
        self.seen, self.classes, self.rng = seen, set(classes), rng
        self.tested: Counter[tuple[str, int]] = Counter()
        self.lent: Counter[tuple[str, int]] = Counter()

    def pairs(self, test: Intervention, at: range, most: int) -> list[tuple[int, int, int]]:
        """Up to `most` triples of indices into the set: the image changed, its partner, and a second lender."""
        order = [int(i) for i in self.rng.permutation(np.array(at))]
        if test.direction == PUT and not test.lender:
            return [(i, i, i) for i in order[:most]]
        make = self._put if test.direction == PUT else self._take
        found: list[tuple[int, int, int]] = []
        for image in order:
            pair = make(test, image, order) if len(found) < most else None
            if pair is not None:
                found.append((image, *pair))
        return found

    def _put(self, test: Intervention, image: int, order: list[int]) -> tuple[int, int] | None:
        y, pred, right = self.seen.y, self.seen.pred, self.seen.right
        told = {int(y[image]), int(pred[image])}
        lenders = [j for j in order if right[j] and int(y[j]) in self.classes and int(y[j]) not in told]
        if not lenders:
            return None
        partner = min(lenders, key=lambda j: (self.tested[test.name, int(y[j])], self.lent[test.name, j]))
        # From a third class, if there is one: what the image loses of its own class, it must lose in the control, too.
        strangers = [j for j in order if y[j] != y[partner] and j != image]
        others = [j for j in strangers if y[j] != y[image]] or strangers
        if not others:
            return None
        self.tested[test.name, int(y[partner])] += 1
        self.lent[test.name, partner] += 1
        return partner, others[int(self.rng.integers(len(others)))]

    def _take(self, test: Intervention, image: int, order: list[int]) -> tuple[int, int] | None:
        y, right = self.seen.y, self.seen.right
        if not right[image] or int(y[image]) not in self.classes:
            return None
        partners = [j for j in order if y[j] != y[image]]
        mates = [j for j in order if y[j] == y[image] and right[j] and j != image] if test.mate else partners
        if not partners or not mates:
            return None
        pick = [int(self.rng.integers(len(choices))) for choices in (partners, mates)]
        return partners[pick[0]], mates[pick[1]]


def hold(
    tests: Sequence[Intervention],
    data: Data,
    seen: Seen,
    classes: Sequence[int],
    ask: Callable[[Tensor], Tensor],
    passes: float,
    seed: int,
    tick: Callable[[int], None],
) -> Outcomes:
    """Hold every test, with at most `passes` forward passes of the set between them.

    `ask(x)`: the probabilities `(N, K)`. Raises `GradCAMError` where the set is not the one that was looked at.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    pairing, outcomes = Pairing(seen, classes, rng), Outcomes()
    if not classes:
        return outcomes
    regions = {c: places_of(seen.mean_maps[c]) for c in classes}
    outcomes.places = {c: places["corner"].name for c, places in regions.items()}
    # An image changed is shown twice: as the test has it, and as its control has it.
    share = min(1.0, passes / max(sum(2 * t.rounds for t in tests), 1e-9))
    quota = {t.name: int(share * t.rounds * len(seen)) for t in tests}
    used: Counter[str] = Counter()
    start = 0
    for batch in read(data):
        at = range(start, start + len(batch))
        _check_same(batch, seen, at)
        start += len(batch)
        _keep_patches(batch, seen, at, classes, outcomes)
        for test in tests:
            allowed = quota[test.name] * start // len(seen) - used[test.name]
            for _ in range(math.ceil(test.rounds)):
                triples = pairing.pairs(test, at, min(allowed, len(batch)))
                if not triples:
                    break
                corners = random_corners(len(triples), seen.size, seen.side, generator)
                pairs = _pairs(test, batch, seen, triples, start - len(batch), corners, regions)
                changed, control = test.change(pairs)
                after, beside = (_became(test, ask(x)) for x in (changed, control))
                outcomes.forwards += 2 * len(triples)
                _note(test, seen, triples, classes, after, beside, pairs.x, changed, outcomes)
                used[test.name] += len(triples)
                allowed -= len(triples)
                tick(2 * len(triples))
    if start != len(seen):
        raise GradCAMError(_CHANGED)
    return outcomes


def _became(test: Intervention, probs: Tensor) -> Tensor:
    """The class of each image after a change. A class that is put on must be sure, or there is none (-1): where a model
    wavers, as a poor one does, any change turns many images."""
    sure, became = probs.max(1)
    return (torch.where(sure > SURE, became, -1) if test.direction == PUT else became).cpu()


_CHANGED = (
    "The judging set gave other images when it was read again. It must give the same batches each time (no shuffling, "
    "no random transforms), and a generator can be read only once: give a function that makes it."
)


def _check_same(batch: Batch, seen: Seen, at: range) -> None:
    known = seen.sums[at.start : at.stop]
    if len(known) != len(batch) or not torch.equal(known, batch.x.double().sum((1, 2, 3)).cpu()):
        raise GradCAMError(_CHANGED)


def _pairs(
    test: Intervention,
    batch: Batch,
    seen: Seen,
    triples: list[tuple[int, int, int]],
    start: int,
    corners: Tensor,
    regions: dict[int, dict[str, Place]],
) -> Pairs:
    images, partners, others = (torch.tensor(column) for column in zip(*triples, strict=True))
    lends = partners if test.direction == PUT else images
    places = [(regions.get(int(c)) or next(iter(regions.values())))[test.region] for c in seen.y[lends]]
    device, masks = batch.x.device, batch.masks

    def mask_of(index: Tensor) -> Tensor | None:
        return None if masks is None else masks[(index - start).to(masks.device)].to(device)

    x, partner, other = (batch.x[(index - start).to(device)] for index in (images, partners, others))
    region = torch.stack([place.region for place in places]).to(device)
    opposite = torch.stack([place.opposite for place in places]).to(device)
    hot, cold = seen.hot[lends], seen.cold[lends]
    own, his, third = mask_of(images), mask_of(partners), mask_of(others)
    return Pairs(x, partner, other, hot, cold, corners, seen.side, region, opposite, seen.hot[images], own, his, third)


def _note(
    test: Intervention,
    seen: Seen,
    triples: list[tuple[int, int, int]],
    classes: Sequence[int],
    after: Tensor,
    beside: Tensor,
    before: Tensor,
    changed: Tensor,
    outcomes: Outcomes,
) -> None:
    for k, (image, partner, _) in enumerate(triples):
        became, control = int(after[k]), int(beside[k])
        was = int(seen.pred[image])
        for label in _tested(test, seen, image, partner, classes):
            hit, miss = (p == label if test.direction == PUT else p != label for p in (became, control))
            source = partner if test.direction == PUT and test.lender else image
            outcomes.trials.append(Trial(test.name, label, image, source, hit, miss))
            kept = outcomes.shown.setdefault((label, test.name), [])
            if hit and not miss and len(kept) < _PICTURES:
                kept.append(Shown(before[k].cpu().clone(), changed[k].cpu().clone(), was, became))


def _tested(test: Intervention, seen: Seen, image: int, partner: int, classes: Sequence[int]) -> list[int]:
    if test.direction != PUT:
        return [int(seen.y[image])]
    if test.lender:
        return [int(seen.y[partner])]
    return [c for c in classes if c not in (int(seen.y[image]), int(seen.pred[image]))]


def _keep_patches(
    batch: Batch, seen: Seen, at: range, classes: Sequence[int], outcomes: Outcomes, most: int = 6
) -> None:
    h, w = seen.side
    for k, i in enumerate(at):
        kept = outcomes.patches.setdefault(int(seen.y[i]), [])
        if seen.right[i] and int(seen.y[i]) in classes and len(kept) < most:
            a, b = seen.hot[i].tolist()
            kept.append(batch.x[k, :, a : a + h, b : b + w].cpu().clone())
