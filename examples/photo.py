"""A pretrained torchvision network on one photo: what it sees, and where, for the classes that you choose.

python examples/photo.py photo.jpg
python examples/photo.py dog_and_cat.png --arch squeezenet1_1 --classes "bull mastiff" "tiger cat"
"""

import argparse
import sys

import torch
from PIL import Image
from torchvision import models

from fastai_gradcam import gradcam
from fastai_gradcam.render import Cell, grid, overlay

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photo")
parser.add_argument("--arch", default="resnet34")
parser.add_argument("--classes", nargs="*", default=["bull mastiff", "tiger cat"], help="ImageNet classes to explain")
parser.add_argument("--out", default="photo-gradcam.png")
args = parser.parse_args()

weights = models.get_model_weights(args.arch).DEFAULT
model = models.get_model(args.arch, weights=weights).eval()
names = weights.meta["categories"]
unknown = [c for c in args.classes if c not in names]
if unknown:
    sys.exit(f"ImageNet has no class {unknown[0]!r}; it has, for instance: {', '.join(names[200:300:20])}.")

photo = Image.open(args.photo).convert("RGB")
# The weights' own transforms crop to the centre; here the whole photo is looked at, whatever its shape.
mean, std = (torch.tensor(weights.transforms().__dict__[k])[:, None, None] for k in ("mean", "std"))
small = photo.resize((224, 224), Image.Resampling.BILINEAR)
pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(224, 224, 3)
x = ((pixels.permute(2, 0, 1) / 255 - mean) / std)[None]

# The predicted class and the chosen ones, out of one forward pass.
with torch.no_grad():
    probs = model(x)[0].softmax(0)
best = int(probs.argmax())
print(f"predicted: {names[best]} ({probs[best]:.0%})")
classes = list(dict.fromkeys([best, *map(names.index, args.classes)]))
cams = gradcam(model, x, target=torch.tensor([classes]))

# On a map of 7×7 or 13×13 cells, the overlay is drawn at the photo's own size: 60 % photo, 40 % colour.
cells = [Cell(photo, None, "the photo", f"{photo.width}×{photo.height} pixels")]
for c, map in zip(classes, cams.maps[0][0].numpy()):
    cells.append(Cell(overlay(photo, map, alpha=0.4, cmap="jet"), None, names[c], f"{probs[c]:.1%}"))
    peak = divmod(int(map.argmax()), map.shape[1])
    down, across = ((at + 0.5) / cells for at, cells in zip(peak, map.shape))
    print(f"{names[c]}: {probs[c]:.1%}, looks most at {across:.0%} across, {down:.0%} down")
grid(cells, f"{args.arch}, layer {cams.layers[0]}", columns=len(cells), tile=max(photo.size)).save(args.out)
print("picture:", args.out)
