"""Small learners of every kind of data and loss, on the tests' folder of images."""

import torch
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, Learner, Resize, get_image_files
from fastcore.imports import noop
from torch import nn
from training import Quiet


def body(channels=3, out=8):
    return nn.Sequential(nn.Conv2d(channels, out, 3, 2, 1), nn.ReLU(), nn.Conv2d(out, out, 3, 2, 1), nn.ReLU())


def head(classes=3, features=8):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def net(classes=3, *ends, channels=3):
    "Seeded; `ends`: modules after the last layer. Its scores differ between images."
    torch.manual_seed(1)
    made = nn.Sequential(body(channels), nn.Sequential(*head(classes), *ends))
    with torch.no_grad():
        made[1][2].weight.mul_(20)
    return made


def label(file):
    return file.parent.name


def by_split(files):
    parts = [[i for i, f in enumerate(files) if f.parent.parent.name == part] for part in ("train", "valid")]
    return parts[0], parts[1]


def data(folder, blocks=(ImageBlock, CategoryBlock), get_y=label, **options):
    options = {"get_items": get_image_files, "splitter": by_split, "item_tfms": Resize(32), **options}
    block = DataBlock(blocks=blocks, get_y=get_y, **options)
    return block.dataloaders(folder, bs=4, num_workers=0, device=torch.device("cpu"))


def learner_of(dls, model, path, loss=None, cbs=None):
    with Quiet():
        learn = Learner(dls, model, loss_func=loss or nn.CrossEntropyLoss(), cbs=cbs, path=path)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = noop
    return learn


def output_for(learn, file):
    "The model's output for one file, as it stands."
    with torch.no_grad():
        x = learn.dls.test_dl([file], num_workers=0).one_batch()[0]
        return learn.model.eval()(x.as_subclass(torch.Tensor))
