"""Layers by name: a module, a dotted name, or a list of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from .._errors import GradCAMError, GradCAMTypeError, one_of

__all__ = ["Layer", "named_layers", "unwrap"]

Layer = None | str | nn.Module | Sequence["str | nn.Module"]
_COMPILED = "_orig_mod"


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

    `layer`: a module of `model`, a dotted name, or a list of these. Raises `GradCAMError` for a name that does not
    exist (with those that do) or a module that is not part of `model`.
    """
    if isinstance(layer, (str, nn.Module)):
        layer = [layer]
    if not isinstance(layer, Sequence) or not layer:
        raise GradCAMTypeError(f"layer must be None, a module, a dotted name, or a list of these, got {layer!r}.")
    modules = {_plain(name): unwrap(module) for name, module in model.named_modules(remove_duplicate=False)}
    names = {module: name for name, module in reversed(modules.items())}
    found = []
    for one in layer:
        if isinstance(one, nn.Module):
            one = unwrap(one)
            if one not in names:
                raise GradCAMError(f"The layer {type(one).__name__} is not a module of this {type(model).__name__}.")
            if one is model:
                raise GradCAMError(f"The layer is the whole {type(model).__name__}; choose one of its parts.")
            found.append((names[one], one))
        elif isinstance(one, str):
            if _plain(one) not in modules or one == "":
                raise GradCAMError(one_of("layer", one, _outermost_first(modules)))
            found.append((_plain(one), modules[_plain(one)]))
        else:
            raise GradCAMTypeError(f"layer must be None, a module, a dotted name, or a list of these, got {one!r}.")
    return found


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _outermost_first(names: Iterable[str]) -> list[str]:
    "Names in the order in which a person looks for them: the parts of a network before the parts of its parts."
    return sorted((n for n in names if n), key=lambda n: n.count("."))
