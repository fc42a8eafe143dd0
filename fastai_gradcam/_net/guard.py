"""Guards for everything outside of a model that a look could disturb: random numbers, torch's modes, checkpoints."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils import checkpoint

__all__ = ["undisturbed", "without_checkpoints"]

_CUDNN_FLAGS = ("enabled", "benchmark", "deterministic")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the random number generators and torch's switches as they were, however the block ends.

    Restores the generators of python, numpy and torch (on every CUDA device in use), the grad mode, the autocast
    state and the cudnn flags. The generators belong to the process: if several threads are in such blocks at once,
    they are put back when the last block ends.
    """
    grad_mode = torch.is_grad_enabled()
    cudnn = [(name, getattr(torch.backends.cudnn, name)) for name in _CUDNN_FLAGS]
    with ExitStack() as kept:
        for kind in ("cpu", *["cuda"] * torch.cuda.is_initialized()):
            kept.enter_context(_autocast_without_cache(kind))
        _generators.enter()
        try:
            yield
        finally:
            _generators.leave()
            torch.set_grad_enabled(grad_mode)
            for name, flag in cudnn:
                if getattr(torch.backends.cudnn, name) != flag:
                    setattr(torch.backends.cudnn, name, flag)


def _autocast_without_cache(kind: str) -> AbstractContextManager[Any]:
    "Autocast on or off as before. Its cache would keep weights that were cast under `no_grad`."
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)


class _Generators:
    "The process's random number generators, saved by the first block of all threads and put back by the last."

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        self._saved: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._blocks == 0:
                cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
                self._saved = random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda
            self._blocks += 1

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                python, numpy, cpu, cuda = self._saved
                random.setstate(python)
                np.random.set_state(numpy)
                torch.set_rng_state(cpu)
                if cuda:
                    torch.cuda.set_rng_state_all(cuda)


_generators = _Generators()
_thread = threading.local()


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Run the checkpoints of `torch.utils.checkpoint` as plain calls, in this thread only.

    A reentrant checkpoint hides its modules from autograd, and any checkpoint runs its part a second time.
    """
    _replace_checkpoints()
    before = getattr(_thread, "plain", False)
    _thread.plain = True
    try:
        yield
    finally:
        _thread.plain = before


def _replace_checkpoints() -> None:
    "Once per process: torch's two checkpoint functions get stand-ins that do as before in all other threads."
    reentrant: Any = getattr(checkpoint, "CheckpointFunction", None)
    other: Any = getattr(checkpoint, "_checkpoint_without_reentrant_generator", None)
    if reentrant is None or hasattr(reentrant, "_stands_in"):
        return

    class CheckpointFunction(reentrant):
        _stands_in = True

        @staticmethod
        def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            if getattr(_thread, "plain", False):
                return function(*args)
            return reentrant.apply(function, preserve_rng_state, *args)

    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        if getattr(_thread, "plain", False):
            yield
        else:
            yield from other(*args, **kwargs)

    vars(checkpoint)["CheckpointFunction"] = CheckpointFunction
    if other is not None:
        vars(checkpoint)["_checkpoint_without_reentrant_generator"] = generator
