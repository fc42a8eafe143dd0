"""The layout of Kaggle's "A Large Scale Fish Dataset": where a picture lies, and where its mask."""

from __future__ import annotations

from pathlib import Path

__all__ = ["fish_items", "fish_label", "fish_mask"]


def fish_items(path: str | Path) -> list[Path]:
    """The pictures below `path` in the layout of the fish set, sorted, without the masks (folders that end in ` GT`).

    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish
    >>> path = make_fish("few fish", per_species=1, size=48)
    >>> len(fish_items(path)), fish_label(fish_items(path)[0])
    (9, 'Black Sea Sprat')
    """
    return sorted(o for o in Path(path).rglob("*.png") if not o.parent.name.endswith(" GT"))


def fish_label(item: str | Path) -> str:
    """The species in the picture `item`: the name of its folder.

    >>> from fastai_gradcam.demo import fish_label
    >>> fish_label("fish/Trout/Trout/00001.png")
    'Trout'
    """
    return Path(item).parent.name


def fish_mask(item: str | Path) -> Path | None:
    """The mask of the picture `item`, or `None` if it has none.

    >>> from fastai_gradcam.demo import fish_items, fish_mask, make_fish
    >>> path = make_fish("few fish", per_species=1, size=48)
    >>> fish_mask(fish_items(path)[0]).relative_to(path).as_posix()
    'Black Sea Sprat/Black Sea Sprat GT/00001.png'
    """
    item = Path(item)
    mask = item.parent.with_name(f"{item.parent.name} GT") / item.name
    return mask if mask.is_file() else None
