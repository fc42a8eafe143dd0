"""Restarts autograd at a layer, so that nothing before it is kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Restart", "first_tensor"]


class Restart:
    """Context manager that restarts autograd at `modules` and keeps what flows out of them.

    Run the network under `no_grad` inside the block. At the first of `modules` the graph begins, so nothing before
    it is kept in memory and no parameter before it matters. `outputs[i]` is the output of `modules[i]`, as a
    tensor that the score can be differentiated by (a leaf, or a node of the graph that an earlier module began);
    `None` if the module did not run. A module that runs several times keeps its last output.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.outputs: list[Tensor | None] = [None] * len(modules)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Restart:
        for i, module in enumerate(self.modules):
            self._handles.append(module.register_forward_hook(self._hook(i)))
        return self

    def _hook(self, i: int) -> Callable[[nn.Module, Any, Any], Any]:
        def restart(module: nn.Module, input: Any, output: Any) -> Any:
            tensor, rebuild = first_tensor(output)
            if tensor is None:
                return None
            torch.set_grad_enabled(True)
            kept = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            self.outputs[i] = kept
            # The network goes on with a clone: an in-place neighbour (ReLU, `out += identity`) would otherwise
            # overwrite the activation that we keep, and the map would mix one tensor with another's gradient.
            return rebuild(kept.clone())

        return restart

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def first_tensor(output: Any) -> tuple[Tensor | None, Any]:
    """The first floating tensor of a module's output, and a function that puts another in its place.

    Modules return a tensor, a tuple or list (attention), or a mapping (some model libraries). Gives `(None, None)`
    where there is no such tensor.
    """
    if isinstance(output, Tensor):
        if not output.is_floating_point():
            return None, None
        # A subclass (fastai's TensorImage) may refuse the in-place calls below.
        plain = output.as_subclass(Tensor) if type(output) is not Tensor else output
        return plain, lambda new: new
    if isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            tensor, rebuild = first_tensor(value)
            if tensor is not None:
                return tensor, lambda new, i=i, rebuild=rebuild: _replace(output, i, rebuild(new))
    if isinstance(output, dict):
        for key, value in output.items():
            tensor, rebuild = first_tensor(value)
            if tensor is not None:
                return tensor, lambda new, key=key, rebuild=rebuild: type(output)({**output, key: rebuild(new)})
    return None, None


def _replace(values: Sequence[Any], i: int, new: Any) -> Any:
    items = [*values[:i], new, *values[i + 1 :]]
    kind: Any = type(values)
    return kind(*items) if hasattr(values, "_fields") else kind(items)
