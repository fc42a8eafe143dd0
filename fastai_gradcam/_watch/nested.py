"""Inputs and outputs of several parts: tuples, lists and dicts of tensors that have a row for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._net.nested import map_tensors as mapped

__all__ = ["first_parameter", "joined", "mapped", "on_device_of", "rows", "tensors"]


def tensors(value: Any) -> list[Tensor]:
    "All tensors of `value`, in order."
    found: list[Tensor] = []
    mapped(found.append, value)
    return found


def rows(value: Any, part: slice) -> Any:
    "Some of the images of a batch."
    return mapped(lambda t: t[part] if t.ndim else t, value)


def joined(parts: Sequence[Any]) -> Any:
    "Neighbouring parts of one batch as a whole."
    first, *rest = parts
    return mapped(lambda *ts: torch.cat(ts) if rest and ts[0].ndim else ts[0], first, *rest)


def first_parameter(model: nn.Module) -> Tensor | None:
    return next((p for p in model.parameters() if p.is_floating_point()), None)


def on_device_of(model: nn.Module, x: Any) -> Any:
    "`x` as plain tensors on the device of `model`, floats in the type of its parameters; integers stay integers."
    like = first_parameter(model)

    def move(t: Tensor) -> Tensor:
        t = t.as_subclass(Tensor)
        if like is None:
            return t
        return t.to(like.device, like.dtype) if t.is_floating_point() else t.to(like.device)

    return mapped(move, x)
