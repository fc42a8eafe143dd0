"""A model that is called in another way than `model(x)`, as a module that is called so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["Called"]


class Called(nn.Module):
    "Has the children, parameters and buffers of `model`, under their names, and calls it by `forward(model, x)`."

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any]):
        super().__init__()
        vars(self).update(_modules=model._modules, _parameters=model._parameters, _buffers=model._buffers)
        # In a list, so that the model is not a child of its own.
        self._model, self._forward = [model], forward

    def forward(self, x: Any) -> Any:
        self._model[0].training = self.training
        return self._forward(self._model[0], x)
