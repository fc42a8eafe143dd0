"""`GradCAMError`, and sentences that quote what was given and offer what would work."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches

__all__ = ["GradCAMError", "GradCAMIndexError", "GradCAMTypeError", "NoFileError", "NoRunError", "one_of", "reason_of"]
__all__ += ["spelled", "warn"]


class GradCAMError(ValueError):
    """Raised for everything that is the user's to mend; its text says what was given and what would work.

    Any other exception that leaves this library is a fault of the library. The subclasses are what Python's own
    exceptions would be in their place, so `except TypeError` and the like work, too.

    >>> from fastai_gradcam import GradCAMError
    >>> issubclass(GradCAMError, ValueError)
    True
    """


class GradCAMTypeError(GradCAMError, TypeError):
    "An argument of a type that does not fit."


class GradCAMIndexError(GradCAMError, IndexError):
    "A frame or an image that does not exist."


class NoFileError(GradCAMError, FileNotFoundError):
    "A file that does not exist."

    __str__ = ValueError.__str__


class NoRunError(NoFileError):
    "A folder without a run."


# Whose lines a warning does not point at.
_OURS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, contextlib.__file__)


def warn(text: str) -> None:
    "Warn at the line outside of this package that led here."
    depth, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(text, stacklevel=depth)


def reason_of(error: BaseException) -> str:
    "An exception in one line, with its type."
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_of(what: str, given: object, valid: Sequence[str], most: int = 20) -> str:
    """A message for `given` not being among `valid`: the nearest one first, then all (at most `most`).

    >>> from fastai_gradcam._errors import one_of
    >>> one_of("method", "grad-cam", ["gradcam", "layercam"])
    "There is no method 'grad-cam'. Did you mean 'gradcam'? Methods: gradcam, layercam."
    """
    valid = [str(v) for v in valid]
    by_lower = {v.lower(): v for v in reversed(valid)}
    near = get_close_matches(str(given).lower(), list(by_lower), n=1, cutoff=0.5)
    hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    listed = ", ".join(valid[:most]) + (f", … ({len(valid)} in all)" if len(valid) > most else "")
    plural = what + "es" if what.endswith("s") else what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"There is no {what} {given!r}.{hint} {plural.capitalize()}: {listed}."


def spelled(name: str) -> str:
    "`name` as text: bytes of a file name that are not UTF-8 become escapes such as `\\udce9`."
    return name.encode("utf-8", "backslashreplace").decode()
