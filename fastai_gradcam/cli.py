"""The command `fastai-gradcam`: demo, train, explain, judge, atlas, report, app."""

from __future__ import annotations

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence

from ._errors import GradCAMError, reason_of
from ._version import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    `argv`: the arguments without the program's name, by default `sys.argv[1:]`. The status is 0 when the work is done,
    1 when it failed, 2 when the request does not fit. With `--debug` exceptions are raised instead.

    >>> from fastai_gradcam.cli import main
    >>> main(["report", "nowhere"])
    2
    """
    from ._cli.parser import make_parser

    options = make_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            # Deprecation warnings of torch and fastai are not the user's to fix.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            status = COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"\ninterrupted; {options.kept}" if options.kept else "\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader closed the pipe (`| head`); discard what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if options.debug:
            raise
        words, status = _answer(error)
        print(f"fastai-gradcam {options.command}: {words}", file=sys.stderr)
        return status


def _answer(error: Exception) -> tuple[str, int]:
    "The line that answers an exception, and the exit status: 2 for a user's mistake, 1 for a fault of ours."
    # An `OSError` with a file name is about a file that the user named: missing, unreadable, not to be written.
    if isinstance(error, GradCAMError) or (isinstance(error, OSError) and error.filename is not None):
        return str(error), 2
    return (
        f"{reason_of(error).rstrip('.')}. This is a fault of fastai_gradcam {__version__}, not yours. "
        "Run the command again with --debug, and report it with the traceback.",
        1,
    )


# torch is imported by the command that needs it: `--help` and `report` do without.


def _demo(options: Namespace) -> int:
    from ._cli.train import run_demo

    return run_demo(options)


def _train(options: Namespace) -> int:
    from ._cli.train import run_train

    return run_train(options)


def _explain(options: Namespace) -> int:
    from ._cli.explain import run_explain

    return run_explain(options)


def _atlas(options: Namespace) -> int:
    from ._cli.atlas import run_atlas

    return run_atlas(options)


def _judge(options: Namespace) -> int:
    from ._cli.judge import run_judge

    return run_judge(options)


def _report(options: Namespace) -> int:
    from ._cli.report import run_report

    return run_report(options)


def _app(options: Namespace) -> int:
    from ._cli.app import run_app

    return run_app(options)


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "demo": _demo,
    "train": _train,
    "explain": _explain,
    "judge": _judge,
    "atlas": _atlas,
    "report": _report,
    "app": _app,
}

if __name__ == "__main__":
    sys.exit(main())
