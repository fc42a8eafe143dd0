"""`learn.gradcam_judge()`, and the judging set of a learner: validation images, spread over the classes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastcore.basics import patch
from fastprogress.fastprogress import IN_NOTEBOOK, progress_bar
from PIL import Image
from torch import Tensor

from .._errors import GradCAMError
from .._net.guard import undisturbed
from .._net.layers import unwrap
from .._watch.faults import warn
from .._watch.images import to_image
from .._watch.judging import BATCH, MOST, JudgingSet, in_words, judged, together
from .._watch.nested import joined, tensors
from .._watch.tasks import CATEGORY, Task
from .explain import Seen, model_input, resolve_layer, see
from .items import picture
from .masks import Masks, finder, mask_of
from .panel import chosen_of
from .private import private
from .tasks import task_of

__all__ = ["drawn_by", "judged_task", "judging_bar", "judging_set", "stacked"]


def judging_set(
    learn: Learner, n: int = MOST, seed: int = 12345, masks: Masks = None, dl: DataLoader | None = None
) -> JudgingSet:
    """Up to `n` images of the loader `dl` (default: of validation), each class as often as any other.

    They are decoded each time they are read. `masks`: as in `GradCAMCallback`; a list belongs to `items=`, and is
    passed over. Raises `GradCAMError` for a task that cannot be judged.
    """
    task = judged_task(learn)
    asked = learn.dls.valid if dl is None else dl
    chosen = chosen_of(learn, min(n, len(asked.dataset)), seed, dl)
    find = None if masks is None or isinstance(masks, (list, tuple)) else finder(masks)
    # The chosen are in the order of their classes, and images of one batch lend each other content.
    order = random.Random(seed).sample(range(len(chosen.indices)), len(chosen.indices))

    def data() -> Iterator[Any]:
        dl = private(chosen.dl)
        for start in range(0, len(order), BATCH):
            seen, found = [], []
            for i in order[start : start + BATCH]:
                one = see(learn, dl, chosen.indices[i], chosen.names[i])
                if len(one.x) != 1 or not one.y:
                    raise GradCAMError("Only a learner with one input, whose classes are known, is judged.")
                seen.append(one)
                if find is not None:
                    size = one.image.size[::-1]
                    found.append(mask_of(find, chosen.sources[i], one.name, one.sample, dl, size, []))
            x = stacked(learn, seen)
            y = torch.cat([torch.as_tensor(s.y[0]).reshape(1, -1) for s in seen]).cpu().as_subclass(Tensor)
            masks_ = [m for m in found if m is not None and m.any() and not m.all()]
            yield (x, y, torch.from_numpy(np.stack(masks_))) if len(masks_) == len(seen) else (x, y)

    return JudgingSet(data, task.heads[0].names, drawn_by(chosen.dl), indices=[chosen.indices[i] for i in order])


def judged_task(learn: Learner) -> Task:
    "The learner's task. Raises `GradCAMError` for one that cannot be judged."
    task = task_of(learn.dls, learn.loss_func)
    if len(task.heads) != 1 or task.kind != CATEGORY:
        raise GradCAMError(f"Only a learner with one class per image is judged; this learner's task is {task.kind!r}.")
    return task


def stacked(learn: Learner, seen: Sequence[Seen]) -> Tensor:
    "The images of `seen` as one input. Raises `GradCAMError` if they are none."
    if len({tuple(t.shape for t in tensors(s.x)) for s in seen}) > 1:
        raise GradCAMError("The images have different sizes: only images of one size are judged.")
    x = model_input(learn, unwrap(learn.model), joined([s.x for s in seen]))
    if not isinstance(x, Tensor):
        raise GradCAMError("Only a learner whose model takes one image is judged.")
    return x


def drawn_by(dl: Any) -> Callable[[Tensor], Image.Image]:
    "An input of `dl` as a picture."

    def draw(x: Tensor) -> Image.Image:
        try:
            return picture(dl, (x[None], torch.zeros(1, dtype=torch.long)))
        except Exception:
            return to_image(x)

    return draw


@contextmanager
def judging_bar(learn: Learner, doing: str = "judging") -> Iterator[Callable[[float], None] | None]:
    """A progress bar as the learner's own, if it shows one and somebody watches; a file would keep every step."""
    if not hasattr(learn, "progress") or not (IN_NOTEBOOK or sys.stdout.isatty()):
        yield None
        return
    bar = progress_bar(range(100), leave=False)
    bar.comment = doing
    shown = [0]
    bar.update(0)

    def show(share: float) -> None:
        if int(100 * share) > shown[0]:
            shown[0] = int(100 * share)
            bar.update(min(shown[0], 99))

    try:
        yield show
    finally:
        bar.on_iter_end()


@patch
def gradcam_judge(
    self: Learner,
    n: int = MOST,
    tests: Sequence[str] | None = None,
    seed: int = 12345,
    layer: Any = None,
    method: Any = "gradcam",
    masks: Masks = None,
) -> pd.DataFrame:
    """Change validation images on purpose to learn what each class depends on: a row per class and test.

    - `n`: how many validation images, as many of each class as there are; `seed` chooses them and all else.
    - `tests`: names in `fastai_gradcam.judge.interventions`; `None`: all (those that need `masks` only with these,
      `exchange` only without them, and of all classes together only).
    - `layer`, `method`: of the maps that say where a patch is cut, as in `learn.gradcam`; `masks`: as in
      `GradCAMCallback`. The default is that of the learner's callback, if it was watched.

    Columns: `label, test, images, effect, control, low, high, verdict`; see `fastai_gradcam.judge.Verdicts`, in
    the table's `.attrs["verdicts"]`. The run of `learn.grad_cam` keeps them, too. Nothing about the learner changes.
    Raises `GradCAMError` for several labels, a regression, a segmentation, several inputs.

    >>> import warnings
    >>> import torch
    >>> from torch import nn
    >>> from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner
    >>> import fastai_gradcam.learner
    >>> items = [(torch.rand(3, 20, 20), k % 2) for k in range(8)]
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> dls = DataLoaders.from_dsets(items, items, bs=4, device="cpu")
    >>> learn = Learner(dls, model, CrossEntropyLossFlat(), cbs=[])
    >>> with warnings.catch_warnings(), learn.no_bar():
    ...     warnings.simplefilter("ignore")
    ...     table = learn.gradcam_judge()
    >>> list(table.columns)
    ['label', 'test', 'images', 'effect', 'control', 'low', 'high', 'verdict']
    """
    watch = getattr(self, "grad_cam", None)
    asked = watch.settings if watch is not None else {}
    layer = asked.get("layer") if layer is None else layer
    masks = asked.get("masks") if masks is None else masks
    names = None if layer is None else resolve_layer(self, layer)[-1:]
    with undisturbed(), judging_bar(self) as bar:
        images = judging_set(self, n, seed, masks)
        verdicts = judged(unwrap(self.model), images, names, method, tests=tests, seed=seed, progress=bar)
    for sentence in verdicts.left_out.values():
        warn(sentence)
    if watch is not None and watch.run is not None:
        verdicts.save(watch.run.path, images.picture)
    if rows := together(verdicts):
        # The table has rows of single classes only.
        warn(in_words(rows, ".attrs['verdicts'].pooled and .pictures()"))
    table = verdicts.table.copy()
    table.attrs["verdicts"] = verdicts
    return table
