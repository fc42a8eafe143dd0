"""`learn.gradcam_atlas()`: makes an atlas, alone or as one of several processes; resumes where one was stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastai
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import num_distrib, rank_distrib
from fastcore.basics import patch
from PIL import Image
from torch import nn

from .._atlas.store import Plan, Store, checksum, image_file
from .._errors import GradCAMError, reason_of
from .._net.guard import undisturbed
from .._net.layers import unwrap
from .._net.shadow import shadow
from .._run.files import image_bytes, write_whole
from .._run.schema import now
from .._run.verdicts import write_table
from .._version import __version__
from .._watch.judging import in_words, judged, together
from ..atlas import Atlas
from ..methods import resolve_method
from .ahead import ahead, still
from .explain import resolve_layer, see
from .judging import judging_bar, judging_set
from .masks import Masks, finder
from .panel import of_one_process
from .sights import Sight, Viewer
from .tasks import task_of

__all__ = ["Making", "make_atlas", "replace_atlas"]

_SIDE = 160  # pixels of a kept picture


@dataclass
class Making:
    """The data that an atlas is made of.

    `loss`: default the learner's; `judge`: whether interventions are held, which take images of the
    validation set. `rank` of `world` processes.
    """

    learn: Learner
    folder: Path
    dl: Any = None
    layer: Any = None
    target: Any = "true"
    method: Any = "gradcam"
    masks: Masks = None
    judge: bool = True
    loss: Any = None
    rank: int = 0
    world: int = 1


@patch
def gradcam_atlas(
    self: Learner,
    dl: Any = None,
    path: str | Path | None = None,
    name: str | None = None,
    layer: Any = None,
    target: Any = "true",
    method: Any = "gradcam",
    resume: bool = False,
    masks: Masks = None,
    judge: bool = True,
) -> Atlas:
    """Where the model looks on every image of a loader: an `Atlas`, in a folder of its own.

    - `dl`: a labelled fastai loader; default the validation set. Training images are seen as in validation.
    - `path`: the folder of runs (default `learn.path/"gradcam"`); `name`: the atlas's folder in it (default: the
      time). `resume=True` goes on with the atlas of that name: parts that are there are kept.
    - `layer`, `target`, `method`, `masks`: as in `GradCAMCallback`, but one layer and one class for each image.
    - `judge`: whether interventions say what classes depend on, as `learn.gradcam_judge` does, by 200 of the
      images.

    One pass over the loader; prediction, loss and map come from the same look, and memory does not grow with the
    number of images. Under `torchrun` or `accelerate launch` each process makes the parts of its number, and whoever
    finds all parts there finishes the atlas; `name` is needed then. Nothing about the learner changes. Raises
    `GradCAMError` for settings that do not fit the learner, before the pass, and for a name that exists.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> import fastai_gradcam.learner
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> learn = scratch_learner(dls, resnet18, path=path)
    >>> with learn.no_bar():
    ...     atlas = learn.gradcam_atlas(name="all fish", judge=False)
    >>> len(atlas.table), atlas.mean_map(atlas.labels[0]).shape
    (7, (2, 2))
    """
    rank, world = rank_distrib(), max(1, num_distrib())
    folder = _folder(self, path, name, resume, world)
    make_atlas(Making(self, folder, dl, layer, target, method, masks, judge, rank=rank, world=world), resume)
    return Atlas(folder)


def _folder(learn: Learner, path: str | Path | None, name: str | None, resume: bool, world: int) -> Path:
    if name is not None and (not name or Path(name).name != name or name in (".", "..")):
        raise GradCAMError(f"name must be the name of one folder, got {name!r}.")
    if name is None and (resume or world > 1):
        why = "resume=True" if resume else f"An atlas by {world} processes"
        raise GradCAMError(f"{why} needs the name= of the atlas.")
    parent = Path(path) if path is not None else Path(learn.path) / "gradcam"
    return parent / (name or time.strftime("atlas-%Y-%m-%d_%H-%M-%S"))


def make_atlas(making: Making, resume: bool = False) -> None:
    "The share of this process, and what is left to do if all parts are there then. Raises as `gradcam_atlas`."
    learn, store = making.learn, Store(making.folder)
    with undisturbed(), judging_bar(learn, "atlas") as bar:
        viewer = _viewer(making)
        plan = _plan(making, viewer)
        mine = range(making.rank, plan.parts, making.world)
        # Parts of another process that has begun already are no reason to refuse.
        if not resume and ((making.folder / "atlas.json").exists() or any(map(store.has, mine))):
            raise GradCAMError(f"There is an atlas in {str(making.folder)!r}: resume=True goes on with it.")
        store.begin(plan)
        _parts(viewer, store, plan, [k for k in mine if not store.has(k)], bar)
    if all(map(store.has, range(plan.parts))):
        _finish(making, viewer, store, plan)


def _viewer(making: Making) -> Viewer:
    learn = making.learn
    resolve_method(making.method)
    layers = None if making.layer is None else resolve_layer(learn, making.layer)
    asked = making.dl if making.dl is not None else learn.dls.valid
    dl = still(learn, of_one_process(DataLoaders(asked)).loaders[0])
    loss = making.loss if making.loss is not None else learn.loss_func
    task, net = task_of(of_one_process(learn.dls), loss), shadow(unwrap(making.learn.model))
    task.listen(net)
    masks = making.masks
    find = None if masks is None or isinstance(masks, (list, tuple)) else finder(masks)
    return Viewer(learn, net, task, dl, task.loss, layers, making.target, making.method, find)


def _plan(making: Making, viewer: Viewer) -> Plan:
    "The plan; a look at the first image finds the layer and the size of the maps, and whatever does not fit."
    dl, learn = viewer.dl, making.learn
    viewer.see(next(ahead(dl.new(bs=1, num_workers=0), [0])), range(1))
    n, arch = len(dl.dataset), getattr(learn, "arch", None)
    weights = (t.detach().cpu().contiguous().numpy() for t in _tensors(making.learn.model))
    return Plan(
        images=n,
        part=Plan.part_for(n, dl.bs),
        bs=dl.bs,
        layer=(viewer.layer or [""])[0],
        space=list(viewer.space or ()),
        target=str(getattr(making.target, "__name__", making.target)),
        method=str(getattr(making.method, "__name__", making.method)),
        weights=checksum(w.tobytes() for w in weights),
        data=checksum(viewer.name(i).encode("utf-8", "replace") for i in range(n)),
        root=None if getattr(learn.dls, "path", None) is None else str(Path(learn.dls.path).resolve()),
        vocab=viewer.task.vocab,
        arch=getattr(arch, "__name__", None) or (arch if isinstance(arch, str) else None),
    )


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    # numpy has no bfloat16.
    each = [t for t in unwrap(model).state_dict().values() if isinstance(t, torch.Tensor)]
    return [t.float() if t.dtype == torch.bfloat16 else t for t in each]


def _parts(viewer: Viewer, store: Store, plan: Plan, todo: list[int], bar: Callable[[float], None] | None) -> None:
    "The parts `todo`, in one pass over their images."
    indices = [i for k in todo for i in plan.indices(k)]
    batches = ahead(viewer.dl, indices) if indices else iter(())
    at, seen = 0, 0
    kept: list[Sight] = []
    for batch in batches:
        start = plan.indices(todo[at])[sum(map(len, kept))]
        stop = min(start + plan.bs, plan.indices(todo[at]).stop)
        kept.append(viewer.see(batch, range(start, stop)))
        seen += stop - start
        if bar is not None:
            bar(seen / len(indices))
        if stop == plan.indices(todo[at]).stop:
            part = Sight.joined(kept)
            store.write(todo[at], part.rows, part.maps, part.features)
            at, kept = at + 1, []


def _finish(making: Making, viewer: Viewer, store: Store, plan: Plan) -> None:
    "The interventions, the pictures of typical images, and the manifest."
    notes = _judge(making, viewer) if making.judge else []
    with undisturbed():
        for index in Atlas(making.folder).shown:
            file = making.folder / image_file(index)
            if not file.exists():
                image = see(making.learn, viewer.dl, index, viewer.name(index)).image
                image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                write_whole(file, image_bytes(image, "JPEG", quality=82))
    versions = {"fastai_gradcam": __version__, "fastai": fastai.__version__, "torch": torch.__version__}
    parts = plan.parts
    store.finish({"images": plan.images, "parts": parts, "created": now(), "notes": notes, "versions": versions})


def _judge(making: Making, viewer: Viewer) -> list[str]:
    "Holds the interventions into the folder; notes, where that cannot be done."
    learn, folder = making.learn, making.folder
    try:
        with undisturbed(), judging_bar(learn) as bar:
            images = judging_set(learn, masks=making.masks, dl=viewer.dl)
            verdicts = judged(unwrap(making.learn.model), images, viewer.layer, making.method, progress=bar)
    except GradCAMError as error:
        return [f"Nothing was judged. {error}"]
    except MemoryError as error:
        return [f"Nothing was judged: {reason_of(error)}."]
    (folder / "patches").mkdir(exist_ok=True)
    rows = [
        {"index": images.indices[t.source], "label": verdicts.names[t.label], "test": t.test}
        | {"effect": int(t.effect), "control": int(t.control)}
        for t in verdicts.outcomes.trials
    ]
    write_table(folder, "trials", rows)
    verdicts.save(folder, images.picture)
    rows = together(verdicts)
    return [in_words(rows, "patches/")] if rows else []


def replace_atlas(making: Making) -> None:
    "An atlas of the model as it is now; one of an earlier fit in the same folder is removed."
    shutil.rmtree(making.folder, ignore_errors=True)
    make_atlas(making)
