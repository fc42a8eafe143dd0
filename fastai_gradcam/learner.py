"""In the notebook: `learn.gradcam(img)` and the `CAM` that it gives."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from fastai.learner import Learner
from fastcore.basics import patch
from PIL import Image
from torch import Tensor, nn

from ._engine.guard import unchanged
from ._engine.layers import named_layers, unwrap
from ._fastai.items import as_list, encode, for_model, item_name, loader_of, picture, read
from ._fastai.tasks import Answer, Task, task_of
from .cam import CAMs
from .cam import gradcam as cams_of
from .methods import resolve_method
from .render import DEFAULT_ALPHA, DEFAULT_CMAP, Cell, grid, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CAM", "CAMList", "resolve_layer"]


@dataclass(repr=False)
class CAM:
    """A class activation map of one image, for one class at one layer.

    - `map`: the raw map, a float32 tensor `(h, w)` at the layer's resolution, in units of the score; on the CPU.
    - `image`: what the model saw, a PIL image.
    - `layer`: the layer's dotted name. `target`: the index of the class explained, `label`: its name.
    - `prob`: the probability of that class, 0…1. `pred`, `pred_prob`: the predicted class's name and probability.
    - `actual`: the image's label, where it is known.

    In a notebook a `CAM` shows itself.
    """

    map: Tensor
    image: Image.Image
    layer: str
    target: int | None = None
    label: str | None = None
    prob: float | None = None
    pred: str | None = None
    pred_prob: float | None = None
    actual: str | None = None

    def overlay(self, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP) -> Image.Image:
        """The image with the map over it, PIL, at the image's size: `(1 - alpha)·image + alpha·colour`.

        `cmap`: any of matplotlib's. An empty map gives the image as it is.
        """
        return overlay(self.image, self.map.numpy(), alpha, cmap)

    def show(
        self,
        ctx: Axes | None = None,
        alpha: float = DEFAULT_ALPHA,
        cmap: str = DEFAULT_CMAP,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> Axes:
        """Draw the overlay into the matplotlib axes `ctx` (new ones if `None`), and return the axes.

        `title`: default: the class explained and its probability. Other arguments go to `Axes.imshow`.
        """
        if ctx is None:
            import matplotlib.pyplot as plt

            ctx = plt.subplots(figsize=figsize)[1]
        ctx.imshow(self.overlay(alpha, cmap), **kwargs)
        ctx.set_title(self.title() if title is None else title)
        ctx.axis("off")
        return ctx

    def title(self) -> str:
        "The class explained with its probability, and the layer where the class has no name."
        if self.label is None:
            return self.layer
        return self.label if self.prob is None else f"{self.label} {self.prob:.0%}"

    def save(self, path: str | Path, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP) -> Path:
        """Save the overlay as an image file, by the suffix of `path`, and return the path.

        Raises `ValueError` for a suffix that Pillow does not know.
        """
        path = Path(path)
        self.overlay(alpha, cmap).save(path)
        return path

    def _cell(self, name_layer: bool = False) -> Cell:
        "How a grid shows this map: the label or class first, then the prediction where that is not the same."
        sure = f"{self.pred} {self.pred_prob:.0%}" if self.pred_prob is not None else self.pred or ""
        layer = f"layer {self.layer}" if name_layer else ""
        if self.actual is not None:
            explained = "" if self.label in (None, self.pred) else f"map of {self.title()}"
            note = " · ".join(filter(None, (explained, layer)))
            return Cell(self.image, self.map.numpy(), self.actual, sure, self.pred == self.actual, note)
        predicted = f"predicted {sure}" if sure and self.label != self.pred else ""
        title = f"{layer}: {self.title()}" if name_layer else self.title()
        return Cell(self.image, self.map.numpy(), title, predicted)

    def _repr_png_(self) -> bytes:
        return _png(grid([self._cell()], tile=_tile(self.image)))

    def __repr__(self) -> str:
        size = "×".join(map(str, self.map.shape))
        return f"CAM({self.title()!r}, layer {self.layer!r}, map {size}, predicted {self.pred!r})"


@dataclass(repr=False)
class CAMList(Sequence[CAM]):
    "Several `CAM`s, which show as one grid; `columns` says how many stand side by side."

    cams: list[CAM] = field(default_factory=list)
    columns: int | None = None

    @overload
    def __getitem__(self, index: int) -> CAM: ...

    @overload
    def __getitem__(self, index: slice) -> CAMList: ...

    def __getitem__(self, index: int | slice) -> CAM | CAMList:
        return CAMList(self.cams[index], self.columns) if isinstance(index, slice) else self.cams[index]

    def __len__(self) -> int:
        return len(self.cams)

    def grid(self, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP, tile: int = 208) -> Image.Image:
        "All maps as one labelled PIL image, RGB, each at most `tile` pixels high and wide; `alpha`, `cmap` as in `CAM`."
        layers = len({c.layer for c in self.cams}) > 1
        return grid([c._cell(layers) for c in self.cams], "", self.columns, tile, alpha, cmap)

    def show(
        self,
        ctx: Axes | None = None,
        alpha: float = DEFAULT_ALPHA,
        cmap: str = DEFAULT_CMAP,
        figsize: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> Axes:
        "Draw the grid into the matplotlib axes `ctx` (new ones if `None`), and return the axes."
        page = self.grid(alpha, cmap)
        if ctx is None:
            import matplotlib.pyplot as plt

            ctx = plt.subplots(figsize=figsize or (page.width / 100, page.height / 100))[1]
        ctx.imshow(page, **kwargs)
        ctx.axis("off")
        return ctx

    def save(self, path: str | Path, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP) -> Path:
        "Save the grid as an image file, by the suffix of `path`, and return the path. Raises as `CAM.save` does."
        path = Path(path)
        self.grid(alpha, cmap).save(path)
        return path

    def _repr_png_(self) -> bytes:
        return _png(self.grid())

    def __repr__(self) -> str:
        return "[" + ",\n ".join(map(repr, self.cams)) + "]"


@patch
def gradcam(self: Learner, item: Any, target: Any = None, layer: Any = None, method: Any = "gradcam") -> CAM | CAMList:
    """Where the model looks on `item`: a `CAM`, or a `CAMList` for several items, classes or layers.

    - `item`: a path, string, PIL image, uint8 array or tensor, bytes, or a list of these. Goes through the validation
      transforms, as in `learn.predict`.
    - `target`: `None` (the predicted class; of several labels, each predicted one; of a segmentation, the one with the
      largest region), a label, an index, a list for several classes, a list of lists, a tensor or an array with a row
      for each item, `contrast` or `segment` of labels, or a callable `output -> (N,)` scores. A regression has
      `"score"` and `"-score"`, of several outputs `"score 1"` and `"-score 1"`.
    - `layer`: `None` (the last with space), an int `i` (`learn.model[0][i]`), `"all"` (every child of
      `learn.model[0]`), a dotted name, a module, or a list of these.
    - `method`: a name in `fastai_gradcam.methods.methods`, or a callable `(activations, gradients) -> maps`.

    Raises `ValueError`, `TypeError` or `FileNotFoundError`, naming what was given and what would do, for an item that
    is no image, a label or index outside of the vocabulary, or a layer that does not exist or has no space.
    """
    listed = as_list(item)
    items = [item] if listed is None else listed
    if not items:
        raise ValueError("There is no image in []: give at least one.")
    model, task = unwrap(self.model), task_of(self.dls, self.loss_func)
    resolve_method(method)
    layers = None if layer is None else resolve_layer(self, layer)
    task.target(target, len(items))
    with unchanged(model):
        encoded = [_encoded(self.dls, it, item_name(it, i)) for i, it in enumerate(items)]
        images = [image for image, _ in encoded]
        found: list[CAM] = []
        per_item: list[int] = []
        for at, x in _stacked([for_model(batch, model) for _, batch in encoded]):
            part = slice(at, at + len(x))
            wanted = task.target(target, len(items), part)
            cams = cams_of(model, x, layer=layers, target=wanted, method=method)
            words = [task.in_words(target, at + i, len(items)) for i in range(len(x))] if callable(target) else None
            for explained in explained_images(cams, images[part], task, target is None, words=words):
                per_item.append(len(explained))
                found += explained
    asked_for_one = all(as_list(given) is None for given in (item, target, layer))
    if len(found) == 1 and asked_for_one and not (isinstance(layer, str) and layer == "all"):
        return found[0]
    uneven, most = len(set(per_item)) > 1, max(per_item)
    side_by_side = None if most == 1 or uneven or (len(items) == 1 and most > 5) else most
    return CAMList(found, side_by_side)


def _encoded(dls: Any, item: Any, name: str) -> tuple[Image.Image, Any]:
    "What the model sees of `item`, as a picture and as a batch of one."
    dl = loader_of(dls, item)
    try:
        batch = encode(dl, read(dl, 0, name), name)
    except ValueError:
        if isinstance(item, (str, Path)) and not Path(item).exists():
            raise FileNotFoundError(f"There is no image file {str(item)!r}.") from None
        raise
    return picture(dl, batch), batch


def _stacked(inputs: list[Tensor], most: int = 32) -> Iterator[tuple[int, Tensor]]:
    "Neighbours of one shape as batches of at most `most`, each with the index of its first image."
    start = 0
    for i in range(1, len(inputs) + 1):
        if i == len(inputs) or i - start == most or inputs[i].shape != inputs[start].shape:
            yield start, torch.cat(inputs[start:i])
            start = i


def explained_images(
    cams: CAMs,
    images: list[Image.Image],
    task: Task,
    repeats: bool,
    actual: str | None = None,
    words: Sequence[str | None] | None = None,
) -> Iterator[list[CAM]]:
    """The `CAM`s of each image of a batch: for each layer, each class.

    `repeats`: the classes were filled up to a common number, and one that comes again is left out. `words`: what a
    callable target explains of each image.
    """
    targets = cams.target
    probs = task.probabilities(cams.output) if targets is not None else None
    answers = _answers(task, cams.output)
    several = targets is not None and targets.ndim == 2
    for i, image in enumerate(images):
        found = []
        for layer, maps in zip(cams.layers, cams.maps, strict=True):
            seen = set()
            for k, map in enumerate(maps[i] if several else maps[i : i + 1]):
                cam = CAM(map.cpu(), image, layer, label=words[i] if words else None, actual=actual)
                if targets is not None:
                    cam.target = int(targets[i, k] if several else targets[i])
                    cam.label = task.name(cam.target, cams.output)
                    cam.prob = None if probs is None else float(probs[i, cam.target])
                    if repeats and cam.target in seen:
                        continue
                    seen.add(cam.target)
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

    Raises `ValueError` for a layer that does not exist, with those that do.
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
            raise ValueError(f"layer {layer} does not exist: learn.model[0] has layers 0 to {count - 1}.")
        return [f"0.{layer % count}"]
    return [name for name, _ in named_layers(model, layer)]


def _body(model: nn.Module) -> nn.Sequential:
    first = model[0] if isinstance(model, nn.Sequential) and len(model) else None
    if not isinstance(first, nn.Sequential):
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f'A layer by number, and "all", are children of learn.model[0], which this {type(model).__name__} does not '
            f"have: name a layer instead, such as one of {children}."
        )
    return first


def _tile(image: Image.Image) -> int:
    return min(384, max(208, *image.size))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
