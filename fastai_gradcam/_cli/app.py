"""`fastai-gradcam app`: serves the page to try an exported learner on."""

from __future__ import annotations

from argparse import Namespace

from .._errors import GradCAMError
from ..app import build
from .explain import image_files, load

__all__ = ["run_app"]


def run_app(options: Namespace) -> int:
    if not options.learner.is_file():
        raise GradCAMError(f"There is no learner file {str(options.learner)!r}.")
    if options.examples is not None and not options.examples.is_dir():
        raise GradCAMError(f"There is no folder of examples {str(options.examples)!r}.")
    examples = image_files([options.examples], options.learner)[:EXAMPLES] if options.examples is not None else []
    page = build(load(options.learner), examples, options.run, options.flag)
    page.launch(server_name=options.host, server_port=options.port, share=options.share)
    return 0


EXAMPLES = 12
