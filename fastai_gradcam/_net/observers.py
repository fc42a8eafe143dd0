"""Which hooks of a network are its own, and which belong to somebody who observes it."""

from __future__ import annotations

import re
import threading
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ATOMS", "EMPTY", "content", "hooks_of", "is_observer"]

ATOMS = {
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented)),
    *(types.ModuleType, types.CodeType, property, re.Pattern, torch.dtype, torch.device, torch.layout),
    # A lock protects what is copied; a copy has no other user.
    *(type(threading.Lock()), type(threading.RLock())),
}


EMPTY = object()


def content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return EMPTY


def hooks_of(module: nn.Module) -> list[Any]:
    return [hook for key, value in vars(module).items() if key.endswith("_hooks") and value for hook in value.values()]


def is_observer(hook: Any, modules: dict) -> bool:
    """Whether a hook belongs to a callback or a logger rather than to the network.

    A network's own hooks (weight norm, a U-Net's) reach tensors, modules of the network and little more. One that
    reaches further (a learner, its data, a connection) is not copied with all that, but called as it is.
    """
    left, seen = [(hook, 0)], set()
    while left:
        obj, depth = left.pop()
        kind = type(obj)
        if kind in ATOMS or isinstance(obj, (type, Tensor, torch.Generator, np.ndarray)) or id(obj) in seen:
            continue
        seen.add(id(obj))
        if isinstance(obj, nn.Module):
            if obj not in modules:
                return True
            continue
        own_class = hasattr(kind, "__dict__") and hasattr(obj, "__dict__") and not isinstance(obj, _CALLS)
        depth += own_class and not kind.__module__.startswith("torch.")
        if depth > 2:
            return True
        left += [(part, depth) for part in _parts(obj)]
    return False


_CALLS = (types.FunctionType, types.MethodType, types.BuiltinMethodType, partial)


def _parts(obj: Any) -> Iterator[Any]:
    if isinstance(obj, dict):
        yield from obj.values()
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from obj
    elif isinstance(obj, types.FunctionType):
        yield from map(content, obj.__closure__ or ())
    else:
        yield from getattr(obj, "__dict__", {}).values()
        yield from (getattr(obj, name, None) for name in ("__self__", "func", "args"))
