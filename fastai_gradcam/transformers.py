"""`GradCAMCallback` for transformers: Grad-CAM of fixed validation images while a `Trainer` trains a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ._errors import GradCAMError
from ._watch.dataset import Source
from ._watch.settings import Logger
from ._watch.trained import Trained
from .run import Run

__all__ = ["GradCAMCallback"]

# Values that a trainer logs beside losses and metrics.
_NOT_METRICS = ("epoch", "learning_rate", "grad_norm", "total_flos", "_runtime", "_per_second", "_preparation_time")


class GradCAMCallback(TrainerCallback):
    """Grad-CAM of a fixed panel of validation images before training and after every epoch, saved in a run folder.

    Weights and random numbers of the training are the same with it and without it, and after training has begun none
    of its failures ends it. With several processes the first watches, and the others do nothing.

    - `n`: how many images of the trainer's `eval_dataset`, spread over the classes by `seed`; `items`: your own
      instead, as indices into that data set, or as samples such as it gives.
    - `layer`: `None` (the last with space), a dotted name, a module, or a list. `target`: `"true"` (each image's
      label), `"pred"`, a label or an index, a list of these, or a callable `output -> (n,)` scores. `method`: a name in
      `fastai_gradcam.methods.methods`, or a callable.
    - `every`: a frame every so many epochs; the last always has one.
    - `vocab`: the names of the classes (default: `id2label` of the model's configuration). `mean`, `std`: what pixels
      were normalised by, for the pictures (default: those of the trainer's `processing_class`, or of the data set's
      `Normalize`).
    - `inputs`: a callable `batch -> (x, labels)`, where a batch is not a dict with the model's parameters and `labels`.
      `loss_func(output, y)`: for the loss of each image.
    - `masks`: where the object is, for each of `items` a boolean array of its size, or `None`.
    - `path`: the folder of runs (default: `gradcam` in the trainer's `output_dir`). `name`, `resume`, `show`,
      `loggers`, `on_error`: as in `fastai_gradcam.Watch`. `judge`: when images of the validation set are changed on
      purpose to learn what each class depends on: `"end"` (of each training), `"every"` (at each frame, too) or `None`.

    Raises `GradCAMError` before the first batch where a setting does not fit.

    >>> from fastai_gradcam.transformers import GradCAMCallback
    >>> watch = GradCAMCallback(n=9)                    # Trainer(…, callbacks=[watch])
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
        # The trainer in whose `train` we are; the epoch that is over, but not evaluated yet; what was logged in it.
        self._trainer: Trainer | None = None
        self._ended: int | None = None
        self._metrics: dict[str, Any] = {}

    @property
    def run(self) -> Run | None:
        "The `Run` that frames go to; `None` before the first training, and in all processes but the first."
        return self._training.run

    def flush(self) -> None:
        "Wait until every frame taken so far is on the disk."
        self._training.flush()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ended, self._metrics = None, {}
        model, trainer = kwargs["model"], self._trainer
        if state.is_world_process_zero:
            self._training.begin(model, args.output_dir or ".", lambda: _source(trainer, model))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # `state.epoch` counts the part of an epoch, too, at which `max_steps` may end it.
        self._ended = max(math.ceil((state.epoch or 0) - 1e-6) - 1, 0)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if "train_loss" in logs:
            # The training's last word, after the last evaluation and before the best weights are loaded.
            self._over(last=True)
        self._metrics |= {k: v for k, v in logs.items() if not k.endswith(_NOT_METRICS)}

    # An epoch is evaluated after its end.
    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._over()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.end("finished")

    def end(self, status: str) -> None:
        "The training is over, for which transformers has no event where an exception ended it."
        if status == "finished":
            self._over()
        self._training.close(status)

    def _over(self, last: bool = False) -> None:
        epoch, self._ended = self._ended, None
        if epoch is not None:
            self._training.over(epoch, self._metrics, last)
            self._metrics = {}


def _source(trainer: Trainer | None, model: nn.Module) -> Source:
    if trainer is None:
        raise GradCAMError(
            "This callback watches transformers.Trainer.train(): give it to a Trainer with callbacks=[…]."
        )
    dataset = trainer.eval_dataset
    if isinstance(dataset, dict):  # several, also those of the datasets library
        dataset = next(iter(dataset.values()), None)
    labels = getattr(getattr(model, "config", None), "id2label", None) or {}
    named = [labels[i] for i in sorted(labels, key=int)]
    own = getattr(trainer.processing_class, "image_processor", trainer.processing_class)
    normal = own if getattr(own, "do_normalize", True) else None
    mean, std = getattr(normal, "image_mean", None), getattr(normal, "image_std", None)
    # "LABEL_0" and so on are what a configuration says that was given none.
    vocab = None if all(str(v) == f"LABEL_{i}" for i, v in enumerate(named)) else named
    return Source(dataset, lambda samples: _batch(samples, trainer, model), vocab, mean, std, trainer.train_dataset)


def _batch(samples: list[Any], trainer: Trainer, model: nn.Module) -> Any:
    "A batch by the trainer's collator, of those columns that it would be given."
    if trainer.args.remove_unused_columns and all(isinstance(s, Mapping) for s in samples):
        trainer._set_signature_columns_if_needed()
        known: set[str] = set(trainer._signature_columns or ())
        samples = [{k: v for k, v in s.items() if k in known} for s in samples]
    return trainer.data_collator(samples)


def _watch_trainings() -> None:
    "Wrap `Trainer.train`, once: callbacks are told of their trainer, and when an exception ends its training."
    train = Trainer.train
    if getattr(train, "_watched_for_gradcam", False):
        return

    @wraps(train)
    def watched(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        ours = [cb for cb in self.callback_handler.callbacks if isinstance(cb, GradCAMCallback)]
        for callback in ours:
            callback._trainer = self
        try:
            return train(self, *args, **kwargs)
        except BaseException:
            for callback in ours:
                callback.end("interrupted")
            raise
        finally:
            for callback in ours:
                callback._trainer = None

    vars(watched)["_watched_for_gradcam"] = True
    type.__setattr__(Trainer, "train", watched)


_watch_trainings()
