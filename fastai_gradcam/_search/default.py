"""The default layer and the layout of a layer's output: found once by the search, then remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .._net.inputs import Inputs
from .._net.layers import Spot
from .._net.shadow import original, shadow
from .locality import best_of, localities
from .search import Found, NothingArrives, search
from .space import Reading, Reshape, even, readings_of, spatial

__all__ = ["default_spot", "space_of"]

# A score without any gradient (a head may start at zero) is asked again with weights changed by this much.
_SHAKE = 0.02


@dataclass
class _Memory:
    "Results of the search for a model, valid as long as its modules are the same. Keys refer to callables weakly."

    modules: list[tuple[str, Any]]
    found: dict[Hashable, Found] = field(default_factory=dict)
    readings: dict[Hashable, Reading] = field(default_factory=dict)


_memories: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()
_lock = threading.Lock()
_MOST_REMEMBERED = 256


def _memory_of(net: nn.Module) -> _Memory:
    model = original(net)
    modules: list[tuple[str, Any]] = [(name, ref(module)) for name, module in model.named_modules()]
    with _lock:
        memory = _memories.get(model)
        if memory is None or memory.modules != modules or len(memory.found) > _MOST_REMEMBERED:
            memory = _memories[model] = _Memory(modules)
        return memory


def space_of(net: nn.Module, spot: Spot, output: Tensor, inputs: Inputs, reshape: Reshape | None) -> Reshape:
    """The function from a layer's output to `(N, C, *space)`; if shapes leave it open, the layouts are tried out.

    Trying out costs one forward pass of five images, once per layer and input size. Raises `GradCAMError` for an
    output without space.
    """
    x = inputs.x
    readings = [] if reshape is not None else readings_of(output.shape, x.shape)
    if not readings:
        to_space = spatial(output, x.shape, reshape)
        if to_space is None:
            raise GradCAMError(
                f"The output of layer {spot.name!r} has shape {tuple(output.shape)} for an input {tuple(x.shape)}: it "
                "has no space to map. Choose an earlier layer, or say with reshape= how it maps to (N, C, *space)."
            )
        return to_space
    found, at = _memory_of(net).readings, (spot.name, spot.entry)
    key = at, output.shape[1:], x.shape[1:]
    if key not in found:
        # A layer that is named mostly has channels first; where its space fits the image nothing is tried out.
        if readings[0] == Reading(False) and even(output.shape[2:], x.shape[2:]):
            return readings[0]
        tried = localities(shadow(net), inputs, {at: readings}).get(at)
        found[key] = readings[best_of(tried)] if tried else readings[0]
    return found[key]


def default_spot(
    net: nn.Module,
    inputs: Inputs,
    score: Callable[[Any], Tensor],
    reshape: Reshape | None = None,
    of: Sequence[int] | Callable = (),
) -> tuple[Spot, str]:
    """The default layer of `net`, a shadow, and what is to be said of it (mostly nothing).

    `score(output)`: the number to differentiate. `of`: the classes that it belongs to, `()` for all, or the callable
    target. Found once per model, input size and `of`. Raises `GradCAMError` if no output has space.
    """
    memory = _memory_of(net)
    try:
        key: Any = inputs.at, inputs.x.shape[1:], ref(of) if callable(of) else of, reshape and ref(reshape)
        found = memory.found.get(key)
    except TypeError:
        key = found = None  # a callable that cannot be hashed or referred to weakly is not remembered
    if found is None:
        found = _searched(net, inputs, score, reshape)
        # If a class has a branch of its own, the other branches never have a gradient.
        if key is not None and (found.lasting or (of and not callable(of))):
            memory.found[key] = found
        if isinstance(found.reading, Reading):
            memory.readings[(found.name, found.entry), found.shape, inputs.x.shape[1:]] = found.reading
    return Spot(found.name, net.get_submodule(found.name), found.entry), found.note


def _searched(net: nn.Module, inputs: Inputs, score: Callable[[Any], Tensor], reshape: Reshape | None) -> Found:
    try:
        return search(shadow(net), inputs, score, reshape)
    except NothingArrives:
        shaken, generator = shadow(net, own_weights=True), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in shaken.parameters():
            p.add_(torch.randn(p.shape, generator=generator).to(p), alpha=_SHAKE)
    try:
        return search(shaken, inputs, score, reshape)
    except NothingArrives:
        raise GradCAMError(
            f"No gradient of the score arrives at any layer with space of this {type(net).__name__}; name the layer "
            "with layer=."
        ) from None
