"""Which score is explained: a class, one class per image, several classes, or the caller's own function.

Scores are logits, never probabilities: a softmax that is sure of itself has no gradient left to explain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Target", "class_targets", "main_output", "scores"]

Target = None | int | Sequence[int] | Tensor | Callable[[Any], Tensor]


def main_output(output: Any) -> Tensor:
    "The tensor of scores in a model's output: itself, the first of a tuple, or `logits`/`out`/the first of a mapping."
    if isinstance(output, Tensor):
        return output.as_subclass(Tensor) if type(output) is not Tensor else output
    if isinstance(output, Mapping):
        key = next((k for k in ("logits", "out") if k in output), next(iter(output), None))
        if key is not None:
            return main_output(output[key])
    if isinstance(output, (tuple, list)) and output:
        return main_output(output[0])
    raise TypeError(
        f"The model's output is a {type(output).__name__}, not a tensor; pass target= a callable that takes this "
        "output and returns one score per image."
    )


def class_targets(target: Target, output: Tensor) -> Tensor:
    """The classes to explain, as a LongTensor `(N,)` or `(N, K)` on `output`'s device.

    `output`: `(N, C)`. `target`: `None` is each image's predicted class. Raises `ValueError` for an output without
    classes, a number of targets that is not the batch's, or an index outside of `0…C-1`.
    """
    if output.ndim != 2:
        raise ValueError(
            f"The model's output has shape {tuple(output.shape)}, not (images, classes), so there is no class to "
            "explain; pass target= a callable that takes this output and returns one score per image."
        )
    n, classes = output.shape
    if target is None:
        return output.detach().argmax(1)
    try:
        wanted = torch.as_tensor(target, device=output.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_expected(target)) from error
    if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool:
        raise TypeError(_expected(target))
    wanted = wanted.long()
    if wanted.ndim == 0:
        wanted = wanted.expand(n)
    if wanted.ndim > 2 or len(wanted) != n:
        raise ValueError(
            f"target has shape {tuple(wanted.shape)} for a batch of {n} images: give one class for all, "
            f"one per image ({n},), or several per image ({n}, K)."
        )
    if wanted.numel() == 0:
        raise ValueError("target is empty: give at least one class per image.")
    low, high = int(wanted.min()), int(wanted.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"target {low if low < 0 else high} is out of range: the model has classes 0 to {classes - 1}."
        )
    return wanted


def _expected(target: object) -> str:
    return (
        f"target must be None, a class index, a LongTensor (N,) or (N, K), or a callable on the output, got {target!r}."
    )


def scores(output: Any, target: Target, n: int) -> tuple[list[Tensor], Tensor | None]:
    """The scores `(n,)` to differentiate, one per class asked for, and the classes (`None` for a callable).

    Raises what `class_targets` raises, and `ValueError` where a callable's scores are not one per image.
    """
    if callable(target):
        score = target(output)
        if not isinstance(score, Tensor) or score.shape not in ((n,), (n, 1)):
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"The target callable must return one score per image, shape ({n},), got {got}.")
        return [score.reshape(n)], None
    logits = main_output(output)
    classes = class_targets(target, logits)
    each = classes if classes.ndim == 2 else classes[:, None]
    return [logits.gather(1, each[:, k : k + 1])[:, 0] for k in range(each.shape[1])], classes
