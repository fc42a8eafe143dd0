"""What makes watching safe: `unchanged` puts back everything that a look at the model could disturb."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import checkpoint

__all__ = ["evaluating", "unchanged"]

_CUDNN_FLAGS = ("enabled", "benchmark", "deterministic")


@contextmanager
def unchanged(model: nn.Module, *others: Any) -> Iterator[None]:
    """Leave `model`, the random number generators and torch's switches as they were, however the block ends.

    Restores each module's attributes (`training`; what a network notes down on the way), each parameter's
    `requires_grad` and `.grad` (which is `None` inside), each buffer (it may count forward passes), the states of
    python's, numpy's and torch's generators, on every CUDA device in use, the grad mode, the autocast state and the
    cudnn flags. `others`: more modules to look after,
    such as a loss function's; what is no module is left alone.
    """
    modules = [m for root in (model, *others) if isinstance(root, nn.Module) for m in root.modules()]
    attributes = [(m, m.training, dict(vars(m))) for m in modules]
    buffers = [(m, name, b, b.detach().clone()) for m in modules for name, b in m._buffers.items() if b is not None]
    parameters = [(p, p.requires_grad, p.grad) for m in modules for p in m._parameters.values() if p is not None]
    python, numpy, grad_mode = random.getstate(), np.random.get_state(), torch.is_grad_enabled()
    cudnn = [(name, getattr(torch.backends.cudnn, name)) for name in _CUDNN_FLAGS]
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        for p, _, grad in parameters:
            # Set aside, not copied: a backward pass in the block finds nothing to add to.
            if grad is not None:
                p.grad = None
        with ExitStack() as kept:
            kept.enter_context(torch.random.fork_rng(devices=list(cuda)))
            for kind in {"cpu", *(p.device.type for p, _, _ in parameters)}:
                kept.enter_context(_autocast_as_it_is(kind))
            yield
    finally:
        torch.set_grad_enabled(grad_mode)
        random.setstate(python)
        np.random.set_state(numpy)
        for name, flag in cudnn:
            if getattr(torch.backends.cudnn, name) != flag:
                setattr(torch.backends.cudnn, name, flag)
        for module, training, before in attributes:
            # Not `model.train(training)`: models override it, and modules of one model differ (frozen BatchNorm).
            module.training = training
            # An intermediate tensor that the network keeps would hold the graph behind it, too.
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        for p, requires_grad, grad in parameters:
            if p.requires_grad != requires_grad:
                p.requires_grad = requires_grad
            if p.grad is not grad:
                p.grad = grad
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                # Only where it differs: writing would bump the version counter under a graph of the caller's.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _autocast_as_it_is(kind: str) -> AbstractContextManager[Any]:
    "Autocast for a kind of device, on or off as before, without its cache: that keeps weights cast under `no_grad`."
    if not torch.amp.is_autocast_available(kind):
        return ExitStack()
    return torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`unchanged(model)`, with every module in evaluation mode inside the block.

    Checkpoints of `torch.utils.checkpoint` run as plain calls: reentrant ones hide their modules from autograd.
    """
    with unchanged(model), _no_checkpoints():
        for module in model.modules():
            module.training = False
        yield


class _Plainly:
    "Stands for `CheckpointFunction`: calls the function, and keeps what it computes on the way."

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


@contextmanager
def _no_checkpoints() -> Iterator[None]:
    before = getattr(checkpoint, "CheckpointFunction", None)
    if before is None:
        yield
        return
    vars(checkpoint)["CheckpointFunction"] = _Plainly
    try:
        yield
    finally:
        vars(checkpoint)["CheckpointFunction"] = before
