"""Scores in a model's output: which tensor holds them, what a class's score is, and which class is predicted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .._errors import GradCAMError, GradCAMTypeError
from .._net.nested import named, plain, tensors

__all__ = ["class_scores", "class_targets", "main_output", "predicted", "regions", "two_sided"]


def main_output(output: Any, dims: int = 2) -> Tensor:
    """The tensor of scores in a model's output: itself, its `logits` or `out`, or the only one it can be.

    Several tensors of one shape are one head and others beside it: the first is taken. `dims`: the images' dimensions
    of space. For signals, `dims=1`, a map of classes `(N, C, cells)` becomes `(N, C, 1, cells)`, so that it is told
    from the `(N, boxes, 4)` of a detector of images. Raises `GradCAMError` where several tensors might be the scores.
    """
    if isinstance(output, Tensor):
        output = plain(output)
        return output.unsqueeze(2) if dims == 1 and output.ndim == 3 else output
    own = next((v for k in ("logits", "out") if (v := named(output, k)) is not None), output)
    found = tensors(own)
    wide = [t for t in found if t.ndim == 2] or [t for t in found if t.ndim] or found
    if len({t.shape for t in wide}) > 1:
        shapes = ", ".join(str(tuple(t.shape)) for t in wide)
        raise GradCAMError(
            f"The model returns several tensors that may be its scores, {shapes}: "
            "say which holds them with target=, a callable such as lambda output: output[1][:, 0]."
        )
    if wide:
        return main_output(wide[0], dims)
    raise GradCAMTypeError(
        f"The model's output is a {type(output).__name__}, not a tensor; pass target= a callable that takes this "
        "output and returns one score per image."
    )


def class_scores(output: Tensor, like: Tensor | None = None) -> Tensor:
    """One score per image and class, `(N, C)`, from a model's tensor of scores.

    `(N, C)` is itself. `(N,)` and `(N, 1)` have two sides: −s is class 0, s is class 1. In `(N, C, *space)` with two or
    more dimensions of space, each class is summed over its region (`regions`) in `like`, by default `output` itself.
    Raises `ValueError` for other shapes.
    """
    output = two_sided(output)
    if output.ndim == 2:
        return output
    return (output.float() * regions(output if like is None else two_sided(like))).flatten(2).sum(2)


def regions(output: Tensor) -> Tensor:
    "1 where a class of `(N, C, *space)` scores is the predicted one; a class predicted nowhere has the whole image."
    mine = _where_predicted(output)
    nowhere = mine.flatten(2).sum(2).eq(0)
    return torch.where(nowhere.view(*nowhere.shape, *[1] * (output.ndim - 2)), 1, mine).float()


def predicted(output: Tensor) -> Tensor:
    "Each image's predicted class, LongTensor `(N,)`; of a map of classes, the one with the largest region."
    output = two_sided(output.detach())
    return output.argmax(1) if output.ndim == 2 else _where_predicted(output).flatten(2).sum(2).argmax(1)


def _where_predicted(output: Tensor) -> Tensor:
    return one_hot(output.detach().argmax(1), output.shape[1]).movedim(-1, 1)


def two_sided(output: Tensor) -> Tensor:
    "Scores as `(N, C)` or `(N, C, *space)` with C ≥ 2."
    if output.ndim == 1:
        output = output[:, None]
    elif output.ndim > 2 and output[0, 0].numel() == 1:
        output = output.flatten(1)
    if output.ndim in (0, 3) or output.numel() == 0:
        raise GradCAMError(
            f"The model's output has shape {tuple(output.shape)}, not (images, classes), so there is no class to "
            "explain; pass target= a callable that takes this output and returns one score per image."
        )
    return torch.cat([-output, output], 1) if output.shape[1] == 1 else output


def class_targets(target: Any, output: Tensor) -> Tensor:
    """The classes to explain, as a LongTensor `(N,)` or `(N, K)` on `output`'s device.

    `output`: the model's tensor of scores, as `class_scores` takes it. `target`: `None` is each image's predicted
    class. Raises `ValueError` for an output without classes, a number of targets that is not the batch's, or an index
    outside of `0…C-1`.
    """
    n, classes = two_sided(output).shape[:2]
    if target is None:
        return predicted(output)
    try:
        wanted = torch.as_tensor(target, device=output.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GradCAMTypeError(_expected(target)) from error
    if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool:
        raise GradCAMTypeError(_expected(target))
    # A tensor of inference mode takes no part in autograd.
    wanted = wanted.clone().long() if wanted.is_inference() else wanted.long()
    if wanted.ndim == 0:
        wanted = wanted.expand(n)
    if wanted.ndim > 2 or len(wanted) != n:
        raise GradCAMError(
            f"target has shape {tuple(wanted.shape)} for a batch of {n} images: give one class for all, "
            f"one per image ({n},), or several per image ({n}, K)."
        )
    if wanted.numel() == 0:
        raise GradCAMError("target is empty: give at least one class per image.")
    low, high = int(wanted.min()), int(wanted.max())
    if low < 0 or high >= classes:
        raise GradCAMError(
            f"target {low if low < 0 else high} is out of range: the model has classes 0 to {classes - 1}."
        )
    return wanted


def _expected(target: object) -> str:
    return (
        f"target must be None, a class index, a LongTensor (N,) or (N, K), or a callable on the output, got {target!r}."
    )
