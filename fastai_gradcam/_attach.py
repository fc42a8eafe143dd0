"""Gives `Learner` its methods when fastai is imported after this package, without importing it now."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LAST_NEEDED = "fastai.vision.learner"


class _Attach(MetaPathFinder):
    "Steps aside at once, and imports `fastai_gradcam.interpret` right after fastai's own learner module has run."

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _LAST_NEEDED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def run_then_attach(module: ModuleType) -> None:
            run(module)
            import_module("fastai_gradcam.interpret")

        loader.exec_module = run_then_attach
        return spec


def attach_when_fastai_loads() -> None:
    sys.meta_path.insert(0, _Attach())
