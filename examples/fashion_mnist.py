"""Plain PyTorch, no fastai learner: a network of three convolutions on Fashion-MNIST, explained at each of them.

python examples/fashion_mnist.py                                        downloads the data
python examples/fashion_mnist.py --data /usr/share/datasets/fashion-mnist  the folder of its four .gz files
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastai_gradcam import gradcam
from fastai_gradcam.render import Cell, grid

CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", help="folder with train-images-idx3-ubyte.gz and the other three (default: download)")
parser.add_argument("--out", default="fashion-mnist.png")
parser.add_argument("--images", type=int, default=12800, help="how many images to train on")
args = parser.parse_args()


def read(folder, kind):
    pixels = np.frombuffer(gzip.open(Path(folder) / f"{kind}-images-idx3-ubyte.gz").read(), np.uint8, offset=16)
    labels = np.frombuffer(gzip.open(Path(folder) / f"{kind}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
    return torch.tensor(pixels.reshape(-1, 1, 28, 28) / 255, dtype=torch.float32), torch.tensor(labels).long()


if args.data is None:
    from torchvision.datasets import FashionMNIST

    args.data = Path(FashionMNIST("fashion-mnist-data", download=True).raw_folder)

torch.manual_seed(0)
x, y = read(args.data, "train")
test_x, test_y = read(args.data, "t10k")

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
for start in range(0, args.images, 128):
    loss = F.cross_entropy(model(x[start : start + 128]), y[start : start + 128])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
model.eval()
with torch.no_grad():
    right = (model(test_x[:2000]).argmax(1) == test_y[:2000]).float().mean()
print(f"accuracy on 2,000 test images: {right:.0%}")

# One test image of each class, at the last, second-last and third-last convolution, in one pass.
some = torch.stack([test_x[(test_y == c).nonzero()[0, 0]] for c in range(10)])
cams = gradcam(model, some, layer=["8", "4", "0"])
probs = cams.output.softmax(1)
cells = []
for i in range(10):
    image = Image.fromarray((some[i, 0].numpy() * 255).astype(np.uint8))
    pred = int(probs[i].argmax())
    for name, maps in zip(("last", "second-last", "third-last"), cams.maps):
        words = f"{CLASSES[pred]} {probs[i, pred]:.0%}"
        cells.append(Cell(image, maps[i].numpy(), CLASSES[i], words, pred == i, f"{name} convolution"))
grid(cells, "Three convolutions on Fashion-MNIST: where each looks", columns=6, tile=140).save(args.out)
print("picture:", args.out)
