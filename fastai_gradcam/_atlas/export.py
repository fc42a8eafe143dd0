"""An atlas for other tools: a FiftyOne dataset, a dataframe for Spotlight, a table for Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from ..atlas import Atlas

__all__ = ["to_fiftyone", "to_spotlight", "to_wandb"]


def to_spotlight(atlas: Atlas) -> pd.DataFrame:
    """`atlas.table` with each image's `habit` and the path of its `image` file: `spotlight.show(to_spotlight(atlas))`.

    The path is the source's where the data set is of files, and empty where it is not.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> import fastai_gradcam.learner
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> with learn.no_bar():
    ...     atlas = learn.gradcam_atlas(judge=False)
    >>> from fastai_gradcam.atlas import to_spotlight
    >>> to_spotlight(atlas)[["habit", "image"]].shape == (len(atlas.table), 2)
    True
    """
    root = Path(atlas.plan.root or ".")
    files = [root / name for name in atlas.table["name"]]
    paths = [str(file) if file.is_file() else "" for file in files]
    return atlas.table.assign(habit=atlas.habits.habit, image=paths)


def to_fiftyone(atlas: Atlas, name: str | None = None) -> Any:
    """A FiftyOne dataset of the images that are files, with label, prediction, habit and the map as a heatmap field.

    Needs `pip install fiftyone`.

    >>> from fastai_gradcam.atlas import Atlas, to_fiftyone
    >>> dataset = to_fiftyone(Atlas("fish/gradcam/all fish"))  # doctest: +SKIP
    """
    import fiftyone as fo

    dataset = fo.Dataset(name)
    samples = []
    for row, map in zip(to_spotlight(atlas).itertuples(), atlas.maps(), strict=True):
        if row.image:
            sample = fo.Sample(filepath=row.image, loss=float(row.loss), habit=int(row.habit))
            sample["ground_truth"] = fo.Classification(label=str(row.label))
            sample["prediction"] = fo.Classification(label=str(row.pred), confidence=float(row.pred_prob))
            sample["gradcam"] = fo.Heatmap(map=map, range=[0.0, max(float(map.max()), 1e-12)])
            samples.append(sample)
    dataset.add_samples(samples)
    return dataset


def to_wandb(atlas: Atlas) -> Any:
    """A `wandb.Table` with a row per image, its habit, and the pictures of typical ones: `run.log({"atlas": …})`.

    Needs `pip install wandb`.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> import fastai_gradcam.learner
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> with learn.no_bar():
    ...     atlas = learn.gradcam_atlas(judge=False)
    >>> from fastai_gradcam.atlas import to_wandb
    >>> len(to_wandb(atlas).data) == len(atlas.table)
    True
    """
    import wandb

    shown = set(atlas.shown)
    rows = atlas.table.astype(object).assign(habit=atlas.habits.habit)
    pictures = [wandb.Image(atlas.image(i)) if i in shown else None for i in rows["index"]]
    return wandb.Table(dataframe=rows.assign(picture=pictures))
