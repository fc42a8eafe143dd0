"""The table of models: default layer found, its output's shape, whether the map is empty, whether captum agrees.

    python benchmarks/models.py                  # prints the table and writes it into docs/models.md
    python benchmarks/models.py --only vit       # the rows whose name contains a word, printed only

Random weights, three classes, one small image each; no network. Needs torchvision, timm and captum.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastai_gradcam import gradcam
from fastai_gradcam.layers import unwrap
from fastai_gradcam.targets import class_scores, main_output

DOC = Path(__file__).resolve().parent.parent / "docs" / "models.md"
MARK = "<!-- benchmarks/models.py -->"
CLASSES = 3


@dataclass
class Row:
    "One model of the table. `near`: how far captum's map may be, as a share of its largest value."

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    near: float = 1e-4
    dtype: torch.dtype = torch.float32


def rows() -> Iterator[Row]:
    "Every model of the table, made when its turn comes."
    yield from _torchvision()
    yield from _timm()
    yield from _fastai()
    yield from _forms()


def _torchvision() -> Iterator[Row]:
    import torchvision.models as zoo

    small = (3, 64, 96)
    sizes = {
        "resnet18": small, "resnext50_32x4d": small, "vgg11": small, "vgg11_bn": small, "densenet121": small,
        "squeezenet1_1": (3, 96, 160), "alexnet": (3, 96, 160), "googlenet": small, "inception_v3": (3, 107, 139),
        "mobilenet_v2": small, "mobilenet_v3_small": (3, 96, 160), "efficientnet_b0": small,
        "regnet_y_400mf": small, "shufflenet_v2_x0_5": small, "mnasnet0_5": small, "convnext_tiny": small,
        "swin_t": (3, 64, 128), "swin_v2_t": (3, 96, 64), "vit_b_32": (3, 224, 224), "maxvit_t": (3, 224, 224),
    }  # fmt: skip
    quick = ("googlenet", "inception_v3", "vgg11", "vgg11_bn")
    for name, shape in sizes.items():
        arguments = {"init_weights": False} if name in quick else {}
        yield Row(
            f"torchvision {name}",
            lambda name=name, arguments=arguments: getattr(zoo, name)(weights=None, num_classes=CLASSES, **arguments),
            shape,
        )


def _timm() -> Iterator[Row]:
    import timm

    fixed, free = (3, 224, 224), (3, 96, 64)
    sizes = {
        "resnet10t": free, "efficientnet_b0": free, "convnext_atto": free, "vit_tiny_patch16_224": fixed,
        "deit_tiny_patch16_224": fixed, "deit_tiny_distilled_patch16_224": fixed, "vit_wee_patch16_reg1_gap_256": (3, 256, 256),
        "swin_tiny_patch4_window7_224": fixed, "mobilevit_xxs": free, "mobilevitv2_050": free, "coatnet_pico_rw_224": fixed,
        "nfnet_l0": free, "xcit_nano_12_p16_224": fixed, "cait_xxs24_224": fixed, "mixer_s32_224": fixed,
    }  # fmt: skip
    for name, shape in sizes.items():
        yield Row(f"timm {name}", lambda name=name: timm.create_model(name, num_classes=CLASSES), shape)


def _fastai() -> Iterator[Row]:
    from fastai.vision.all import DynamicUnet, create_body, create_vision_model, resnet18, xresnet18

    yield Row("fastai xresnet18", lambda: xresnet18(n_out=CLASSES), (3, 64, 96))
    yield Row(
        "fastai vision_learner(resnet18)",
        lambda: create_vision_model(resnet18, CLASSES, pretrained=False),
        (3, 64, 96),
    )
    yield Row(
        "fastai unet_learner(resnet18)",
        lambda: DynamicUnet(create_body(resnet18(), 3, pretrained=False), CLASSES, (64, 96)),
        (3, 64, 96),
    )


def _forms() -> Iterator[Row]:
    from torchvision.models import resnet18

    net = lambda: resnet18(weights=None, num_classes=CLASSES)
    yield Row("nn.Sequential", lambda: _sequential(3), (3, 48, 64))
    yield Row("a class of one's own", _Own, (3, 48, 64))
    yield Row("one channel", lambda: _sequential(1), (1, 48, 64))
    yield Row("seven channels", lambda: _sequential(7), (7, 48, 64))
    yield Row("a signal (N, C, length)", _signal, (2, 128))
    yield Row("a volume (N, C, depth, h, w)", _volume, (1, 12, 32, 40))
    yield Row("one logit", lambda: _sequential(3, 1), (3, 48, 64))
    yield Row("resnet18 in DataParallel", lambda: nn.DataParallel(net()), (3, 64, 96))
    yield Row("resnet18 in torch.compile", lambda: torch.compile(net()), (3, 64, 96))
    yield Row("resnet18 in channels_last", lambda: net().to(memory_format=torch.channels_last), (3, 64, 96))
    yield Row("resnet18 in bfloat16", net, (3, 64, 96), 0.03, torch.bfloat16)
    yield Row("resnet18 in half", net, (3, 64, 96), 0.01, torch.float16)


def _sequential(channels: int, n_out: int = CLASSES) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, n_out),
    )


class _Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.stem(x).relu_()).relu_().mean((2, 3)))


def _signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, 2, 2),
        nn.ReLU(),
        nn.Conv1d(8, 8, 5, 2, 2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def _volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv3d(8, 8, 3, 2, 1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@dataclass
class Found:
    "What a row of the table says."

    layer: str
    shape: tuple[int, ...]
    map: tuple[int, ...]
    empty: bool
    captum: float
    near: float
    seconds: float

    @property
    def good(self) -> bool:
        return not self.empty and self.captum <= self.near


def look(row: Row) -> Found:
    "The default layer's maps for all classes, beside captum's gradients and activations at that layer."
    torch.manual_seed(0)
    model = row.make().eval()
    for p in model.parameters():
        if p.ndim > 1 and not p.any():  # a head that starts at zero explains nothing
            nn.init.normal_(p, std=0.02)
    model = model.to(row.dtype)
    x = torch.randn(1, *row.shape).to(row.dtype)
    began = time.perf_counter()
    classes = 2 if row.name == "one logit" else CLASSES
    made = gradcam(model, x, target=[list(range(classes))])
    seconds = time.perf_counter() - began
    maps, name = made.maps[0][0], made.layers[0]
    shape, theirs = _captum(unwrap(model), name, x, maps.shape[1:], classes)
    # The whole scale of all classes: where one class has nothing but noise, so may captum's.
    far = float((maps - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
    return Found(name, shape, tuple(maps.shape[1:]), not bool(maps.gt(0).any()), far, row.near, seconds)


def _captum(
    net: nn.Module, name: str, x: Tensor, space: tuple[int, ...], classes: int
) -> tuple[tuple[int, ...], Tensor]:
    "The shape of the layer's output, and Grad-CAM `(classes, *space)` from captum's gradients and activations."
    from captum._utils.gradient import compute_layer_gradients_and_eval

    module = dict(net.named_modules())[name]
    maps = []
    for c in range(classes):
        gradients, activations = compute_layer_gradients_and_eval(
            lambda x: class_scores(main_output(net(x))), module, x, c
        )
        G, A = (_to_space(t[0].detach().float(), space) for t in (gradients, activations))
        weights = G.flatten(2).mean(2)
        maps.append(torch.einsum("nc,nc...->n...", weights, A).relu()[0])
    return tuple(activations[0].shape), torch.stack(maps)


def _to_space(t: Tensor, space: tuple[int, ...]) -> Tensor:
    "By hand, from the shape of the map: channels first, channels last, or tokens of which the last are the grid."
    if tuple(t.shape[2:]) == tuple(space):
        return t
    if tuple(t.shape[1:-1]) == tuple(space):
        return t.movedim(-1, 1)
    cells = space[0] * space[1]
    return t[:, -cells:].transpose(1, 2).reshape(len(t), t.shape[2], *space)


def table(found: list[tuple[Row, Found | Exception]]) -> str:
    "A markdown table."
    lines = [
        "| model | input | default layer | its output | map | not empty | captum agrees |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, one in found:
        if isinstance(one, Exception):
            words = " ".join(str(one).split())[:120]
            lines.append(f"| {row.name} | {_times(row.shape)} | {type(one).__name__}: {words} | | | no | no |")
            continue
        agrees = "yes" if one.captum <= one.near else f"no ({one.captum:.1%} off)"
        lines.append(
            f"| {row.name} | {_times(row.shape)} | `{one.layer}` | {_times(one.shape[1:])} | {_times(one.map)} | "
            f"{'no' if one.empty else 'yes'} | {agrees} |"
        )
    return "\n".join(lines)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this word")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    found: list[tuple[Row, Found | Exception]] = []
    for row in rows():
        if args.only not in row.name:
            continue
        try:
            one: Found | Exception = look(row)
        except Exception as error:
            one = error
        found.append((row, one))
        print(
            row.name,
            one if isinstance(one, Exception) else f"{one.layer} {one.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    text = table(found)
    print(text)
    if not args.only and DOC.exists():
        before, _, rest = DOC.read_text().partition(MARK)
        _, _, after = rest.partition(MARK)
        DOC.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}")
    return 0 if all(isinstance(one, Found) and one.good for _, one in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
