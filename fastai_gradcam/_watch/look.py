"""One look at the panel: the model's maps, answers and losses, as the maps and rows of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._engine.scores import main_output
from .._errors import GradCAMError
from ..cam import CAMs
from ..measures import measure
from ..render import slices
from .nested import joined, mapped, rows, tensors
from .panel import Panel
from .tasks import Task

__all__ = ["Look", "check_shapes", "depth_of", "in_chunks", "losses"]

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


@dataclass
class Look:
    """The model's answers about the panel, and the maps behind them.

    `maps`: for each layer `(n, h, w)`, or `(n, K, h, w)` for K classes per image. `negative`: for each layer
    `(n,)` or `(n, K)`. `output`: the model's output for the whole panel. `target`: `(n,)` or `(n, K)`, or `None`.
    """

    maps: dict[str, np.ndarray]
    negative: dict[str, np.ndarray]
    output: Any
    target: Tensor | None

    @classmethod
    def of(cls, parts: list[CAMs]) -> Look:
        "Neighbouring parts of the panel as a whole."
        names = parts[0].layers
        several = parts[0].target is not None and parts[0].target.ndim == 2
        maps = {name: np.concatenate([_numpy(p.maps[i]) for p in parts]) for i, name in enumerate(names)}
        negative = {name: np.concatenate([_numpy(p.negative_share[i]) for p in parts]) for i, name in enumerate(names)}
        targets = [p.target for p in parts if p.target is not None]
        # A run holds pictures. A volume is kept as the slices that are drawn, and measured on them.
        flat = {name: slices(m) if m.ndim - several == 4 else m for name, m in maps.items()}
        return cls(flat, negative, joined([p.output for p in parts]), torch.cat(targets) if targets else None)

    def rows(
        self,
        panel: Panel,
        task: Task,
        asked: Any,
        loss: list[float | None],
        previous: dict[str, np.ndarray] | None,
        first: dict[str, np.ndarray] | None,
    ) -> list[dict[str, Any]]:
        "The rows of `history.csv`, without the frame: one per image, layer and class."
        about = self._about(panel, task, asked, loss)
        made = []
        for item in range(len(panel)):
            for layer, maps in self.maps.items():
                for k in range(maps.shape[1] if maps.ndim == 4 else 1):
                    at = (item, k) if maps.ndim == 4 else (item,)
                    numbers = measure(
                        maps[at],
                        float(self.negative[layer][at]),
                        None if previous is None else previous[layer][at],
                        None if first is None else first[layer][at],
                        panel.masks[item],
                    )
                    made.append({"item": item, "layer": layer, **about(item, k), **numbers})
        return made

    def _about(
        self, panel: Panel, task: Task, asked: Any, loss: list[float | None]
    ) -> Callable[[int, int], dict[str, Any]]:
        "The columns about the prediction, for image `item` and its `k`-th class."
        probs = None if self.target is None else task.probabilities(self.output)
        classes = None if self.target is None else _numpy(self.target).reshape(len(panel), -1)
        answers: dict[int, Any] = {}

        def about(item: int, k: int) -> dict[str, Any]:
            column = 0 if classes is None else int(classes[item, k])
            head = task.head_of(column)
            if head not in answers:
                answers[head] = task.answers(self.output, panel.y, head)
            label = panel.labels[item] if head == 0 else task.label([y[item] for y in panel.y], head)
            row: dict[str, Any] = {"label": label, "loss": loss[item], "correct": None}
            if classes is not None:
                row["target"] = task.name(column)
                prob = None if probs is None else float(probs[item, column])
                row["prob"] = None if prob is None or math.isnan(prob) else prob
            else:
                row["target"] = task.in_words(asked, item, len(panel))
            if answers[head] is not None:
                answer = answers[head][item]
                row |= {"pred": answer.pred, "pred_prob": answer.pred_prob, "correct": answer.correct}
            return row

        return about


def in_chunks(n: int, cams: Callable[[slice], CAMs]) -> list[CAMs]:
    "The `n` images of the panel in one batch, or in smaller and smaller ones while the device runs out of memory."
    size = n
    while True:
        try:
            return [cams(slice(i, min(i + size, n))) for i in range(0, n, size)]
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not _out_of_memory(error):
                raise
        size = (size + 1) // 2
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    # torch has a class for the accelerators' memory, but only words for the CPU's and for cuBLAS and cuDNN.
    kinds = (torch.cuda.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in _NO_MEMORY)


def losses(loss: Any, output: Any, targets: Sequence[Tensor], n: int) -> list[float | None]:
    "The loss of each of `n` images by the training's own loss function, `None` where it has none per image."
    if loss is None or not targets:
        return [None] * n
    output = mapped(lambda t: t.float() if t.is_floating_point() else t, output)
    # A loss takes the model's output, or the scores in it; one of the user's own may need more than that and targets.
    for taken in (lambda: output, lambda: main_output(output)):
        with suppress(Exception):
            given = taken()
            ys = [y.to(tensors(given)[0].device) for y in targets]
            return [float(loss(rows(given, slice(i, i + 1)), *(y[i : i + 1] for y in ys))) for i in range(n)]
    return [None] * n


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy() if x.is_floating_point() else x.detach().cpu().numpy()


def depth_of(panel: Panel, cams: CAMs) -> int | None:
    "How many slices each volume has, if the maps are of volumes."
    per_image = 1 + (cams.target is not None and cams.target.ndim == 2)
    volumes = [t for t in tensors(panel.x) if t.ndim == 5]
    return volumes[0].shape[2] if volumes and cams.maps[0].ndim - per_image == 3 else None


def check_shapes(cams: CAMs) -> None:
    for name, maps in zip(cams.layers, cams.maps, strict=True):
        per_image = 1 + (cams.target is not None and cams.target.ndim == 2)
        if maps.ndim - per_image not in (2, 3):
            raise GradCAMError(
                f"Layer {name!r} gives maps of shape {tuple(maps.shape[per_image:])}; the callback draws (h, w), and "
                "(d, h, w) as slices."
            )
