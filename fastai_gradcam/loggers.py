"""Frames in TensorBoard, Weights & Biases and MLflow: as loggers, or automatically beside fastai's callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._errors import GradCAMError
from ._run.verdicts import read_table
from .render import overlay
from .run import Run

if TYPE_CHECKING:
    import pandas as pd
    from fastai.learner import Learner
    from PIL import Image

__all__ = ["MLflowLogger", "TensorBoardLogger", "WandbLogger", "loggers_of", "mean_numbers"]

Logger = Callable[[Run, dict], None]

NUMBERS = ("prob", "loss", "evidence", "entropy", "concentration", "border_share", "centroid_shift", "similarity_prev")

# The columns of W&B's table; `run`, `image` and `map` come before and after those of the history.
COLUMNS = ("frame", "fit", "epoch", "item", "layer", "label", "pred", "pred_prob", "target", "prob", "loss")

# For each W&B run, by its id: the step of its latest frame.
_last_step: dict[str, int] = {}


def mean_numbers(run: Run, frame: dict[str, Any]) -> dict[str, float]:
    """The panel's means of a frame's numbers, those that are defined, and with masks the share on the object.

    With `judge="every"` also `alarms`: how many classes two judgements in succession named, once there are any.
    """
    rows = _rows(run, frame)
    means = {name: rows[name].mean() for name in (*NUMBERS, "mask_share")}
    alarms = read_table(run.path, "alarms")
    if len(alarms):
        means["alarms"] = alarms.loc[alarms["frame"] == frame["frame"], "label"].nunique()
    return {name: float(mean) for name, mean in means.items() if np.isfinite(mean)}


def _rows(run: Run, frame: dict[str, Any]) -> pd.DataFrame:
    history = run.history
    return history[history["frame"] == frame["frame"]]


def _pictures(run: Run, frame: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Image.Image, Image.Image]]:
    "For each row of a frame's history: the row, its image, and the image with its map."
    rows, maps = _rows(run, frame), run.maps(frame["frame"])
    ranks = rows.groupby(["item", "layer"]).cumcount()
    known = rows.astype(object).where(rows.notna(), None)
    for rank, row in zip(ranks, known.to_dict("records"), strict=True):
        of_layer, image = maps[row["layer"]], run.image(row["item"])
        map = of_layer[row["item"], rank] if of_layer.ndim == 4 else of_layer[row["item"]]
        yield row, image, overlay(image, map)


class TensorBoardLogger:
    """A logger that writes each frame's grid and mean numbers as TensorBoard events, under the tag `gradcam/…`.

    `writer`: a `SummaryWriter`, or a folder for a new one (needs the package tensorboard). `step`: a function that
    gives the step to log under; default the frame's number. Raises `ModuleNotFoundError` for a folder without that
    package.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import Watch
    >>> from fastai_gradcam.loggers import TensorBoardLogger
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x, labels = torch.rand(2, 3, 32, 32), ["cat", "dog"]
    >>> logger = TensorBoardLogger("logs")
    >>> with Watch(model, x, labels=labels, vocab=labels, path="runs", loggers=logger) as watch:
    ...     watch(0, {"valid_loss": 0.7})
    >>> from pathlib import Path
    >>> len(list(Path("logs").glob("events*")))
    1
    """

    def __init__(self, writer: Any, step: Callable[[], int] | None = None) -> None:
        if isinstance(writer, (str, Path)):
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(log_dir=str(writer))
        self.writer, self.step = writer, step

    def __call__(self, run: Run, frame: dict[str, Any]) -> None:
        step = self.step() if self.step is not None else frame["frame"]
        self.writer.add_image("gradcam/grid", np.asarray(run.grid(frame["frame"])), step, dataformats="HWC")
        for name, mean in mean_numbers(run, frame).items():
            self.writer.add_scalar(f"gradcam/{name}", mean, step)
        self.writer.flush()


class WandbLogger:
    """A logger that logs each frame's grid, mean numbers and images to Weights & Biases, under `gradcam/…`.

    The images are rows of a `wandb.Table`, `gradcam/panel`: the run, the epoch, the item, what was predicted, the image
    and its map. A table of several runs joins them by `item`.

    `wandb_run`: the run to log to, default the one that `wandb.init()` began. `step`: a function that gives the step to
    log under; default W&B's own. Raises `GradCAMError` if there is no run to log to.

    >>> import wandb
    >>> from fastai_gradcam.loggers import WandbLogger
    >>> run = wandb.init(mode="disabled")
    >>> logger = WandbLogger()  # GradCAMCallback(loggers=logger), Watch(…, loggers=logger)
    >>> run.finish()
    """

    def __init__(self, wandb_run: Any = None, step: Callable[[], int] | None = None) -> None:
        self.wandb_run, self.step = wandb_run, step

    def __call__(self, run: Run, frame: dict[str, Any]) -> None:
        import wandb

        target = self.wandb_run if self.wandb_run is not None else wandb.run
        if target is None:
            raise GradCAMError("There is no W&B run to log to: call wandb.init() first.")
        logged: dict[str, Any] = {f"gradcam/{k}": v for k, v in mean_numbers(run, frame).items()}
        logged["gradcam/grid"] = wandb.Image(run.grid(frame["frame"]))
        logged["gradcam/panel"] = _table(run, frame)
        if self.step is None:
            target.log(logged)
            return
        step = self.step()
        target.log(logged, step=step)
        _last_step[target.id] = step


def _table(run: Run, frame: dict[str, Any]) -> Any:
    import wandb

    panel, table = run.panel, wandb.Table(columns=["run", *COLUMNS, "image", "map"])
    for row, image, map in _pictures(run, frame):
        about = [panel[row["item"]]["name"] if c == "item" else row[c] for c in COLUMNS]
        table.add_data(run.name, *about, wandb.Image(image), wandb.Image(map))
    return table


class MLflowLogger:
    """A logger that logs each frame's grid and mean numbers to MLflow, under `gradcam/…`.

    `run_id`: the MLflow run to log to, default the active one of `mlflow.start_run()`. `step`: a function that gives
    the step to log under; default the frame's number. Raises `GradCAMError` if there is no run to log to.

    >>> from fastai_gradcam.loggers import MLflowLogger
    >>> logger = MLflowLogger()  # GradCAMCallback(loggers=logger), Watch(…, loggers=logger)
    """

    def __init__(self, run_id: str | None = None, step: Callable[[], int] | None = None) -> None:
        self.run_id, self.step = run_id, step

    def __call__(self, run: Run, frame: dict[str, Any]) -> None:
        import mlflow

        active = mlflow.active_run()
        run_id = self.run_id or (active.info.run_id if active is not None else None)
        if run_id is None:
            raise GradCAMError("There is no MLflow run to log to: call mlflow.start_run() first, or give run_id=.")
        step = self.step() if self.step is not None else frame["frame"]
        means = {f"gradcam/{name}": mean for name, mean in mean_numbers(run, frame).items()}
        mlflow.log_metrics(means, step=step, run_id=run_id)
        grid = run.grid(frame["frame"])
        mlflow.MlflowClient().log_image(run_id, grid, key="gradcam/grid", step=step, synchronous=True)


def loggers_of(learn: Learner) -> list[Logger]:
    "Loggers for fastai's own `TensorBoardCallback` and `WandbCallback` on `learn`, under their steps."
    found: list[Logger] = []
    for cb in learn.cbs:
        # By name: importing fastai's modules would import tensorboard and wandb.
        kinds = {c.__name__ for c in type(cb).__mro__}
        if "TensorBoardCallback" in kinds and getattr(cb, "writer", None) is not None:
            found.append(TensorBoardLogger(cb.writer, lambda: learn.train_iter))
        elif "WandbCallback" in kinds:
            found.append(WandbLogger(step=partial(_wandb_step, cb)))
    return found


def _wandb_step(cb: Any) -> int:
    """The step of `cb`, fastai's `WandbCallback`; before training, when it lies behind W&B's own, that of its first
    batch.
    """
    import wandb

    wandb_run: Any = wandb.run
    # W&B drops what comes under a step that is past.
    step = max(cb._wandb_step, wandb_run.step)
    if step <= _last_step.get(wandb_run.id, -1):
        # The row of another learner's last epoch, still open, has that epoch's frame: this one would overwrite it. So
        # would the first batch that epoch's numbers: both move on by a row.
        cb._wandb_step, step = step, step + 1
    return step
