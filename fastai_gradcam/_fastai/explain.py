"""The one pipeline: an item becomes a name, a picture, an input and a target; inputs become `CAM`s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastai.learner import Learner
from PIL import Image
from torch import Tensor, nn

from .._errors import GradCAMError, NoFileError
from .._net.guard import undisturbed
from .._net.layers import named_layers, unwrap
from .._net.shadow import shadow
from .._watch.nested import joined, on_device_of, tensors
from .._watch.tasks import Answer, Task, as_list
from ..cam import CAMs
from ..cam import explain as explain_inputs
from .cams import CAM
from .items import encode, item_name, loader_of, picture, read
from .prepare import prepared, split
from .private import private
from .tasks import task_of

__all__ = [
    "BOTH",
    "FEWEST",
    "Seen",
    "Top",
    "explain",
    "image_at",
    "model_input",
    "resolve_layer",
    "see",
    "see_item",
    "stages_of",
]

# The target of `plot_top_gradcams`: the class that was predicted and the one that is true.
BOTH = object()


class Top(int):
    "The target of a page that visitors try a model on: so many classes, those with the highest scores."


# Images that the model is shown at once.
_MOST = 32
# A body of fewer stages is looked into for those inside.
FEWEST = 4


@dataclass
class Seen:
    """One item, as the learner's data gives it.

    `sample`: decoded, before its transforms. `image`: RGB. `x`: the inputs, batches of one, before callbacks prepare
    them. `y`: the targets, after that; none where they are not known.
    """

    name: str
    sample: Any
    image: Image.Image
    x: tuple[Any, ...]
    y: tuple[Any, ...]


def see(learn: Learner, dl: Any, index: int, name: str, at: int | None = None) -> Seen:
    """Item `index` of `dl`, through its item and batch transforms. `at`: the input that is shown.

    Raises `GradCAMError` with its name where it cannot be read.
    """
    sample = read(dl, index, name)
    batch = encode(dl, sample, name)
    xb, yb = split(learn, batch)
    return Seen(name, sample, picture(dl, batch, image_at(xb, at)), xb, prepared(learn, learn.model, xb, yb)[1])


def see_item(learn: Learner, item: Any, index: int = 0, at: int | None = None) -> Seen:
    "`item`, as `learn.gradcam` takes it, through the validation transforms. Raises as `see`, or `NoFileError`."
    name = item_name(item, index)
    dl = private(loader_of(learn.dls, item))
    try:
        return see(learn, dl, 0, name, at)
    except GradCAMError:
        if isinstance(item, (str, Path)) and not Path(item).exists():
            raise NoFileError(f"There is no image file {str(item)!r}.") from None
        raise


def image_at(x: tuple[Any, ...], at: int | None = None) -> int:
    "The position of the input that is explained: `at`, or the first that is an image."
    if at is not None and not 0 <= at < len(x):
        raise GradCAMError(f"There is no input {at}: the learner's model is given inputs 0 to {len(x) - 1}.")
    images = [i for i, t in enumerate(x) if isinstance(t, Tensor) and t.ndim > 3]
    if at is not None and (at in images or at > 0):
        return at
    return images[0] if images else 0


def model_input(learn: Learner, net: nn.Module, x: Any) -> Any:
    "The arguments that `net` is called with for the inputs `x`: a tensor, or a tuple of inputs."
    ready = on_device_of(net, prepared(learn, net, x)[0])
    return ready[0] if len(ready) == 1 and isinstance(ready[0], Tensor) else ready


def explain(
    learn: Learner,
    see_all: Callable[[], list[Seen]],
    n: int,
    target: Any,
    layer: Any,
    method: Any,
    at: int | None = None,
) -> list[list[CAM]]:
    "For each of the `n` items that `see_all` gives its `CAM`s: for each layer, each class. Changes nothing."
    layers = None if layer is None else resolve_layer(learn, layer)
    found: list[list[CAM]] = []
    # Making a loader draws random numbers, and transforms may.
    with undisturbed():
        task = task_of(learn.dls, learn.loss_func)
        special = target is BOTH or isinstance(target, Top)
        if not special:
            task.target(target, n)
        net = shadow(unwrap(learn.model))
        task.listen(net)
        for start, some in _batches(see_all()):
            part = slice(start, start + len(some))
            if target is BOTH:
                wanted = task.both(joined([s.y for s in some]))
            else:
                wanted = task.top(target) if isinstance(target, Top) else task.target(target, n, part)
            x = model_input(learn, net, joined([s.x for s in some]))
            shown = image_at(x if isinstance(x, tuple) else (x,), at)
            cams = explain_inputs(net, x, layer=layers, target=wanted, method=method, input=shown)
            words = [task.in_words(target, start + i, n) for i in range(len(some))] if callable(target) else None
            found += _explained(cams, some, task, target is None or special, words)
    for cam in (cam for of_one in found for cam in of_one):
        cam.name_layer = layer is not None
    return found


def _batches(seen: Sequence[Seen]) -> Iterator[tuple[int, Sequence[Seen]]]:
    "Neighbours of one shape, at most `_MOST`, each batch with the index of its first image."
    shapes = [[t.shape for t in tensors(s.x)] for s in seen]
    start = 0
    for i in range(1, len(seen) + 1):
        if i == len(seen) or i - start == _MOST or shapes[i] != shapes[start]:
            yield start, seen[start:i]
            start = i


def _explained(
    cams: CAMs, seen: Sequence[Seen], task: Task, repeats: bool, words: Sequence[str | None] | None
) -> Iterator[list[CAM]]:
    """The `CAM`s of each image of a batch: for each layer, each class.

    `repeats`: the classes were filled up to a common number, and one that comes again is left out. `words`: what a
    callable target explains of each image.
    """
    targets = cams.target
    probs = task.probabilities(cams.output) if targets is not None else None
    answers: dict[int, list[Answer] | None] = {}
    several = targets is not None and targets.ndim == 2
    for i, one in enumerate(seen):
        found = []
        for layer, maps in zip(cams.layers, cams.maps, strict=True):
            shown = set()
            for k, map in enumerate(maps[i] if several else maps[i : i + 1]):
                column = 0 if targets is None else int(targets[i, k] if several else targets[i])
                if repeats and targets is not None and column in shown:
                    continue
                shown.add(column)
                head = task.head_of(column)
                if head not in answers:
                    answers[head] = _answers(task, cams.output, head)
                actual = task.label([y[0] for y in one.y], head) if one.y else None
                cam = CAM(
                    map.cpu(), one.image, layer, label=words[i] if words else None, actual=actual, notes=cams.notes
                )
                if targets is not None:
                    cam.target, cam.label = column, task.name(column)
                    cam.prob = None if probs is None or probs[i, column].isnan() else float(probs[i, column])
                if (answer := answers[head]) is not None:
                    cam.pred, cam.pred_prob = answer[i].pred, answer[i].pred_prob
                found.append(cam)
        yield found


def _answers(task: Task, output: Any, head: int) -> list[Answer] | None:
    try:
        return task.answers(output, i=head)
    except (TypeError, ValueError, RuntimeError):
        # A callable target is there for outputs of any kind; not all of them are answers.
        return None


def resolve_layer(learn: Learner, layer: Any) -> list[str]:
    """`layer` of a learner as dotted names: an int `i` is child `i` of the body `learn.model[0]`, `"all"` all of them.

    A body with one child alone stands for that child. For `"all"`, a body of fewer than four children is looked into as
    well. The layers of a network of timm are its stages, as its `feature_info` has them. Raises `GradCAMError` for a
    layer that does not exist, with those that do, and for `"all"` where there are fewer than four.
    """
    model = unwrap(learn.model)
    if isinstance(layer, str) and layer == "all":
        names = stages_of(model, FEWEST)
        if len(names) < FEWEST:
            raise GradCAMError(
                f'layer="all" shows the stages of a network, at least {FEWEST}, and this one has {len(names)}: name '
                f"those you want, layer={names}."
            )
        return names
    several = as_list(layer)
    if several:
        return [name for one in several for name in resolve_layer(learn, one)]
    if isinstance(layer, int) and not isinstance(layer, bool):
        stages = stages_of(model, 2)
        if not -len(stages) <= layer < len(stages):
            holder = stages[0].rpartition(".")[0].replace(".", "][")
            raise GradCAMError(
                f"layer {layer} does not exist: learn.model[{holder}] has layers 0 to {len(stages) - 1}."
            )
        return [stages[layer]]
    return [name for name, _ in named_layers(model, layer)]


def stages_of(model: nn.Module, least: int) -> list[str]:
    "The children of `model`'s body; while they are fewer than `least`, plain containers give way to their children."
    body = model[0] if isinstance(model, nn.Sequential) and len(model) else None
    # timm's networks, which are no sequences, say themselves what their stages are.
    inside = getattr(getattr(body, "model", None), "feature_info", None)
    if isinstance(inside, (list, tuple)):
        return [f"0.model.{stage['module']}" for stage in inside]
    if not isinstance(body, nn.Sequential):
        children = ", ".join(name for name, _ in model.named_children())
        raise GradCAMError(
            f'A layer by number, and "all", are children of learn.model[0], which this {type(model).__name__} does not '
            f"have: name a layer instead, such as one of {children}."
        )
    stages: list[tuple[str, nn.Module]] = [("0", body)]
    while len(stages) < least and any(map(_is_container, stages)):
        stages = [
            inner
            for name, module in stages
            for inner in (
                [(f"{name}.{child}", part) for child, part in module.named_children()]
                if _is_container((name, module))
                else [(name, module)]
            )
        ]
    return [name for name, _ in stages]


def _is_container(stage: tuple[str, nn.Module]) -> bool:
    return isinstance(stage[1], nn.Sequential) and len(stage[1]) > 0
