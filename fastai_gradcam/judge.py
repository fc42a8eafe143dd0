"""The judge: changes images to learn what a class depends on, and says so only if a change confirms it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from ._engine.method import MapFunction, Method
from ._errors import GradCAMError, one_of, spelled
from ._judge.interventions import Intervention, interventions
from ._judge.look import Data, Look, Seen, look_at
from ._judge.record import class_rows, pictures_of
from ._judge.rule import Row, Rule, Suspicion, measured, suspicions, verdicts_together, with_verdicts
from ._judge.trials import Outcomes, Trial, hold
from ._net.endings import Endings
from ._net.guard import undisturbed
from ._net.layers import Layer, named_layers, unwrap
from ._net.shadow import shadow
from ._run.verdicts import VERDICT_COLUMNS, Picture, write_verdicts
from .cam import explain
from .targets import class_scores, main_output

__all__ = ["COLUMNS", "PASSES", "Rule", "Suspicion", "Verdicts", "interventions", "judge"]

COLUMNS = VERDICT_COLUMNS
PASSES = 12
"""A judgement shows the model at most so many times the images of its set."""
ENOUGH = 48
"""Verdicts from a set of fewer images are often `undecided`."""
FEW = 3
LEAST = 3
"""A class is judged from so many images that the model recognises."""


@dataclass
class Verdicts:
    """The results of the interventions.

    - `table`: a DataFrame, a row per class and test, with `COLUMNS`. `effect`, `control`: the share of `images` for
      which the change, and its control, had an effect. `low`, `high`: the 95 % interval of effect − control.
    - `pooled`: a row per test for all classes together (`label` is ""): many classes with a mark of their own, and few
      images of each, may show only here.
    - `suspicion`: for each class, what makes its hottest patches suspicious beyond their effect.
    - `left_out`: why a class was not judged, or, for the label "", why little can be said of all.
    - `images`: how many images the set has. `passes`: forward passes of the set that were made.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam.judge import judge
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> verdicts = judge(model, [(torch.rand(8, 3, 20, 20), torch.arange(8) % 2)], ["cat", "dog"])
    >>> verdicts.images, len(verdicts.shortcuts)
    (8, 0)
    """

    table: pd.DataFrame
    pooled: pd.DataFrame
    suspicion: dict[str, Suspicion] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    images: int = 0
    passes: float = 0.0
    outcomes: Outcomes = field(default_factory=Outcomes, repr=False)
    names: list[str] = field(default_factory=list, repr=False)

    @property
    def shortcuts(self) -> pd.DataFrame:
        """The rows whose verdict is `shortcut`."""
        return self.table[self.table["verdict"] == "shortcut"]

    def pictures(self, picture: Callable[[Tensor], Image.Image] | None = None) -> list[Picture]:
        """The patches of each class with a shortcut, and images before and after each test that confirmed it.

        If no class has one, or more than three have, also those of all classes together: for each test, of the three
        classes in which the effect exceeds its control most. `picture`: an input `(C, H, W)` as an image; default: its
        values stretched over their range.
        """
        confirmed = self.shortcuts
        if not 0 < confirmed["label"].nunique() <= FEW:
            together = self.pooled.loc[self.pooled["verdict"] == "shortcut", "test"]
            each = self.table[self.table["test"].isin(together)]
            order = (each["control"] - each["effect"]).sort_values(kind="stable").index
            most = each.loc[order].groupby("test", sort=False).head(FEW)
            confirmed = pd.concat([confirmed, most]).drop_duplicates(["label", "test"])
        pairs = list(zip(confirmed["label"], confirmed["test"], strict=True))
        return [Picture(*found) for found in pictures_of(pairs, self.outcomes, self.names, picture)]

    def save(self, path: str | Path, picture: Callable[[Tensor], Image.Image] | None = None) -> None:
        """Write `verdicts.csv` and `patches/` into the run folder `path`, where `Run(path).verdicts` reads them."""
        places = {self.names[c]: place for c, place in self.outcomes.places.items()}
        classes = class_rows(self.suspicion, places, self.left_out)
        write_verdicts(Path(path), self.table, self.pooled, classes, self.pictures(picture))


def judge(
    model: nn.Module,
    data: Data,
    vocab: Sequence[str] | None = None,
    *,
    layer: Layer = None,
    method: str | Method | MapFunction = "gradcam",
    tests: Sequence[str] | None = None,
    seed: int = 12345,
    rule: Rule | None = None,
    passes: float = PASSES,
    progress: Callable[[float], None] | None = None,
) -> Verdicts:
    """Verdicts on what each class depends on, by changing images and asking `model` again.

    - `data`: the judging set, as batches `(x, y)` or `(x, y, masks)` that are read twice: a list, a loader without
      shuffling, or a function that gives an iterator. `x` `(N, C, H, W)` as the model takes it, on its device; `y`
      `(N,)` classes; `masks` `(N, H, W)` bool, true on the object. Each batch should mix the classes, because images
      of one batch lend each other content. No batch is kept.
    - `vocab`: the names of the classes. `layer`, `method`: as in `gradcam`, for the maps that say where a patch is cut.
    - `tests`: names in `interventions`; `None`: all that the set allows (some need masks, `exchange` needs none).
    - `passes`: at most so many forward passes of the set. `progress`: called with the share that is done, 0…1.

    The same model, set and seed give the same verdicts. Weights, buffers, random generators and modes are left as they
    were. Raises `GradCAMError` for a set or a model that cannot be judged: several inputs, several labels, a
    regression, a segmentation, fewer than two classes.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam.judge import judge
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x, y = torch.rand(12, 3, 20, 20), torch.arange(12) % 2
    >>> verdicts = judge(model, [(x, y)], ["cat", "dog"])
    >>> list(verdicts.table.columns)
    ['label', 'test', 'images', 'effect', 'control', 'low', 'high', 'verdict']
    >>> verdicts.passes <= 12
    True
    """
    wanted = _wanted(tests, vocab)
    layers = None if layer is None else [name for name, _ in named_layers(unwrap(model), layer)]
    total = _Progress(progress, passes)
    with torch.inference_mode(False), undisturbed():
        # Its own weights: a network that writes into its parameters in its forward pass must not reach the model's.
        net = shadow(unwrap(model), own_weights=True)
        endings = Endings(net)
        seen = look_at(data, _looking(net, endings, layers, method), torch.Generator().manual_seed(seed), total.looked)
        wanted = _possible(wanted, seen, asked=tests is not None)
        total.size = len(seen)
        asking = _asking(net, endings)
        outcomes = hold(wanted, data, seen, seen.judged(LEAST), asking, passes - 1, seed, total.changed)
    return _verdicts([t.name for t in wanted], seen, outcomes, vocab, rule or Rule(), seed)


def _wanted(tests: Sequence[str] | None, vocab: Sequence[str] | None) -> list[Intervention]:
    if vocab is not None and len(vocab) < 2:
        raise GradCAMError(f"Interventions need at least two classes, got vocab={list(vocab)!r}.")
    for name in tests or ():
        if name not in interventions:
            raise GradCAMError(one_of("test", name, list(interventions)))
    return [interventions[name] for name in (interventions if tests is None else tests)]


def _possible(wanted: list[Intervention], seen: Seen, asked: bool) -> list[Intervention]:
    unfit = [t for t in wanted if (t.masks and not seen.masks) or (t.blind and seen.masks)]
    if asked and unfit:
        what = "need masks in every batch of the set" if unfit[0].masks else "are for sets without masks"
        raise GradCAMError(f"The tests {[t.name for t in unfit if t.masks == unfit[0].masks]} {what}.")
    return [t for t in wanted if t not in unfit]


def _looking(net: nn.Module, endings: Endings, layers: list[str] | None, method: str | Method | MapFunction) -> Look:
    def look(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        cams = explain(net, x, layer=layers, target=y.to(x.device), method=method)
        return _scores(cams.output, endings), cams.maps[0]

    return look


def _asking(net: nn.Module, endings: Endings) -> Callable[[Tensor], Tensor]:
    def ask(x: Tensor) -> Tensor:
        with torch.no_grad():
            return _scores(net(x), endings).softmax(1)

    return ask


def _scores(output: Any, endings: Endings) -> Tensor:
    "Logits `(N, K)`, also of a network that ends in a softmax or sigmoid."
    output, ending = main_output(output).detach().float(), endings.kinds.get(0)
    if output.ndim > 2 and output[0, 0].numel() == 1:
        output = output.flatten(1)
    if output.ndim > 2:
        raise GradCAMError(f"Interventions need a score per class and image, (N, K), got {tuple(output.shape)}.")
    if ending == "Sigmoid":
        output = output.logit(1e-6)
    elif ending in ("Softmax", "Softmax2d") or _is_softmax(output):
        output = output.clamp_min(1e-12).log()
    return class_scores(output)


def _is_softmax(output: Tensor) -> bool:
    "Whether each row adds up to 1, within what half precision keeps."
    several = output.ndim == 2 and output.shape[1] > 1 and bool((output >= 0).all())
    return several and torch.allclose(output.sum(1), output.new_ones(()), atol=1e-2)


def _verdicts(
    tests: Sequence[str], seen: Seen, outcomes: Outcomes, vocab: Sequence[str] | None, rule: Rule, seed: int
) -> Verdicts:
    # A model that is unsure of its own images may depend on much that turns none of them.
    rule = rule if seen.sure else replace(rule, clear=-np.inf)
    classes = seen.judged(LEAST)
    names = [spelled(str(vocab[c])) if vocab and c < len(vocab) else str(c) for c in range(seen.classes)]

    def row(label: str, test: str, trials: list[Trial], *key: int) -> Row:
        return measured(label, test, trials, np.random.default_rng([seed, *key]))

    rows = {c: [row(names[c], t, outcomes.of(c, t), c, k) for k, t in enumerate(tests)] for c in classes}
    suspicion = suspicions(seen, rows)
    together: list[Row] = []
    if len(classes) > 1:
        together = [row("", t, [trial for trial in outcomes.trials if trial.test == t], k) for k, t in enumerate(tests)]
        together = verdicts_together(together, [r for c in classes for r in rows[c]], list(suspicion.values()), rule)
    each = [row for c in classes for row in with_verdicts(rows[c], suspicion[c], rule)]
    return Verdicts(
        _table(each),
        _table(together),
        {names[c]: s for c, s in suspicion.items()},
        _left_out(seen, classes, names),
        len(seen),
        (outcomes.forwards + len(seen)) / len(seen),
        outcomes,
        names,
    )


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))


class _Progress:
    """Counts images shown, as the share of those allowed."""

    def __init__(self, report: Callable[[float], None] | None, passes: float) -> None:
        self.report, self.passes, self.size, self.shown = report, passes, 0, 0

    def looked(self, images: int) -> None:
        self.shown += images

    def changed(self, images: int) -> None:
        self.shown += images
        if self.report is not None:
            self.report(min(1.0, self.shown / (self.passes * self.size)))


def _left_out(seen: Seen, classes: Sequence[int], names: Sequence[str]) -> dict[str, str]:
    found = {}
    if not seen.sure:
        found[""] = (
            "Nothing is clear: the model is sure of fewer than half of the images that it recognises (no class has a "
            "probability above a half), and a change that turns an image may not show."
        )
    elif len(seen) < ENOUGH:
        found[""] = (
            f"The judging set has {len(seen)} images: verdicts are often 'undecided' with fewer than {ENOUGH}. Give it "
            "more: a larger validation set, a larger n=, or, for Watch, a larger x."
        )
    for c in sorted(set(range(seen.classes)) - set(classes)):
        images, right = int((seen.y == c).sum()), int(seen.right[seen.y == c].sum())
        found[names[c]] = (
            f"{names[c]!r} is not judged: {right} of its {images} images in the judging set are recognised, and a "
            f"class needs {LEAST}. A larger set (n=) may hold more."
        )
    return found
