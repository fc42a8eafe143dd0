"""The activation that a network ends in: a softmax or sigmoid that is sure has no gradient left to explain."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor, nn

from .._net.nested import map_tensors

__all__ = ["Endings"]

_KINDS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Sigmoid)
# Attention has softmaxes, too; those at the end of a network, one for each of its outputs, run last.
_LAST = 4


class Endings:
    "Context manager that listens to the softmaxes and sigmoids of `net`, a shadow, and of copies made of it."

    def __init__(self, net: nn.Module) -> None:
        self.note = ""
        self._net = net
        self._seen: deque[tuple[nn.Module, Tensor, Tensor]] = deque(maxlen=_LAST)

    def __enter__(self) -> Endings:
        modules = [m for m in self._net.modules() if isinstance(m, _KINDS)]
        self._handles = [m.register_forward_hook(self._listen) for m in modules]
        return self

    def __exit__(self, *exc: object) -> None:
        self._seen.clear()
        for handle in self._handles:
            handle.remove()

    def _listen(self, module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self._seen.append((module, args[0], output))

    def undone(self, output: Any) -> Any:
        "The output of the pass that was just made, without the activations at its end."

        def before(t: Tensor) -> Tensor:
            for module, given, made in reversed(self._seen):
                if made.data_ptr() == t.data_ptr() and made.numel() == t.numel() == given.numel():
                    kind = type(module).__name__
                    self.note = f"The network ends in {kind}: what is explained is the score before it."
                    return given.reshape(t.shape)
            return t

        return map_tensors(before, output) if self._seen else output
