"""`learn.gradcam_check()`: whether a learner's maps say more than a blob in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from fastai.learner import Learner
from fastcore.basics import patch
from torch import Tensor, nn

from .._errors import GradCAMError, GradCAMTypeError
from .._faithfulness.common import Probability
from .._net.guard import undisturbed
from .._net.layers import unwrap
from .._net.shadow import shadow
from .._watch.tasks import Task, as_list
from ..faithfulness import check
from .explain import model_input, resolve_layer
from .items import normalisation
from .masks import Masks
from .panel import build_panel
from .tasks import task_of

__all__: list[str] = []


@patch
def gradcam_check(
    self: Learner,
    items: Sequence | None = None,
    methods: str | Sequence[str] = ("gradcam",),
    metrics: str | Sequence[str] | None = None,
    n: int = 100,
    layer: Any = None,
    seed: int = 12345,
    masks: Masks = None,
) -> Any:
    """Whether the maps say more than a blob in the middle: a DataFrame, and its `.attrs["verdict"]` in words.

    - `items`: indices into the validation set, or items as the data source has them; default: `n` of the validation
      images, spread over the classes by `seed`. The class explained is the predicted one.
    - `methods`: names in `fastai_gradcam.methods.methods`; `layer`: as in `learn.gradcam`, a list for several.
    - `metrics`: names in `fastai_gradcam.faithfulness.metrics`; default `road`, `deletion`, `insertion`. The verdict is
      by the first. `masks`: as in `GradCAMCallback`, for `energy_pointing` and `pointing_hit`.

    A row for each method × layer × metric × baseline: `method, layer, metric, images, score, low, high, baseline,
    baseline_score, difference, difference_low, difference_high, verdict`. Scores are means over images with 95 %
    bootstrap intervals; `difference` is paired and positive where the map is better than the baseline. `verdict`:
    `"better"`, `"no better"` or `"undecided"`; fewer than 30 images are always undecided. Changes nothing about the
    learner. Costs about 200 forward passes per image, method and layer. Raises `GradCAMError` for names that do not
    exist and for a learner that does not classify images.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> table = learn.gradcam_check(n=2, metrics="average_drop", layer=[6, 7])
    >>> sorted(set(table.layer)), table.attrs["verdict"][:18]
    (['0.6', '0.7'], '2 images are too f')
    """
    task = task_of(self.dls, self.loss_func)
    if task.kind != "category":
        raise GradCAMTypeError(f"gradcam_check asks for the predicted class; this learner's task is {task.kind!r}.")
    layers = [None] if layer is None else resolve_layer(self, layer)
    ways = [methods] if isinstance(methods, str) else as_list(methods) or []
    asked = [metrics] if isinstance(metrics, str) else metrics
    # Making a loader draws random numbers, and transforms may.
    with undisturbed():
        model, x, found = _images(self, task, items, n, seed, masks)
        mean, std = normalisation(self.dls)
        return check(
            model, x, methods=ways, layers=layers, metrics=asked, masks=found, mean=mean, std=std, seed=seed,
            probability=cast(Probability, task.probabilities),
        )  # fmt: skip


def _images(
    learn: Learner, task: Task, items: Sequence | None, n: int, seed: int, masks: Masks
) -> tuple[nn.Module, Tensor, Tensor | None]:
    "A copy of the model that `task` listens to, its input, and the objects' masks if there are any."
    model = shadow(unwrap(learn.model))
    task.listen(model)
    valid = getattr(learn.dls, "valid_ds", None)
    count = n if items is not None or valid is None else min(n, len(valid) or n)
    panel = build_panel(learn, count, items, seed, masks)
    x = model_input(learn, model, panel.x if isinstance(panel.x, tuple) else (panel.x,))
    if not isinstance(x, Tensor) or x.ndim != 4:
        raise GradCAMError("gradcam_check is for models of one image (C, H, W) at a time.")
    return model, x, None if masks is None else _stacked(panel.masks, x)


def _stacked(masks: Sequence[Any], x: Tensor) -> Tensor:
    "An image without a mask has an empty one: no answer."
    return torch.stack(
        [torch.zeros(x.shape[2:], dtype=torch.bool) if m is None else torch.as_tensor(m).bool() for m in masks]
    )
