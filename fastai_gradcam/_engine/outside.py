"""The share of Grad-CAM outside of masks, as a number that a training can differentiate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._errors import GradCAMError
from .._net.guard import without_checkpoints
from .._net.inputs import inputs_of
from .._net.layers import Spot
from .._net.nested import replaced, tensors
from .._search.default import space_of
from .look import not_reached
from .scores import class_scores, main_output

__all__ = ["attention_outside"]


def attention_outside(
    model: nn.Module, x: Tensor, y: Tensor, masks: Tensor, spot: Spot, second_order: bool = True
) -> Tensor:
    """The share (0…1) of the Grad-CAM of class `y` outside of `masks`, `(N,)`; NaN where the map is empty.

    `x`: `(N, C, H, W)`. `y`: `(N,)` classes. `masks`: `(N, H, W)`, true on the object. The model itself is run. Up to
    the layer it is in the mode that it is in, because the features that a training works on are those of its batch:
    running statistics lag behind them. The rest is in evaluation mode: BatchNorm in training mode makes the sum of
    the scores of a batch (nearly) constant, and its gradient says nothing of any one image. `second_order`: the result
    depends on the weights through the gradients, too; without it, the channels' weights are constants.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        found = tensors(output)
        if len(found) <= spot.entry:
            return None
        A = found[spot.entry]
        # A frozen body gives activations without a history: then only what follows them learns.
        kept[:] = [A if A.requires_grad else A.detach().requires_grad_()]
        evaluate()
        # An in-place neighbour would overwrite what is kept.
        return replaced(output, spot.entry, kept[0].clone())

    inputs = inputs_of(x)
    with torch.enable_grad(), without_checkpoints(), _unchanged(model) as evaluate:
        with spot.module.register_forward_hook(keep):
            output = inputs.run(model)
        if not kept:
            raise not_reached(spot)
        score = class_scores(main_output(output)).gather(1, y.view(-1, 1)).sum()
        (G,) = torch.autograd.grad(score, kept, create_graph=second_order, allow_unused=True)
        if G is None:
            raise GradCAMError(f"The score does not depend on layer {spot.name!r}: no gradient arrives there.")
        to_space = space_of(model, spot, kept[0].detach(), inputs, None)
        A, G = to_space(kept[0]).float(), to_space(G).float()
        maps = (G.flatten(2).mean(2)[..., None, None] * A).sum(1).relu()
        inside = F.adaptive_avg_pool2d(masks[:, None].float(), (maps.shape[1], maps.shape[2]))[:, 0]
        total = maps.flatten(1).sum(1)
        shown = total > 0
        # Not divided by zero anywhere: NaN in a branch that is left out would still reach the gradient.
        share = 1 - (maps * inside).flatten(1).sum(1) / torch.where(shown, total, 1)
        return torch.where(shown, share, torch.nan)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    "Modes are as before, and no running statistics are gathered; gives a function that puts the rest into evaluation."
    before = [(part, part.training, getattr(part, "track_running_stats", None)) for part in model.modules()]

    def put(training: bool | None = None) -> None:
        for part, mode, tracks in before:
            part.training = mode if training is None else training
            if tracks is not None:
                part.track_running_stats = tracks

    for part, mode, tracks in before:
        if mode and tracks:
            part.track_running_stats = False  # type: ignore[assignment]
    try:
        yield lambda: put(False)
    finally:
        put()
