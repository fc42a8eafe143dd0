"""history.csv: rows of numbers and names as text, and text as a table with types."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import GradCAMError, spelled, warn
from .schema import HISTORY_COLUMNS, RunInfo

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HEADER", "read_history", "rows_of", "rows_text"]

WHOLE = ("frame", "fit", "epoch", "item")
TEXT, FLAGS = ("layer", "label", "target", "pred"), ("correct", "pointing_hit")
NUMBERS = [c for c in HISTORY_COLUMNS if c not in TEXT and c not in FLAGS]
_BOOLEANS = {"TRUE": True, "FALSE": False, "": None}  # spreadsheets write them in capitals


def _line(cells: Iterable[str]) -> str:
    # csv.writer leaves a carriage return unquoted, which then ends the row.
    quoted = ('"' + cell.replace('"', '""') + '"' if re.search('[",\r\n]', cell) else cell for cell in cells)
    return ",".join(quoted) + "\n"


def _bytes(text: str) -> bytes:
    return spelled(text).encode()


HEADER = _bytes(_line(HISTORY_COLUMNS))


def rows_text(rows: Iterable[Mapping[str, Any]]) -> bytes:
    "Rows of a frame, as they are appended to the file."
    return _bytes("".join(_line(_cell(row.get(c)) for c in HISTORY_COLUMNS) for row in rows))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(value)


def rows_of(data: bytes, frames: Iterable[int]) -> bytes:
    "The header and the whole rows of `frames` only, for a file that does not say how far it is whole."
    header, *rows = _parsed(_whole_lines(data)) or [HISTORY_COLUMNS]
    known = set(map(str, frames))
    kept = [row for row in rows if len(row) == len(header) and row[0] in known]
    return _bytes("".join(map(_line, [header, *kept])))


def read_history(file: Path, info: RunInfo) -> pd.DataFrame:
    """The rows of the frames that `info` names, with types to compute with.

    A row that does not fit (half of one, an image or layer that the run does not have) is left out with a warning.
    Raises `GradCAMError` if the file is not text or lacks a column.
    """
    import pandas as pd

    header, rows = _rows(file, info)
    missing = [c for c in HISTORY_COLUMNS if c not in header]
    if missing:
        raise GradCAMError(f"{str(file)!r} is damaged: it has no column {missing[0]!r}.")
    # A class may be called "NA" or "null": only numbers are undefined where they are empty.
    table = pd.DataFrame([row for row in rows if len(row) == len(header)], columns=header, dtype=str)
    names = _names(info)
    for column in TEXT:
        table[column] = table[column].map(lambda text: names.get(text, text))
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    whole = table["layer"].isin(info.layers) & table["item"].between(0, len(info.panel) - 1)
    for column in WHOLE:
        whole &= (table[column].abs() < 2**31) & (table[column] % 1 == 0)
    for column in FLAGS:
        whole &= table[column].str.upper().isin(list(_BOOLEANS))
    if len(rows) > whole.sum():
        warn(f"{file.name}: a damaged row is left out.")
    table = table[whole & table["frame"].isin([f.frame for f in info.frames])].reset_index(drop=True)
    for column in WHOLE:
        table[column] = table[column].astype(int)
    for column in FLAGS:
        table[column] = table[column].str.upper().map(_BOOLEANS).astype("boolean")
    return table


def _rows(file: Path, info: RunInfo) -> tuple[list[str], list[list[str]]]:
    if not file.exists():
        return HISTORY_COLUMNS, []
    data = file.read_bytes()
    if info.status == "running":  # what lies beyond is being written, or its writer was killed
        data = data[: info.history_bytes]
    whole = _whole_lines(data)
    try:
        header, *rows = _parsed(whole) or [HISTORY_COLUMNS]
    except (csv.Error, UnicodeDecodeError) as error:
        raise GradCAMError(f"{str(file)!r} is damaged: {error}") from error
    return header, rows + [[]] * (len(whole) < len(data))


def _parsed(data: bytes) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if row]


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _names(info: RunInfo) -> dict[str, str]:
    "Names of the run by how a file of an earlier version spells them: on one line."
    entries = (label for one in info.panel if (label := one.label) is not None)
    names: Sequence[str] = [str(name) for name in (*(info.vocab or ()), *entries, *info.layers)]
    return {line: name for name in reversed(names) if (line := " ".join(name.splitlines())) not in names}
