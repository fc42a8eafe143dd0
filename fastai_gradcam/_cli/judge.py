"""`fastai-gradcam judge`: what each class of an exported learner depends on, tried on a folder of images."""

from __future__ import annotations

import json
import random
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fastai.data.transforms import parent_label
from fastai.learner import Learner
from torch import Tensor

from .._errors import GradCAMError, one_of
from .._fastai.explain import resolve_layer, see_item
from .._fastai.items import loader_of
from .._fastai.judging import drawn_by, judged_task, stacked
from .._net.layers import unwrap
from .._run.words import brief
from .._watch.choose import spread
from .._watch.judging import BATCH, JudgingSet, in_words, judged, together
from ..judge import Verdicts, interventions
from ..methods import resolve_method
from .explain import load
from .folders import check_writable, read_folder
from .terminal import columns, progress

__all__ = ["run_judge"]


def run_judge(options: Namespace) -> int:
    if not options.learner.is_file():
        raise GradCAMError(f"There is no learner file {str(options.learner)!r}.")
    if options.n < 1:
        raise GradCAMError(f"--n must be a number of images from 1 up, got {options.n}.")
    for name in options.test or ():
        if name not in interventions:
            raise GradCAMError(one_of("test", name, list(interventions)))
    resolve_method(options.method)
    check_writable(options.out)
    folder = read_folder(options.data, options.seed)
    learn = load(options.learner)
    images = folder_set(learn, folder.held_out, options.n, options.seed)
    layer = None if options.layer is None else resolve_layer(learn, options.layer)[-1:]
    asked = {"tests": options.test, "seed": options.seed}
    with progress(100) as advance:
        verdicts = judged(
            unwrap(learn.model),
            images,
            layer,
            options.method,
            progress=lambda share: advance(int(100 * share)),
            **asked,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    verdicts.save(options.out, images.picture)
    for sentence in verdicts.left_out.values():
        print(sentence, file=sys.stderr)
    if options.json:
        for row in verdicts.table.to_dict("records") + together(verdicts):
            print(json.dumps({k: None if v != v else v for k, v in row.items()}, ensure_ascii=False))
    else:
        print("\n".join(_conclusion(verdicts, options.out)))
    return 0


def folder_set(learn: Learner, files: Sequence[Path], n: int, seed: int) -> JudgingSet:
    """`n` of `files`, each class as often as any other. Raises `GradCAMError` for a folder that is none of its classes,
    or a learner that cannot be judged.
    """
    vocab = judged_task(learn).vocab or []
    for label in dict.fromkeys(map(parent_label, files)):
        if label not in vocab:
            raise GradCAMError(one_of("class", label, vocab))
    chosen = [files[i] for i in spread(len(files), lambda i: parent_label(files[i]), n, seed)]
    # Images of one batch lend each other content, so they must not come class by class.
    random.Random(seed).shuffle(chosen)

    def data() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            x = stacked(learn, [see_item(learn, file) for file in part])
            yield x, torch.tensor([vocab.index(parent_label(file)) for file in part])

    return JudgingSet(data, vocab, drawn_by(loader_of(learn.dls, files[0])))


def _conclusion(verdicts: Verdicts, out: Path) -> Iterator[str]:
    "The table of the strongest test of each class, and where the rest is."
    rows = verdicts.table.assign(excess=verdicts.table["effect"] - verdicts.table["control"])
    named = rows["verdict"] == "shortcut"
    best = rows.assign(named=named).sort_values(["named", "excess"], ascending=False).drop_duplicates("label")
    lines: list[tuple[Any, ...]] = [("class", "test", "images", "effect", "control", "verdict")]
    for r in best.itertuples():
        lines.append((brief(r.label, 40), r.test, str(r.images), _per_cent(r.effect), _per_cent(r.control), r.verdict))
    yield f"judged by {verdicts.images} images; the strongest test of each class:"
    yield columns(lines)
    rows = together(verdicts)
    if rows:
        yield in_words(rows, "the patches")
    yield f"table:   {out / 'verdicts.csv'}"
    if rows or len(verdicts.shortcuts):
        yield f"patches: {out / 'patches'}"


def _per_cent(share: float) -> str:
    return "" if share != share else f"{share:.0%}".rjust(4)
