"""Nested outputs: tensors in tuples, lists, mappings and dataclasses, which modules return and take."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor

__all__ = ["map_tensors", "named", "plain", "replaced", "rows_per_image", "tensors"]


def map_tensors(f: Callable[..., Any], output: Any, *others: Any) -> Any:
    "`output` with `f` applied to each tensor of its parts, along with those of `others` like it."
    if isinstance(output, Tensor):
        return f(output, *others)
    kind: Any = type(output)
    if isinstance(output, Mapping):
        values = {k: map_tensors(f, v, *(o[k] for o in others)) for k, v in output.items()}
        if not isinstance(output, MutableMapping):
            return kind(values)
        new = copy.copy(output)
        for key, value in values.items():
            new[key] = value
        return new
    if isinstance(output, (tuple, list)):
        items = [map_tensors(f, *each) for each in zip(output, *others, strict=True)]
        return kind(*items) if hasattr(output, "_fields") else kind(items)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        filled: Any = copy.copy(output)
        for name in (f.name for f in dataclasses.fields(output)):
            value = map_tensors(f, getattr(output, name, None), *(getattr(o, name, None) for o in others))
            object.__setattr__(filled, name, value)  # it may be frozen
        return filled
    return output


def named(output: Any, name: str) -> Any:
    "The entry of that name in a mapping, a named tuple or a dataclass; `None` where there is none."
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def plain(t: Tensor) -> Tensor:
    "A tensor of a subclass (fastai's `TensorImage`) as a `torch.Tensor`: a subclass may refuse operations in place."
    return t if type(t) is Tensor else t.as_subclass(Tensor)


def tensors(output: Any, floating: bool = True) -> list[Tensor]:
    "The tensors in `output` in order; only those of floating-point numbers unless `floating=False`."
    found: list[Tensor] = []
    map_tensors(lambda t, *_: found.append(t), output)
    return [plain(t) for t in found if t.is_floating_point() or not floating]


def replaced(output: Any, entry: int, new: Tensor) -> Any:
    "`output` with `new` in the place of `tensors(output)[entry]`."
    left = entry

    def swap(t: Tensor) -> Tensor:
        nonlocal left
        left -= t.is_floating_point()
        return new if left == -1 and t.is_floating_point() else t

    return map_tensors(swap, output)


def rows_per_image(output: Any, n: int) -> bool:
    "Whether `output` consists of tensors with one row for each of `n` images (and `None`)."
    if isinstance(output, (tuple, list, Mapping)):
        return all(rows_per_image(o, n) for o in (output.values() if isinstance(output, Mapping) else output))
    return output is None or (isinstance(output, Tensor) and output.ndim > 0 and len(output) == n)
