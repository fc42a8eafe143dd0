"""The network after a layer, run on other activations of the layer without what comes before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .inputs import Inputs
from .look import Spot, allow_gradients, not_reached
from .nested import map_tensors, replaced, rows_per_image, tensors
from .space import Reshape

__all__ = ["Record", "Replay", "record"]


_RUN = object()


@dataclass
class Record:
    """One pass over all images. For spot i: what its module gave, how often it ran, and what finished before it.

    `before[i]`: the outermost modules that finish before the layer does, with what they gave, `_RUN` where that is not
    one row per image. `grad`: whether gradients had to be on for the layers to run.
    """

    output: Any
    given: list[Any]
    activations: list[Tensor]
    runs: list[int]
    before: list[list[tuple[nn.Module, Any]]]
    grad: bool


def record(net: nn.Module, inputs: Inputs, spots: Sequence[Spot]) -> Record:
    "Run the network and keep what `spots` give. Raises `GradCAMError` for a layer that does not run."
    for grad in (False, True):
        # A fast path that skips its modules where no gradient is wanted hides the layer from the first try.
        allow_gradients(net, grad)
        recorder = _Recorder(spots, inputs.n)
        handles = [m.register_forward_pre_hook(recorder.enter) for m in net.modules()]
        handles += [m.register_forward_hook(recorder.leave) for m in net.modules()]
        try:
            with torch.set_grad_enabled(grad):
                output = map_tensors(Tensor.detach, inputs.run(net))
        finally:
            for handle in handles:
                handle.remove()
        given = recorder.given
        if all(g is not None for g in given):
            found = [tensors(g)[s.entry] for g, s in zip(given, spots, strict=True)]
            return Record(output, given, found, recorder.runs, recorder.before, grad)
    raise not_reached(next(s for s, g in zip(spots, given, strict=True) if g is None))


class _Recorder:
    def __init__(self, spots: Sequence[Spot], n: int) -> None:
        self.spots, self.n = spots, n
        self.given: list[Any] = [None] * len(spots)
        self.runs = [0] * len(spots)
        self.before: list[list[tuple[nn.Module, Any]]] = [[] for _ in spots]
        self._starts: list[list[int]] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self._starts.append([len(finished) for finished in self.before])

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        kept = None
        for i, (spot, start) in enumerate(zip(self.spots, self._starts.pop(), strict=True)):
            if module is spot.module:
                del self.before[i][start:]
                run, self.runs[i] = self.runs[i], self.runs[i] + 1
                if spot.run in (None, run) and len(tensors(output)) > spot.entry:
                    self.given[i] = map_tensors(_copy, output)
            elif self.runs[i] == 0 and rows_per_image(output, self.n):
                # The outermost of the finished modules stands for those inside of it.
                kept = map_tensors(_copy, output) if kept is None else kept
                self.before[i][start:] = [(module, kept)]
            elif self.runs[i] == 0:
                self.before[i].append((module, _RUN))


class _NotReached(Exception):
    "The layer's output cannot be replaced in this way."


@dataclass
class Replay:
    """Runs the network for changed images, or for changed activations of `spot` in one image.

    For activations, the outermost modules that finish before the layer give what they gave for that image, so that
    only what comes after the layer is computed. A module whose output is not one row per image runs again. If such a
    replay does not give the network's own output (state kept between modules, say), the whole network runs, with the
    layer's output replaced.
    """

    net: nn.Module
    inputs: Inputs
    spot: Spot
    seen: Record
    at: int = 0
    _shared: bool = True

    @property
    def activations(self) -> Tensor:
        return self.seen.activations[self.at]

    def of_images(self, x: Tensor, index: int) -> Any:
        "The output for images `(B, C, *space)` in the place of image `index`."
        inputs = self.inputs.repeated(index, len(x)) if len(self.inputs.values) > 1 else self.inputs
        return self._run(inputs.with_x(x))

    def __call__(self, activations: Tensor, index: int) -> Any:
        "The output for variants `(B, …)` of image `index`'s activations, which it may overwrite."
        return (self._replayed if self.partial else self._whole)(activations, index)

    @cached_property
    def partial(self) -> bool:
        "Whether a replay gives the first image its own output, in a batch of another size than the recorded one."
        if self.seen.runs[self.at] != 1 or not rows_per_image(self.seen.given[self.at], self.inputs.n):
            return False
        n = 3 if self.inputs.n == 2 else 2
        # Rows that share memory are free; an operation in place needs rows of its own.
        for self._shared in (True, False):
            try:
                again = self._replayed(self.activations[[0] * n], 0)
            except (RuntimeError, _NotReached):
                continue
            pairs = list(zip(tensors(again, False), tensors(self.seen.output, False), strict=True))
            if pairs and all(self._same(rows, own[:1]) for rows, own in pairs if own.ndim and len(rows) == n):
                return True
        return False

    def cells(self, to_space: Reshape) -> Tensor:
        "For each channel of `to_space` the places `(C, cells)` of its values in one image's flattened activations."
        one = self.activations[:1]
        # Numbered on the CPU in float64, which counts further than the layer's own type.
        numbers = torch.arange(one.numel(), dtype=torch.float64).reshape(one.shape)
        places = to_space(numbers.expand(self.inputs.n, *one.shape[1:]))[0].flatten(1)
        cells = places.long().clamp(0, one.numel() - 1).to(one.device)
        if not torch.equal(one.flatten()[cells].nan_to_num(), to_space(self.activations)[0].flatten(1).nan_to_num()):
            raise GradCAMError(
                "This reshape computes new values: a method that sets a layer's channels to zero needs one that only "
                "moves them."
            )
        return cells

    def _run(self, inputs: Inputs) -> Any:
        with torch.set_grad_enabled(self.seen.grad):
            return map_tensors(Tensor.detach, inputs.run(self.net))

    def _same(self, rows: Tensor, own: Tensor) -> bool:
        if rows.shape[1:] != own.shape[1:]:
            return False
        # As far as the numbers of the coarser type go.
        eps = max(torch.finfo(t.dtype).eps for t in (own, self.activations) if t.is_floating_point())
        off, size = (rows - own).float().abs().nan_to_num(), own.float().abs().nan_to_num()
        return off.numel() == 0 or bool(off.max() <= max(1e-4, 4 * eps) * size.max())

    def _replayed(self, activations: Tensor, index: int) -> Any:
        n, reached = len(activations), False

        def rows(t: Tensor) -> Tensor:
            one = t[index : index + 1]
            return one.expand(n, *t.shape[1:]) if self._shared and n > 1 else one.repeat(n, *[1] * (t.ndim - 1))

        def layer(*args: Any, **kwargs: Any) -> Any:
            nonlocal reached
            reached = True
            return replaced(map_tensors(rows, self.seen.given[self.at]), self.spot.entry, activations)

        stand_ins: dict[nn.Module, Callable[..., Any]] = {self.spot.module: layer}
        before = self.seen.before[self.at]
        for module in {module: None for module, _ in before}:
            stand_ins[module] = _in_turn(module.forward, [out for m, out in before if m is module], rows)
        with _forwards_replaced(stand_ins):
            output = self._run(self.inputs.map(lambda t: rows(t) if t.ndim and len(t) == self.inputs.n else t))
        if not reached:
            raise _NotReached
        return output

    def _whole(self, activations: Tensor, index: int) -> Any:
        run, last = 0, self.seen.runs[self.at] - 1

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal run
            run += 1
            wanted = last if self.spot.run is None else self.spot.run
            return replaced(output, self.spot.entry, activations) if run == wanted + 1 else None

        handle = self.spot.module.register_forward_hook(replace)
        try:
            return self._run(self.inputs.repeated(index, len(activations)))
        finally:
            handle.remove()


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


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone()
