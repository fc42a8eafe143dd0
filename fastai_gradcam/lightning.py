"""`GradCAMCallback` for Lightning: Grad-CAM of fixed validation images while a `Trainer` fits a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import default_collate

from ._errors import GradCAMError
from ._net.guard import undisturbed
from ._net.shadow import shadow
from ._watch.dataset import Source, private
from ._watch.settings import Logger
from ._watch.subject import Unwatchable
from ._watch.trained import Trained
from .run import Run

__all__ = ["GradCAMCallback"]


class GradCAMCallback(Callback):
    """Grad-CAM of a fixed panel of validation images before training and after every epoch, saved in a run folder.

    Weights and random numbers of the training are the same with it and without it, and after training has begun none
    of its failures ends it. With several processes the first watches, and the others do nothing.

    - `n`: how many images of the validation loader's data set, spread over the classes by `seed`; `items`: your own
      instead, as indices into that data set, or as samples such as it gives.
    - `layer`: `None` (the last with space), a dotted name, a module, or a list. `target`: `"true"` (each image's
      label), `"pred"`, a label or an index, a list of these, or a callable `output -> (n,)` scores. `method`: a name in
      `fastai_gradcam.methods.methods`, or a callable.
    - `every`: a frame every so many epochs; the last always has one.
    - `vocab`: the names of the classes (default: the data set's `classes`). `mean`, `std`: what pixels were normalised
      by, for the pictures (default: those of the data set's `Normalize`).
    - `inputs`: a callable `batch -> (x, labels)`, where a batch is not `(x, labels)` or a dict with the model's
      parameters and `labels`. `loss_func(output, y)`: for the loss of each image.
    - `masks`: where the object is, for each of `items` a boolean array of its size, or `None`.
    - `path`: the folder of runs (default: `gradcam` in the trainer's `default_root_dir`). `name`, `resume`, `show`,
      `loggers`, `on_error`: as in `fastai_gradcam.Watch`. `judge`: when images of the validation set are changed on
      purpose to learn what each class depends on: `"end"` (of each training), `"every"` (at each frame, too) or `None`.

    Raises `GradCAMError` before the first batch where a setting does not fit.

    >>> from fastai_gradcam.lightning import GradCAMCallback
    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(callbacks=[GradCAMCallback(n=9)], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        n: int = 16,
        items: Sequence[Any] | None = None,
        layer: Any = None,
        target: Any = "true",
        method: Any = "gradcam",
        every: int = 1,
        masks: Sequence[Any] | None = None,
        path: str | Path | None = None,
        name: str | None = None,
        show: bool | None = None,
        seed: int = 12345,
        resume: bool = False,
        loggers: Iterable[Logger] | None = None,
        on_error: str = "warn",
        judge: str | None = "end",
        *,
        vocab: Sequence[Any] | None = None,
        mean: Any = None,
        std: Any = None,
        inputs: Callable[[Any], tuple[Any, Any]] | None = None,
        loss_func: Callable[..., Any] | None = None,
    ) -> None:
        self._training = Trained(type(self).__name__, locals())
        # The epoch that is over, but whose metrics may not be complete yet.
        self._ended: int | None = None
        self._before: dict[str, Tensor] = {}

    @property
    def run(self) -> Run | None:
        "The `Run` that frames go to; `None` before the first training, and in all processes but the first."
        return self._training.run

    def flush(self) -> None:
        "Wait until every frame taken so far is on the disk."
        self._training.flush()

    # After the sanity check, which is no part of the training.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._ended, self._before = None, dict(trainer.callback_metrics)
            self._training.begin(pl_module, trainer.default_root_dir, lambda: _source(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = trainer.current_epoch

    # The module logs in its own `on_train_epoch_end`, too, which is called after those of callbacks. Metrics are read
    # when all processes have computed them: one process alone would wait for the others.
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over(trainer)
        self._training.close("finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training.close("interrupted")

    def _over(self, trainer: Trainer) -> None:
        if self._ended is None or not trainer.is_global_zero:
            return
        epoch, self._ended = self._ended, None
        now = dict(trainer.callback_metrics)
        # The trainer keeps the metrics of earlier epochs; one that this epoch did not log is the same object still.
        fresh = {k: v for k, v in now.items() if v is not self._before.get(k) and not k.endswith("_step")}
        self._before = now
        # A metric that is logged for steps and epochs is there twice.
        self._training.over(
            epoch, {k: v for k, v in fresh.items() if k.removesuffix("_epoch") not in fresh.keys() - {k}}
        )


def _source(trainer: Trainer, module: LightningModule) -> Source:
    loader = trainer.val_dataloaders
    if loader is None:
        # The trainer opens its loader at its first validation, which may be far: this one is for the panel only.
        with undisturbed():
            data = trainer.fit_loop.epoch_loop.val_loop._data_source
            loader = data.dataloader() if data.is_defined() else None
    while isinstance(loader, (list, tuple, dict)):
        loader = next(iter(loader.values() if isinstance(loader, dict) else loader), None)
    batches = getattr(loader, "batch_sampler", None) is not None
    collate = (getattr(loader, "collate_fn", None) if batches else None) or default_collate
    dataset = getattr(loader, "dataset", None)
    train = getattr(trainer.train_dataloader, "dataset", None)
    return Source(dataset, lambda samples: _as_validated(trainer, module, collate(samples)), train=train)


def _as_validated(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    "The batch as the module's or the data module's own hooks prepare it in validation."
    stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
    try:
        for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
            data = getattr(trainer, "datamodule", None)
            owner = data if data is not None and is_overridden(name, data) else module
            if owner is data or is_overridden(name, module):
                at = [module.device] if name == "transfer_batch_to_device" else []
                batch = getattr(_copy_of(owner, trainer), name)(batch, *at, 0)
        return batch
    finally:
        trainer.state.stage = stage


def _copy_of(owner: LightningModule | LightningDataModule, trainer: Trainer) -> Any:
    "A copy with the same trainer: the hooks may count or draw."
    try:
        own: Any = shadow(owner) if isinstance(owner, LightningModule) else copy(owner)
    except GradCAMError as error:
        raise Unwatchable(str(error)) from error
    own.trainer = None  # it holds the model and all data
    own = own if isinstance(owner, LightningModule) else private(own)
    own.trainer = trainer
    return own
