"""State that a copy of a model shares with it: on classes, in globals, wherever else its code reaches.

It is found by looking: all that the code reaches is noted before the first look and compared after it. Where something
has changed, it is put back, then and after every later look.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import itertools
import operator
import pickle
import random
import sys
import types
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .observers import ATOMS, hooks_of, is_observer

__all__ = ["Reached"]

# Larger arrays, longer lists and dicts are data, which reading does not change.
_MOST_BYTES, _MOST_ENTRIES = 1 << 28, 1 << 17
# Objects of other libraries are left alone: a thread of theirs may be changing them.
_LOOKED_INTO = (nn.Module, types.SimpleNamespace, argparse.Namespace, UserDict, UserList)
_PACKAGES_LOOKED_INTO = {"fastai", "fastcore", "fasttransform", "torchvision"}


class _Kind(NamedTuple):
    "How the state of some kind of object is read, compared, and written."

    read: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]
    write: Callable[[Any, Any], Any]


class Reached:
    """All that the code of `roots` can reach and change, as it is now.

    `beyond`: classes whose objects are not looked into (a learner and its data).
    """

    def __init__(self, roots: Iterable[Any], beyond: tuple[type, ...] = ()) -> None:
        self._states: list[tuple[Any, str, _Kind, Any]] = []
        self._globals: dict[int, set[str]] = {}
        self._seen: dict[int, Any] = {}  # keeps what it has: an object that is gone would give its id to another
        left = [(root, type(root).__name__) for root in roots]
        for root in [root for root, _ in left if isinstance(root, nn.Module)]:
            modules = dict.fromkeys(root.modules())
            self._seen |= {id(h): h for m in modules for h in hooks_of(m) if is_observer(h, modules)}
        while left:
            obj, where = left.pop()
            if type(obj) not in ATOMS and id(obj) not in self._seen and not (isinstance(obj, beyond) or _is_data(obj)):
                self._seen[id(obj)] = obj
                with suppress(Exception):  # one that cannot be read
                    left += self._look_into(obj, where)

    def put_back(self) -> tuple[list[Any], list[str]]:
        "Put back what has changed since: the objects that had, and those of which this was not possible, in words."
        changed = [one for one in self._states if not one[2].same(one[3], one[2].read(one[0]))]
        # A counter cannot be set back: whoever holds it is given another.
        spare = {id(obj): _counter(state) for obj, _, _, state in changed if isinstance(obj, itertools.count)}
        holders = [one for one in self._states if spare and isinstance(one[3], (dict, list)) and _among(spare, one[3])]
        lost = []
        with torch.no_grad():
            for obj, where, kind, state in [*changed, *holders]:
                try:
                    kind.write(obj, _swapped(state, spare))
                except Exception:
                    lost.append(where)
        return [obj for obj, *_ in changed], lost

    def _look_into(self, obj: Any, where: str) -> Iterable[tuple[Any, str]]:
        "Note the states of an object; what it holds."
        for kinds, kind in _KINDS:
            if isinstance(obj, kinds):
                self._note(obj, where, kind)
                break
        if isinstance(obj, types.FunctionType):
            yield from self._of_function(obj)
        elif isinstance(obj, dict):
            yield from ((value, f"{where}[{key!r:.30}]") for key, value in obj.items())
        elif isinstance(obj, (list, tuple, set, frozenset, deque)):
            yield from ((value, where) for value in obj)
        elif isinstance(obj, _CALLS):
            yield from ((getattr(obj, name, None), where) for name in _CALLED)
        elif type(obj).__module__ == "plum._function":  # a fastai transform's methods, by type
            yield from ((function, where) for function, *_ in [*obj._resolved, *obj._pending])
        if _is_open(obj):
            where = f"class {obj.__name__}" if isinstance(obj, type) else where
            yield from self._attributes(obj, where)
            yield from ((kind, "") for kind in [type(obj), *getattr(obj, "__bases__", ())])

    def _attributes(self, obj: Any, where: str) -> list[tuple[Any, str]]:
        state = self._note(obj, where, _ATTRIBUTES)
        if getattr(type(obj), "__getstate__", None) is not getattr(object, "__getstate__", None):
            # Attributes that an object leaves out of its state (a trainer) belong to somebody else.
            kept = obj.__getstate__()
            state = kept if isinstance(kept, dict) else state
        return [(value, f"{name!r} of {where}") for name, value in state.items()]

    def _of_function(self, function: types.FunctionType) -> Iterator[tuple[Any, str]]:
        where = f"function {function.__name__}"
        yield from ((part, where) for part in (function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            yield from self._attributes(cell, f"the variables around {where}")
        if _of_a_library(function.__module__ or ""):
            return
        yield from self._attributes(function, where)
        # Globals by their names in the code, and in functions inside of it; `module.name` is one of another module.
        names, codes = set[str](), [function.__code__]
        for code in codes:
            names |= set(code.co_names)
            codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        spaces = [function.__globals__]
        for space in spaces:
            known = self._globals.setdefault(id(space), set(vars(builtins)))
            new = [name for name in names - known if name in space]
            known.update(new)
            where = f"module {space.get('__name__')}"
            state = self._note(space, where, _Kind(partial(_named, new), _same_entries, _refill_some)) if new else {}
            for name, value in state.items():
                if isinstance(value, types.ModuleType) and not _of_a_library(value.__name__):
                    spaces.append(vars(value))
                yield value, f"{name!r} of {where}"

    def _note(self, obj: Any, where: str, kind: _Kind) -> Any:
        state = kind.read(obj)
        self._states.append((obj, where, kind, state))
        return state


_CALLED = ("__self__", "__func__", "__wrapped__", "func", "args", "keywords", "fget", "fset")
_CALLS: tuple[type, ...] = (types.MethodType, types.BuiltinMethodType, partial, staticmethod, classmethod, property)
_CALLS = (*_CALLS, type(lru_cache(len)))


def _is_data(obj: Any) -> bool:
    if isinstance(obj, (list, dict)):
        return len(obj) > _MOST_ENTRIES
    return isinstance(obj, (Tensor, np.ndarray)) and not isinstance(obj, nn.Parameter) and obj.nbytes > _MOST_BYTES


def _is_open(obj: Any) -> bool:
    "Whether the attributes of an object are a state: of the user's own objects and classes, and of networks."
    if isinstance(obj, type):
        network = issubclass(obj, nn.Module) and not obj.__module__.startswith("torch.")
        return network or not _of_a_library(obj.__module__)
    if isinstance(obj, (types.FunctionType, Tensor)):
        return False
    package = type(obj).__module__.partition(".")[0]
    return isinstance(obj, _LOOKED_INTO) or package in _PACKAGES_LOOKED_INTO or not _of_a_library(package)


@cache
def _of_a_library(module: str) -> bool:
    "Whether a module was installed, rather than written by the user."
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package == __name__.partition(".")[0]:
        return package != "__main__"
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


# --- kinds of state


def _same_value(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (int, float, complex, str, bytes)) and a == b)


def _same_list(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(_same_value, a, b))


def _same_entries(a: dict, b: dict) -> bool:
    return _same_list(list(a), list(b)) and _same_list(a.values(), b.values())


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def _write_tensor(t: Tensor, state: Tensor) -> None:
    if t.shape == state.shape and t.dtype == state.dtype:
        t.data.copy_(state)
    else:
        t.data = state.to(t.device)


def _named(names: list[str], space: dict[str, Any]) -> dict[str, Any]:
    return {name: space[name] for name in names if name in space}


def _refill_some(space: dict[str, Any], state: dict[str, Any]) -> None:
    space.update(state)


def _refill(target: Any, state: Any) -> None:
    target.clear()
    (target.extend if isinstance(target, deque) else target.update)(state)


def _attributes_of(obj: Any) -> dict[str, Any]:
    found = dict(getattr(obj, "__dict__", {}))
    if isinstance(obj, (type, types.FunctionType)):
        return found
    slots = [n for kind in type(obj).__mro__ for n, v in vars(kind).items() if type(v) is types.MemberDescriptorType]
    for name in ["cell_contents"] if isinstance(obj, types.CellType) else slots:
        with suppress(AttributeError, ValueError):  # it has no value yet
            found[name] = getattr(obj, name)
    return found


def _write_attributes(obj: Any, state: dict[str, Any]) -> None:
    now, how = _attributes_of(obj), type if isinstance(obj, type) else object
    for name in now.keys() - state.keys():
        how.__delattr__(obj, name)
    for name, value in state.items():
        if name not in now or now[name] is not value:
            how.__setattr__(obj, name, value)


def _counter(said: str) -> Any:
    "From `count(3)`: copying one is going out of Python."
    return itertools.count(*ast.literal_eval(said.removeprefix("count").replace(")", ",)")))


def _among(spare: dict[int, Any], state: Any) -> bool:
    return any(id(value) in spare for value in (state.values() if isinstance(state, dict) else state))


def _swapped(state: Any, spare: dict[int, Any]) -> Any:
    if isinstance(state, dict):
        return {key: spare.get(id(value), value) for key, value in state.items()}
    return [spare.get(id(value), value) for value in state] if isinstance(state, list) else state


def _cannot(obj: Any, state: Any) -> None:
    raise TypeError("Nobody can set it back.")


def _frame_of(generator: Any) -> str:
    return repr(generator.gi_frame and (generator.gi_frame.f_lasti, generator.gi_frame.f_locals))


_ATTRIBUTES = _Kind(_attributes_of, _same_entries, _write_attributes)
_KINDS: list[tuple[Any, _Kind]] = [
    (Tensor, _Kind(lambda t: t.detach().cpu().clone(), _same_tensor, _write_tensor)),
    (np.ndarray, _Kind(np.copy, _same_array, lambda a, state: np.copyto(a, state))),
    (dict, _Kind(dict, _same_entries, _refill)),
    (list, _Kind(list, _same_list, lambda items, state: items.__setitem__(slice(None), state))),
    (deque, _Kind(list, _same_list, _refill)),
    (set, _Kind(set, operator.eq, _refill)),
    (bytearray, _Kind(bytes, operator.eq, lambda data, state: data.__setitem__(slice(None), state))),
    (random.Random, _Kind(lambda r: r.getstate(), operator.eq, lambda r, state: r.setstate(state))),
    (torch.Generator, _Kind(lambda g: g.get_state(), torch.equal, lambda g, state: g.set_state(state))),
    (
        (np.random.Generator, np.random.RandomState),
        _Kind(
            lambda rng: pickle.dumps(_bits(rng).state),
            operator.eq,
            lambda rng, state: setattr(_bits(rng), "state", pickle.loads(state)),
        ),
    ),
    (itertools.count, _Kind(repr, operator.eq, lambda counter, state: None)),
    (types.GeneratorType, _Kind(_frame_of, operator.eq, _cannot)),
    (Iterator, _Kind(lambda i: pickle.dumps(i.__reduce__()), operator.eq, _cannot)),
]


def _bits(rng: Any) -> Any:
    return rng.bit_generator if isinstance(rng, np.random.Generator) else rng._bit_generator
