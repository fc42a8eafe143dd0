"""The activation that a network itself ends in, so that it is not applied twice."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .losses import LOG, SIGMOID, SOFTMAX
from .nested import tensors

__all__ = ["Endings"]

_KINDS: dict[type[nn.Module], str] = {
    nn.Softmax: SOFTMAX,
    nn.Softmax2d: SOFTMAX,
    nn.Sigmoid: SIGMOID,
    nn.LogSoftmax: LOG,
}


class Endings:
    """Listens to the softmaxes and sigmoids of `net`, a shadow.

    `kinds`: from the place of a tensor in the output to the activation that it comes from. The engine explains what
    stands before it.
    """

    def __init__(self, net: nn.Module):
        self.kinds: dict[int, str] = {}
        self._made: list[tuple[str, Tensor]] = []
        modules = [m for m in net.modules() if type(m) in _KINDS]
        for module in modules:
            module.register_forward_hook(self._note)
        if modules:
            net.register_forward_hook(self._match)

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._made.append((_KINDS[type(module)], output))

    def _match(self, net: nn.Module, args: Any, output: Any) -> None:
        for part, scores in enumerate(tensors(output)):
            for kind, made in self._made:
                if made.data_ptr() == scores.data_ptr() and made.numel() == scores.numel():
                    self.kinds[part] = kind
        self._made.clear()
