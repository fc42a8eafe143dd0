"""Verdicts of interventions, for the page: patches, images before and after, effect and control, and since when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from .._errors import GradCAMError
from .._run.files import open_image
from .._run.reader import RunFiles
from .._run.verdicts import read_table
from ..findings import TRIED_TITLES
from .numbers import number

__all__ = ["alarms_of", "tried_of"]

# Classes whose patches stand beside one finding.
_MOST = 3


def tried_of(run: RunFiles, finding: Mapping[str, Any], embed: Callable[..., dict[str, Any]]) -> dict[str, Any] | None:
    """The evidence of a finding that an intervention confirmed; `None` for any other.

    `bars`: words with a share each, the effect and the control. `figures`: embedded pictures with their words, the
    patches first. `since`: the frame of the first alarm, if there was one. A picture that cannot be read is left out.
    """
    if finding["kind"] not in TRIED_TITLES:
        return None
    evidence = finding["evidence"]
    labels, table = evidence["labels"], read_table(run.path, "pictures")
    own = table if "" in labels else table[table["label"].isin(labels)]
    patches, changed = own[own["test"] == ""][:_MOST], own[own["test"] == evidence["test"]][:1]
    rows = [
        *((row, f"{row['label']}: {row['caption']}") for row in patches.to_dict("records")),
        *((row, f"Before (above) and after (below): {row['caption']}") for row in changed.to_dict("records")),
    ]
    figures = []
    for row, words in rows:
        try:
            figures.append({**embed(open_image(run.path / row["file"])), "words": words})
        except GradCAMError:
            continue
    alarms = read_table(run.path, "alarms")
    first = alarms.loc[alarms["label"].isin(labels), "frame"].min()
    return {
        "bars": [["effect", number(evidence["effect"])], ["control", number(evidence["control"])]],
        "interval": [number(evidence["low"]), number(evidence["high"])],
        "figures": figures,
        "since": None if pd.isna(first) else int(first),
    }


def alarms_of(run: RunFiles) -> list[dict[str, Any]]:
    "For each class that raised an alarm while it was trained, the first frame that did."
    alarms = read_table(run.path, "alarms").drop_duplicates("label")
    return [{"frame": int(row["frame"]), "label": row["label"]} for row in alarms.to_dict("records")]
