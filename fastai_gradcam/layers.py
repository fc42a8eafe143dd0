"""Which module is explained, and how its output maps to space (NCHW, NHWC, tokens, any number of dimensions)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .hooks import first_tensor
from .suggest import one_of

__all__ = ["Layer", "default_layer", "named_layers", "spatial", "unwrap"]

Layer = None | str | nn.Module | Sequence["str | nn.Module"]
Reshape = Callable[[Tensor], Tensor]


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


def spatial(output: Tensor, x_shape: Sequence[int], reshape: Reshape | None = None) -> Reshape | None:
    """A function that brings a layer's output, or its gradient, to `(N, C, *space)`; `None` where it has no space.

    `x_shape`: the input's `(N, C, *space)`, which tells layouts apart: `(N, C, h, w)` from `(N, h, w, C)` by which
    pair has the input's aspect ratio; in `(N, tokens, C)` the last h·w tokens are the grid with the input's aspect
    ratio, and those before it (class, distillation, registers) are dropped. A caller's `reshape` overrides.
    Raises `ValueError` where `reshape` returns another batch or no space.
    """
    n, size = x_shape[0], x_shape[2:]
    if reshape is not None:
        shaped = reshape(output)
        if not isinstance(shaped, Tensor) or shaped.ndim < 3 or len(shaped) != n:
            got = tuple(shaped.shape) if isinstance(shaped, Tensor) else type(shaped).__name__
            raise ValueError(
                f"reshape must return (N, C, *space) with N = {n}, got {got} from a layer's output {tuple(output.shape)}."
            )
        return reshape
    if output.ndim < 3 or len(output) != n:
        return None
    if output.ndim == len(x_shape):
        return _dense(output.shape, size)
    if output.ndim == 3:
        return _tokens(output.shape, size)
    return None


def _dense(shape: Sequence[int], size: Sequence[int]) -> Reshape | None:
    if math.prod(shape[2:]) <= 1:
        # Pooled: in one dimension `(N, C, 1)` would pass for C cells of one channel.
        return None
    channels_first, channels_last = _misfit(shape[2:], size), _misfit(shape[1:-1], size)
    if channels_first <= min(channels_last, _LOOSE):
        return lambda t: t
    return (lambda t: t.movedim(-1, 1)) if channels_last <= _STRICT else None


# Strides are the same in all dimensions up to rounding and padding, which weigh most on the smallest maps. Channels
# first is what convolutions give, so it is believed more easily than channels last.
_LOOSE, _STRICT = math.log(4), math.log(1.5)


def _misfit(space: Sequence[int], size: Sequence[int]) -> float:
    "Log of the ratio between the strides from input to `space`; infinite for one cell, or more cells than pixels."
    if math.prod(space) <= 1 or any(cells > s for s, cells in zip(size, space, strict=True)):
        return math.inf
    strides = [s / cells for s, cells in zip(size, space, strict=True)]
    return math.log(max(strides) / min(strides))


def _tokens(shape: Sequence[int], size: Sequence[int]) -> Reshape | None:
    if len(size) != 2:
        return None
    # Class, distillation and register tokens come first: up to five in the models there are, never sixteen. Grids of
    # whole square patches are believed before those whose stride does not divide the image.
    for fits, most in ((_whole, 5), (_rounded, 15)):
        for extra, rows in product(range(most + 1), range(1, shape[1] + 1)):
            columns, rest = divmod(shape[1] - extra, rows)
            if rest == 0 and rows * columns > 1 and fits(rows, columns, size):
                return partial(_grid_of, extra=extra, grid=(rows, columns))
    return None


def _grid_of(tokens: Tensor, extra: int, grid: tuple[int, int]) -> Tensor:
    return tokens[:, extra:].transpose(1, 2).unflatten(2, grid)


def _whole(rows: int, columns: int, size: Sequence[int]) -> bool:
    return size[0] % rows == 0 and size[0] // rows * columns == size[1]


def _rounded(rows: int, columns: int, size: Sequence[int]) -> bool:
    # Rows and columns may each lose a part of a patch.
    patch = size[0] / rows
    return patch >= 1 and abs(size[1] / patch - columns) < 1


_found: WeakKeyDictionary[nn.Module, WeakKeyDictionary[Any, dict]] = WeakKeyDictionary()


def _found_before(model: nn.Module, of: object) -> dict:
    try:
        return _found.setdefault(model, WeakKeyDictionary()).setdefault(of, {})
    except TypeError:
        # What cannot be hashed or referred to weakly is not remembered.
        return {}


def default_layer(
    model: nn.Module,
    x: Tensor,
    run: Callable[[Tensor], object],
    score: Callable[[object], Tensor],
    of: object = None,
) -> tuple[str, nn.Module]:
    """The last module of `model` with parameters whose output has space and takes part in the score.

    Found once per model and input size, by looking at what flows through on `x` and at where the score's gradient
    arrives: no list of architectures. `run(x)` runs the model, `score(output)` gives one number to differentiate;
    `of` says which score that is (two heads may end in different layers), `None` any of the classes. The scores of a
    segmentation are no layer, and neither are keys and values, which only together take part: what they are computed
    from is. Where modules hand one tensor on unchanged, the innermost is named. Raises `ValueError` if no output has space.
    """
    cache = _found_before(model, model if of is None else of)
    name = cache.get(x.shape[1:])
    modules = dict(model.named_modules())
    if name is None or name not in modules:
        try:
            name = _search(model, x, run, score)
        except _NothingArrives:
            # What depends on what does not depend on the weights' values: ask again with other ones.
            shaken = {k: p.detach() + 0.02 * torch.randn_like(p) for k, p in model.named_parameters()}
            try:
                name = _search(model, x, lambda x: functional_call(model, shaken, (x,)), score)
            except _NothingArrives:
                raise ValueError(
                    f"No gradient of the score arrives at any layer with space of this {type(model).__name__}; name "
                    "the layer with layer=."
                ) from None
        cache[x.shape[1:]] = name
    return name, modules[name]


def _search(model: nn.Module, x: Tensor, run: Callable[[Tensor], object], score: Callable[[object], Tensor]) -> str:
    flows: list[tuple[str, Tensor, int]] = []
    taken: dict[str, tuple[Tensor, int]] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, input: Any, output: Any) -> None:
            tensor, _ = first_tensor(output)
            if tensor is not None:
                flows.append((name, tensor, tensor._version))
                given, _ = first_tensor(input)
                if given is not None:
                    taken[name] = (given, given._version)

        return hook

    learnable = {name for name, m in model.named_modules() if name and any(True for _ in m.parameters())}
    handles = [m.register_forward_hook(listen(name)) for name, m in model.named_modules() if name]
    try:
        with torch.enable_grad():
            # The clone is for networks whose first operation is in place, which a leaf does not allow.
            output = run(x.detach().requires_grad_().clone())
            total = score(output)
    finally:
        for handle in handles:
            handle.remove()
    candidates = [(name, t, v, to) for name, t, v in flows if (to := spatial(t, x.shape)) is not None]
    if not candidates:
        raise ValueError(
            f"No layer of this {type(model).__name__} has an output with space for an input {tuple(x.shape)}; name one "
            "with layer=, and say how its output maps to (N, C, *space) with reshape=."
        )
    # Queries, keys and values are several times as wide as the tokens; the place to explain is the tokens.
    tokens = [t.shape[-1] for _, t, _, _ in candidates if t.ndim < x.ndim]
    candidates = [c for c in candidates if c[1].ndim == x.ndim or c[1].shape[-1] == tokens[-1]]
    grads = _gradients(total, [t for _, t, _, _ in candidates])
    reached = [
        g is not None and bool(to(g).abs().sum() > 0) for g, (_, _, _, to) in zip(grads, candidates, strict=True)
    ]
    if not any(reached):
        raise _NothingArrives
    best = [c for c, hit in zip(candidates, reached, strict=True) if hit]
    best = [c for c in best if c[0] in learnable] or best
    best = _before_the_scores(best, output, x) or best
    if best[-1][1].ndim < x.ndim:
        best = _without_last_branches(best, taken)
    _, tensor, version, _ = best[-1]
    return next(name for name, t, v, _ in best if t is tensor and v == version)


def _before_the_scores(candidates: list, output: object, x: Tensor) -> list:
    """In a segmentation, `candidates` up to what the map of scores is computed from; elsewhere all of them.

    The map of scores has space and takes part in the score, and explains nothing: it is the score.
    """
    scores, _ = first_tensor(output)
    if scores is None or scores.ndim < 4 or spatial(scores, x.shape) is None:
        return candidates
    left = list(candidates)
    # Two such maps may be added up.
    while left and left[-1][3](left[-1][1]).shape[1] == scores.shape[1]:
        left.pop()
    return left


def _without_last_branches(candidates: list, taken: dict[str, tuple[Tensor, int]]) -> list:
    """`candidates` up to the last that is not one of several parallel readings of one tensor of tokens.

    Behind the last attention layer's keys and values nothing brings the two together in space again (the class token
    alone goes on): neither is the whole, and the tokens that both are read from are.
    """
    left = list(candidates)
    while len(left) > 1:
        name, tensor, _, _ = left[-1]
        source = taken.get(name)
        branches = [
            c
            for c in left
            if source is not None
            and c[1].shape == tensor.shape == source[0].shape[:2] + tensor.shape[2:]
            and _same(taken.get(c[0]), source)
            and not _nested(c[0], name)
        ]
        if not branches:
            return left
        gone = {name, *(c[0] for c in branches)}
        left = [c for c in left if c[0] not in gone]
    return left


def _same(one: tuple[Tensor, int] | None, other: tuple[Tensor, int]) -> bool:
    return one is not None and one[0] is other[0] and one[1] == other[1]


def _nested(one: str, other: str) -> bool:
    return one == other or one.startswith(other + ".") or other.startswith(one + ".")


class _NothingArrives(Exception):
    "The score has no gradient anywhere: a head that starts at zero, say."


def _gradients(total: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
    wanted = [t for t in tensors if t.requires_grad]
    if not wanted or not total.requires_grad:
        return [None] * len(tensors)
    grads = dict(zip(map(id, wanted), torch.autograd.grad(total, wanted, allow_unused=True), strict=True))
    return [grads.get(id(t)) for t in tensors]
