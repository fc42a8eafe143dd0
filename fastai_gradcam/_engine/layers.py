"""Which module is explained: the one that is named, or the last whose output has space and takes part in the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._errors import one_of
from .restart import first_tensor
from .space import LOCAL, Reading, Reshape, best_answer, beyond_doubt, even, local_answers, readings_of, spatial

__all__ = ["Layer", "Reshape", "default_layer", "named_layers", "space_of", "spatial", "unwrap"]

Layer = None | str | nn.Module | Sequence["str | nn.Module"]


def unwrap(model: nn.Module) -> nn.Module:
    "The user's own network inside `DataParallel`, `DistributedDataParallel` and `torch.compile`."
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_layers(model: nn.Module, layer: Layer) -> list[tuple[str, nn.Module]]:
    """`layer` as a list of (dotted name, module) of `model`.

    `layer`: a module of `model`, a dotted name, or a list of these. Raises `ValueError` for a name that does not
    exist (with those that do) or a module that is not part of `model`.
    """
    if isinstance(layer, (str, nn.Module)):
        layer = [layer]
    if not isinstance(layer, Sequence) or not layer:
        raise TypeError(f"layer must be None, a module, a dotted name, or a list of these, got {layer!r}.")
    names = {module: name for name, module in model.named_modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for one in layer:
        if isinstance(one, nn.Module):
            one = unwrap(one)
            if one not in names:
                raise ValueError(f"The layer {type(one).__name__} is not a module of this {type(model).__name__}.")
            if one is model:
                raise ValueError(f"The layer is the whole {type(model).__name__}; choose one of its parts.")
            found.append((names[one], one))
        elif isinstance(one, str):
            if one not in modules or one == "":
                raise ValueError(one_of("layer", one, _outermost_first(modules)))
            found.append((one, modules[one]))
        else:
            raise TypeError(f"layer must be None, a module, a dotted name, or a list of these, got {one!r}.")
    return found


def _outermost_first(names: Iterable[str]) -> list[str]:
    "Names in the order in which a person looks for them: the parts of a network before the parts of its parts."
    return sorted((n for n in names if n), key=lambda n: n.count("."))


@dataclass
class _Memory:
    "What was found about a model, as long as its modules are these."

    modules: list[tuple[str, Any]]
    layers: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict]] = field(default_factory=WeakKeyDictionary)
    readings: dict[Any, Reading] = field(default_factory=dict)


_memory: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()


def _remembered(model: nn.Module) -> _Memory:
    modules = [(name, ref(module)) for name, module in model.named_modules()]
    memory = _memory.get(model)
    if memory is None or memory.modules != modules:
        memory = _memory[model] = _Memory(modules)
    return memory


def _names_for(memory: _Memory, *of: object) -> dict:
    try:
        first, second = of
        return memory.layers.setdefault(first, WeakKeyDictionary()).setdefault(second, {})
    except TypeError:
        # What cannot be hashed or referred to weakly is not remembered.
        return {}


def space_of(model: nn.Module, name: str, output: Tensor, x: Tensor, reshape: Reshape | None = None) -> Reshape | None:
    """`spatial` for the output of `model`'s module `name` for the images `x`; where shapes leave it open, tried out.

    That costs one forward pass of three images without gradients, once per layer and input size.
    """
    readings = [] if reshape is not None else readings_of(output.shape, x.shape)
    found, key = _remembered(model).readings, (name, output.shape[1:], x.shape[1:])
    # Channels first is what a layer that is named mostly has; where its space fits the image nothing is tried out.
    if len(readings) == 0 or (
        key not in found and readings[0] == Reading(False) and even(output.shape[2:], x.shape[2:])
    ):
        return spatial(output, x.shape, reshape)
    if key not in found:
        answers = local_answers(model, x, {name: readings}).get(name)
        found[key] = readings[best_answer(answers)] if answers else readings[0]
    return found[key]


def default_layer(
    model: nn.Module,
    x: Tensor,
    run: Callable[[Tensor], object],
    score: Callable[[object], Tensor],
    of: object = None,
    reshape: Reshape | None = None,
) -> tuple[str, nn.Module]:
    """The last module of `model` with parameters whose output has space and takes part in the score, as a whole.

    Found once per model and input size, by looking at what flows through on `x` and at where the score's gradient
    arrives: no list of architectures. `run(x)` runs the model, `score(output)` gives one number to differentiate;
    `of` says which score that is (two heads may end in different layers), `None` any of the classes. A layer is whole
    where nothing with space runs beside it: of two branches that only the head brings together, or of keys and values,
    what both are computed from is. The scores of a segmentation are no layer. Where modules hand one tensor on
    unchanged, the innermost is named. Raises `ValueError` if no output has space.
    """
    memory = _remembered(model)
    key = x.shape[1:], of if isinstance(of, tuple) else None
    names = _names_for(memory, of if callable(of) else model, model if reshape is None else reshape)
    name = names.get(key)
    if name is None:
        try:
            found, lasting = _search(model, x, run, score, reshape)
        except _NothingArrives:
            # What depends on what does not depend on the weights' values: ask again with other ones.
            shaken = {k: p.detach() + 0.02 * torch.randn_like(p) for k, p in model.named_parameters()}
            try:
                found, lasting = _search(model, x, lambda x: functional_call(model, shaken, (x,)), score, reshape)
            except _NothingArrives:
                raise ValueError(
                    f"No gradient of the score arrives at any layer with space of this {type(model).__name__}; name "
                    "the layer with layer=."
                ) from None
        name = found.name
        # Beside a class's own branch those of the others are always off.
        if lasting or isinstance(of, tuple):
            names[key] = name
        if isinstance(found.to_space, Reading):
            memory.readings[name, found.tensor.shape[1:], x.shape[1:]] = found.to_space
    return name, model.get_submodule(name)


class _NothingArrives(Exception):
    "The score has no gradient anywhere: a head that starts at zero, say."


@dataclass(eq=False)
class _Flow:
    "What flowed out of a module. `node` and `given`: the autograd nodes of its output and its input."

    name: str
    tensor: Tensor
    version: int
    node: Any
    given: Any
    narrow: int
    mixes: bool
    readings: list[Reshape] = field(default_factory=list)
    sure: bool = False
    to_space: Reshape | None = None
    grad: Tensor | None = None

    @property
    def reached(self) -> bool:
        return self.grad is not None and self.to_space is not None and bool(self.to_space(self.grad).any())


def _search(
    model: nn.Module,
    x: Tensor,
    run: Callable[[Tensor], object],
    score: Callable[[object], Tensor],
    reshape: Reshape | None,
) -> tuple[_Flow, bool]:
    "The default layer's flow, and whether it would be the same on other images."
    output, total, flows = _flows(model, x, run, score)
    if reshape is None:
        _read(flows, x)
    else:
        _reshaped(flows, x, reshape)
    flows = [f for f in flows if f.readings]
    if not flows:
        raise ValueError(
            f"No layer of this {type(model).__name__} has an output with space for an input {tuple(x.shape)}; name one "
            "with layer=, and say how its output maps to (N, C, *space) with reshape=."
        )
    for f, grad in zip(flows, _gradients(total, [f.tensor for f in flows]), strict=True):
        f.grad, f.to_space = grad, f.readings[0]
    learnable = {name for name, m in model.named_modules() if any(True for _ in m.parameters())}
    reached = [f for f in flows if f.reached]
    _try_out(model, x, reached)
    best = [f for f in reached if f.reached] or reached
    best = [f for f in best if f.name in learnable] or best
    if not best:
        raise _NothingArrives
    graph = _upstream(total.grad_fn)
    for f in best:
        # Operations in place on a view write its history anew.
        f.node = f.node if f.node in graph else f.tensor.grad_fn
    best = _before_the_scores(best, output, x)
    best = _up_to_a_whole(best)
    # Keys and values, or queries too, out of one linear layer: several times as wide as the tokens they are read from.
    while len(best) > 1 and best[-1].tensor.ndim < x.ndim and best[-1].tensor.shape[-1] in (
        2 * best[-1].narrow, 3 * best[-1].narrow
    ):  # fmt: skip
        best.pop()
    last = best[-1]
    behind = flows[flows.index(last) + 1 :]
    # What lies behind and has a gradient of zero throughout may take part on other images (a ReLU that is off here).
    lasting = all(f.grad is None or bool(f.grad.any()) for f in behind if f.name in learnable)
    return next(f for f in best if f.tensor is last.tensor and f.version == last.version), lasting


def _flows(
    model: nn.Module, x: Tensor, run: Callable[[Tensor], object], score: Callable[[object], Tensor]
) -> tuple[object, Tensor, list[_Flow]]:
    "The output, the score, and what every module gave on the way."
    flows: list[_Flow] = []

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, input: Any, output: Any) -> None:
            tensor, _ = first_tensor(output)
            if tensor is None:
                return
            given, _ = first_tensor(input)
            node, width = (None, 0) if given is None else (given.grad_fn, given.shape[-1] if given.ndim else 0)
            mixes = any(p.ndim > 1 for p in module.parameters(recurse=False))
            flows.append(_Flow(name, tensor, tensor._version, tensor.grad_fn, node, width, mixes))

        return hook

    handles = [m.register_forward_hook(listen(name)) for name, m in model.named_modules() if name]
    try:
        with torch.enable_grad():
            if x.is_floating_point():
                # The clone is for networks whose first operation is in place, which a leaf does not allow.
                output = run(x.detach().requires_grad_().clone())
            else:
                weights = {k: p.detach().requires_grad_(p.is_floating_point()) for k, p in model.named_parameters()}
                output = functional_call(model, weights, (x,))
            total = score(output)
    finally:
        for handle in handles:
            handle.remove()
    return output, total, flows


def _read(flows: list[_Flow], x: Tensor) -> None:
    fewest = math.inf
    for f in flows:
        shape = f.tensor.shape
        f.readings = list(readings_of(shape, x.shape))
        if not f.readings:
            continue
        space = f.readings[0](f.tensor.detach()).shape[2:]
        # Maps that grow again by a lot may be none: (N, heads, tokens, channels).
        f.sure = beyond_doubt(f.readings, shape, x.shape[2:]) and math.prod(space) <= 8 * fewest
        if f.sure and min(space) > 1:
            fewest = min(fewest, math.prod(space))


def _reshaped(flows: list[_Flow], x: Tensor, reshape: Reshape) -> None:
    refused: Exception | None = None
    for f in flows:
        try:
            spatial(f.tensor.detach(), x.shape, reshape)  # raises where it does not fit
            space = reshape(f.tensor.detach()).shape[2:]
            f.readings, f.sure = [reshape] * (math.prod(space) > 1), True
        except Exception as error:
            refused = error
    if refused is not None and not any(f.readings for f in flows):
        raise ValueError(f"reshape= fits the output of no layer: {refused}") from refused


def _try_out(model: nn.Module, x: Tensor, reached: list[_Flow]) -> None:
    "Settle how the outputs lie in space where shapes leave it open and it matters: behind the last that is sure."
    last = max((i for i, f in enumerate(reached) if f.sure), default=-1)
    if last + 1 == len(reached):
        return
    answers = local_answers(model, x, {f.name: f.readings for f in reached if not f.sure})
    for f in reached:
        found = answers.get(f.name)
        if found and not f.sure:
            best = best_answer(found)
            f.to_space = f.readings[best] if found[best] > LOCAL else None


def _before_the_scores(flows: list[_Flow], output: object, x: Tensor) -> list[_Flow]:
    """In a segmentation, `flows` up to what the map of scores is computed from; elsewhere all of them.

    The map of scores has space and takes part in the score, and explains nothing: it is the score.
    """
    scores, _ = first_tensor(output)
    if scores is None or scores.ndim != x.ndim or spatial(scores, x.shape) is None:
        return flows
    left, gone = list(flows), list[_Flow]()
    # Two such maps may be added up. What a convolution among them reads is no score, whatever its number of channels.
    while (
        left
        and (to_space := left[-1].to_space) is not None
        and to_space(left[-1].tensor).shape[1] == scores.shape[1]
        and not any(left[-1].node in _upstream(f.given) for f in gone if f.mixes)
    ):
        gone.append(left.pop())
    return left or flows


def _up_to_a_whole(flows: list[_Flow]) -> list[_Flow]:
    """`flows` up to the last that none runs beside.

    Where each has a neighbour (two trunks), none that is read from the same tensor; all of them where that is so for
    each.
    """
    nodes = {f.node for f in flows}
    upstream: dict[_Flow, set] = {}

    def beside(one: _Flow, other: _Flow) -> bool:
        for f in (one, other):
            if f not in upstream:
                upstream[f] = _upstream(f.node) & nodes
        return one.node not in upstream[other] and other.node not in upstream[one]

    for near in (False, True):
        for i in range(len(flows) - 1, -1, -1):
            if not any(beside(flows[i], f) for f in flows if not near or f.given is flows[i].given is not None):
                return flows[: i + 1]
    return flows


def _upstream(node: Any) -> set:
    "The nodes of autograd's graph that `node` is computed from, and itself."
    seen, left = {node}, [node] * (node is not None)
    while left:
        for before, _ in left.pop().next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                left.append(before)
    return seen


def _gradients(total: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
    wanted = [t for t in tensors if t.requires_grad]
    if not wanted or not total.requires_grad:
        return [None] * len(tensors)
    grads = dict(zip(map(id, wanted), torch.autograd.grad(total, wanted, allow_unused=True), strict=True))
    return [grads.get(id(t)) for t in tensors]
