"""The words for frames, predictions and names: one spelling on every picture and page of a run."""

from __future__ import annotations

import re
from typing import Any, Protocol

__all__ = ["brief", "frame_name", "map_note", "prediction"]


class When(Protocol):
    "A frame of either kind: on its way to the writer, or read from the run."

    @property
    def fit(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def frozen(self) -> bool: ...


def frame_name(frame: When, several_fits: bool = True) -> str:
    """A frame's name: `before training`, `epoch 4`, or `fit 2 · epoch 4` in a run of several fits.

    People count from 1, files from 0. An epoch with the body of the network frozen is called so.

    >>> from fastai_gradcam._run.schema import Frame
    >>> frame_name(Frame(4, fit=1, epoch=3)), frame_name(Frame(0, fit=0, epoch=-1))
    ('fit 2 · epoch 4', 'before training')
    >>> frame_name(Frame(1, fit=0, epoch=0, frozen=True))
    'fit 1 · frozen epoch 1'
    """
    if frame.epoch < 0:
        return "before training"
    epoch = f"{'frozen ' * frame.frozen}epoch {frame.epoch + 1}"
    return f"fit {frame.fit + 1} · {epoch}" if several_fits else epoch


def prediction(name: Any, probability: float | None) -> str:
    """A prediction with its probability, as in `Trout 98%`; empty if there is none.

    >>> prediction("Trout", 0.984), prediction("Trout", None), prediction(None, None)
    ('Trout 98%', 'Trout', '')
    """
    if name is None or name == "":
        return ""
    return str(name) if probability is None or probability != probability else f"{name} {probability:.0%}"


def map_note(target: Any, probability: float | None, pred: Any, always: bool = False) -> str:
    """Which class a map is of, unless that is the prediction: every picture says it by this rule.

    >>> map_note("dress", 0.23, "shorts"), map_note("shorts", 0.8, "shorts")
    ('map of dress (23%)', '')
    """
    if target is None or target == "" or (target == pred and not always):
        return ""
    unknown = probability is None or probability != probability
    return f"map of {target}" if unknown else f"map of {target} ({probability:.0%})"


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def brief(text: str, length: int = 60) -> str:
    """`text` on one line of at most `length` characters. The middle gives way: long names often differ at their ends.

    Control characters, with which the name of a file could clear a terminal, are shown as escapes.

    >>> brief("a" * 50 + "b" * 50, 21)
    'aaaaaaaaaa…bbbbbbbbbb'
    """
    text = _CONTROLS.sub(lambda m: f"\\x{ord(m[0]):02x}", " ".join(str(text).split()))
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end].rstrip()}…{text[-end:].lstrip()}"
