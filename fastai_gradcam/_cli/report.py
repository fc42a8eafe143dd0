"""`fastai-gradcam report`: makes the page of a run again, with the user's thresholds if given. Without torch."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from .._errors import GradCAMError, one_of
from ..findings import Thresholds
from ..run import Run

__all__ = ["run_report"]


def run_report(options: Namespace) -> int:
    if options.out is not None and options.out.is_dir():
        raise GradCAMError(f"--out is the report's file; {str(options.out)!r} is a folder.")
    run = Run(options.path)
    written = run.report(options.out, thresholds(options.threshold))
    facts = {"report": str(written), "frames": len(run.frames), "status": run.status}
    print(json.dumps(facts, ensure_ascii=False) if options.json else written)
    return 0


def thresholds(given: Sequence[str]) -> Thresholds:
    "`Thresholds` with the values of `given`, each `name=value`."
    defaults = asdict(Thresholds())
    values = {}
    for words in given:
        name, _, value = words.partition("=")
        if name not in defaults:
            raise GradCAMError(one_of("threshold", name, list(defaults), most=len(defaults)))
        try:
            values[name] = type(defaults[name])(value)
        except ValueError:
            kind = "a whole number" if isinstance(defaults[name], int) else "a number"
            raise GradCAMError(
                f"--threshold {name} is {kind}, such as {name}={defaults[name]:.3g}, got {words!r}."
            ) from None
    return Thresholds(**values)
