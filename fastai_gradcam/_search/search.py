"""The search of the default layer: the last module with space that the whole score depends on. See README.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .._net.inputs import Inputs
from .._net.nested import tensors
from .._net.shadow import allow_gradients
from .locality import IS_LOCAL, best_of, localities
from .space import Reshape, beyond_doubt, readings_of, spatial

__all__ = ["Found", "NothingArrives", "search"]

# A map may grow again by this factor (a U-Net's decoder); an output with more cells is not a map, but (N, heads,
# tokens, C).
_GROWS = 8
# Keys and values, or queries, keys and values, out of one linear layer: 2 or 3 times as wide as the tokens.
_SEVERAL_IN_ONE = (2, 3)

_GOES_PAST = 0.01  # a smaller share of a layer's gradient is rounding


@dataclass(frozen=True)
class Found:
    """The default layer: tensor `entry` of module `name`'s output, of `shape` per image, and how it lies in space.

    `lasting`: whether it would be the same on other images. `note`: what a user should know about it, if anything.
    """

    name: str
    entry: int
    shape: tuple[int, ...]
    reading: Reshape | None
    lasting: bool
    note: str


class NothingArrives(Exception):
    "The score has no gradient anywhere, for example because a head starts at zero."


@dataclass(eq=False)
class _Flow:
    """A tensor that flowed out of a module, or of several that hand it on: `names` with the entry in their output.

    `node`, `given`: the autograd nodes of the tensor and of the first module's input. `width`: that input's last
    dimension. `mixes`: whether the first module mixes channels. `sure`: whether its shape alone says where space is.
    """

    tensor: Tensor
    version: int
    node: Any
    given: Any
    width: int
    mixes: bool
    names: list[tuple[str, int]]
    learnable: bool = False
    readings: list[Reshape] = field(default_factory=list)
    sure: bool = False
    tried: bool = False
    to_space: Reshape | None = None
    grad: Tensor | None = None

    @property
    def reached(self) -> bool:
        return self.grad is not None and self.to_space is not None and bool(self.to_space(self.grad).any())

    @property
    def is_all_space(self) -> bool:
        "Whether no token is left out of its reading."
        return self.to_space is not None and self.to_space(self.tensor).numel() == self.tensor.numel()


def search(net: nn.Module, inputs: Inputs, score: Callable[[Any], Tensor], reshape: Reshape | None = None) -> Found:
    "Listen to all modules in one pass forward and back, and leave out places that cannot be explained."
    x = inputs.x
    output, total, flows = _flows(net, inputs, score)
    if reshape is None:
        _read_by_shape(flows, x)
    else:
        _read_by_reshape(flows, x, reshape)
    flows = [f for f in flows if f.readings]
    if not flows:
        raise GradCAMError(
            f"No layer of this {type(net).__name__} has an output with space for an input {tuple(x.shape)}; name one "
            "with layer=, and say how its output maps to (N, C, *space) with reshape=."
        )
    _propagate(total, flows)
    reached = [f for f in flows if f.reached]
    if not reached:
        raise NothingArrives
    # Trying out costs a pass: it is done where it matters, after the last flow that is sure, or where that is passed
    # over.
    _settle_readings(net, inputs, reached[1 + max((i for i, f in enumerate(reached) if f.sure), default=-1) :])
    last, note = _last(reached, output, x)
    if not last.sure:
        _settle_readings(net, inputs, reached)
        last, note = _last(reached, output, x)
    note = note or _past(last, reached, total)
    # A layer after it that has no gradient now may have one on other images (a ReLU that is off here).
    after = [f for f in flows[flows.index(last) + 1 :] if f.learnable and f.grad is not None]
    lasting = all(bool(f.grad.any()) for f in after if f.grad is not None)
    return Found(*last.names[0], tuple(last.tensor.shape[1:]), last.to_space, lasting, note)


def _flows(net: nn.Module, inputs: Inputs, score: Callable[[Any], Tensor]) -> tuple[Any, Tensor, list[_Flow]]:
    "The output, the score, and each tensor that a module gave on the way, in order, under its innermost names."
    flows: dict[tuple[int, int], _Flow] = {}
    learnable = {name for name, m in net.named_modules() if any(True for _ in m.parameters())}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            arrived = tensors(args)
            given = arrived[0] if arrived else None
            for entry, tensor in enumerate(tensors(output)):
                if tensor._version == 0 and any(tensor is t for t in arrived if (id(t), 0) not in flows):
                    continue  # the image itself, handed on beside its features
                flow = flows.get((id(tensor), tensor._version))
                if flow is None and entry == 0:
                    node, width = (None, 0) if given is None else (given.grad_fn, (0, *given.shape)[-1])
                    mixes = any(p.ndim > 1 for p in module.parameters(recurse=False))
                    flow = _Flow(tensor, tensor._version, tensor.grad_fn, node, width, mixes, [])
                    flows[id(tensor), tensor._version] = flow
                if flow is not None:
                    if name in learnable and not flow.learnable:
                        flow.names.clear()  # a module with parameters is named rather than one without
                    flow.learnable |= name in learnable
                    flow.names.append((name, entry))

        return hook

    handles = [m.register_forward_hook(listen(name)) for name, m in net.named_modules() if name]
    x = inputs.x.detach()
    allow_gradients(net, not x.is_floating_point())
    try:
        with torch.enable_grad():
            output = inputs.with_x(x.requires_grad_(x.is_floating_point())).run(net)
            total = score(output)
    finally:
        for handle in handles:
            handle.remove()
    return output, total, list(flows.values())


def _propagate(total: Tensor, flows: list[_Flow]) -> None:
    "Each flow's gradient, and its node where operations in place on a view have written its history anew."
    wanted = [f for f in flows if f.tensor.requires_grad and total.requires_grad]
    at = [f.tensor for f in wanted]
    grads = torch.autograd.grad(total, at, retain_graph=True, allow_unused=True) if wanted else []
    graph = _upstream(total.grad_fn)
    for f, grad in zip(wanted, grads, strict=True):
        f.grad, f.to_space = grad, f.readings[0]
        f.node = f.node if f.node in graph else f.tensor.grad_fn


def _read_by_shape(flows: list[_Flow], x: Tensor) -> None:
    fewest = math.inf
    for f in flows:
        shape = f.tensor.shape
        f.readings = list(readings_of(shape, x.shape))
        if f.readings:
            space = f.readings[0](f.tensor.detach()).shape[2:]
            f.sure = beyond_doubt(f.readings, shape, x.shape[2:]) and math.prod(space) <= _GROWS * fewest
            if f.sure and min(space) > 1:
                fewest = min(fewest, math.prod(space))


def _read_by_reshape(flows: list[_Flow], x: Tensor, reshape: Reshape) -> None:
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


def _last(reached: list[_Flow], output: Any, x: Tensor) -> tuple[_Flow, str]:
    "The last flow that the whole score passes through, and a note if there is none."
    found = [f for f in reached if f.reached]
    if not found:
        raise GradCAMError(
            f"No layer has cells that respond to places of the image; those of {reached[-1].names[0][0]!r}, say, "
            "respond to all alike or by rows. Name one with layer=, and map it to (N, C, *space) with reshape=."
        )
    found = [f for f in found if f.learnable] or found
    found, note = _up_to_a_whole(_before_the_scores(found, output, x))
    while len(left := _without_keys_and_values(found, x)) < len(found):
        found, note = _up_to_a_whole(left)
    return found[-1], note


def _settle_readings(net: nn.Module, inputs: Inputs, flows: list[_Flow]) -> None:
    "Try out the readings that shapes leave open."
    unsure = {f.names[0]: f for f in flows if not f.sure and not f.tried}
    answers = localities(net, inputs, {at: f.readings for at, f in unsure.items()}) if unsure else {}
    for at, f in unsure.items():
        f.tried, found = True, answers.get(at)
        if found:
            best = best_of(found)
            f.to_space = f.readings[best] if found[best] > IS_LOCAL else None


def _before_the_scores(flows: list[_Flow], output: Any, x: Tensor) -> list[_Flow]:
    """In a segmentation, `flows` up to the one that the map of scores is computed from; elsewhere all of them.

    The map of scores has space and takes part in the score, and explains nothing: it is the score.
    """
    scores = next(iter(tensors(output)), None)
    if scores is None or scores.ndim != x.ndim or spatial(scores, x.shape) is None:
        return flows
    left, gone = list(flows), list[_Flow]()
    # Two such maps may be added up. A convolution among them reads features, whatever their number of channels.
    while (
        left
        and (to_space := left[-1].to_space) is not None
        and to_space(left[-1].tensor).shape[1] == scores.shape[1]
        and not any(left[-1].node in _upstream(f.given) for f in gone if f.mixes)
    ):
        gone.append(left.pop())
    return left or flows


def _up_to_a_whole(flows: list[_Flow]) -> tuple[list[_Flow], str]:
    """`flows` up to the last one without another beside it, so that the whole score passes through.

    If each has another beside it (two trunks), up to the last without one that is read from the same tensor, or all of
    them; then a note says which branches are left out.
    """
    nodes = {f.node for f in flows}
    upstream = {f: _upstream(f.node) & nodes for f in flows}

    def beside(one: _Flow, other: _Flow) -> bool:
        return one.node not in upstream[other] and other.node not in upstream[one]

    note = ""
    for near in (False, True):
        for i in range(len(flows) - 1, -1, -1):
            if not any(beside(flows[i], f) for f in flows if not near or f.given is flows[i].given is not None):
                return flows[: i + 1], note and note.format(flows[i].names[0][0])
        ends = [f.names[0][0] for f in flows if not any(f.node in upstream[g] for g in flows if g.node is not f.node)]
        note = (
            "The score is computed from several branches, and no layer holds all of it: the map is that of '{}' alone. "
            f"layer={ends} gives a map for the end of each branch."
        )
    return flows, note.format(flows[-1].names[0][0])


def _past(last: _Flow, flows: list[_Flow], total: Tensor) -> str:
    "A note where a part of the score goes past `last`: a head that reads earlier layers, too."
    # A class token reads the patches in every layer, and carries that past the next.
    around = _upstream(total.grad_fn, but=last.node)
    earlier = [
        f for f in flows[: flows.index(last)] if f.node in around and f.reached and f.learnable and f.is_all_space
    ]
    if not earlier or not last.is_all_space:
        return ""
    through = torch.autograd.grad(last.tensor, [f.tensor for f in earlier], last.grad, allow_unused=True)
    for f, part in zip(reversed(earlier), reversed(through), strict=True):
        whole = torch.zeros_like(f.tensor) if f.grad is None else f.grad
        if float((whole - (0 if part is None else part)).norm()) > _GOES_PAST * float(whole.norm()):
            name, end = f.names[0][0], last.names[0][0]
            return (
                f"A part of the score goes past '{end}', from earlier layers such as '{name}' to the head: the map "
                f"is that of '{end}' alone. layer={[name, end]} gives a map of each."
            )
    return ""


def _without_keys_and_values(flows: list[_Flow], x: Tensor) -> list[_Flow]:
    left = list(flows)
    while (
        len(left) > 1
        and left[-1].tensor.ndim < x.ndim
        and left[-1].tensor.shape[-1] in [k * left[-1].width for k in _SEVERAL_IN_ONE]
    ):
        left.pop()
    return left


def _upstream(node: Any, but: Any = None) -> set:
    "The nodes of autograd's graph that `node` is computed from, and itself; not those that it reaches through `but`."
    seen, left = {node}, [node] * (node is not None)
    while left:
        for before, _ in left.pop().next_functions:
            if before is not None and before is not but and before not in seen:
                seen.add(before)
                left.append(before)
    return seen
