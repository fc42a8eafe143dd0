"""A small network in the place of the resnets of documents and notebooks: their code runs as it is written."""

from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
from torch import nn


def small_resnet(weights=None, progress=True, classes=1000):
    "A resnet's parts under a resnet's names, each a hundredth of its size; whatever `weights`, from the same seed."
    from torchvision.models.resnet import BasicBlock

    def stage(into, out, stride):
        shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        return nn.Sequential(BasicBlock(into, out, stride, shortcut))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = OrderedDict(conv1=nn.Conv2d(3, 8, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(8), relu=nn.ReLU(True))
        parts["maxpool"] = nn.MaxPool2d(3, 2, 1)
        widths = [8, 8, 16, 24, 32]
        for i in range(4):
            parts[f"layer{i + 1}"] = stage(widths[i], widths[i + 1], 1 + (i > 0))
        parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(32, classes)}
        return nn.Sequential(parts)


@contextmanager
def small_networks():
    "`small_resnet` where fastai and torchvision have resnet18 and 34, nothing to download, and no worker processes."
    import fastai.vision.all
    import torchvision
    from fastai.vision.learner import model_meta
    from fastcore.foundation import defaults

    from fastai_gradcam.methods import methods

    known = dict(methods)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model_meta, small_resnet, {**model_meta[torchvision.models.resnet34], "cut": -3})
        for home in (fastai.vision.all, torchvision.models):
            for name in ("resnet18", "resnet34"):
                patch.setattr(home, name, small_resnet)
        patch.setattr(defaults, "cpus", 0)
        yield
    # A block may have registered one.
    for name in methods.keys() - known.keys():
        del methods[name]
