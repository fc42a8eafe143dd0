"""Inside Grad-CAM: VGG-16's `features[28]`, a convolution before an in-place ReLU, step by step.

Its activations, their gradients, the gradients' histogram, the map, and the map over the photo's edges.

    python examples/vgg16.py photo.jpg
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import models, transforms

from fastai_gradcam import Hook, HookBwd, gradcam
from fastai_gradcam.render import overlay

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photo")
parser.add_argument("--out", default="vgg16-gradcam.png")
args = parser.parse_args()

try:
    model = models.vgg16(weights="IMAGENET1K_V1").eval()
except Exception as error:
    print(f"no pretrained weights ({type(error).__name__}): random ones, whose map shows nothing but the arithmetic")
    torch.manual_seed(0)
    model = models.vgg16(weights=None).eval()

photo = ImageOps.fit(Image.open(args.photo).convert("RGB"), (224, 224))
prepare = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)
x = prepare(photo)[None]
layer = model.features[28]

with HookBwd(layer) as hookg, Hook(layer) as hook:
    output = model(x)
    target = int(output.argmax())
    output[0, target].backward()
activations, gradients = hook.stored[0], hookg.stored[0]
print("activations:", tuple(activations.shape), f"min {activations.min():.3f} (below zero: this is before the ReLU)")
print("gradients:", tuple(gradients.shape), f"from {gradients.min():.2e} to {gradients.max():.2e}")

weights = gradients.mean(dim=(1, 2))
map = (weights[:, None, None] * activations).sum(0).relu()
# The engine's own map is the same, from a pass that touches no parameter's gradient.
assert torch.allclose(map, gradcam(model, x, layer=layer, target=target).maps[0][0], rtol=1e-4, atol=1e-8)

name = models.VGG16_Weights.IMAGENET1K_V1.meta["categories"][target]
edges = ImageOps.invert(photo.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES))
edges = ImageOps.autocontrast(ImageOps.expand(ImageOps.crop(edges, 2), 2, 255), cutoff=1)
strongest = weights.abs().argsort(descending=True)[:2].tolist()

fig, axes = plt.subplots(2, 4, figsize=(14, 7.4), layout="constrained")
panels = axes.flat
for k in strongest:
    ax = next(panels)
    ax.imshow(activations[k], cmap="viridis")
    ax.set_title(f"activations, channel {k}")
for k in strongest:
    ax, top = next(panels), float(gradients[k].abs().max())
    ax.imshow(gradients[k], cmap="RdBu_r", vmin=-top, vmax=top)
    ax.set_title(f"gradients, channel {k}")
histogram = next(panels)
histogram.hist(gradients.flatten().numpy(), bins=80, color="#3b4cc0", log=True)
histogram.set_title("gradients, all channels")
histogram.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
heat = next(panels)
heat.imshow(map, cmap="inferno")
heat.set_title(f"map of “{name}”")
for picture, title in ((photo, "over the photo"), (edges.convert("RGB"), "over its edges")):
    ax = next(panels)
    ax.imshow(overlay(picture, map.numpy(), alpha=0.4, cmap="jet"))
    ax.set_title(title)
for ax in axes.flat:
    if ax is not histogram:
        ax.axis("off")
fig.savefig(args.out, dpi=80)
print("picture:", args.out, np.shape(photo))
