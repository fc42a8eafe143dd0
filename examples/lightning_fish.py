"""Which part of a fish tells its species? A resnet18 in a Lightning Trainer, watched epoch by epoch.

python examples/lightning_fish.py                      draws a small fish set and trains on it
python examples/lightning_fish.py path/to/Fish_Dataset  Kaggle's "A Large Scale Fish Dataset", the same layout

Needs lightning: pip install "fastai_gradcam[lightning]"
"""

import argparse
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, random_split
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from fastai_gradcam.demo import make_fish
from fastai_gradcam.lightning import GradCAMCallback

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", help="the fish set (default: draw one)")
parser.add_argument("--out", default="lightning-fish", help="folder for pictures and runs")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--size", type=int, default=128)
parser.add_argument("--per-species", type=int, default=40, help="fish to draw of each species")
args = parser.parse_args()


class Fish(L.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.net = models.resnet18(num_classes=classes)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        out = self(x)
        self.log_dict({"valid_loss": F.cross_entropy(out, y), "accuracy": (out.argmax(1) == y).float().mean()})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


out = Path(args.out)
path = Path(args.data) if args.data else make_fish(out / "images", per_species=args.per_species)
steps = [
    transforms.Resize((args.size, args.size)),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
]
# <Species>/<Species>/00001.png is an image, <Species>/<Species> GT/00001.png the mask of its fish.
data = ImageFolder(
    path, transforms.Compose(steps), is_valid_file=lambda file: not Path(file).parent.name.endswith(" GT")
)

L.seed_everything(42)
train, valid = random_split(data, [0.8, 0.2])
watch = GradCAMCallback(n=9)
trainer = L.Trainer(max_epochs=args.epochs, callbacks=[watch], default_root_dir=out, logger=False, accelerator="auto")
trainer.fit(Fish(len(data.classes)), DataLoader(train, 32, shuffle=True), DataLoader(valid, 32))

run = watch.run
print(run.history.groupby("frame")[["prob", "entropy"]].mean())
print("report:", run.path / "report.html")
