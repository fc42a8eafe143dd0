"""`CAM`: a map with its image and what the model said; `CAMList`: several, which show as one grid."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from PIL import Image
from torch import Tensor

from ..render import DEFAULT_ALPHA, DEFAULT_CMAP, Cell, grid, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CAM", "CAMList"]


@dataclass(repr=False)
class CAM:
    """A class activation map of one image, for one class at one layer.

    - `map`: the raw map, a float32 tensor `(h, w)` at the layer's resolution, in units of the score; on the CPU.
    - `image`: what the model saw, a PIL image.
    - `layer`: the layer's dotted name. `target`: the index of the class explained, `label`: its name.
    - `prob`: the probability of that class, 0…1. `pred`, `pred_prob`: the predicted class's name and probability.
    - `actual`: the image's label, where it is known. `notes`: what one should know about the map, if anything.

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
    """Several `CAM`s, which show as one grid; `columns` says how many stand side by side.

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

    @overload
    def __getitem__(self, index: int) -> CAM: ...

    @overload
    def __getitem__(self, index: slice) -> CAMList: ...

    def __getitem__(self, index: int | slice) -> CAM | CAMList:
        return CAMList(self.cams[index], self.columns) if isinstance(index, slice) else self.cams[index]

    def __len__(self) -> int:
        return len(self.cams)

    def grid(self, alpha: float = DEFAULT_ALPHA, cmap: str = DEFAULT_CMAP, tile: int = 208) -> Image.Image:
        """All maps as one labelled PIL image, RGB, each at most `tile` pixels high and wide; `alpha`, `cmap` as in
        `CAM`.
        """
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


def _tile(image: Image.Image) -> int:
    return min(384, max(208, *image.size))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
