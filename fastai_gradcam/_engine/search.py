"""The search of the default layer: the last module with space that the whole score depends on. See README.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .inputs import Inputs
from .locality import IS_LOCAL, best_of, localities
from .look import allow_gradients
from .nested import tensors
from .space import Reshape, beyond_doubt, readings_of, spatial

__all__ = ["Flow", "NothingArrives", "search"]

# A map may grow again by this factor (a U-Net's decoder); more cells than that are no map, but (N, heads, tokens, C).
_GROWS = 8
# Keys and values, or queries, keys and values, out of one linear layer: 2 or 3 times as wide as the tokens.
_SEVERAL_IN_ONE = (2, 3)


class NothingArrives(Exception):
    "The score has no gradient anywhere, for example because a head starts at zero."


@dataclass(eq=False)
class Flow:
    """A tensor that flowed out of a module, or of several that hand it on: `names` with the entry in their output.

    `node`, `given`: the autograd nodes of the tensor and of the first module's input. `width`: that input's last
    dimension. `mixes`: whether the first module mixes channels.
    """

    tensor: Tensor
    version: int
    node: Any
    given: Any
    width: int
    mixes: bool
    names: list[tuple[str, int]]
    readings: list[Reshape] = field(default_factory=list)
    sure: bool = False
    to_space: Reshape | None = None
    grad: Tensor | None = None
    name: str = ""
    entry: int = 0

    @property
    def reached(self) -> bool:
        return self.grad is not None and self.to_space is not None and bool(self.to_space(self.grad).any())


def search(
    net: nn.Module, inputs: Inputs, score: Callable[[Any], Tensor], reshape: Reshape | None
) -> tuple[Flow, bool]:
    "The default layer's flow, and whether it would be the same on other images."
    output, total, flows = _flows(net, inputs, score)
    x = inputs.x
    _read_by_reshape(flows, x, reshape) if reshape is not None else _read_by_shape(flows, x)
    flows = [f for f in flows if f.readings]
    if not flows:
        raise GradCAMError(
            f"No layer of this {type(net).__name__} has an output with space for an input {tuple(x.shape)}; name one "
            "with layer=, and say how its output maps to (N, C, *space) with reshape=."
        )
    for f, grad in zip(flows, _gradients(total, [f.tensor for f in flows]), strict=True):
        f.grad, f.to_space = grad, f.readings[0]
    learnable = _name_by_parameters(net, flows)
    reached = [f for f in flows if f.reached]
    _settle_readings(net, inputs, reached)
    found = [f for f in reached if f.reached] or reached
    found = [f for f in found if f in learnable] or found
    if not found:
        raise NothingArrives
    graph = _upstream(total.grad_fn)
    for f in found:
        # Operations in place on a view write its history anew.
        f.node = f.node if f.node in graph else f.tensor.grad_fn
    found = _before_the_scores(found, output, x)
    found = _up_to_a_whole(found)
    found = _without_keys_and_values(found, x)
    # A layer after it that has no gradient now may have one on other images (a ReLU that is off here).
    after = flows[flows.index(found[-1]) + 1 :]
    return found[-1], all(f.grad is None or bool(f.grad.any()) for f in after if f in learnable)


def _flows(net: nn.Module, inputs: Inputs, score: Callable[[Any], Tensor]) -> tuple[Any, Tensor, list[Flow]]:
    "The output, the score, and each tensor that a module gave on the way, in order."
    flows: dict[tuple[int, int], Flow] = {}
    x = inputs.x.detach()

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            given = next(iter(tensors(args)), None)
            for entry, tensor in enumerate(tensors(output)):
                known = flows.get((id(tensor), tensor._version))
                if known is not None:
                    known.names.append((name, entry))
                elif entry == 0:
                    mixes = any(p.ndim > 1 for p in module.parameters(recurse=False))
                    node, width = (None, 0) if given is None else (given.grad_fn, (0, *given.shape)[-1])
                    flow = Flow(tensor, tensor._version, tensor.grad_fn, node, width, mixes, [(name, entry)])
                    flows[id(tensor), tensor._version] = flow

        return hook

    handles = [m.register_forward_hook(listen(name)) for name, m in net.named_modules() if name]
    allow_gradients(net, not x.is_floating_point())
    try:
        with torch.enable_grad():
            output = inputs.with_x(x.requires_grad_(x.is_floating_point())).run(net)
            total = score(output)
    finally:
        for handle in handles:
            handle.remove()
    return output, total, list(flows.values())


def _gradients(total: Tensor, wanted: list[Tensor]) -> list[Tensor | None]:
    asked = [t for t in wanted if t.requires_grad]
    if not asked or not total.requires_grad:
        return [None] * len(wanted)
    grads = dict(zip(map(id, asked), torch.autograd.grad(total, asked, allow_unused=True), strict=True))
    return [grads.get(id(t)) for t in wanted]


def _read_by_shape(flows: list[Flow], x: Tensor) -> None:
    "The ways in which each output may lie in space, and whether its shape leaves no doubt."
    fewest = math.inf
    for f in flows:
        shape = f.tensor.shape
        f.readings = list(readings_of(shape, x.shape))
        if f.readings:
            space = f.readings[0](f.tensor.detach()).shape[2:]
            f.sure = beyond_doubt(f.readings, shape, x.shape[2:]) and math.prod(space) <= _GROWS * fewest
            if f.sure and min(space) > 1:
                fewest = min(fewest, math.prod(space))


def _read_by_reshape(flows: list[Flow], x: Tensor, reshape: Reshape) -> None:
    refused: Exception | None = None
    for f in flows:
        try:
            spatial(f.tensor.detach(), x.shape, reshape)  # raises where it does not fit
            space = reshape(f.tensor.detach()).shape[2:]
            f.readings, f.sure = [reshape] * (math.prod(space) > 1), True
        except Exception as error:
            refused = error
    if refused is not None and not any(f.readings for f in flows):
        raise GradCAMError(f"reshape= fits the output of no layer: {refused}") from refused


def _name_by_parameters(net: nn.Module, flows: list[Flow]) -> list[Flow]:
    "Name each flow by the innermost module with parameters that handed it on. The flows that have one."
    names = {name for name, m in net.named_modules() if any(True for _ in m.parameters())}
    learnable = []
    for f in flows:
        own = [at for at in f.names if at[0] in names]
        f.name, f.entry = (own or f.names)[0]
        if own:
            learnable.append(f)
    return learnable


def _settle_readings(net: nn.Module, inputs: Inputs, reached: list[Flow]) -> None:
    "Try out the readings that shapes leave open, where it matters: after the last flow that is sure."
    last = max((i for i, f in enumerate(reached) if f.sure), default=-1)
    if last + 1 == len(reached):
        return
    unsure = [f for f in reached if not f.sure]
    answers = localities(net, inputs, {(f.name, f.entry): f.readings for f in unsure})
    for f in unsure:
        found = answers.get((f.name, f.entry))
        if found:
            best = best_of(found)
            f.to_space = f.readings[best] if found[best] > IS_LOCAL else None


def _before_the_scores(flows: list[Flow], output: Any, x: Tensor) -> list[Flow]:
    """In a segmentation, `flows` up to the one that the map of scores is computed from; elsewhere all of them.

    The map of scores has space and takes part in the score, and explains nothing: it is the score.
    """
    scores = next(iter(tensors(output)), None)
    if scores is None or scores.ndim != x.ndim or spatial(scores, x.shape) is None:
        return flows
    left, gone = list(flows), list[Flow]()
    # Two such maps may be added up. A convolution among them reads features, whatever their number of channels.
    while (
        left
        and (to_space := left[-1].to_space) is not None
        and to_space(left[-1].tensor).shape[1] == scores.shape[1]
        and not any(left[-1].node in _upstream(f.given) for f in gone if f.mixes)
    ):
        gone.append(left.pop())
    return left or flows


def _up_to_a_whole(flows: list[Flow]) -> list[Flow]:
    """`flows` up to the last one without another beside it, so that the whole score passes through.

    If each has another beside it (two trunks), up to the last without one that is read from the same tensor; all of
    them if there is none.
    """
    nodes = {f.node for f in flows}
    upstream = {f: _upstream(f.node) & nodes for f in flows}

    def beside(one: Flow, other: Flow) -> bool:
        return one.node not in upstream[other] and other.node not in upstream[one]

    for near in (False, True):
        for i in range(len(flows) - 1, -1, -1):
            if not any(beside(flows[i], f) for f in flows if not near or f.given is flows[i].given is not None):
                return flows[: i + 1]
    return flows


def _without_keys_and_values(flows: list[Flow], x: Tensor) -> list[Flow]:
    left = list(flows)
    while (
        len(left) > 1
        and left[-1].tensor.ndim < x.ndim
        and left[-1].tensor.shape[-1] in [k * left[-1].width for k in _SEVERAL_IN_ONE]
    ):
        left.pop()
    return left


def _upstream(node: Any) -> set:
    "The nodes of autograd's graph that `node` is computed from, and itself."
    seen, left = {node}, [node] * (node is not None)
    while left:
        for before, _ in left.pop().next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                left.append(before)
    return seen
