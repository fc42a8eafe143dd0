"""Judging while a model is watched: when, of how many images, and into the run; it never ends a training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from .._errors import GradCAMError
from .._run.verdicts import write_table, write_verdicts
from ..judge import ENOUGH, PASSES, Verdicts, judge
from .nested import on_device_of
from .panel import Panel
from .tasks import CATEGORY, Task

__all__ = ["BATCH", "LEAST", "MOST", "Judging", "JudgingSet", "images_for", "in_words", "judged", "set_of_panel"]
__all__ += ["together"]

MOST, LEAST = 200, ENOUGH
BATCH = 32


def images_for(trained: int) -> int:
    """How many images to judge by after a training has passed `trained` images forward and backward.

    Judging passes at most a tenth as many images, by its budget of passes; but no fewer than 48, and no more than 200.
    """
    return min(MOST, max(LEAST, trained // (10 * PASSES)))


@dataclass
class JudgingSet:
    """Images to judge by: `data()` gives batches `(x, y)` or `(x, y, masks)`, the same each time; `picture` draws one,
    `bar()` shows the progress. `indices`: which images of the validation set they are, if they are from one."""

    data: Callable[[], Iterable[Any]]
    vocab: list[str] | None
    picture: Callable[[Tensor], Image.Image] | None = None
    bar: Callable[[], AbstractContextManager[Callable[[float], None] | None]] = nullcontext
    indices: list[int] = field(default_factory=list)


def set_of_panel(panel: Panel, task: Task) -> JudgingSet:
    """The watched images themselves. Raises `GradCAMError` for a task that cannot be judged."""
    if len(task.heads) != 1 or task.kind != CATEGORY or not panel.y:
        raise GradCAMError("Only a model of one class per image is judged, and the classes must be known.")
    if not isinstance(panel.x, Tensor):
        raise GradCAMError("A model with several inputs is not judged.")
    x, y = panel.x, panel.y[0].reshape(len(panel), -1)
    if y.shape[1] != 1:
        raise GradCAMError(f"Only a model of one class per image is judged, the targets are {tuple(panel.y[0].shape)}.")
    masks = [m for m in panel.masks if m is not None]
    shown = torch.from_numpy(np.stack(masks)) if masks and len(masks) == len(panel) else None
    # Images of one batch lend each other content, so they must not come class by class.
    order = random.Random(0).sample(range(len(panel)), len(panel))

    def data() -> Iterable[Any]:
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            yield (x[part], y[part, 0]) if shown is None else (x[part], y[part, 0], shown[part])

    return JudgingSet(data, task.heads[0].names)


@dataclass
class Judging:
    """Judges a model into the run `path`. `say`: where a sentence for the user goes; each alarm is said once.

    At frames, an alarm needs two judgements in succession: early in a training, classes are confused in passing.
    """

    path: Path
    say: Callable[[str], None]
    said: set[str] = field(default_factory=set)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    before: set[str] = field(default_factory=set)

    def judge(
        self, frame: int | None, model: nn.Module, images_of: Callable[[], JudgingSet], layer: Any, method: Any
    ) -> None:
        """Verdicts into the run, at the end (`frame` is `None`) or at a frame.

        Whatever cannot be judged is left out; the run keeps the reason.
        """
        try:
            images = images_of()
            with images.bar() as bar:
                verdicts = judged(model, images, layer, method, progress=bar)
        except GradCAMError as error:
            write_verdicts(self.path, pd.DataFrame(), pd.DataFrame(), [{"label": "", "left_out": str(error)}], [])
            return
        verdicts.save(self.path, images.picture)
        self._alarm(verdicts, frame)

    def _alarm(self, verdicts: Verdicts, frame: int | None) -> None:
        rows = verdicts.shortcuts.to_dict("records") or together(verdicts)
        labels = {row["label"] for row in rows}
        sure = labels if frame is None else labels & self.before
        self.before = labels
        if frame is not None and sure:
            self.alarms += [{**row, "frame": frame} for row in rows if row["label"] in sure]
            write_table(self.path, "alarms", self.alarms)
        new = [row for row in rows if row["label"] in sure - self.said]
        self.said |= {row["label"] for row in new}
        if new:
            self.say(in_words(new, "run.findings() and the report"))


def together(verdicts: Verdicts) -> list[dict[str, Any]]:
    "The confirmed rows of all classes together (`label` is empty), if no class has one alone."
    pooled = verdicts.pooled
    return [] if len(verdicts.shortcuts) else pooled[pooled["verdict"] == "shortcut"].to_dict("records")


def in_words(rows: list[dict[str, Any]], see: str) -> str:
    "A sentence of the strongest of confirmed rows, how many classes there are beside it, and where to `see` more."
    first = max(rows, key=lambda row: row["effect"] - row["control"])
    others = len({row["label"] for row in rows}) - 1
    and_others = f", and {others} more class{'es' * (others > 1)}" if others else ""
    who = repr(first["label"]) if first["label"] else "Several classes"
    numbers = f"{first['effect']:.0%} of {first['images']} images, control {first['control']:.0%}"
    return f"{who} may rest on a shortcut (test {first['test']!r}: {numbers}){and_others}; see {see}."


def judged(model: nn.Module, images: JudgingSet, layer: Any, method: Any, **options: Any) -> Verdicts:
    """The verdicts on `model`, whose inputs are moved to where it is; `options`: those of `judge`."""

    def data() -> Iterable[Any]:
        for x, *rest in images.data():
            yield (on_device_of(model, x), *rest)

    return judge(model, data, images.vocab, layer=layer, method=method, **options)
