"""`Run(path)`: a run folder with its pictures, findings and report; needs neither torch nor fastai nor the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._run.reader import RunFiles
from ._run.schema import HISTORY_COLUMNS, SCHEMA_VERSION

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL import Image

    from ._draw.notebook import ReportView
    from .findings import Thresholds

__all__ = ["HISTORY_COLUMNS", "SCHEMA_VERSION", "Run"]


class Run(RunFiles):
    """A folder of frames: what `GradCAMCallback` wrote, finished or still growing.

    `info` is `run.json`; `frames`, `panel`, `layers`, `vocab`, `settings` and `status` are parts of it. Everything is
    read when asked for: a run that grows shows its newest frame on the next look. Raises `FileNotFoundError` for a
    folder without a run, and `GradCAMError` for one that a newer version wrote or whose `run.json` is damaged.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import Watch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x, labels = torch.rand(2, 3, 32, 32), ["cat", "dog"]
    >>> with Watch(model, x, labels=labels, vocab=labels, path="runs", name="one") as watch:
    ...     watch(0, {"valid_loss": 0.7})
    >>> run = Run("runs/one")
    >>> run.status, len(run.frames), run.layers
    ('finished', 2, ['0'])
    >>> run.history[["frame", "item", "label"]].values.tolist()
    [[0, 0, 'cat'], [0, 1, 'dog'], [1, 0, 'cat'], [1, 1, 'dog']]
    >>> run.maps(1)["0"].shape  # {layer: (images, h, w)}
    (2, 30, 30)
    """

    def grid(self, frame: int = -1) -> Image.Image:
        """The labelled heatmap grid of a frame, as saved during training, RGB.

        Negative numbers count from the last complete frame. Raises `IndexError` for a frame that does not exist and
        `GradCAMError` for one that failed or cannot be read.
        """
        from ._draw.picture import picture

        return picture(super().grid(frame))

    def evolution(self, path: str | Path | None = None, **options: Any) -> Image.Image:
        """The run on one page: a row per image, a column per frame, curves below; saved if `path` is given.

        `options`: those of `fastai_gradcam.pictures.evolution` (`items`, `layer`, `columns`, `tile`, `alpha`, `cmap`,
        `scale`).
        """
        from . import pictures

        page = pictures.evolution(self, **options)
        if path is not None:
            page.save(path)
        return page

    def animation(self, path: str | Path | None = None, **options: Any) -> Path:
        """The grids one after the other, as `evolution.gif` in the run or in the file `path`; returns the file.

        `options`: those of `fastai_gradcam.pictures.animation` (`items`, `seconds`, `tile`).
        """
        from . import pictures

        return pictures.animation(self, path, **options)

    def plot(
        self,
        columns: Sequence[str] = ("prob", "mask_share", "entropy", "centroid_shift"),
        ax: Any = None,
        layer: str | None = None,
    ) -> np.ndarray:
        """Curves over the frames: the mean of each of `columns`, a thin line per image; `layer`, default the last.

        See `fastai_gradcam.pictures.plot`.
        """
        from . import pictures

        return pictures.plot(self, columns, ax, layer)

    def compare(self, other: RunFiles | str | Path, **options: Any) -> Image.Image:
        """This run and `other` on the same panel, frame against frame, or with `frame=` one of each side by side.

        `other`: a run, or the folder of one. `options`: those of `fastai_gradcam.pictures.compare` (`frame`, and those
        of `evolution`).
        """
        from . import pictures

        return pictures.compare(self, other, **options)

    def findings(self, thresholds: Thresholds | None = None, layer: str | None = None) -> pd.DataFrame:
        """The rows that deserve a second look, the most important first; see `fastai_gradcam.findings.findings`.

        `thresholds`: when something is a finding, default `Thresholds()`. `layer`: the one to judge, default the last;
        `GradCAMError` for one that the run does not have.
        """
        from .findings import findings_of

        return findings_of(self, thresholds, layer)

    def report(self, path: str | Path | None = None, thresholds: Thresholds | None = None) -> Path:
        """Write the interactive page, `report.html` in the run or the file `path`; returns the file.

        `thresholds`: when something is a finding, default `Thresholds()`.
        """
        from .report import write_report

        return write_report(self, path, thresholds)

    def widget(self, height: int = 720) -> ReportView:
        """The interactive page inside of a notebook, as a cell's last line, `height` pixels high.

        It shows the run as it is now: while it grows, run the cell again. Nothing is written. Raises `GradCAMError` for
        a height below 200.
        """
        from ._draw.notebook import ReportView

        return ReportView(self, height)

    def _repr_html_(self) -> str:
        from ._draw.notebook import in_brief

        return in_brief(self)
