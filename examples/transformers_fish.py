"""Which part of a fish tells its species? A small vision transformer in a transformers Trainer, watched.

python examples/transformers_fish.py                      draws a small fish set and trains on it
python examples/transformers_fish.py path/to/Fish_Dataset  Kaggle's "A Large Scale Fish Dataset", the same layout

The network is made from a configuration, so nothing is downloaded. Needs transformers:
pip install "fastai_gradcam[transformers]"
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import random_split
from torchvision import transforms
from torchvision.datasets import ImageFolder
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from fastai_gradcam.demo import make_fish
from fastai_gradcam.transformers import GradCAMCallback

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", help="the fish set (default: draw one)")
parser.add_argument("--out", default="transformers-fish", help="folder for pictures and runs")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--size", type=int, default=96)
parser.add_argument("--per-species", type=int, default=40, help="fish to draw of each species")
args = parser.parse_args()

out = Path(args.out)
path = Path(args.data) if args.data else make_fish(out / "images", per_species=args.per_species)
steps = [transforms.Resize((args.size, args.size)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
# <Species>/<Species>/00001.png is an image, <Species>/<Species> GT/00001.png the mask of its fish.
data = ImageFolder(
    path, transforms.Compose(steps), is_valid_file=lambda file: not Path(file).parent.name.endswith(" GT")
)

set_seed(42)
train, valid = random_split(data, [0.8, 0.2])
config = ViTConfig(
    hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192,
    image_size=args.size, patch_size=args.size // 12,
    id2label=dict(enumerate(data.classes)), label2id={name: i for i, name in enumerate(data.classes)},
)  # fmt: skip


def collate(samples):
    return {"pixel_values": torch.stack([x for x, _ in samples]), "labels": torch.tensor([y for _, y in samples])}


def accuracy(predictions):
    return {"accuracy": float((predictions.predictions.argmax(1) == predictions.label_ids).mean())}


watch = GradCAMCallback(n=9)
trainer = Trainer(
    ViTForImageClassification(config),
    TrainingArguments(
        str(out), num_train_epochs=args.epochs, per_device_train_batch_size=32, learning_rate=1e-3,
        eval_strategy="epoch", logging_strategy="epoch", save_strategy="no", report_to=[], remove_unused_columns=False,
    ),
    train_dataset=train,
    eval_dataset=valid,
    data_collator=collate,
    compute_metrics=accuracy,
    callbacks=[watch],
)  # fmt: skip
trainer.train()

run = watch.run
print(run.history.groupby("frame")[["prob", "entropy"]].mean())
print("report:", run.path / "report.html")
