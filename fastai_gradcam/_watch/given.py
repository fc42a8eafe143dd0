"""A panel from what a plain training loop has at hand: tensors, labels, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._errors import GradCAMError, one_of
from .._net.shadow import copied
from .images import to_image
from .losses import SIGMOID, SOFTMAX, activation_of, kind_of
from .nested import mapped, tensors
from .panel import Panel
from .tasks import CATEGORY, LABELS, Head, Task

__all__ = ["number_of", "panel_of", "task_of"]


def number_of(x: Any) -> int:
    "How many images `x` holds. Raises `GradCAMError` where it holds none, or its inputs are not as many."
    counts = {len(t) if t.ndim else 0 for t in tensors(x)}
    if len(counts) != 1 or not max(counts):
        raise GradCAMError(
            "x must be what the model takes for at least one image: a tensor (n, C, *space), or a tuple or a dict of "
            f"tensors with n rows each, got {_described(x)}."
        )
    return counts.pop()


def panel_of(
    x: Any, images: Any, labels: Any, vocab: Any, y: Any, masks: Any, mean: Any = None, std: Any = None
) -> Panel:
    "The panel of these inputs. Raises `GradCAMError` where there is not one of each for each image."
    n = number_of(x)
    x = mapped(lambda t: t.detach().cpu().clone(), x)
    pictures = _pictures(x, mean, std) if images is None else [_picture(i) for i in _listed("images", images, n)]
    names = None if vocab is None else [str(v) for v in vocab]
    words, indices = _labels(_listed("labels", labels, n), names)
    if y is None:
        ys: tuple[Tensor, ...] = () if indices is None else (torch.tensor(indices),)
    else:
        ys = tuple(torch.as_tensor(t).detach().cpu().clone() for t in (y if isinstance(y, tuple) else (y,)))
        for t in ys:
            _listed("y", t, n)
        if labels is None:
            words = [task_of(ys, vocab, None).label([one]) for one in next(iter(ys))]
    found = [None if m is None else _mask(m, p) for m, p in zip(_listed("masks", masks, n), pictures, strict=True)]
    return Panel(x, ys, [f"image {i}" for i in range(n)], words, pictures, found)


def task_of(panel: Panel | tuple[Tensor, ...], vocab: Sequence[Any] | None, loss_func: Any) -> Task:
    "A category per image, unless the targets are rows of labels or numbers."
    ys = panel.y if isinstance(panel, Panel) else panel
    y = ys[0][0] if ys else None
    names = None if vocab is None else list(vocab)
    loss_func = copied(loss_func)
    # Without a loss, the scores of classes are taken to be logits.
    activation = activation_of(loss_func) if loss_func is not None else None
    kind = CATEGORY if y is None else kind_of(y, loss_func, named=names is not None)
    if loss_func is None:
        activation = {CATEGORY: SOFTMAX, LABELS: SIGMOID}.get(kind)
    return Task([Head(kind, names, activation, getattr(loss_func, "decodes", None))], loss_func)


def _labels(given: Sequence[Any], vocab: list[str] | None) -> tuple[list[str | None], list[int] | None]:
    "The labels in words, and their indices where all are known."
    words: list[str | None] = []
    indices: list[int | None] = []
    for label in given:
        if label is None:
            words.append(None)
            indices.append(None)
        elif isinstance(label, str) or (vocab is not None and str(label) in vocab and not _is_index(label)):
            if vocab is not None and str(label) not in vocab:
                raise GradCAMError(one_of("class", str(label), vocab))
            words.append(str(label))
            indices.append(None if vocab is None else vocab.index(str(label)))
        else:
            index = int(label)
            if vocab is not None and not 0 <= index < len(vocab):
                raise GradCAMError(f"labels has index {index}, but there are classes 0 to {len(vocab) - 1}.")
            words.append(str(index) if vocab is None else vocab[index])
            indices.append(index)
    known = [i for i in indices if i is not None]
    return words, known if len(known) == len(words) else None


def _is_index(label: Any) -> bool:
    return isinstance(label, (int, np.integer, Tensor)) and not isinstance(label, bool)


def _listed(what: str, given: Any, n: int) -> Sequence[Any]:
    if given is None:
        return [None] * n
    listed = given.tolist() if what == "labels" and isinstance(given, (Tensor, np.ndarray)) else list(given)
    if len(listed) != n:
        raise GradCAMError(f"{what} has {len(listed)} entries for {n} images in x: give one for each.")
    return listed


def _pictures(x: Any, mean: Any, std: Any) -> list[Image.Image]:
    first = next((t for t in tensors(x) if t.ndim >= 4), None)
    if first is None:
        raise GradCAMError(
            f"x holds no images (n, C, *space), got {_described(x)}: give pictures of them with images=."
        )
    shape = (1, -1, *[1] * (first.ndim - 2))
    if std is not None:
        first = first * torch.as_tensor(std, dtype=first.dtype).reshape(shape)
    if mean is not None:
        first = first + torch.as_tensor(mean, dtype=first.dtype).reshape(shape)
    return [to_image(one) for one in first]


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, Tensor):
        return to_image(image.detach().cpu())
    return Image.fromarray(np.asarray(image)).convert("RGB")


def _mask(mask: Any, image: Image.Image) -> np.ndarray:
    array = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask) != 0
    if array.shape != image.size[::-1]:
        raise GradCAMError(f"A mask has shape {array.shape}, its image {image.size[::-1]}: give it the image's size.")
    return array


def _described(x: Any) -> str:
    shapes = [tuple(t.shape) for t in tensors(x)]
    return f"{type(x).__name__} {', '.join(map(str, shapes))}" if shapes else f"a {type(x).__name__}"
