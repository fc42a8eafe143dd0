"""The one pipeline: an item becomes a name, a picture, an input and a target; inputs become `CAM`s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastai.learner import Learner
from PIL import Image
from torch import Tensor, nn

from .._errors import GradCAMError, NoFileError
from .._net.guard import unchanged
from .._net.layers import named_layers, unwrap
from .._watch.nested import joined, on_device_of, tensors
from .._watch.tasks import Answer, Task, as_list
from ..cam import CAMs
from ..cam import gradcam as cams_of
from ..targets import Decided, class_scores, main_output
from .cams import CAM
from .items import encode, item_name, loader_of, picture, read
from .tasks import task_of

__all__ = ["BOTH", "Seen", "explain", "resolve_layer", "see", "see_item"]

# The target of `plot_top_gradcams`: the class that was predicted and the one that is true.
BOTH = object()
# Images that the model is shown at once.
_MOST = 32


@dataclass
class Seen:
    """One item, as the model sees it.

    `sample`: decoded, before its transforms. `image`: RGB. `x`: the input, a batch of one, a tuple where there are
    several inputs. `y`: its targets, none where they are not known.
    """

    name: str
    sample: Any
    image: Image.Image
    x: Any
    y: tuple[Any, ...]


def see(dl: Any, index: int, name: str) -> Seen:
    "Item `index` of `dl`, through its item and batch transforms. Raises `GradCAMError` with its name where it cannot be."
    sample = read(dl, index, name)
    batch = encode(dl, sample, name)
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    return Seen(name, sample, picture(dl, batch), parts[0], parts[1:][-1:])


def see_item(dls: Any, item: Any, index: int = 0) -> Seen:
    "`item`, as `learn.gradcam` takes it, through the validation transforms. Raises as `see`, or `NoFileError`."
    name = item_name(item, index)
    dl = loader_of(dls, item)
    try:
        return see(dl, 0, name)
    except GradCAMError:
        if isinstance(item, (str, Path)) and not Path(item).exists():
            raise NoFileError(f"There is no image file {str(item)!r}.") from None
        raise


def explain(
    learn: Learner, see_all: Callable[[], list[Seen]], n: int, target: Any, layer: Any, method: Any
) -> list[list[CAM]]:
    "For each of the `n` items that `see_all` gives its `CAM`s: for each layer, each class. Changes nothing."
    model, task = unwrap(learn.model), task_of(learn.dls, learn.loss_func)
    layers = None if layer is None else resolve_layer(learn, layer)
    if target is not BOTH:
        task.target(target, n)
    found: list[list[CAM]] = []
    with unchanged(model):
        # Making a loader draws random numbers, and transforms may.
        for at, some in _batches(see_all()):
            part = slice(at, at + len(some))
            wanted = _both(some) if target is BOTH else task.target(target, n, part)
            x = on_device_of(model, joined([s.x for s in some]))
            cams = cams_of(model, x, layer=layers, target=wanted, method=method)
            words = [task.in_words(target, at + i, n) for i in range(len(some))] if callable(target) else None
            found += _explained(cams, some, task, target is None or target is BOTH, words)
    return found


def _batches(seen: Sequence[Seen]) -> Iterator[tuple[int, Sequence[Seen]]]:
    "Neighbours of one shape, at most `_MOST`, each batch with the index of its first image."
    shapes = [[t.shape for t in tensors(s.x)] for s in seen]
    start = 0
    for i in range(1, len(seen) + 1):
        if i == len(seen) or i - start == _MOST or shapes[i] != shapes[start]:
            yield start, seen[start:i]
            start = i


def _both(seen: Sequence[Seen]) -> Decided:
    true = torch.cat([s.y[0].reshape(1).cpu().as_subclass(Tensor) for s in seen]).long()
    return Decided(
        lambda output, like=None: class_scores(main_output(output), like),
        lambda scores: torch.stack([scores.argmax(1), true.to(scores.device)], 1),
    )


def _explained(
    cams: CAMs, seen: Sequence[Seen], task: Task, repeats: bool, words: Sequence[str | None] | None
) -> Iterator[list[CAM]]:
    """The `CAM`s of each image of a batch: for each layer, each class.

    `repeats`: the classes were filled up to a common number, and one that comes again is left out. `words`: what a
    callable target explains of each image.
    """
    targets = cams.target
    probs = task.probabilities(cams.output) if targets is not None else None
    answers = _answers(task, cams.output)
    several = targets is not None and targets.ndim == 2
    for i, one in enumerate(seen):
        actual = task.label(one.y[0][0]) if one.y else None
        found = []
        for layer, maps in zip(cams.layers, cams.maps, strict=True):
            shown = set()
            for k, map in enumerate(maps[i] if several else maps[i : i + 1]):
                cam = CAM(map.cpu(), one.image, layer, label=words[i] if words else None, actual=actual)
                if targets is not None:
                    cam.target = int(targets[i, k] if several else targets[i])
                    cam.label = task.name(cam.target, cams.output)
                    cam.prob = None if probs is None else float(probs[i, cam.target])
                    if repeats and cam.target in shown:
                        continue
                    shown.add(cam.target)
                if answers is not None:
                    cam.pred, cam.pred_prob = answers[i].pred, answers[i].pred_prob
                found.append(cam)
        yield found


def _answers(task: Task, output: Any) -> list[Answer] | None:
    try:
        return task.answers(output)
    except (TypeError, ValueError, RuntimeError):
        # A callable target is there for outputs of any kind; not all of them are answers.
        return None


def resolve_layer(learn: Learner, layer: Any) -> list[str]:
    """`layer` of a learner as dotted names: an int `i` is `learn.model[0][i]`, `"all"` every child of `learn.model[0]`.

    Raises `GradCAMError` for a layer that does not exist, with those that do.
    """
    model = unwrap(learn.model)
    if isinstance(layer, str) and layer == "all":
        return [f"0.{i}" for i in range(len(_body(model)))]
    several = as_list(layer)
    if several:
        return [name for one in several for name in resolve_layer(learn, one)]
    if isinstance(layer, int) and not isinstance(layer, bool):
        count = len(_body(model))
        if not -count <= layer < count:
            raise GradCAMError(f"layer {layer} does not exist: learn.model[0] has layers 0 to {count - 1}.")
        return [f"0.{layer % count}"]
    return [name for name, _ in named_layers(model, layer)]


def _body(model: nn.Module) -> nn.Sequential:
    first = model[0] if isinstance(model, nn.Sequential) and len(model) else None
    if not isinstance(first, nn.Sequential):
        children = ", ".join(name for name, _ in model.named_children())
        raise GradCAMError(
            f'A layer by number, and "all", are children of learn.model[0], which this {type(model).__name__} does not '
            f"have: name a layer instead, such as one of {children}."
        )
    return first
