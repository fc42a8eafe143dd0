"""The embedded fish set: draws it from a seed in the layout of Kaggle's fish set, and reads that layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ._fish.drawing import SPECIES
from ._fish.scene import draw

__all__ = [
    "PER_SPECIES",
    "RECIPE",
    "fish_items",
    "fish_label",
    "fish_mask",
    "make_fish",
    "recipe",
    "species",
]

PER_SPECIES = 40
# `layer` 5 of a resnet has 14 × 14 cells at this size; the last one, 7, has 4 × 4, too few to tell a fish from its tray.
RECIPE: dict[str, Any] = {
    "size": 112,
    "bs": 16,
    "epochs": 5,
    "lr": 3e-3,
    "layer": 5,
    "augment": False,
    "scratch": {"epochs": 7, "lr": 4e-3},
}
_OF_THE_RECIPE = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

species = tuple(sp.name for sp in SPECIES)


def recipe(arch: str, given: dict[str, Any]) -> dict[str, Any]:
    "What trains `arch` well on the fish, but with the settings `given`, from scratch, too."
    found = {k: v for k, v in RECIPE.items() if k != "layer" or arch in _OF_THE_RECIPE}
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
    `<Species>/<Species> GT/00001.png` (8 bit, 255 on the fish, else 0).
    A picture depends on `seed`, its species, its number and `size` only: the same seed writes the same bytes, and a
    larger set begins with the smaller one. With `shortcut`, a coloured card with as many pips as the species' place in
    `species` lies somewhere beside the fish; all else in the picture stays as it is without.
    Files of the same names are overwritten. `advance` is told how many pictures are drawn so far. Raises `ValueError`
    for fewer than one picture or less than 32 pixels.
    """
    if per_species < 1:
        raise ValueError(f"per_species is {per_species}: a set needs at least 1 picture of each species")
    if size < 32:
        raise ValueError(f"size is {size}: a fish needs at least 32 pixels")
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


def fish_items(path: str | Path) -> list[Path]:
    "The pictures below `path` in the layout of the fish set, sorted; masks (folders that end in ` GT`) are left out."
    return sorted(o for o in Path(path).rglob("*.png") if not o.parent.name.endswith(" GT"))


def fish_label(item: str | Path) -> str:
    "The species in the picture `item`: the name of its folder."
    return Path(item).parent.name


def fish_mask(item: str | Path) -> Path | None:
    "The mask of the picture `item`, or `None` where it has none."
    item = Path(item)
    mask = item.parent.with_name(f"{item.parent.name} GT") / item.name
    return mask if mask.is_file() else None
