"""Watch where a fastai image model looks, epoch by epoch, without changing its training."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from ._errors import GradCAMError
    from .callback import GradCAMCallback
    from .cam import CAMs, gradcam
    from .hooks import Hook, HookBwd
    from .learner import CAM
    from .run import Run
    from .watch import Watch

__all__ = ["CAM", "CAMs", "GradCAMCallback", "GradCAMError", "Hook", "HookBwd", "Run", "Watch", "gradcam"]

# A run can be read, and its report made, on a machine without torch: each name is imported when it is asked for.
_homes = {
    "CAM": "learner",
    "CAMs": "cam",
    "GradCAMCallback": "callback",
    "GradCAMError": "_errors",
    "Hook": "hooks",
    "HookBwd": "hooks",
    "Run": "run",
    "Watch": "watch",
    "gradcam": "cam",
}


def __getattr__(name: str) -> Any:
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _homes[name]
    if home in ("callback", "learner"):
        # Whoever asks for a name that needs fastai finds `learn.gradcam` beside it.
        import_module(".learner", __name__)
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# `learn.gradcam` is there as soon as fastai and any name of this package are imported.
if "fastai.learner" in sys.modules:
    import_module(".learner", __name__)
