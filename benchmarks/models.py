"""The table of models: whether the default layer is the one that a person chose, and its maps those of captum.

    python benchmarks/models.py                  # prints the table and writes it into docs/models.md
    python benchmarks/models.py --only vit       # the rows whose name contains a word, printed only
    python benchmarks/models.py --timm-families  # one small network of each family in timm, written there, too

Random weights, three classes, two small images each; no network. Needs torchvision, timm and captum. The answers
expected of a row (the layer, how its output is laid out, the map's size) were written by hand from the models' code.
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
from fastai_gradcam._net.layers import unwrap
from fastai_gradcam.targets import class_scores, main_output

DOC = Path(__file__).resolve().parent.parent / "docs" / "models.md"
MARK = "<!-- benchmarks/models.py -->"
CLASSES = 3


@dataclass
class Row:
    """One model of the table, and what is expected of it.

    `layer`: the default layer. `layout`: where channels and space lie in its output, `"C*"`, `"*C"`, or `"k+*C"` for
    one dimension of tokens of which the first k are no patches. `space`: the map's size. `near`: how far each map may
    be from captum's, as a share of its largest value. `learner`: makes the network that `vision_learner` would train.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layer: str
    space: tuple[int, ...]
    layout: str = "C*"
    near: float = 1e-4
    dtype: torch.dtype = torch.float32
    learner: Callable[[], nn.Module] | None = None


def rows() -> Iterator[Row]:
    "Every model of the table, made when its turn comes."
    yield from _torchvision()
    yield from _timm()
    yield from _fastai()
    yield from _forms()


def _torchvision() -> Iterator[Row]:
    import torchvision.models as zoo
    from fastai.vision.all import create_vision_model

    small, wide, photo = (3, 64, 96), (3, 96, 160), (3, 224, 224)
    expected = {
        "resnet18": (small, "layer4.1", (2, 3)),
        "resnext50_32x4d": (small, "layer4.2", (2, 3)),
        "vgg11": (small, "features", (2, 3)),
        "vgg11_bn": (small, "features", (2, 3)),
        "densenet121": (small, "features.norm5", (2, 3)),
        "squeezenet1_1": (wide, "classifier.1", (5, 9)),
        "alexnet": (wide, "features", (2, 4)),
        "googlenet": (small, "inception5b", (2, 3)),
        "inception_v3": ((3, 107, 139), "Mixed_7c", (2, 3)),
        "mobilenet_v2": (small, "features.18", (2, 3)),
        "mobilenet_v3_small": (wide, "features.12", (3, 5)),
        "efficientnet_b0": (small, "features.8", (2, 3)),
        "regnet_y_400mf": (small, "trunk_output.block4.block4-5", (2, 3)),
        "shufflenet_v2_x0_5": (small, "conv5", (2, 3)),
        "mnasnet0_5": (small, "layers", (2, 3)),
        "convnext_tiny": (small, "features.7.2", (2, 3)),
        "swin_t": ((3, 64, 128), "norm", (2, 4), "*C"),
        "swin_v2_t": ((3, 96, 64), "norm", (3, 2), "*C"),
        "vit_b_32": (photo, "encoder.layers.encoder_layer_11.ln_1", (7, 7), "1+*C"),
        "maxvit_t": (photo, "blocks.3.layers.1.layers.grid_attention", (7, 7)),
    }
    quick = ("googlenet", "inception_v3", "vgg11", "vgg11_bn")
    for name, (shape, *rest) in expected.items():
        arguments = {"init_weights": False} if name in quick else {}
        yield Row(
            f"torchvision {name}",
            lambda name=name, arguments=arguments: getattr(zoo, name)(weights=None, num_classes=CLASSES, **arguments),
            shape,
            *rest,
            learner=lambda name=name: create_vision_model(getattr(zoo, name), CLASSES, pretrained=False),
        )
    video = {
        "mc3_18": ((3, 8, 64, 64), "layer4.1", (8, 4, 4)),
        "swin3d_t": ((3, 8, 64, 64), "norm", (4, 2, 2), "*C"),
        "mvit_v1_b": ((3, 16, 224, 224), "blocks.15.norm1", (8, 7, 7), "1+*C"),
    }
    for name, (shape, *rest) in video.items():
        yield Row(
            f"torchvision {name}",
            lambda name=name: getattr(zoo.video, name)(weights=None, num_classes=CLASSES),
            shape,
            *rest,
        )


def _timm() -> Iterator[Row]:
    import timm
    from fastai.vision.all import create_timm_model

    fixed, free = (3, 224, 224), (3, 96, 64)
    expected = {
        "resnet10t": (free, "layer4.0", (3, 2)),
        "efficientnet_b0": (free, "bn2", (3, 2)),
        "convnext_atto": (free, "stages.3.blocks.1", (3, 2)),
        "vit_tiny_patch16_224": (fixed, "blocks.11.norm1", (14, 14), "1+*C"),
        "deit_tiny_patch16_224": (fixed, "blocks.11.norm1", (14, 14), "1+*C"),
        "deit_tiny_distilled_patch16_224": (fixed, "blocks.11.norm1", (14, 14), "2+*C"),
        "vit_wee_patch16_reg1_gap_256": ((3, 256, 256), "blocks.13", (16, 16), "1+*C"),
        "vit_base_patch16_siglip_224": (fixed, "norm", (14, 14), "0+*C"),
        "swin_tiny_patch4_window7_224": (fixed, "norm", (7, 7), "*C"),
        "mobilevit_xxs": (free, "final_conv.bn", (3, 2)),
        "mobilevitv2_050": (free, "stages.4.1.conv_proj.bn", (4, 2)),
        "coatnet_pico_rw_224": (fixed, "norm", (7, 7)),
        "nfnet_l0": (free, "final_conv", (3, 2)),
        "xcit_nano_12_p16_224": (fixed, "cls_attn_blocks.1.norm1", (14, 14), "1+*C"),
        "cait_xxs24_224": (fixed, "blocks_token_only.1.norm1", (14, 14), "1+*C"),
        "tnt_s_patch16_224": (fixed, "blocks.11.norm_out", (14, 14), "1+*C"),
        "coat_lite_tiny": (fixed, "serial_blocks4.1.norm1", (7, 7), "1+*C"),
        "mvitv2_small_cls": (fixed, "stages.3.blocks.1.norm1", (7, 7), "1+*C"),
        "crossvit_tiny_240": ((3, 240, 240), "blocks.2.fusion.1.norm1", (20, 20), "1+*C"),
        "mixer_s32_224": (fixed, "norm", (7, 7), "0+*C"),
    }
    for name, (shape, *rest) in expected.items():
        yield Row(
            f"timm {name}",
            lambda name=name: timm.create_model(name, num_classes=CLASSES),
            shape,
            *rest,
            learner=lambda name=name: create_timm_model(name, CLASSES, pretrained=False)[0],
        )


def _fastai() -> Iterator[Row]:
    from fastai.vision.all import DynamicUnet, create_body, create_vision_model, resnet18, xresnet18

    small = (3, 64, 96)
    yield Row("fastai xresnet18", lambda: xresnet18(n_out=CLASSES), small, "7.1", (2, 3))
    yield Row(
        "fastai vision_learner(resnet18)",
        lambda: create_vision_model(resnet18, CLASSES, pretrained=False),
        small,
        "0.7.1",
        (2, 3),
    )
    yield Row(
        "fastai unet_learner(resnet18)",
        lambda: DynamicUnet(create_body(resnet18(), 3, pretrained=False), CLASSES, (64, 96)),
        small,
        "layers.11",
        (64, 96),
    )


def _forms() -> Iterator[Row]:
    from torchvision.models import resnet18

    small, map_of = (3, 48, 64), ((12, 16),)
    yield Row("nn.Sequential", lambda: _sequential(3), small, "3", *map_of)
    yield Row("a class of one's own", _Own, small, "deep", *map_of)
    yield Row("one channel", lambda: _sequential(1), (1, 48, 64), "3", *map_of)
    yield Row("seven channels", lambda: _sequential(7), (7, 48, 64), "3", *map_of)
    yield Row("a signal (N, C, length)", _signal, (2, 128), "2", (32,))
    yield Row("a volume (N, C, depth, h, w)", _volume, (1, 12, 32, 40), "2", (3, 8, 10))
    yield Row("a strip, strides (2, 1)", _strip, (1, 32, 64), "4", (4, 64))
    yield Row("one logit", lambda: _sequential(3, 1), small, "3", *map_of)
    net = lambda: resnet18(weights=None, num_classes=CLASSES)
    formed = {
        "in DataParallel": lambda: nn.DataParallel(net()),
        "in torch.compile": lambda: torch.compile(net(), backend="eager"),
        "compiled in place": lambda: _compiled(net()),
        "in channels_last": lambda: net().to(memory_format=torch.channels_last),
    }
    for how, make in formed.items():
        yield Row(f"resnet18 {how}", make, (3, 64, 96), "layer4.1", (2, 3))
    for name, dtype, near in (("bfloat16", torch.bfloat16, 0.03), ("half", torch.float16, 0.01)):
        yield Row(f"resnet18 in {name}", net, (3, 64, 96), "layer4.1", (2, 3), near=near, dtype=dtype)


def _compiled(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def _strip() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, (2, 1), 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, (2, 1), 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, (2, 1), 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


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
    "A row of the table. `captum`: the largest distance of a map from captum's; `learner`: see `_learner`."

    layer: str
    shape: tuple[int, ...]
    map: tuple[int, ...]
    expected: bool
    empty: bool
    captum: float
    near: float
    learner: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.expected and not self.empty and self.captum <= self.near and not self.learner.startswith("no")


def look(row: Row) -> Found:
    "The default layer's maps of two images for all classes, beside captum's at the layer and in the layout expected."
    torch.manual_seed(0)
    model = _made(row.make).to(row.dtype)
    x = torch.randn(2, *row.shape).to(row.dtype)
    began = time.perf_counter()
    classes = 2 if row.name == "one logit" else CLASSES
    made = gradcam(model, x, target=[list(range(classes))] * 2)
    seconds = time.perf_counter() - began
    maps, name = made.maps[0], made.layers[0]
    shape, theirs = _captum(unwrap(model), row, x, classes)
    expected = name == row.layer and tuple(maps.shape[2:]) == tuple(theirs.shape[2:]) == row.space
    far = _far(maps, theirs) if expected else float("inf")
    empty = not bool(maps.flatten(2).gt(0).any(2).any(1).all())
    return Found(
        name, shape, tuple(maps.shape[2:]), expected, empty, far, row.near, _learner(row, maps.shape[2:]), seconds
    )


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    model = make().eval()
    for p in model.parameters():
        if p.ndim > 1 and not p.any():  # a head that starts at zero explains nothing
            nn.init.normal_(p, std=0.02)
    return model


def _far(maps: Tensor, theirs: Tensor) -> float:
    "The largest distance of one class's map of one image from captum's, as a share of the largest value of that."
    most = theirs.flatten(2).amax(2)
    # Where a class has next to nothing beside the others, it has rounding errors.
    scale = torch.maximum(most, 0.01 * most.amax(1, keepdim=True)).clamp(min=1e-30)
    return float(((maps - theirs).abs().flatten(2).amax(2) / scale).max())


def _learner(row: Row, space: tuple[int, ...]) -> str:
    """The default layer of the network that `vision_learner` makes.

    `cannot`: fastai makes none, or one that does not run. `no: ...`: the map is empty, or not as large as expected.
    """
    if row.learner is None:
        return ""
    x = torch.randn(2, *row.shape)
    try:
        model = _made(row.learner)
        with torch.no_grad():
            model(x)
    except (Exception, AssertionError):
        return "cannot"
    made = gradcam(model, x)
    if not bool(made.maps[0].gt(0).any()):
        return f"no: the map of `{made.layers[0]}` is empty"
    if tuple(made.maps[0].shape[1:]) != tuple(space):
        return f"`{made.layers[0]}`, {_times(tuple(made.maps[0].shape[1:]))}"
    return f"`{made.layers[0]}`"


def _captum(net: nn.Module, row: Row, x: Tensor, classes: int) -> tuple[tuple[int, ...], Tensor]:
    "The shape of the expected layer's output, and Grad-CAM `(N, classes, *space)` from captum's gradients there."
    from captum._utils.gradient import compute_layer_gradients_and_eval

    module = dict(net.named_modules())[row.layer]
    maps = []
    for c in range(classes):
        gradients, activations = compute_layer_gradients_and_eval(
            lambda x: class_scores(main_output(net(x))), module, x, c
        )
        G, A = (_to_space(t[0].detach().float(), row) for t in (gradients, activations))
        weights = G.flatten(2).mean(2)
        maps.append(torch.einsum("nc,nc...->n...", weights, A).relu())
    return tuple(activations[0].shape), torch.stack(maps, 1)


def _to_space(t: Tensor, row: Row) -> Tensor:
    "`(N, C, *space)` by the layout and the space that are expected."
    if row.layout == "C*":
        return t
    if row.layout == "*C":
        return t.movedim(-1, 1)
    return t[:, int(row.layout.removesuffix("+*C")) :].transpose(1, 2).unflatten(2, row.space)


def table(found: list[tuple[Row, Found | Exception]]) -> str:
    "A markdown table."
    lines = [
        "| model | input | default layer | its output | map | in `vision_learner` | as expected | not empty | captum agrees |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, one in found:
        if isinstance(one, Exception):
            words = " ".join(str(one).split())[:120]
            lines.append(f"| {row.name} | {_times(row.shape)} | {type(one).__name__}: {words} | | | | no | no | no |")
            continue
        agrees = "yes" if one.captum <= one.near else f"no ({one.captum:.1%} off)"
        lines.append(
            f"| {row.name} | {_times(row.shape)} | `{one.layer}` | {_times(one.shape[1:])} | {_times(one.map)} | "
            f"{one.learner} | {'yes' if one.expected else f'no: `{row.layer}`'} | {'no' if one.empty else 'yes'} | {agrees} |"  # noqa: E501
        )
    return "\n".join(lines)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this word")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timm-families", action="store_true", help="one small network of each family in timm instead")
    parser.add_argument("--kept", type=Path, help="a file of the families' results, to go on with where it was stopped")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    if args.timm_families:
        import timm_families

        return min(1, timm_families.main(DOC, args.only, args.kept))
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
