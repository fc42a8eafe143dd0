"""Numbers and bytes as the page's JSON has them."""

from __future__ import annotations

import math
from base64 import b64encode
from typing import Any

import numpy as np

__all__ = ["base64", "number", "plain"]


def base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def number(value: Any) -> float | None:
    "Six digits of a number; `None` if it is not finite or not a number."
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else None


def plain(column: np.ndarray, digits: int | None) -> list | None:
    """Numbers of so many digits (`None`: whole), `None` where undefined; `None` for an empty column.

    Short enough to embed by the thousand.
    """
    finite = np.isfinite(column)
    if not finite.any():
        return None
    values = np.where(finite, column, 0)
    if digits is None:
        values = values.astype(int)
    else:
        size = np.floor(np.log10(np.abs(values), out=np.zeros_like(values), where=values != 0))
        unit = 10.0 ** (digits - 1 - size)
        values = np.round(values * unit) / unit
    values = values.astype(object)
    values[~finite] = None
    return values.tolist()
