"""`CAM`: a map with its image and what the model said; `CAMList`: several, which show as one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from PIL import Image
from torch import Tensor

from .._draw.picture import Picture, picture
from .._run.words import map_note, prediction
from ..render import DEFAULT_ALPHA, DEFAULT_CMAP, Cell, grid, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CAM", "CAMList"]

# Pixels of a picture that stands alone in a notebook.
_ALONE = 384


@dataclass(repr=False)
class CAM:
    """A class activation map of one image, for one class at one layer.

    - `map`: the raw map, a float32 tensor `(h, w)` at the layer's resolution, in units of the score; on the CPU.
    - `image`: what the model saw, a PIL image.
    - `layer`: the layer's dotted name. `target`: the index of the class explained, `label`: its name.
    - `prob`: the probability of that class, 0…1. `pred`, `pred_prob`: the predicted class's name and probability.
    - `actual`: the image's label, and `loss`: its loss, where they are known. `name_layer`: whether pictures name the
      layer, because it was asked for. `notes`: what one should know about the map, if anything.

    In a notebook a `CAM` shows itself.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> cam = learn.gradcam(dls.valid_ds.items[0])
    >>> cam.label == cam.pred, 0 <= cam.prob <= 1
    (True, True)
    >>> cam.overlay(alpha=0.4).size
    (64, 64)
    >>> cam.save("cam.png").name
    'cam.png'
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
    notes: list[str] = field(default_factory=list)
    loss: float | None = None
    name_layer: bool = False

    def overlay(self, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP) -> Image.Image:
        """The image with the map over it, PIL, at the image's size: `(1 - alpha)·image + alpha·colour`.

        `cmap`: any of matplotlib's. An empty map gives the image as it is.
        """
        return picture(overlay(self.image, self.map.numpy(), alpha, cmap))

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
        return prediction(self.label, self.prob) or self.layer

    def save(self, path: str | Path, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP) -> Path:
        """Save the overlay as an image file, by the suffix of `path`, and return the path.

        Raises `ValueError` for a suffix that Pillow does not know.
        """
        path = Path(path)
        self.overlay(alpha, cmap).save(path)
        return path

    def _cell(self, several: bool = False) -> Cell:
        """How a grid shows this map, in the words of a run's grids: the label, the prediction, and what the map is of.

        `several`: whether the image has maps of several classes, each of which is named.
        """
        answer = prediction(self.pred, self.pred_prob)
        of = map_note(self.label, self.prob, self.pred, always=several)
        layer = f"layer {self.layer}" if self.name_layer else ""
        title, right = of or self.title(), None
        if self.actual is not None:
            loss = "" if self.loss is None else f"loss {self.loss:.2f}"
            title, right = " · ".join(filter(None, (self.actual, loss))), self.pred == self.actual
        elif answer:
            of, answer = "", f"predicted {answer}" if of else ""
        return Cell(self.image, self.map.numpy(), title, answer, right, " · ".join(filter(None, (of, layer))))

    def _repr_jpeg_(self) -> bytes:
        return CAMList([self]).grid(tile=_ALONE)._repr_jpeg_()

    def __repr__(self) -> str:
        size = "×".join(map(str, self.map.shape))
        return f"CAM({self.title()!r}, layer {self.layer!r}, map {size}, predicted {self.pred!r})"


@dataclass(repr=False)
class CAMList(Sequence[CAM]):
    """Several `CAM`s, which show as one grid; `columns` says how many stand side by side, `tile` how large.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> cams = learn.gradcam(dls.valid_ds.items[:3])
    >>> [cam.image.size for cam in cams]
    [(64, 64), (64, 64), (64, 64)]
    >>> cams.save("cams.png").name
    'cams.png'
    """

    cams: list[CAM] = field(default_factory=list)
    columns: int | None = None
    tile: int = 208

    @overload
    def __getitem__(self, index: int) -> CAM: ...

    @overload
    def __getitem__(self, index: slice) -> CAMList: ...

    def __getitem__(self, index: int | slice) -> CAM | CAMList:
        return CAMList(self.cams[index], self.columns, self.tile) if isinstance(index, slice) else self.cams[index]

    def __len__(self) -> int:
        return len(self.cams)

    def grid(self, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP, tile: int | None = None) -> Picture:
        """All maps as one labelled PIL image, RGB, each at most `tile` pixels high and wide; `alpha`, `cmap` as in
        `CAM`.
        """
        classes: dict[int, set[str | None]] = {}
        for cam in self.cams:
            classes.setdefault(id(cam.image), set()).add(cam.label)
        cells = [cam._cell(several=len(classes[id(cam.image)]) > 1) for cam in self.cams]
        return picture(grid(cells, "", self.columns, tile or self.tile, alpha, cmap))

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

    def _repr_jpeg_(self) -> bytes:
        return self.grid()._repr_jpeg_()

    def __repr__(self) -> str:
        return "[" + ",\n ".join(map(repr, self.cams)) + "]"
