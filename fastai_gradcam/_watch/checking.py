"""`check=`: every so many epochs, whether the panel's maps say more than a blob in the middle; into the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from .._errors import GradCAMError
from .._faithfulness.common import Probability
from .._run.verdicts import read_table, write_table
from ..faithfulness import check
from .nested import on_device_of
from .panel import Panel
from .subject import Subject
from .tasks import CATEGORY, Task

__all__ = ["check_panel", "checkable"]

METRIC, RIVALS = "road", ("centre", "random")


def checkable(panel: Panel, task: Task) -> None:
    "Raises `GradCAMError` for a panel that a check has no answer for."
    if not isinstance(panel.x, Tensor) or panel.x.ndim != 4 or len(task.heads) != 1 or task.kind != CATEGORY:
        raise GradCAMError("check= is for a model of one image (C, H, W) at a time that predicts one class of it.")


def check_panel(
    path: Path, frame: int, subject: Subject, net: nn.Module, panel: Panel, task: Task, layer: str, method: Any
) -> dict[str, float | None]:
    """The panel's maps by ROAD beside baselines, for the frame's metrics; the table goes into `checks.csv` of the run.

    `net`: a copy of the model. Rows of frames that come again, after a resumed run, are replaced.
    """
    mean, std = subject.pixels()
    table = check(
        net,
        cast(Tensor, subject.inputs(net, on_device_of(net, panel.x))),
        methods=[method],
        layers=[layer],
        metrics=[METRIC],
        baselines=RIVALS,
        mean=mean,
        std=std,
        probability=cast(Probability, task.probabilities),
    )
    known = read_table(path, "checks")
    rows = [row for row in known.to_dict("records") if row["frame"] < frame]
    write_table(path, "checks", [*rows, *({"frame": frame, **row} for row in table.to_dict("records"))])
    found = {METRIC: table.score[0], **{f"{METRIC}_{row.baseline}": row.baseline_score for row in table.itertuples()}}
    # JSON has no NaN.
    return {name: float(value) if value == value else None for name, value in found.items()}
