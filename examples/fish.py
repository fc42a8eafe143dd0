"""Which part of a fish tells its species? A resnet34 on the fish set, watched epoch by epoch.

python examples/fish.py                      draws a small fish set and trains on it
python examples/fish.py path/to/Fish_Dataset  Kaggle's "A Large Scale Fish Dataset", the same layout
"""

import argparse
from pathlib import Path

from fastai.vision.all import *

from fastai_gradcam import GradCAMCallback
from fastai_gradcam.demo import make_fish

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", help="the fish set (default: draw one)")
parser.add_argument("--out", default="fish-example", help="folder for pictures")
parser.add_argument("--arch", default="resnet34")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--size", type=int, default=128)
parser.add_argument("--per-species", type=int, default=40, help="fish to draw of each species")
parser.add_argument("--no-pretrained", action="store_true", help="for a machine without network")
args = parser.parse_args()

out = Path(args.out)
path = Path(args.data) if args.data else make_fish(out / "images", per_species=args.per_species)


# <Species>/<Species>/00001.png is an image, <Species>/<Species> GT/00001.png the mask of its fish.
def is_image(file):
    return not file.parent.name.endswith(" GT")


def mask_of(file):
    return file.parent.parent / f"{file.parent.name} GT" / file.name


dls = DataBlock(
    blocks=(ImageBlock, CategoryBlock),
    get_items=lambda path: get_image_files(path).filter(is_image),
    get_y=parent_label,
    splitter=RandomSplitter(0.2, seed=42),
    item_tfms=Resize(args.size),
    batch_tfms=aug_transforms(flip_vert=True),
).dataloaders(path, bs=32, num_workers=0)

learn = vision_learner(
    dls,
    globals()[args.arch],
    pretrained=not args.no_pretrained,
    metrics=accuracy,
    cbs=GradCAMCallback(masks=mask_of, path=out / "runs"),
)
learn.fine_tune(args.epochs)

run = learn.grad_cam.run
print(run.history.groupby("frame")[["prob", "mask_share"]].mean())
print("grids:", run.path / "frames")

# One image, over all layers of the body: edges first, then parts, then the fish.
image = dls.valid_ds.items[0]
learn.gradcam(image, layer="all").save(out / "layers.png")
print("layers:", out / "layers.png")
