"""A training loop of one's own, watched: three convolutions on Fashion-MNIST, and no fastai.

python examples/plain_pytorch.py                                           downloads the data
python examples/plain_pytorch.py --data /usr/share/datasets/fashion-mnist  the folder of its four .gz files
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastai_gradcam import Watch

CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", help="folder with train-images-idx3-ubyte.gz and the other three (default: download)")
parser.add_argument("--out", default="fashion-mnist-runs", help="folder of runs")
parser.add_argument("--images", type=int, default=6400, help="how many images to train on")
parser.add_argument("--epochs", type=int, default=3)
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

# One test image of each class, looked at before training and after each epoch.
some = torch.stack([(test_y == c).nonzero()[0, 0] for c in range(10)])
with Watch(model, test_x[some], labels=test_y[some], vocab=CLASSES, path=args.out) as watch:
    for epoch in range(args.epochs):
        model.train()
        for part in torch.randperm(args.images).split(128):
            loss = F.cross_entropy(model(x[part]), y[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            right = (model(test_x[:2000]).argmax(1) == test_y[:2000]).float().mean()
        watch(epoch, {"train_loss": loss, "accuracy": right})
        print(f"epoch {epoch}: accuracy on 2,000 test images: {right:.0%}")

print(watch.run.history.groupby("frame")[["prob", "entropy"]].mean())
print("report:", watch.run.path / "report.html")
