"""`Atlas`: where a model looks on a whole data set, by class and by habit. Reads without torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ._atlas.classes import MapStatistics, statistics
from ._atlas.export import to_fiftyone, to_spotlight, to_wandb
from ._atlas.groups import class_table, group_table
from ._atlas.habits import Habits, find, places
from ._atlas.store import WORDS, Plan, Store, image_file
from ._errors import GradCAMError, GradCAMIndexError, one_of
from ._run.files import open_image
from ._run.verdicts import read_table
from .measures import similarity
from .report.atlas import write_atlas

__all__ = ["Atlas", "to_fiftyone", "to_spotlight", "to_wandb"]


class Atlas:
    """The atlas in the folder `path`, as `learn.gradcam_atlas` makes it. Raises `NoFileError` where there is none.

    Parts that are there when it is opened are read; `missing` names the others, and resuming makes them.

    - `.table`: a row per image: `index` (in the data set), `name`, `label`, `target` (the class explained), `prob`,
      `pred`, `pred_prob`, `correct`, `loss`, the numbers of `fastai_gradcam.measures`, and `peak`, the highest value
      of its map. Numbers that are not known are NaN.
    - `.classes`: a row per class: `label`, `images`, `accuracy`, `prob`, `spread` (0…1, the mean share of an image's
      attention that lies elsewhere than in the class's mean map), `border_share`, `mask_share`, and the `index` of
      its most `typical` and `atypical` images.
    - `.groups`: a row per class and habit, the most suspicious first. A habit is a group of the class's images for
      which the model looks at like things in like places: `images`, `share` of the class, `accuracy` and that of the
      `rest` of the class, `purity` (the share with the same prediction), `taken_for`, `apart` (the mean silhouette of
      the class's groups), `suspicion` (0…1), what interventions found (`verdict` of the class; `effect` and `control`
      of its strongest `test` in `trials` with this habit's images), `flagged`, `typical` and `text`.

    A habit is flagged only if interventions confirmed a shortcut of its class. By itself a group shows that images
    differ, not that something is wrong.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> import fastai_gradcam.learner
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> with learn.no_bar():
    ...     path = learn.gradcam_atlas(judge=False).path
    >>> atlas = Atlas(path)
    >>> len(atlas.table) == len(dls.valid_ds), atlas.missing
    (True, [])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._store = Store(self.path)
        self._plan = self._store.plan()
        self._parts = [k for k in range(self._plan.parts) if self._store.has(k)]

    def __repr__(self) -> str:
        left = f", {len(self.missing)} of {self._plan.parts} parts missing" if self.missing else ""
        return f"Atlas({str(self.path)!r}, {self._plan.images} images{left})"

    @property
    def plan(self) -> Plan:
        "The settings of the atlas: layer, target, method, vocabulary, how images are dealt to parts."
        return self._plan

    @property
    def missing(self) -> list[int]:
        "The numbers of the parts that were not there when the atlas was opened."
        return [k for k in range(self._plan.parts) if k not in set(self._parts)]

    @property
    def notes(self) -> list[str]:
        "Notes to read, such as why nothing was judged."
        left = len(self.missing)
        gaps = [f"{left} of {self._plan.parts} parts are missing; resume=True makes them."] if left else []
        return gaps + list((self._store.manifest() or {}).get("notes", []))

    # --- tables

    @cached_property
    def table(self) -> pd.DataFrame:
        if not self._parts:
            raise GradCAMError(f"The atlas {str(self.path)!r} has no part yet.")
        table = pd.concat([self._store.rows(k) for k in self._parts], ignore_index=True)
        for name in WORDS[1:]:
            table[name] = table[name].astype("category")
        table["correct"] = table["correct"].astype("boolean")
        return table

    @cached_property
    def _codes(self) -> np.ndarray:
        "The class of each row; an image without a label has none."
        codes = pd.Categorical(self.table["label"].astype(str), self.labels).codes
        return codes.astype(np.int64)

    @property
    def labels(self) -> list[str]:
        "The classes that have images, in the order of the vocabulary."
        known = [label for label in self.table["label"].cat.categories if label]
        order = {label: i for i, label in enumerate(self._plan.vocab or [])}
        return sorted(known, key=lambda label: (order.get(label, len(order)), label))

    @cached_property
    def _statistics(self) -> MapStatistics:
        return statistics(lambda: self._store.each(self._parts), self._codes)

    @cached_property
    def habits(self) -> Habits:
        "The habit of each row of `.table`, and how far it is from that habit's centre."
        return find(lambda: self._store.each(self._parts), self._codes)

    @cached_property
    def places(self) -> np.ndarray:
        "Where each row lies in the page's scatter, `(N, 2)` in 0…1: near those where the model does the like."
        return places(lambda: self._store.each(self._parts), len(self.table))

    @cached_property
    def classes(self) -> pd.DataFrame:
        return class_table(self.table, self.labels, self._statistics)

    @cached_property
    def groups(self) -> pd.DataFrame:
        return group_table(self.table, self.labels, self.habits, self.verdicts, self.trials)

    @property
    def verdicts(self) -> pd.DataFrame:
        "The verdicts of interventions, as `learn.gradcam_judge` gives it; without rows where nothing was judged."
        return read_table(self.path)

    @property
    def trials(self) -> pd.DataFrame:
        "Each intervention: `index` (the image whose class is tested), `label`, `test`, `effect`, `control`."
        return read_table(self.path, "trials")

    # --- images and maps

    def mean_map(self, label: str) -> np.ndarray:
        """The mean map of a class, float32 `(h, w)`: each image's map counts alike, and the cells add up to 1.

        Raises `GradCAMError` for a class without images.
        """
        if label not in self.labels:
            raise GradCAMError(one_of("class", label, self.labels))
        return self._statistics.mean[self.labels.index(label)]

    def map(self, index: int) -> np.ndarray:
        """The raw map of image `index` of the data set, float32 `(h, w)`, kept in steps of half precision.

        Raises `GradCAMError` for an image whose part is missing.
        """
        k = index // self._plan.part
        if k not in self._parts or not 0 <= index < self._plan.images:
            raise GradCAMIndexError(f"There is no map of image {index}: the atlas has {len(self.table)} images.")
        at = index - self._plan.indices(k).start
        return self._store.arrays(k)[0][at].astype(np.float32) * np.float32(self._store.rows(k)["peak"].iloc[at])

    def maps(self) -> Iterator[np.ndarray]:
        "The raw maps of all rows of `.table`, in their order, as `map` gives them; read part after part."
        for k in self._parts:
            peaks = self._store.rows(k)["peak"].to_numpy()
            for map, peak in zip(self._store.arrays(k)[0], peaks, strict=True):
                yield map.astype(np.float32) * peak

    def image(self, index: int) -> Any:
        "The picture of image `index`, PIL, if it is a typical one; otherwise raises `GradCAMError`."
        return open_image(self.path / image_file(index))

    @cached_property
    def shown(self) -> list[int]:
        "The images whose pictures are kept: typical of habits and classes, least typical, and those with most loss."
        wanted = [list(t[:4]) for t in self.groups["typical"]] + [list(t[:2]) for t in self.classes["atypical"]]
        wanted.append(self.worst(12)["index"].tolist())
        return sorted({int(i) for some in wanted for i in some})

    def worst(self, k: int = 10) -> pd.DataFrame:
        "The rows of the `k` images with the highest loss; without losses, of the least probable explained classes."
        by, rising = ("loss", False) if self.table["loss"].notna().any() else ("prob", True)
        return self.table.dropna(subset=[by]).sort_values(by, ascending=rising, kind="stable").head(k)

    def compare(self, other: Atlas | str | Path) -> pd.DataFrame:
        """A row per class that both have: `label, images, other_images, accuracy, other_accuracy, similarity, changed`.

        `similarity`: the Pearson correlation of the mean maps, NaN where their sizes differ. `changed`: the share of
        images of the same name whose prediction is another, NaN without such images.
        """
        other = other if isinstance(other, Atlas) else Atlas(other)
        mine, theirs = (a.classes[["label", "images", "accuracy"]] for a in (self, other))
        both = mine.merge(theirs.rename(columns={"images": "other_images", "accuracy": "other_accuracy"}), on="label")
        both["similarity"] = [float(similarity(self.mean_map(c), other.mean_map(c))) for c in both["label"]]
        said = [a.table[["name", "label", "pred"]].astype(str) for a in (self, other)]
        pairs = said[0].merge(said[1][["name", "pred"]], on="name", suffixes=("", "_other"))
        changed = (pairs["pred"] != pairs["pred_other"]).groupby(pairs["label"]).mean()
        return both.assign(changed=both["label"].map(changed).astype(float))

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page, one file that loads nothing, and return where it lies; default `atlas.html` in the folder.

        Classes with mean maps, habits with typical images, findings, and a scatter of up to 10,000 images. Pictures of
        other images are linked, not embedded, as far as the data set is of files.
        """
        return write_atlas(self, path)
