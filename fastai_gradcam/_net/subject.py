"""The subject of an explanation: the user's own network, or a function together with the layers that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .._errors import GradCAMError, GradCAMTypeError
from .layers import Layer, named_layers, unwrap

__all__ = ["named_subject", "saying_why"]


class _Function(nn.Module):
    "A function as a module, with the layers that it calls."

    def __init__(self, function: Callable[..., Any], layers: list[nn.Module]) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def named_subject(model: Any, layer: Layer) -> tuple[nn.Module, list[str] | None]:
    """The network to look at, and the names of the layers asked for. Raises `GradCAMError` for one that hides its
    layers.
    """
    if not isinstance(model, nn.Module):
        layers = [layer] if isinstance(layer, nn.Module) else list(layer) if isinstance(layer, (list, tuple)) else []
        if not callable(model) or not layers or not all(isinstance(one, nn.Module) for one in layers):
            raise GradCAMTypeError(
                "model must be an nn.Module, with layers to listen to, or a function with layer= a module that it "
                f"calls, got {type(model).__name__}."
            )
        for name in getattr(getattr(model, "__code__", None), "co_names", ()):
            if isinstance(model.__globals__.get(name), nn.Module):
                raise GradCAMError(
                    f"The function reaches the module {name!r} by a global name, and what is looked at is a copy: give "
                    "the module itself, or hand it to the function by functools.partial."
                )
        return _Function(model, layers), [f"layers.{i}" for i in range(len(layers))]
    net = unwrap(model)
    if isinstance(net, torch.jit.ScriptModule):
        raise GradCAMError(
            "A TorchScript module runs outside of Python, where nothing can listen to its layers: give the nn.Module "
            "that it was made from."
        )
    if isinstance(net, torch.fx.GraphModule) and not any(node.op == "call_module" for node in _parts(net)):
        raise GradCAMError(
            "An exported program has operations, but no layers to listen to: give the nn.Module that it was exported "
            "from, or torch.export.unflatten(program)."
        )
    return net, None if layer is None else [name for name, _ in named_layers(net, layer)]


def _parts(net: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in net.graph.nodes if "guards" not in str(node.target)]


@contextmanager
def saying_why(net: nn.Module) -> Iterator[None]:
    "Add to a `GradCAMError` what it is about this network that may be the reason."
    try:
        yield
    except GradCAMError as error:
        if not any(".quantized" in type(m).__module__ for m in net.modules()):
            raise
        raise GradCAMError(
            f"{error} The network is quantised, and no gradient passes through integers: explain the network in "
            'floats, or, if only its last layers are quantised, take method="scorecam" and name a layer before them.'
        ) from error
