"""Tables of a run: what interventions found (`verdicts.csv`, `patches/`), and how good its maps are (`checks.csv`).

Reads without torch.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .files import image_bytes, write_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLASS_COLUMNS", "PICTURE_COLUMNS", "VERDICT_COLUMNS", "Picture", "read_table", "write_verdicts"]

VERDICT_COLUMNS = ("label", "test", "images", "effect", "control", "low", "high", "verdict")
# Why the patches of a class are suspicious, where it looks, and, if it was not judged, why.
CLASS_COLUMNS = ("label", "place", "area", "alike", "spread", "stands_out", "colour", "left_out")
PICTURE_COLUMNS = ("label", "test", "file", "caption")
ALARM_COLUMNS = ("frame", "label", "test", "effect", "control")
# In an atlas: each change of an image, and of the image in it whose class is tested.
TRIAL_COLUMNS = ("index", "label", "test", "effect", "control")
# `learn.gradcam_check`'s, for each frame that was checked.
CHECK_COLUMNS = (
    *("frame", "method", "layer", "metric", "images", "score", "low", "high", "baseline", "baseline_score"),
    *("difference", "difference_low", "difference_high", "verdict"),
)
_WORDS = {"label", "test", "verdict", "place", "left_out", "file", "caption", "method", "layer", "metric", "baseline"}
_FILES = {
    "verdicts": ("verdicts.csv", VERDICT_COLUMNS),
    "pooled": ("patches/pooled.csv", VERDICT_COLUMNS),
    "classes": ("patches/classes.csv", CLASS_COLUMNS),
    "pictures": ("patches/pictures.csv", PICTURE_COLUMNS),
    "checks": ("checks.csv", CHECK_COLUMNS),
    "alarms": ("patches/alarms.csv", ALARM_COLUMNS),
    "trials": ("patches/trials.csv", TRIAL_COLUMNS),
}


@dataclass(frozen=True)
class Picture:
    """A picture behind a verdict: patches side by side (`test` is ""), or images before (above) and after (below)."""

    label: str
    test: str
    image: Image.Image
    caption: str


def write_verdicts(
    path: Path,
    verdicts: pd.DataFrame,
    pooled: pd.DataFrame,
    classes: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture],
) -> None:
    """Write what a judgement found into the run `path`; `verdicts.csv` comes last, after its patches."""
    folder = path / "patches"
    folder.mkdir(exist_ok=True)
    listed = []
    for k, picture in enumerate(pictures):
        words = re.sub(r"[^0-9A-Za-z]+", "-", f"{picture.label} {picture.test or 'patches'}").strip("-")[:60]
        file = f"patches/{k:02d}-{words}.png"
        write_whole(path / file, image_bytes(picture.image, "PNG"))
        listed.append({"label": picture.label, "test": picture.test, "file": file, "caption": picture.caption})
    kept = {path / row["file"] for row in listed}
    for old in folder.glob("*.png"):
        if old not in kept:
            old.unlink(missing_ok=True)
    write_table(path, "classes", classes)
    write_table(path, "pictures", listed)
    write_table(path, "pooled", pooled.to_dict("records"))
    write_table(path, "verdicts", verdicts.to_dict("records"))


def write_table(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table `name` (`verdicts`, `pooled`, `classes`, `pictures`, `alarms`, `trials` or `checks`) of a run."""
    import pandas as pd

    file, columns = _FILES[name]
    text = pd.DataFrame([{c: row.get(c) for c in columns} for row in rows], columns=list(columns)).to_csv(index=False)
    write_whole(path / file, text.encode())


def read_table(path: Path, name: str = "verdicts") -> pd.DataFrame:
    """The table `name` of the run `path`; without rows if nothing was judged or the file is damaged."""
    import pandas as pd

    file, columns = _FILES[name]
    empty = pd.DataFrame(columns=list(columns))
    try:
        text = (path / file).read_bytes().decode()
        # A class may be called NA.
        found = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype=str)
    except (OSError, ValueError):
        return empty
    if tuple(found.columns) != columns:
        return empty
    for name_ in columns:
        if name_ not in _WORDS:
            found[name_] = pd.to_numeric(found[name_], errors="coerce")
    for count in {"images", "frame"} & set(columns):
        found[count] = found[count].fillna(0).astype(int)
    return found
