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
        self._seen: deque[tuple[nn.Module, Tensor, Tensor]] = deque(maxlen=_LAST)
        modules = [m for m in net.modules() if isinstance(m, _KINDS)]
        self._handles = [m.register_forward_hook(self._listen) for m in modules]
        self._handles += [net.register_forward_hook(self._match)] if modules else []

    def __enter__(self) -> Endings:
        return self

    def __exit__(self, *exc: object) -> None:
        self._seen.clear()
        for handle in self._handles:
            handle.remove()

    def _listen(self, module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self._seen.append((module, args[0], output))

    def _before(self, t: Tensor) -> tuple[str, Tensor] | None:
        "The activation that made a tensor of an output, and what it was given."
        for module, given, made in reversed(self._seen):
            if made.data_ptr() == t.data_ptr() and made.numel() == t.numel() == given.numel():
                return type(module).__name__, given.reshape(t.shape)
        return None

    def _match(self, net: nn.Module, args: Any, output: Any) -> None:
        found = [self._before(t) for t in tensors(output, floating=False)]
        self.kinds |= {place: one[0] for place, one in enumerate(found) if one is not None}

    def undone(self, output: Any) -> Any:
        "The output of the pass that was just made, without the activations at its end."

        def before(t: Tensor) -> Tensor:
            if (found := self._before(t)) is None:
                return t
            self.note = f"The network ends in {found[0]}: what is explained is the score before it."
            return found[1]

        return map_tensors(before, output) if self._seen else output
