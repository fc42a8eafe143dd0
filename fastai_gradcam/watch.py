"""`Watch`: Grad-CAM of a fixed panel in any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import ref

import torch
from torch import nn

from ._errors import GradCAMError
from ._net.layers import unwrap
from ._watch.called import Called
from ._watch.core import Subject, Watcher, number
from ._watch.faults import Faults
from ._watch.given import number_of, panel_of, task_of
from ._watch.settings import Logger, Settings
from .run import Run

__all__ = ["Watch"]


class Watch:
    """Grad-CAM of the images `x`, now and each time it is called, saved in a run folder.

    Weights and random numbers of the training are the same with it and without it, and after it is made its failures
    never stop the training. Under distributed training the first process watches, and the others do nothing.

    - `model`: any `nn.Module`. `x`: its input, as it takes it (normalised): a tensor `(n, C, *space)`, or a tuple or a
      dict of inputs with `n` rows each.
    - `images`: `n` pictures to draw over, PIL images or arrays; default: `x` with `mean` and `std` undone.
    - `labels`: the true class of each image, by name or index. `vocab`: the names of the classes.
    - `y`: the targets as the loss takes them, default the labels' indices. `loss_func(output, y)`, for the loss of each
      image; default: none is recorded.
    - `layer`: `None` (the last with space), a dotted name, a module, or a list. `target`: `"true"` (each image's
      label), `"pred"`, a label or an index, a list of these, or a callable `output -> (n,)` scores. `method`: a name in
      `fastai_gradcam.methods.methods`, or a callable.
    - `every`: a frame every so many epochs, and of the last epoch before `close`.
    - `masks`: where the object is, for each image a boolean array of its size, or `None`.
    - `path`, `name`: the folder of runs and the run's own folder in it (default: the time). `resume`: go on with the
      run of that name.
    - `show`: show each grid in the notebook (default: in a notebook). `loggers`: callables `(run, frame)`.
      `on_error`: `"warn"` or `"raise"`.
    - `judge`: when images are changed on purpose to learn what each class depends on: `"end"` (at `close`), `"every"`
      (at each frame, too) or `None`. The images are `x` itself, which should then be 48 or more.
    - `check`: every so many epochs, a multiple of `every`, whether the maps say more than a blob in the middle: ROAD of
      `x` in `run.checks`, in the frame's metrics, and so in the report.
    - `forward`: a callable `(model, x) -> output`, for a model that is called in another way than `model(x)`,
      `model(*x)` or `model(**x)`.

    Raises `GradCAMError` for a setting that does not fit.

    >>> import torch
    >>> from torch import nn
    >>> from fastai_gradcam import Watch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> with Watch(model, torch.rand(2, 3, 32, 32), labels=["cat", "dog"], vocab=["cat", "dog"]) as watch:
    ...     for epoch in range(2):
    ...         watch(epoch, {"valid_loss": 1.0})
    >>> len(watch.run.frames), watch.run.status
    (3, 'finished')
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        images: Sequence[Any] | None = None,
        labels: Sequence[Any] | None = None,
        vocab: Sequence[Any] | None = None,
        *,
        y: Any = None,
        loss_func: Callable[..., Any] | None = None,
        layer: Any = None,
        target: Any = "true",
        method: Any = "gradcam",
        every: int = 1,
        masks: Sequence[Any] | None = None,
        path: str | Path = "gradcam",
        name: str | None = None,
        show: bool | None = None,
        resume: bool = False,
        loggers: Iterable[Logger] | None = None,
        on_error: str = "warn",
        mean: Any = None,
        std: Any = None,
        judge: str | None = None,
        check: int | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise GradCAMError(f"model must be an nn.Module, got {type(model).__name__}.")
        common = {
            "layer": layer, "target": target, "method": method, "every": every, "path": path, "name": name,
            "show": show, "resume": resume, "loggers": loggers, "on_error": on_error, "judge": judge,
            "check": check,
        }  # fmt: skip
        settings = Settings(**common, asked={"n": number_of(x), **common})
        self._watcher: Watcher | None = None
        self._fit, self._open = 0, True
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        net = model if forward is None else Called(unwrap(model), forward)
        subject = Subject(
            ref(model), lambda: net, lambda: loss_func, pixels=lambda: (mean, std), arch=type(model).__name__
        )
        watcher = Watcher(subject, settings, Faults(type(self).__name__, on_error == "raise"))
        panel = panel_of(x, images, labels, vocab, y, masks, mean, std)
        watcher.begin(Path(path), lambda: (panel, task_of(panel, vocab, loss_func)))
        self._watcher = watcher
        watcher.start()
        self._fit = watcher.fit

    @property
    def run(self) -> Run | None:
        "The `Run` that frames go to; `None` in the other processes of a distributed training."
        return self._watcher.run if self._watcher is not None else None

    def __call__(self, epoch: int, metrics: Mapping[str, Any] | None = None, fit: int | None = None) -> None:
        """A frame after `epoch`, with its `metrics` in the heading; the model is left as it was.

        `fit`: a number of your own for a later part of the training, whose epochs begin at 0 again.
        """
        if self._watcher is None:
            return
        if not self._open:
            raise GradCAMError("This Watch is closed: make another, with resume=True to go on with its run.")
        if fit is not None and fit != self._fit:
            # The weights of the part before are gone, and so is its last frame if it has none.
            self._watcher.due = None
            self._fit = self._watcher.fit = fit
        with self._watcher.faults.harmless(f"reading the call for {epoch!r}"):
            self._watcher.over(index(epoch), {str(k): number(v) for k, v in dict(metrics or {}).items()})

    def flush(self) -> None:
        "Wait until every frame taken so far is on the disk."
        if self._watcher is not None:
            self._watcher.flush()

    def close(self, status: str = "finished") -> None:
        "The last frame, the report and the pictures; `status`: `finished` or `interrupted`."
        if self._watcher is None or not self._open:
            return
        self._open = False
        self._watcher.close(status)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close("finished" if kind is None else "interrupted")

    def __repr__(self) -> str:
        return f"Watch({self.run!r})"
