"""Layers by name: a module, a dotted name, or a list of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .._errors import GradCAMError, GradCAMTypeError, one_of

__all__ = ["Layer", "Spot", "named_layers", "unwrap"]

Layer = None | str | nn.Module | Sequence["str | nn.Module"]
_COMPILED = "_orig_mod"


@dataclass(frozen=True)
class Spot:
    "A place in a network: tensor `entry` of a module's output, in its run `run` (`None`: the last)."

    name: str
    module: nn.Module
    entry: int = 0
    run: int | None = None


def unwrap(model: nn.Module) -> nn.Module:
    "The user's own network inside `DataParallel`, `DistributedDataParallel` and `torch.compile`."
    while True:
        inner = getattr(model, _COMPILED, None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_layers(model: nn.Module, layer: Layer) -> list[tuple[str, nn.Module]]:
    """`layer` as a list of (dotted name, module) of `model`; compiled parts are named as if they were not.

    Raises `GradCAMError` for a name that does not exist (with those that do) or a module that is not part of `model`.
    """
    listed = [layer] if isinstance(layer, (str, nn.Module)) else layer
    if not isinstance(listed, Sequence) or not all(isinstance(one, (str, nn.Module)) for one in listed) or not listed:
        raise GradCAMTypeError(f"layer must be None, a module, a dotted name, or a list of these, got {layer!r}.")
    modules = {_plain(name): unwrap(module) for name, module in model.named_modules(remove_duplicate=False)}
    names = {module: name for name, module in reversed(modules.items())}
    found = []
    for one in listed:
        if isinstance(one, nn.Module):
            one = unwrap(one)
            if one not in names:
                raise GradCAMError(f"The layer {type(one).__name__} is not a module of this {type(model).__name__}.")
            if one is model:
                raise GradCAMError(f"The layer is the whole {type(model).__name__}; choose one of its parts.")
            one = names[one]
        if _plain(one) not in modules or one == "":
            # The parts of a network before the parts of its parts, as a person looks for them.
            raise GradCAMError(one_of("layer", one, sorted(filter(None, modules), key=lambda name: name.count("."))))
        found.append((_plain(one), modules[_plain(one)]))
    return found


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)
