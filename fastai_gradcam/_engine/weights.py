"""What methods without gradients stand on: scores of changed images, and of a layer's changed activations.

`Behind` runs the network behind a layer only, wherever the network's structure allows it. `Probe` asks it for scores
in batches. The methods themselves are in `methods.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from ..targets import Settled, Target, scores, settled
from .layers import Reshape
from .restart import first_tensor

__all__ = ["Behind", "Probe", "channel_weights", "map_tensors"]

# Variants of one image in a pass: enough to fill a few cores or a GPU, few enough for the memory of a small one.
_BATCH = 32
_SECONDS_BEFORE_A_BAR = 5


def channel_weights(
    net: nn.Module,
    x: Tensor,
    chosen: list[tuple[str, nn.Module]],
    target: Target,
    weigh: Callable[[Tensor, Probe], Tensor],
    space: Callable[[str, Tensor], Reshape],
) -> tuple[Any, Tensor | None, list[Tensor], list[list[Tensor]]]:
    """The output, the classes, each layer's activations `(N, C, *space)`, and its weights `(N, C, 1, …)` per class.

    `space(name, activations)`: what brings a layer's output to `(N, C, *space)`. A network in half precision or under
    autocast gives its own output, but is asked in float32: what one channel changes may lie below a score's last digit.
    """
    activations, weights = [], []
    coarse = _is_coarse(net, x)
    output = map_tensors(Tensor.detach, net(x.clone())) if coarse else None
    for name, module in chosen:
        behind = _behind(net, module, x, name, coarse)
        output = behind.output if output is None else output
        _, classes = scores(output, target, len(x), x.ndim - 2)
        asked = settled(target, output, classes, x.ndim - 2)
        each, _ = scores(behind.output, asked, len(x), x.ndim - 2)
        base = torch.stack(each, 1).float()  # (N, K)
        to_space = space(name, behind.activations)
        A = to_space(behind.activations).float()
        with _progress(len(x) * A.shape[1]) as bar:
            seen = [
                weigh(
                    A[i], Probe(behind, i, base[i], _scorer(behind.output, asked, len(x), i, x.ndim - 2), to_space, bar)
                )
                for i in range(len(x))
            ]
        per_class = torch.stack(seen, 1).unsqueeze(-1).unflatten(-1, [1] * (A.ndim - 2))  # (K, N, C, 1, …)
        activations.append(A)
        weights.append(list(per_class))
    return output, classes, activations, weights


_COARSE = (torch.float16, torch.bfloat16)


def _is_coarse(net: nn.Module, x: Tensor) -> bool:
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return autocast or x.dtype in _COARSE or any(p.dtype in _COARSE for p in net.parameters())


def _behind(net: nn.Module, module: nn.Module, x: Tensor, name: str, coarse: bool) -> Behind:
    if coarse:
        try:
            return Behind(net, module, x.float() if x.dtype in _COARSE else x, name, in_float32=True)
        except RuntimeError:
            # A network that brings its activations to a type of its own.
            pass
    return Behind(net, module, x, name)


def _scorer(clean: Any, target: Target, n: int, i: int, dims: int) -> Callable[[Any], Tensor]:
    "From the output for B variants of image `i` to their scores `(K, B)`."
    if isinstance(target, Settled):
        one = target.image(i)
        return lambda output: one.table(output)[:, one.classes.reshape(-1)].T

    def score(output: Any) -> Tensor:
        # A callable may hold something for each image of the batch: each variant is put in its image's place.
        count = next((len(t) for t in _tensors(output) if t.ndim), 0)
        if not count:
            raise TypeError(f"A method without gradients needs tensors in the output, got {type(output).__name__}.")
        placed = (map_tensors(lambda c, v, b=b: _placed(c, v[b], i, n), clean, output) for b in range(count))
        return torch.stack([scores(p, target, n, dims)[0][0][i] for p in placed])[None]

    return score


def _placed(clean: Tensor, one: Tensor, i: int, n: int) -> Tensor:
    if clean.ndim == 0 or len(clean) != n:
        return clean
    return torch.cat([clean[:i], one[None].to(clean.dtype), clean[i + 1 :]])


class Probe:
    """What the K scores of one image become when it, or its activations at the layer, are changed.

    `x`: the image `(C, *space)`. `base`: its scores `(K,)` as it is.
    """

    def __init__(
        self,
        behind: Behind,
        index: int,
        base: Tensor,
        score: Callable[[Any], Tensor],
        to_space: Reshape,
        bar: Callable[[int], None],
    ) -> None:
        self.x, self.base = behind.x[index], base
        self._behind, self._index, self._score, self._to_space, self._bar = behind, index, score, to_space, bar

    def inputs(self, make: Callable[[Tensor], Tensor], channels: Tensor) -> Tensor:
        "Scores `(K, len(channels))` of the images `make(some of the channels)`, `(B, C, *space)`."
        return self._batched(lambda part: self._behind.run(make(part)), channels)

    def without(self, channels: Tensor) -> Tensor:
        "Scores `(K, len(channels))` with each of `channels` of the layer set to zero, one at a time."
        if not len(channels):
            return self.base.new_zeros(len(self.base), 0)
        kept = self._behind.activations[self._index]
        cells = self._behind.cells(self._to_space)

        def ablated(part: Tensor) -> Any:
            flat = kept.flatten().repeat(len(part), 1)
            return self._behind(flat.scatter_(1, cells[part], 0).unflatten(1, kept.shape), self._index)

        return self._batched(ablated, channels)

    def _batched(self, run: Callable[[Tensor], Any], channels: Tensor) -> Tensor:
        found = []
        for part in channels.split(_BATCH):
            found.append(self._score(run(part)).float())
            self._bar(len(part))
        return torch.cat(found, 1)


_RUN = object()


class Behind:
    """The network behind a layer: runs it on other activations of the layer, without what comes before.

    One pass over `x` records what the outermost modules that finish before `module` give. A call replays that for one
    image, as many times as there are variants of its activations, so that only what comes after the layer is computed.
    A module whose output is not one row per image runs again. Where a replay does not give the network's own output
    (state kept between modules, say), the whole network runs, with the layer's output replaced.

    `in_float32`: with copies of weights that are coarser, and without autocast. `output`: the network's output for `x`;
    `activations`: the layer's; `partial`: whether replays work.
    """

    def __init__(self, net: nn.Module, module: nn.Module, x: Tensor, name: str = "", in_float32: bool = False) -> None:
        self.net, self.module, self.x = net, module, x
        self._finer: dict[str, Tensor] | None = None
        if in_float32:
            values = chain(net.named_parameters(), net.named_buffers())
            self._finer = {name: v.detach().float() for name, v in values if v.dtype in _COARSE}
        self._cells: Tensor | None = None
        # A network whose fast path skips its modules hides the layer where no gradient is wanted.
        for self._grad in (False, True):
            activations = self._record()
            if activations is None:
                continue
            self.activations = activations
            # Rows that share memory are free; an operation in place needs rows of its own.
            for self._shared in (True, False):
                self.partial = self._agrees()
                if self.partial:
                    return
            try:
                self._whole(self.activations[:1].clone(), 0)
                return
            except _NotReached:
                continue
        raise ValueError(
            f"Layer {name!r} ({type(module).__name__}) gave no tensor in the forward pass: it was not run, or its "
            "output holds no floating-point tensor."
        )

    def __call__(self, activations: Tensor, index: int) -> Any:
        "The network's output for variants `(B, …)` of image `index`'s activations, which it may overwrite."
        return (self._replay if self.partial else self._whole)(activations, index)

    def run(self, x: Tensor) -> Any:
        with torch.set_grad_enabled(self._grad):
            if self._finer is None:
                return map_tensors(Tensor.detach, self.net(x))
            with torch.autocast(x.device.type, enabled=False):
                return map_tensors(Tensor.detach, functional_call(self.net, self._finer, (x,)))

    def cells(self, to_space: Reshape) -> Tensor:
        "For each channel of `to_space` the places `(C, cells)` of its values in one image's flattened activations."
        if self._cells is None:
            one = self.activations[:1]
            # Numbered on the CPU in float64, which counts further than the layer's own type.
            numbers = torch.arange(one.numel(), dtype=torch.float64).reshape(one.shape)
            places = to_space(numbers.expand(len(self.x), *one.shape[1:]))[0].flatten(1)
            cells = places.long().clamp(0, one.numel() - 1).to(one.device)
            if not torch.equal(
                one.flatten()[cells].nan_to_num(), to_space(self.activations)[0].flatten(1).nan_to_num()
            ):
                raise ValueError(
                    "This reshape computes new values: a method that sets a layer's channels to zero needs one that only "
                    "moves them."
                )
            self._cells = cells
        return self._cells

    def _record(self) -> Tensor | None:
        "The layer's activations, `None` where it gave none."
        finished: list[tuple[nn.Module, Any]] = []
        starts: list[int] = []
        activations: Tensor | None = None
        self._runs = 0

        def enter(module: nn.Module, args: Any) -> None:
            starts.append(len(finished))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal activations
            start = starts.pop()
            if module is self.module:
                del finished[start:]
                self._runs += 1
                # One that runs several times keeps its last output.
                tensor, _ = first_tensor(output)
                activations = None if tensor is None else tensor.detach().clone()
                self._given = map_tensors(_copy, output)
            elif self._runs == 0 and _row_per_image(output, len(self.x)):
                # The outermost of the finished modules stands for those inside of it.
                finished[start:] = [(module, map_tensors(_copy, output))]
            elif self._runs == 0:
                finished.append((module, _RUN))

        handles: list[RemovableHandle] = []
        for module in self.net.modules():
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            # A network may begin with an operation in place.
            self.output = self.run(self.x.clone())
        finally:
            for handle in handles:
                handle.remove()
        self._recorded = finished
        return activations

    def _agrees(self) -> bool:
        "Whether a replay gives the first image its own output, in a batch of another size than the recorded one."
        n = 3 if len(self.x) == 2 else 2
        try:
            again = self._replay(self.activations[:1].repeat(n, *[1] * (self.activations.ndim - 1)), 0)
        except (RuntimeError, _NotReached):
            return False
        pairs = list(zip(_tensors(again), _tensors(self.output), strict=True))
        return bool(pairs) and all(self._same(rows, own[:1]) for rows, own in pairs if own.ndim and len(rows) == n)

    def _same(self, rows: Tensor, own: Tensor) -> bool:
        if rows.shape[1:] != own.shape[1:]:
            return False
        # As far as the numbers of the coarser type go.
        eps = max(torch.finfo(t.dtype).eps for t in (own, self.activations) if t.is_floating_point())
        off, size = (rows - own).float().abs().nan_to_num(), own.float().abs().nan_to_num()
        return off.numel() == 0 or bool(off.max() <= max(1e-4, 4 * eps) * size.max())

    def _replay(self, activations: Tensor, index: int) -> Any:
        if self._runs != 1 or not _row_per_image(self._given, len(self.x)):
            raise _NotReached
        n, reached = len(activations), False

        def rows(t: Tensor) -> Tensor:
            one = t[index : index + 1]
            return one.expand(n, *t.shape[1:]) if self._shared and n > 1 else one.repeat(n, *[1] * (t.ndim - 1))

        def layer(*args: Any, **kwargs: Any) -> Any:
            nonlocal reached
            reached = True
            return first_tensor(map_tensors(rows, self._given))[1](activations)

        stand_ins: dict[nn.Module, Callable[..., Any]] = {self.module: layer}
        for module in {module: None for module, _ in self._recorded}:
            stand_ins[module] = _in_turn(module.forward, [out for m, out in self._recorded if m is module], rows)
        with _forwards_replaced(stand_ins):
            output = self.run(rows(self.x))
        if not reached:
            raise _NotReached
        return output

    def _whole(self, activations: Tensor, index: int) -> Any:
        runs = 0

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal runs
            runs += 1
            return first_tensor(output)[1](activations) if runs == self._runs else None

        handle = self.module.register_forward_hook(replace)
        try:
            output = self.run(self.x[index : index + 1].repeat(len(activations), *[1] * (self.x.ndim - 1)))
        finally:
            handle.remove()
        if runs != self._runs:
            raise _NotReached
        return output


class _NotReached(Exception):
    "The layer's output cannot be replaced in this way."


def _in_turn(forward: Callable, recorded: list, rows: Callable[[Tensor], Tensor]) -> Callable:
    "Gives what the module gave in its first calls, and runs it in those after the layer."
    left = iter(recorded)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        out = next(left, _RUN)
        return forward(*args, **kwargs) if out is _RUN else map_tensors(rows, out)

    return stand_in


@contextmanager
def _forwards_replaced(stand_ins: dict[nn.Module, Callable]) -> Iterator[None]:
    # A module may carry a `forward` of its own already, put there by another library.
    before = [(module, vars(module).get("forward")) for module in stand_ins]
    try:
        for module, forward in stand_ins.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


def map_tensors(f: Callable[..., Tensor], output: Any, *others: Any) -> Any:
    "`output` with `f` applied to each tensor in its tuples, lists and mappings, along with those of `others` like it."
    if isinstance(output, Tensor):
        return f(output, *others)
    kind: Any = type(output)
    if isinstance(output, Mapping):
        return kind({k: map_tensors(f, v, *(o[k] for o in others)) for k, v in output.items()})
    if isinstance(output, (tuple, list)):
        values = [map_tensors(f, *each) for each in zip(output, *others, strict=True)]
        return kind(*values) if hasattr(output, "_fields") else kind(values)
    return output


def _tensors(output: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    map_tensors(note, output)
    return iter(found)


def _row_per_image(output: Any, n: int) -> bool:
    "Whether `output` consists of tensors with one row per image, and nothing that a copy could not stand for."
    if isinstance(output, (tuple, list, Mapping)):
        return all(_row_per_image(o, n) for o in (output.values() if isinstance(output, Mapping) else output))
    return output is None or (isinstance(output, Tensor) and output.ndim > 0 and len(output) == n)


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone()


@contextmanager
def _progress(passes: int) -> Iterator[Callable[[int], None]]:
    "A progress bar, once it is clear that it takes long; yields what is told how many passes were made."
    from fastprogress.fastprogress import progress_bar

    start, done, bar = time.monotonic(), 0, None

    def advance(count: int) -> None:
        nonlocal done, bar
        done += count
        if bar is None and (time.monotonic() - start) / done * passes > _SECONDS_BEFORE_A_BAR:
            bar = progress_bar(range(passes), leave=False)
            bar.update(0)
        if bar is not None:
            bar.update(min(done, passes))

    yield advance
    if bar is not None and done < passes:
        bar.update(passes)
