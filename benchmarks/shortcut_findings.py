"""The findings of the version before judging for one model; `shortcut_peers.py` runs it with that version.

python benchmarks/shortcut_findings.py FOLDER   # with net.pt, and valid/LABEL/*.png, all of one size

Prints `[kind, label, severity]` of each finding as JSON, in the last line. The panel has 64 validation pictures, spread
over the classes, because some findings need three of a class that agree; there are no masks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from fastai.vision.all import (
    Callback,
    CancelTrainException,
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    ImageBlock,
    Learner,
    Normalize,
    get_image_files,
    imagenet_stats,
    parent_label,
)

from fastai_gradcam import GradCAMCallback


class NoSteps(Callback):
    "An epoch that trains nothing, so that its frame shows the model as it is."

    order = GradCAMCallback.order + 1

    def before_train(self) -> None:
        raise CancelTrainException


def main(folder: Path) -> None:
    net, names = torch.load(folder / "net.pt", weights_only=False)
    block = DataBlock(
        (ImageBlock, CategoryBlock(vocab=names, sort=False)),
        get_items=get_image_files,
        get_y=parent_label,
        splitter=lambda items: (range(len(items)), range(len(items))),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    dls = block.dataloaders(folder / "valid", bs=32, num_workers=0, device="cpu")
    watching = GradCAMCallback(n=64, path=folder, name="run", show=False, on_error="raise")
    learn = Learner(dls, net, CrossEntropyLossFlat(), cbs=[watching, NoSteps()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    found = watching.run.findings()
    print(json.dumps([[row.kind, row.label, float(row.severity)] for row in found.itertuples()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
