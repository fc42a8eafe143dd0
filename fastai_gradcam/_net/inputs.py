"""The inputs of a model: one tensor, a tuple or a dict of inputs, one of which the map belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .._errors import GradCAMError, GradCAMTypeError
from .nested import map_tensors, plain

__all__ = ["Inputs", "inputs_of"]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a batch by position or key. `at`: the one that is explained."""

    values: dict[Any, Any]
    at: Any

    @property
    def x(self) -> Tensor:
        "The explained input, `(N, C, *space)`."
        return self.values[self.at]

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def dims(self) -> int:
        "The number of dimensions of space."
        return self.x.ndim - 2

    @property
    def images(self) -> list[Any]:
        "Positions or keys of the inputs that are laid out as the explained one, which an encoder may run on in turn."
        return [k for k, v in self.values.items() if isinstance(v, Tensor) and v.ndim == self.x.ndim]

    def run(self, net: nn.Module) -> Any:
        "The output of `net`, which may work in place on what it is given."
        values = map_tensors(Tensor.clone, self.values)
        if all(isinstance(key, int) for key in values):
            return net(*values.values())
        return net(**values)

    def with_x(self, x: Tensor) -> Inputs:
        return replace(self, values={**self.values, self.at: x})

    def map(self, f: Callable[[Tensor], Tensor]) -> Inputs:
        return replace(self, values=map_tensors(f, self.values))

    def first(self, most: int) -> Inputs:
        "The first images."
        n = self.n
        return self.map(lambda t: t[:most] if t.ndim and len(t) == n else t)

    def repeated(self, index: int, times: int) -> Inputs:
        "One image, several times."
        n = self.n
        return self.map(lambda t: t[[index] * times] if t.ndim and len(t) == n else t)


def inputs_of(x: Any, input: Any = 0) -> Inputs:
    "The inputs of one call. Raises `GradCAMError` for what is not a batch, and for an `input` that does not exist."
    if isinstance(x, Tensor):
        values: dict[Any, Any] = {0: x}
    elif isinstance(x, (tuple, list)):
        values = dict(enumerate(x))
    elif isinstance(x, dict):
        values = dict(x)
    else:
        raise GradCAMTypeError(
            f"x must be a tensor (N, C, *space), or a tuple or dict of a model's inputs, got {type(x).__name__}."
        )
    if isinstance(x, dict) and input == 0 and 0 not in values:
        input = next((k for k, v in values.items() if isinstance(v, Tensor) and v.ndim > 2), None)
    if input not in values:
        raise GradCAMError(f"There is no input {input!r}: the model is given {', '.join(map(repr, values)) or 'none'}.")
    of = "" if isinstance(x, Tensor) else f"input {input!r} of "
    image = values[input]
    if not isinstance(image, Tensor):
        several = (
            " Give its parts as inputs of their own, to a function or module that calls the model with all of them."
            if isinstance(image, (tuple, list, dict))
            else ""
        )
        raise GradCAMTypeError(f"{of}x must be a tensor (N, C, *space), got {type(image).__name__}.{several}")
    if image.ndim < 3 or len(image) == 0:
        raise GradCAMError(f"{of}x must be a batch (N, C, *space) with N ≥ 1, got shape {tuple(image.shape)}.")
    # A tensor of inference mode takes no part in autograd.
    return Inputs(map_tensors(lambda t: plain(t.detach().clone() if t.is_inference() else t.detach()), values), input)
