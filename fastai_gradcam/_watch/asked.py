"""How a user spells `target=`: labels and indices, one for all images or a row for each, and sides of a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from .._errors import GradCAMError, GradCAMTypeError, one_of, spelled

__all__ = ["as_list", "class_index", "each", "is_score", "per_image", "side"]

_SCORE = re.compile(r"(-?)\s*score(?:\s+(\d+))?")


def is_score(target: Any) -> bool:
    "Whether `target` spells a number of a regression."
    return isinstance(target, str) and bool(_SCORE.fullmatch(target.strip()))


def side(target: Any) -> tuple[int, bool]:
    "The index of the number and whether its negative is meant."
    if isinstance(target, str):
        found = _SCORE.fullmatch(target.strip())
        if not found:
            raise GradCAMError(one_of("target", target, ["score", "-score", "score 1", "-score 1"]))
        return int(found[2] or 0), found[1] == "-"
    return class_index(target, None, None), False


def per_image(wanted: Any, n: int) -> Any:
    "One class for all images, or a list with one entry for each of `n`: a class, or a list of classes."
    array = hasattr(wanted, "tolist")
    listed = as_list(wanted.tolist() if array else wanted)
    if listed is None:
        return wanted.tolist() if array else wanted
    if not listed:
        raise GradCAMError("target=[] names no class to explain.")
    rows: list[Any] = [as_list(row.tolist() if hasattr(row, "tolist") else row) for row in listed]
    if any(row is None for row in rows):
        # A list means several classes for every image; an array means one class per image, except for a single image,
        # where it means several classes.
        if not array or (n == 1 and len(listed) > 1):
            return [listed] * n
        rows = listed
    elif len({len(row) for row in rows}) > 1 or not rows[0]:
        counts = ", ".join(str(len(row)) for row in rows)
        raise GradCAMError(f"target has rows of {counts} classes: give each image as many, at least one.")
    if len(rows) != n:
        raise GradCAMError(
            f"target has a row for each of {len(rows)} images, but there {'is' if n == 1 else 'are'} {n}: give "
            "one class for all, a list of classes for each, or as many rows as images."
        )
    return rows


def each(f: Callable[[Any], Any], rows: Any) -> Any:
    return [each(f, row) for row in rows] if isinstance(rows, list) else f(rows)


def as_list(value: Any) -> list[Any] | None:
    "`value` as a list if a fastai user would call it one (list, tuple, `L`, a vocabulary), else `None`."
    # By name: fastcore's lists are known without importing fastcore.
    listed = isinstance(value, (list, tuple)) or any(c.__name__ == "CollBase" for c in type(value).__mro__)
    return list(value) if listed else None


def class_index(
    target: Any, vocab: Sequence[Any] | None, names: Sequence[str] | None, columns: int | None = None
) -> int:
    """The index of a class given by its label, or by its index where no label is meant.

    Raises `GradCAMError` for a label outside of the vocabulary (with the nearest one), an index out of range, or a
    label where there is no vocabulary.
    """
    labels, words = list(vocab or ()), list(names or ())
    if not _hashable(target):
        raise GradCAMTypeError(f"A target must be a label or an index, got {target!r}.")
    value = target.item() if hasattr(target, "item") else target
    value = spelled(value) if isinstance(value, str) else value
    for i, label in enumerate(labels):
        label = label.item() if hasattr(label, "item") else label
        if type(label) is type(value) and label == value:
            return i + (len(words) > len(labels))
    if isinstance(value, str):
        if not words:
            raise GradCAMError(f"target {target!r} is a label, but this learner has no vocabulary; give a class index.")
        if value in words:
            return words.index(value)
        if not value.isdecimal():
            raise GradCAMError(one_of("class", target, words))
        value = int(value)
        target = value
    if isinstance(value, bool) or not isinstance(value, int):
        raise GradCAMTypeError(f"A target must be a label or an index, got {target!r}.")
    if any(
        isinstance(label.item() if hasattr(label, "item") else label, int)
        for label in labels
        if not isinstance(label, bool)
    ):
        listed = ", ".join(words[:20]) + (f", … ({len(words)} in all)" if len(words) > 20 else "")
        raise GradCAMError(
            f"There is no class {target!r}. The classes of this vocabulary are numbers, so a number is a label, not an "
            f"index. Classes: {listed}."
        )
    many = len(words) if words else columns
    if many is not None and not 0 <= value < many:
        raise GradCAMError(f"target {target} is out of range: there are classes 0 to {many - 1}.")
    return value


def _hashable(target: Any) -> bool:
    try:
        hash(target)
    except TypeError:
        return False
    return True
