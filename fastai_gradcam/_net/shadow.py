"""A shadow of a model: a copy in evaluation mode that shares the weights' memory and nothing else.

A look at the shadow cannot change the model: not its flags, buffers, hooks, nor any list, counter or generator that a
module keeps. So nothing has to be put back, and threads that each look at a shadow of their own cannot meet.
"""

from __future__ import annotations

import copyreg
import dis
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._errors import GradCAMError, reason_of
from .observers import ATOMS, EMPTY, content, hooks_of, is_observer

__all__ = ["allow_gradients", "copied", "original", "shadow"]

T = TypeVar("T")


def shadow(model: nn.Module, own_weights: bool = False) -> nn.Module:
    """A copy of `model` in evaluation mode that shares the memory of its parameters and nothing else.

    Buffers, attributes, lists, generators, hooks and what functions hold in closures are copies. `own_weights`: the
    parameters are copies, too. Parameters have no `.grad`. Raises `GradCAMError` where something cannot be copied.
    """
    copy = _Copier(model, own_weights)
    with torch.inference_mode(False), torch.no_grad():
        new = copy(model)
    for module in new.modules():
        module.training = False
    vars(new)["_shadow_of"] = weakref.ref(original(model))
    vars(new)["_copied_with_it"] = [hook for module in new.modules() for hook in hooks_of(module)]
    return new


def original(net: nn.Module) -> nn.Module:
    "The model that `net` is a shadow of; `net` itself if it is not a shadow."
    of = vars(net).get("_shadow_of")
    return (of() if of is not None else None) or net


def copied(obj: T) -> T:
    "A copy of any object (a loss function, a transform) made as a shadow is, but in the mode it is in."
    with torch.inference_mode(False), torch.no_grad():
        return _Copier(obj)(obj)


class _Copier:
    "As `copy.deepcopy`, but parameters share memory, tensors with a history are copied, and closures are, too."

    def __init__(self, root: Any, own_weights: bool = False) -> None:
        self.own_weights = own_weights
        self.memo: dict[int, Any] = {}
        self.alive: list[Any] = []  # an object that is gone would give its id to another
        self.trail: list[tuple[Any, Any]] = []
        self.names = {m: name for name, m in root.named_modules()} if isinstance(root, nn.Module) else {}
        # A hook that was put on a shadow belongs to its caller, who listens to copies of it, too.
        own = vars(root).get("_copied_with_it") if isinstance(root, nn.Module) else None
        for hook in [hook for module in self.names for hook in hooks_of(module)]:
            if is_observer(hook, self.names) or (own is not None and not any(hook is o for o in own)):
                self.memo[id(hook)] = hook

    def __call__(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in ATOMS or isinstance(obj, type):
            return obj
        if id(obj) in self.memo:
            return self.memo[id(obj)]
        self.alive.append(obj)
        new = self._copy_of(obj, kind)
        return self.memo.setdefault(id(obj), new)

    def _copy_of(self, obj: Any, kind: type) -> Any:
        how = _BY_TYPE.get(kind)
        if how is not None:
            return how(self, obj)
        if isinstance(obj, Tensor):
            return self._tensor(obj)
        if isinstance(obj, torch.Generator):
            return torch.Generator(obj.device).set_state(obj.get_state())
        if isinstance(obj, nn.Module) and isinstance(getattr(obj, "_orig_mod", None), nn.Module):
            return self(obj._orig_mod)  # compiled: the plain module computes the same
        return self._object(obj, kind)

    def _dict(self, obj: Any) -> Any:
        new = self.memo[id(obj)] = type(obj)()
        for key, value in list(obj.items()):  # another thread's forward pass may add to it
            new[self(key)] = self(value)
        return new

    def _list(self, obj: list) -> list:
        new = self.memo[id(obj)] = []
        new.extend(map(self, obj))
        return new

    def _tuple(self, obj: tuple) -> tuple:
        new = tuple(map(self, obj))
        return self.memo.get(id(obj), new)

    def _weakref(self, obj: weakref.ref) -> weakref.ref:
        return weakref.ref(self(obj())) if isinstance(obj(), nn.Module) and obj() in self.names else obj

    def _method(self, obj: types.MethodType) -> types.MethodType:
        return types.MethodType(obj.__func__, self(obj.__self__))

    def _builtin(self, obj: types.BuiltinMethodType) -> Any:
        owner = getattr(obj, "__self__", None)
        return obj if owner is None or self(owner) is owner else getattr(self(owner), obj.__name__)

    def _function(self, obj: types.FunctionType) -> types.FunctionType:
        "The function itself, or a new one if its closure or its defaults hold a state or a module."
        self.memo[id(obj)] = obj
        closure, defaults = obj.__closure__ or (), (obj.__defaults__, obj.__kwdefaults__)
        cells, (args, kwargs) = tuple(map(self, closure)), map(self, defaults)
        held = [content(cell) for cell in closure]
        if (
            not _sets_cells(obj.__code__)
            and all(content(cell) is was for cell, was in zip(cells, held, strict=True))
            and (args, kwargs or None) == defaults
            and all(a is b for a, b in zip(args or (), obj.__defaults__ or (), strict=True))
        ):
            return obj
        new = types.FunctionType(obj.__code__, obj.__globals__, obj.__name__, args, cells)
        new.__kwdefaults__, new.__qualname__ = kwargs, obj.__qualname__
        self.memo[id(obj)] = new
        for cell in cells:
            if content(cell) is obj:
                cell.cell_contents = new
        vars(new).update(self(vars(obj)))
        return new

    def _cell(self, obj: types.CellType) -> types.CellType:
        new = self.memo[id(obj)] = types.CellType()
        if content(obj) is not EMPTY:
            new.cell_contents = self(obj.cell_contents)
        return new

    def _tensor(self, obj: Tensor) -> Tensor:
        if nn.parameter.is_lazy(obj):
            raise GradCAMError(f"{self._where()} are lazy: their sizes are known after the model has run on a batch.")
        if not isinstance(obj, nn.Parameter):
            new = obj.detach().clone()
            return new.requires_grad_() if obj.requires_grad and obj.is_leaf else new
        data = obj.detach()
        if self.own_weights or obj.is_inference():
            data = data.clone()
        if issubclass(type(obj), nn.Parameter):
            new = Tensor._make_subclass(type(obj), data, obj.requires_grad)
        else:
            new = nn.Parameter(data, obj.requires_grad)
        vars(new).update(vars(obj))
        return new

    def _object(self, obj: Any, kind: type) -> Any:
        try:
            if hasattr(kind, "__deepcopy__"):
                if isinstance(obj, nn.Module) and not isinstance(obj, torch.jit.ScriptModule):
                    # Its own way of copying finds these done.
                    for key, value in vars(obj).items():
                        self._part(obj, key, value)
                return obj.__deepcopy__(self.memo)
            try:
                reduce = copyreg.dispatch_table.get(kind)
                reduced = reduce(obj) if reduce else obj.__reduce_ex__(4)
            except Exception:
                # Objects that refuse to be pickled may be copied by their attributes.
                made: Any = kind.__new__
                if not hasattr(obj, "__dict__") or made is not object.__new__:
                    raise
                reduced = kind.__new__, (kind,), vars(obj)
            return obj if isinstance(reduced, str) else self._rebuilt(obj, *reduced)
        except (GradCAMError, RecursionError):
            raise
        except Exception as error:
            raise GradCAMError(
                f"{self._where()} holds a {kind.__name__} that cannot be copied ({reason_of(error)}). A look is taken "
                "at a copy of the model, so that nothing in the model changes: make the attribute one that "
                "copy.deepcopy can copy, or leave it out of __getstate__."
            ) from error

    def _rebuilt(
        self, obj: Any, make: Callable, args: tuple, state: Any = None, items: Any = None, pairs: Any = None
    ) -> Any:
        new = self.memo[id(obj)] = make(*map(self, args))
        if state is not None:
            if isinstance(state, dict):
                state = {key: self._part(obj, key, value) for key, value in state.items()}
            else:
                state = self(state)
            if hasattr(new, "__setstate__"):
                new.__setstate__(state)
            else:
                attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
                if attributes:
                    vars(new).update(attributes)
                for key, value in (slots or {}).items():
                    setattr(new, key, value)
        for item in items or ():
            new.append(self(item))
        for key, value in pairs or ():
            new[self(key)] = self(value)
        return new

    def _part(self, obj: Any, key: Any, value: Any) -> Any:
        self.trail.append((obj, key))
        new = self(value)
        self.trail.pop()
        return new

    def _where(self) -> str:
        for owner, key in reversed(self.trail):
            if isinstance(owner, nn.Module):
                return f"{key!r} of module {self.names.get(owner) or 'model'!r} ({type(owner).__name__})"
        return "The object"


_BY_TYPE: dict[type, Callable[[_Copier, Any], Any]] = {
    dict: _Copier._dict,
    OrderedDict: _Copier._dict,
    list: _Copier._list,
    tuple: _Copier._tuple,
    weakref.ref: _Copier._weakref,
    types.MethodType: _Copier._method,
    types.BuiltinMethodType: _Copier._builtin,
    types.FunctionType: _Copier._function,
    types.CellType: _Copier._cell,
}


@lru_cache(maxsize=1024)
def _sets_cells(code: types.CodeType) -> bool:
    "Whether a function assigns to a variable of the function around it (`nonlocal`)."
    return any(i.opname == "STORE_DEREF" and i.argval in code.co_freevars for i in dis.get_instructions(code))


def allow_gradients(net: nn.Module, allow: bool) -> None:
    "Whether the parameters of a shadow take part in autograd. A fast path that skips modules asks for that."
    for p in net.parameters():
        p.requires_grad_(allow and (p.is_floating_point() or p.is_complex()))
