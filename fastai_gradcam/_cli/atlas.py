"""`fastai-gradcam atlas`: where an exported learner looks on a folder of images, by class and by habit."""

from __future__ import annotations

import json
from argparse import Namespace

from fastai.data.transforms import parent_label

from .. import learner as learner  # learn.gradcam_atlas
from .._errors import GradCAMError, one_of
from ..methods import resolve_method
from .explain import load
from .folders import check_writable, read_folder

__all__ = ["run_atlas"]


def run_atlas(options: Namespace) -> int:
    if not options.learner.is_file():
        raise GradCAMError(f"There is no learner file {str(options.learner)!r}.")
    resolve_method(options.method)
    check_writable(options.out)
    files = read_folder(options.data, options.seed).held_out
    learn = load(options.learner)
    vocab = list(map(str, learn.dls.vocab))
    for label in dict.fromkeys(map(parent_label, files)):
        if label not in vocab:
            raise GradCAMError(one_of("class", label, vocab))
    # The names of the images are those below the folder that was given.
    learn.dls.path = options.data
    dl = learn.dls.test_dl(files, with_labels=True)
    path, name = options.out.parent, options.out.name
    atlas = learn.gradcam_atlas(dl, path, name, options.layer, "true", options.method, options.resume)
    if atlas.missing:
        print(f"{atlas}: this process is done; the last one writes the page")
        return 0
    page, flagged = atlas.report(), int(atlas.groups["flagged"].sum())
    facts = {"atlas": str(atlas.path), "page": str(page), "images": len(atlas.table), "flagged": flagged}
    if options.json:
        print(json.dumps(facts | {"missing": atlas.missing}, ensure_ascii=False))
    else:
        print(
            f"{atlas.groups[['text']].head(5).to_string(index=False, header=False)}\natlas: {atlas.path}\npage:  {page}"
        )
    return 0
