"""The subject of watching: a model and what its training loop has beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

from torch import nn
from torch.nn.parameter import is_lazy

from .._errors import GradCAMError
from .judging import JudgingSet
from .settings import Logger

__all__ = ["Subject", "Unwatchable", "refuse_incomplete"]


class Unwatchable(GradCAMError):
    "A network that a look would change: it cannot be copied, or reaches a state that cannot be put back."


def refuse_incomplete(model: nn.Module) -> None:
    "Raise where this process does not have the whole model: one that is sharded, or whose layers are lazy."
    if any(map(is_lazy, model.parameters())):
        raise GradCAMError(
            "The model has lazy layers, whose shapes the first batch decides: pass one through the model before "
            "training, so that the panel does not."
        )
    kinds = {type(part).__name__ for part in (*model.modules(), *model.parameters())}
    if kinds & {"FullyShardedDataParallel", "DTensor"} or any(hasattr(p, "ds_id") for p in model.parameters()):
        raise Unwatchable(
            "The model is sharded over processes (FSDP, DeepSpeed), and a forward pass of one of them would wait for "
            "the others. Watch it under DistributedDataParallel, or look at a saved copy with gradcam(model, x)."
        )


@dataclass
class Subject:
    """The model that is watched, as its training loop has it at the moment.

    `owner()`: what a run belongs to, a learner or the model, while it exists. `loss`: the loss function, for the loss
    of each image. `layers(layer)`: the dotted names of a `layer=`. `loggers`: those that the training loop brings.
    `frozen()`: whether the body of the network is frozen at the moment.
    `inputs(net, x)`: what the training loop makes of the panel's inputs for a model, of which `net` is a copy.
    `pixels()`: the mean and the standard deviation by which pixels of 0…1 became the panel's input, or `None` twice.
    `beside()`: what else a look runs, such as transforms; `beyond`: classes whose objects no look changes.
    `judging(n)`: up to `n` images to judge by. `trained()`: how many images were passed forward and backward so far.
    """

    owner: ref[Any]
    model: Callable[[], nn.Module]
    loss: Callable[[], Any] = lambda: None
    layers: Callable[[Any], list[str]] | None = None
    loggers: Callable[[], list[Logger]] = list
    frozen: Callable[[], bool] = lambda: False
    inputs: Callable[[nn.Module, Any], Any] = lambda net, x: x
    pixels: Callable[[], tuple[Any, Any]] = lambda: (None, None)
    beside: Callable[[], list[Any]] = list
    beyond: tuple[type, ...] = ()
    arch: str | None = None
    judging: Callable[[int], JudgingSet] | None = None
    trained: Callable[[], int] = lambda: 0
