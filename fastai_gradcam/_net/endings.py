"""The activation that a network ends in: a softmax or sigmoid that is sure has no gradient left to explain."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor, nn

from .nested import map_tensors, tensors

__all__ = ["Endings"]

_KINDS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Sigmoid)
# Attention has softmaxes, too; those at the end of a network, one for each of its outputs, run last.
_LAST = 4


class Endings:
    """Listens to the softmaxes and sigmoids of `net`, a shadow, and of copies made of it.

    `kinds`: from the place of a tensor in the output to the name of the activation that it came from. `note`: what is
    to be said of it.
    """

    def __init__(self, net: nn.Module) -> None:
        self.note = ""
        self.kinds: dict[int, str] = {}
        self._given: dict[int, Tensor] = {}
        self._seen: deque[tuple[nn.Module, Tensor, Tensor]] = deque(maxlen=_LAST)
        modules = [m for m in net.modules() if isinstance(m, _KINDS)]
        self._handles = [m.register_forward_hook(self._listen) for m in modules]
        self._handles += [net.register_forward_hook(self._match)] if modules else []

    def __enter__(self) -> Endings:
        return self

    def __exit__(self, *exc: object) -> None:
        self._given.clear()
        for handle in self._handles:
            handle.remove()

    def _listen(self, module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self._seen.append((module, args[0], output))

    def _match(self, net: nn.Module, args: Any, output: Any) -> None:
        self._given.clear()
        for place, t in enumerate(tensors(output, floating=False)):
            for module, given, made in self._seen:
                if made.data_ptr() == t.data_ptr() and made.numel() == t.numel() == given.numel():
                    self.kinds[place], self._given[place] = type(module).__name__, given
        self._seen.clear()

    def undone(self, output: Any) -> Any:
        "The output of the pass that was just made, without the activations at its end."
        places = iter(range(len(tensors(output, floating=False))))

        def before(t: Tensor) -> Tensor:
            given = self._given.get(place := next(places))
            if given is None:
                return t
            self.note = f"The network ends in {self.kinds[place]}: what is explained is the score before it."
            return given.reshape(t.shape)

        return map_tensors(before, output) if self._given else output
