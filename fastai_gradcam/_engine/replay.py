"""The network after a layer, run on other activations of the layer without what comes before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .._net.inputs import Inputs
from .._net.layers import Spot
from .._net.nested import map_tensors, replaced, rows_per_image, tensors
from .._net.shadow import allow_gradients, shadow
from .._search.space import Reshape
from .look import not_reached

__all__ = ["Replay"]


class Replay:
    """Runs the network for changed images, or for changed activations of `spot` in one image.

    For activations, the outermost modules that finish before the layer give what they gave for that image, so that
    only what comes after the layer is computed. If that does not give the network's own output (state kept between
    modules, say), the whole network runs, with the layer's output replaced.

    `output`: the network's output for `inputs`; `activations`: the layer's.
    """

    def __init__(self, net: nn.Module, inputs: Inputs, spot: Spot) -> None:
        self.net, self.inputs, self.spot = net, inputs, spot
        # A fast path that skips its modules where no gradient is wanted hides the layer from the first try.
        if not self._record(False) and not self._record(True):
            raise not_reached(spot)

    def _record(self, grad: bool) -> bool:
        "One pass over all images. Whether the layer gave a tensor."
        self.given, self.runs, self.before = None, 0, list[tuple[nn.Module, Any]]()
        starts: list[int] = []

        def enter(module: nn.Module, args: Any) -> None:
            starts.append(len(self.before))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            start = starts.pop()
            if module is self.spot.module:
                del self.before[start:]
                self.runs += 1
                if self.spot.run in (None, self.runs - 1) and len(tensors(output)) > self.spot.entry:
                    self.given = map_tensors(_copy, output)
            elif not self.runs and rows_per_image(output, self.inputs.n):
                # The outermost of the finished modules stands for those inside of it.
                self.before[start:] = [(module, map_tensors(_copy, output))]

        handles = [m.register_forward_pre_hook(enter) for m in self.net.modules()]
        handles += [m.register_forward_hook(leave) for m in self.net.modules()]
        self._grad = grad
        allow_gradients(self.net, grad)
        try:
            self.output = self._run(self.net, self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return self.given is not None

    @property
    def activations(self) -> Tensor:
        return tensors(self.given)[self.spot.entry]

    def of_images(self, x: Tensor, index: int) -> Any:
        "The output for images `(B, C, *space)` in the place of image `index`."
        return self._run(self.net, self.inputs.repeated(index, len(x)).with_x(x))

    def __call__(self, activations: Tensor, index: int) -> Any:
        "The output for variants `(B, …)` of image `index`'s activations, which it may overwrite."
        return (self._replayed if self.partial else self._whole)(activations, index)

    @cached_property
    def partial(self) -> bool:
        "Whether a replay gives the first image its own output, in a batch of another size than the recorded one."
        if self.runs != 1 or not rows_per_image(self.given, self.inputs.n):
            return False
        n = 3 if self.inputs.n == 2 else 2
        # Rows that share memory are free; an operation in place needs rows of its own.
        for self._shared in (True, False):
            try:
                again = self._replayed(self.activations[[0] * n], 0)
            except RuntimeError:
                continue
            pairs = list(zip(tensors(again, False), tensors(self.output, False), strict=True))
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

    def _run(self, net: nn.Module, inputs: Inputs) -> Any:
        with torch.set_grad_enabled(self._grad):
            return map_tensors(Tensor.detach, inputs.run(net))

    def _same(self, rows: Tensor, own: Tensor) -> bool:
        if rows.shape[1:] != own.shape[1:]:
            return False
        # As far as the numbers of the coarser type go.
        eps = max(torch.finfo(t.dtype).eps for t in (own, self.activations) if t.is_floating_point())
        off, size = (rows - own).float().abs().nan_to_num(), own.float().abs().nan_to_num()
        return off.numel() == 0 or bool(off.max() <= max(1e-4, 4 * eps) * size.max())

    @cached_property
    def _stage(self) -> dict[str, tuple[nn.Module, Callable]]:
        "The modules of a copy, by name, with their own `forward`: stand-ins never reach `net`."
        copy = shadow(self.net)
        allow_gradients(copy, self._grad)
        return {name: (module, module.forward) for name, module in copy.named_modules()}

    def _replayed(self, activations: Tensor, index: int) -> Any:
        n, reached = len(activations), []

        def rows(t: Tensor) -> Tensor:
            one = t[index : index + 1]
            return one.expand(n, *t.shape[1:]) if self._shared and n > 1 else one.repeat(n, *[1] * (t.ndim - 1))

        def layer(*args: Any, **kwargs: Any) -> Any:
            reached.append(True)
            return replaced(map_tensors(rows, self.given), self.spot.entry, activations)

        names = {module: name for name, module in self.net.named_modules()}
        recorded = defaultdict(list)
        for module, output in self.before:
            recorded[names[module]].append(output)
        for name, outputs in recorded.items():
            module, forward = self._stage[name]
            vars(module)["forward"] = _in_turn(outputs, forward, rows)
        vars(self._stage[self.spot.name][0])["forward"] = layer
        output = self._run(self._stage[""][0], self.inputs.repeated(index, n))
        if not reached:
            raise RuntimeError("The layer was not reached.")
        return output

    def _whole(self, activations: Tensor, index: int) -> Any:
        run, wanted = 0, self.runs - 1 if self.spot.run is None else self.spot.run

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal run
            run += 1
            return replaced(output, self.spot.entry, activations) if run == wanted + 1 else None

        with self.spot.module.register_forward_hook(replace):
            return self._run(self.net, self.inputs.repeated(index, len(activations)))


def _in_turn(outputs: list, forward: Callable, rows: Callable[[Tensor], Tensor]) -> Callable:
    "Gives what the module gave in its first calls, and runs it in those after the layer."
    left = iter(outputs)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        for output in left:
            return map_tensors(rows, output)
        return forward(*args, **kwargs)

    return stand_in


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone()
