"""Hooks on modules for notebooks: `Hook` stores what flows out, `HookBwd` the gradient that arrives there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fastai.callback.hook import Hook as FastaiHook
from torch import Tensor, nn

from ._errors import GradCAMError
from ._net.nested import map_tensors, replaced, tensors

__all__ = ["Hook", "HookBwd"]


def _copy_output(module: nn.Module, args: Any, output: Any) -> Any:
    "A copy of the output that later in-place operations cannot reach."
    return map_tensors(lambda t: t.detach().clone(), output)


class Hook(FastaiHook):
    """Context manager whose `stored` is a detached copy of the output of module `m`.

    `stored` has the shape of the module's output, `(N, C, h, w)` for a convolution, and is `None` until the module has
    run. With `hook_func` it behaves as `fastai.callback.hook.Hook`, whose signature it shares, so that a star import
    over fastai's own breaks no code. Raises `GradCAMError` for `is_forward=False` without a `hook_func`: gradients are
    stored by `HookBwd`.

    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 4, 3)
    >>> with Hook(conv) as hook:
    ...     output = conv(torch.ones(1, 3, 5, 5))
    >>> torch.equal(hook.stored, output)
    True
    """

    def __init__(
        self,
        m: nn.Module,
        hook_func: Callable[[nn.Module, Any, Any], Any] | None = None,
        is_forward: bool = True,
        detach: bool = True,
        cpu: bool = False,
        gather: bool = False,
    ) -> None:
        if hook_func is None:
            if not is_forward:
                raise GradCAMError("Hook(m, is_forward=False) stores no gradient; use HookBwd(m) for that.")
            hook_func = _copy_output
        super().__init__(m, hook_func, is_forward=is_forward, detach=detach, cpu=cpu, gather=gather)


class HookBwd:
    """Context manager whose `stored` is the gradient of a score with respect to the output of module `m`.

    Run the model inside the block, then call `.backward()` on the score. `stored` is a detached copy with the shape of
    the module's output (of its first tensor, if it returns several), in units of score per unit of activation. It stays
    `None` while nothing has been propagated back, or if the score does not depend on the module. It works on every
    module, also before an in-place operation, in a frozen body and in a checkpoint, because it listens to the output
    tensor, not to the module. For a module that runs several times (a shared ReLU) it stores the gradient of the last
    output, which is the one `Hook` stores.

    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 4, 3)
    >>> with HookBwd(conv) as hook:
    ...     conv(torch.ones(1, 3, 5, 5)).sum().backward()
    >>> hook.stored.shape
    torch.Size([1, 4, 3, 3])
    """

    def __init__(self, m: nn.Module) -> None:
        self.stored: Tensor | None = None
        self._runs = 0
        self._handle = m.register_forward_hook(self._listen)

    def _listen(self, module: nn.Module, args: Any, output: Any) -> Any:
        # A checkpoint runs its modules again in the backward pass.
        again = torch._C._current_graph_task_id() != -1
        first = next(iter(tensors(output)), None)
        if first is None or again or not torch.is_grad_enabled():
            return None
        self._runs += 1
        # If nothing before this module wants a gradient (a frozen body), the graph starts here.
        heard = first if first.requires_grad else first.detach().requires_grad_()
        heard.register_hook(self._store_of(self._runs))
        # In-place operations get a clone: a leaf does not allow them, and a tensor of a subclass (fastai's
        # TensorImage) forgets its hook with them.
        clone = heard.clone()
        return clone if isinstance(output, Tensor) else replaced(output, 0, clone)

    def _store_of(self, run: int) -> Callable[[Tensor], None]:
        def store(grad: Tensor) -> None:
            # Gradients arrive in reverse: that of an earlier run would replace the last one's.
            if run == self._runs:
                self.stored = grad.detach().clone()

        return store

    def remove(self) -> None:
        "Stop listening to further forward passes."
        self._handle.remove()

    def __enter__(self) -> HookBwd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
