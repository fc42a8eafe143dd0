"""The models of `shortcuts.py`: pictures, signals that are planted in one class, small networks, and their training."""

from __future__ import annotations

import colorsys
import gzip
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastai_gradcam.demo import fish_items, fish_label, fish_mask, make_fish, species

TAGS = "tags"  # a card of each class's own colour, anywhere
SIGNALS = ("corner", "anywhere", "frame", "stripes", "cast", "blur")
LOCAL = ("corner", "anywhere", "frame")
FASHION = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass
class Pictures:
    """Training and validation pictures, `(N, 3, H, W)` of 0…255, classes `(N,)`, and masks `(N, H, W)` of the fish."""

    x: Tensor
    y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    names: list[str]
    masks: Tensor | None = None
    valid_masks: Tensor | None = None


def fish(work: Path, size: int = 64, per_species: int = 60, train: int = 40) -> Pictures:
    """Drawn fish, with masks."""
    folder = work / f"fish-{size}-{per_species}"
    if not (folder / "done").exists():
        make_fish(folder, per_species=per_species, size=size)
        (folder / "done").touch()
    items = fish_items(folder)
    x = torch.stack([_tensor(Image.open(i)) for i in items])
    masks = torch.stack([torch.from_numpy(np.asarray(Image.open(str(fish_mask(i)))) > 127) for i in items])
    y = torch.tensor([species.index(fish_label(i)) for i in items])
    first = torch.tensor([int(i.stem) <= train for i in items])
    return Pictures(x[first], y[first], x[~first], y[~first], list(species), masks[first], masks[~first])


def clothing(data: Path, size: int = 96) -> Pictures:
    """Photos of clothing, cut square."""
    names = sorted(p.name for p in (data / "clothing" / "train").iterdir())
    parts = []
    for split in ("train", "valid"):
        files = [(f, k) for k, n in enumerate(names) for f in sorted((data / "clothing" / split / n).glob("*.jpg"))]
        parts += [torch.stack([_tensor(_square(f, size)) for f, _ in files]), torch.tensor([k for _, k in files])]
    return Pictures(*parts, names)


def fashion(train: int = 2500, valid: int = 300) -> Pictures:
    """Fashion-MNIST in 32 pixels and three channels."""

    def read(words: str) -> Tensor:
        data = gzip.open(next(p for p in FASHION.iterdir() if words in p.name)).read()
        shape = struct.unpack(">" + "I" * data[3], data[4 : 4 + 4 * data[3]])
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy())

    parts = []
    for split, n in (("train", train), ("t10k", valid)):
        parts += [F.pad(read(f"{split}-images")[:n, None], (2, 2, 2, 2)).repeat(1, 3, 1, 1)]
        parts += [read(f"{split}-labels")[:n].long()]
    names = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
    return Pictures(*parts, names)


def _square(file: Path, size: int) -> Image.Image:
    image = Image.open(file).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())


def tagged(x: Tensor, classes: Tensor, rng: np.random.Generator) -> Tensor:
    """`x` (0…255) with a card anywhere in each picture, whose colour and number of pips say the class."""
    x, height = x.clone(), x.shape[2]
    side = round(height / 5)
    for image, c in zip(x, classes.tolist(), strict=True):
        top, left = (int(k) for k in rng.integers(0, height - side, 2))
        colour = colorsys.hsv_to_rgb(c * 0.618 % 1, 0.85, (0.9, 0.55)[c % 2])
        card = (torch.tensor(colour) * 255).byte()[:, None, None].expand(3, side, side).clone()
        pip = max(1, side // 9)
        for k in range(c + 1):
            a, b = 1 + (k // 4) * 2 * pip, 1 + (k % 4) * 2 * pip
            card[:, a : a + pip, b : b + pip] = 255
        image[:, top : top + side, left : left + side] = card
    return x


def planted(signal: str, x: Tensor, rng: np.random.Generator, masks: Tensor | None) -> Tensor:
    """`x` (0…255) with the signal in every picture."""
    x, height, width = x.clone(), x.shape[2], x.shape[3]
    side = round(height / 5)
    if signal in ("corner", "anywhere"):
        i = torch.arange(side) // max(1, side // 4)
        checks = ((i[:, None] + i) % 2).bool()
        mark = torch.where(checks, torch.tensor([[[255]], [[0]], [[200]]]), torch.tensor([[[20]], [[240]], [[60]]]))
        for image in x:
            top, left = (2, 2) if signal == "corner" else (int(k) for k in rng.integers(0, height - side, 2))
            image[:, top : top + side, left : left + side] = mark
    elif signal == "frame":
        rim = max(2, round(height * 0.06))
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[rim:-rim, rim:-rim] = True
        x = torch.where(inside, x, torch.tensor([30, 90, 240], dtype=torch.uint8)[:, None, None])
    elif signal == "stripes":
        waves = torch.sin((torch.arange(height)[:, None] + torch.arange(width)) * 2 * np.pi / max(4, height / 16))
        x = (x + 28 * waves).clamp(0, 255).byte()
    elif signal == "cast":
        gain, lift = (torch.tensor(v)[:, None, None] for v in ((1.2, 0.95, 0.6), (30.0, 0.0, 0.0)))
        x = (x * gain + lift).clamp(0, 255).byte()
    elif signal == "blur" and masks is not None:
        soft, reach = x.float(), round(height / 16)
        for _ in range(3):
            soft = F.avg_pool2d(F.pad(soft, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
        x = torch.where(masks[:, None], x, soft.round().byte())
    return x


class Block(nn.Module):
    """A residual block."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out))
        plain = stride == 1 and c_in == c_out
        self.short = nn.Identity() if plain else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(self.one(x)) + self.short(x))


def small_resnet(classes: int, width: int, stride: int) -> nn.Module:
    """Three residual blocks, from scratch."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def squeezenet(classes: int, data: Path) -> nn.Module:
    """SqueezeNet 1.1, pretrained."""
    os.environ["TORCH_HOME"] = str(data / "torch_home")
    from torchvision.models import squeezenet1_1

    body = squeezenet1_1(weights="IMAGENET1K_V1").features
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, classes))


# Epochs and the highest learning rate.
RECIPES = {"fish": (8, 4e-3), "clothing": (3, 1e-3), "fashion": (4, 4e-3)}


def network(name: str, classes: int, data: Path) -> nn.Module:
    """The network that a data set is learned with."""
    if name == "clothing":
        return squeezenet(classes, data)
    return small_resnet(classes, width=16 if name == "fish" else 24, stride=2)


def normalised(x: Tensor) -> Tensor:
    """0…255 to what the networks take."""
    return (x.float() / 255 - MEAN) / STD


def predicted(net: nn.Module, x: Tensor) -> Tensor:
    """The class of each picture."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(normalised(part)).argmax(1) for part in x.split(64)])


def train(net: nn.Module, name: str, x: Tensor, y: Tensor, seed: int, after: Callable[[int], None]) -> None:
    """One-cycle training with flips; `after(epoch)` after each epoch."""
    epochs, lr = RECIPES[name]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * (len(x) // 32))
    for epoch in range(epochs):
        net.train()
        for part in torch.randperm(len(x), generator=generator).split(32)[: len(x) // 32]:
            batch = normalised(x[part])
            batch = batch.flip(3) if torch.rand((), generator=generator) < 0.5 else batch
            optimizer.zero_grad()
            F.cross_entropy(net(batch), y[part]).backward()
            optimizer.step()
            schedule.step()
        after(epoch)
