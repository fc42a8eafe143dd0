"""What makes watching safe: `unchanged` puts back everything that a look at the model could disturb."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["evaluating", "unchanged"]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Leave `model` and the random number generators as they were, however the block ends.

    Restores the `training` flag of each module, every buffer (a network may count its forward passes), and the
    states of python's, numpy's and torch's generators, on every CUDA device in use. Gradients, `requires_grad`,
    autocast and cudnn flags need no restoring: nothing in this library sets them.
    """
    training = [(m, m.training) for m in model.modules()]
    buffers = [(m, name, b, b.detach().clone()) for m in model.modules() for name, b in _buffers(m)]
    python, numpy = random.getstate(), np.random.get_state()
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    grad_mode = torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=list(cuda)):
            yield
    finally:
        torch.set_grad_enabled(grad_mode)
        random.setstate(python)
        np.random.set_state(numpy)
        for module, flag in training:
            # Not `model.train(flag)`: models override it, and modules of one model differ (frozen BatchNorm).
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                # Only where it differs: writing would bump the version counter under a graph of the caller's.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _buffers(module: nn.Module):
    return [(name, b) for name, b in module._buffers.items() if b is not None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    "`unchanged(model)`, with every module in evaluation mode inside the block."
    with unchanged(model):
        for module in model.modules():
            module.training = False
        yield
