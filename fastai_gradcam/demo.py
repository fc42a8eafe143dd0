"""The embedded fish set: draws it from a seed in the layout of Kaggle's fish set, reads it, and learns from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._errors import GradCAMError
from ._fish.drawing import SPECIES
from ._fish.layout import fish_items, fish_label, fish_mask
from ._fish.scene import draw

if TYPE_CHECKING:
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

__all__ = [
    "PER_SPECIES",
    "RECIPE",
    "fish_items",
    "fish_label",
    "fish_mask",
    "make_fish",
    "recipe",
    "scratch_learner",
    "species",
]

PER_SPECIES = 40
# `layer` 5 of a resnet has 14 × 14 cells at this size; the last one, 7, has 4 × 4, too few to tell a fish from its
# tray.
RECIPE: dict[str, Any] = {
    "size": 112,
    "bs": 16,
    "epochs": 5,
    "lr": 3e-3,
    "layer": 5,
    "augment": False,
    "scratch": {"epochs": 7, "lr": 4e-3},
}
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

species = tuple(sp.name for sp in SPECIES)


def recipe(arch: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that train `arch` well on the fish, from scratch too; those in `given` replace them.

    >>> from fastai_gradcam.demo import recipe
    >>> recipe("resnet34", {"epochs": 2})["epochs"], recipe("resnet34", {})["epochs"]
    (2, 5)
    """
    found = {k: v for k, v in RECIPE.items() if k != "layer" or arch in RESNETS}
    found["scratch"] = {k: v for k, v in RECIPE["scratch"].items() if k not in given}
    return {**found, **given}


def make_fish(
    path: str | Path,
    per_species: int = 40,
    seed: int = 0,
    size: int = 128,
    shortcut: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Path:
    """Draw the fish set below `path` and return `path`.

    Writes `per_species` square pictures of `size` pixels of each of the nine `species`, in the layout of Kaggle's
    "A Large Scale Fish Dataset": `<Species>/<Species>/00001.png` (RGB) and the mask of the fish,
    `<Species>/<Species> GT/00001.png` (8 bit, 255 on the fish, else 0). Files of the same names are overwritten.

    A picture depends on `seed`, its species, its number and `size` only: the same seed writes the same bytes, and a
    larger set begins with the smaller one. With `shortcut`, a coloured card lies somewhere beside the fish, with as
    many pips as the species' place in `species`; the rest of the picture is the same as without.
    `advance` is called with the number of pictures drawn so far. Raises `GradCAMError` for fewer than one picture and
    for fewer than 32 pixels.

    >>> from fastai_gradcam.demo import make_fish
    >>> path = make_fish("few fish", per_species=1, size=48)
    >>> sorted(p.name for p in path.iterdir())[:3]
    ['Black Sea Sprat', 'Gilt-Head Bream', 'Hourse Mackerel']
    """
    if per_species < 1:
        raise GradCAMError(f"per_species is {per_species}: a set needs at least 1 picture of each species")
    if size < 32:
        raise GradCAMError(f"size is {size}: a fish needs at least 32 pixels")
    path = Path(path)
    for k, name in enumerate(species):
        images, masks = path / name / name, path / name / f"{name} GT"
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        for i in range(1, per_species + 1):
            tag_rng = np.random.default_rng([seed, k, i, 1]) if shortcut else None
            image, mask = draw(k, np.random.default_rng([seed, k, i, 0]), tag_rng, size)
            image.save(images / f"{i:05d}.png", compress_level=1)
            mask.save(masks / f"{i:05d}.png", compress_level=1)
            if advance is not None:
                advance(k * per_species + i)
    return path


def scratch_learner(dls: DataLoaders, arch: str | Callable[..., Any], **kwargs: Any) -> Learner:
    """A `vision_learner` without pretrained weights, set up to learn from few pictures in few steps.

    Every residual block begins as the identity (Goyal et al. 2017, section 5.1), so that a deep network learns at
    first like a shallow one; the head is one linear layer without dropout; inputs are normalised; nothing is frozen.
    `kwargs` go to `vision_learner`. The examples use it where nothing may be downloaded.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=2, size=48)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, bs=4)
    >>> learn = scratch_learner(dls, resnet18)
    >>> all(p.requires_grad for p in learn.model.parameters())
    True
    """
    # Imported here: drawing fish needs no torch.
    from ._fastai.scratch import scratch_learner as build

    return build(dls, arch, **kwargs)
