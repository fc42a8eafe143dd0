"""The tables of docs/faithfulness.md: speed, known order, false certificates, and methods on two data sets.

    python benchmarks/faithfulness.py                   # all parts, each written into docs/faithfulness.md
    python benchmarks/faithfulness.py --only speed      # one part: speed, order, certificates, fashion, photos
    python benchmarks/faithfulness.py --only fashion --images 50 --print

Needs grad-cam and torchcam for the peers, Fashion-MNIST (Debian's dataset-fashion-mnist), and the photos and weights
that the tests take (`FASTAI_GRADCAM_SHARED`). Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from fastai_gradcam import gradcam
from fastai_gradcam._faithfulness.check import LEAST
from fastai_gradcam.faithfulness import (
    average_drop,
    baseline,
    check,
    deletion,
    impute,
    increase,
    insertion,
    interval,
    metrics,
    road,
)

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "faithfulness.md"
FASHION = Path("/usr/share/datasets/fashion-mnist")
SHARED = Path(os.environ.get("FASTAI_GRADCAM_SHARED") or ROOT.parent / "shared" / "data")
METHODS = """gradcam gradcam++ xgradcam hirescam layercam gradcam_elementwise eigencam eigengradcam
smoothgradcam++ scorecam ablationcam""".split()
BASELINES = ("random", "centre", "edges", "another")
ROUNDING = 1e-6  # two maps that are the same differ by less
SHARES = (0.1, 0.3, 0.7, 0.9)
STEPS = 14


# --- speed


def speed(images: int | None) -> str:
    "`impute` beside pytorch-grad-cam's imputer, in turns: the median of five ratios, and their range."
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    n, size = images or 16, 224
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(n, 3, 14, 14), size=size, mode="bicubic") + 0.1 * torch.rand(n, 3, size, size)
    heat = F.interpolate(torch.rand(n, 1, 7, 7), size=size, mode="bilinear")[:, 0]
    removed = {
        "scattered at random": torch.rand(n, size, size) < 0.5,
        "the hotter half of a 7×7 map": heat > heat.flatten(1).median(1).values[:, None, None],
    }
    peer, lines = NoisyLinearImputer(noise=0), []
    for name, missing in removed.items():

        def solve(missing: Tensor = missing) -> Tensor:
            return torch.stack([peer(image, (~m).float()) for image, m in zip(x, missing, strict=True)])

        ours, theirs = [], []
        for _ in range(5):
            ours.append(_seconds(lambda missing=missing: impute(x, missing, noise=0)))
            theirs.append(_seconds(solve))
        apart = float((impute(x, missing, noise=0) - solve()).abs().max())
        ratios = np.divide(theirs, ours)
        lines.append(
            f"| {name} | {np.median(ours):.2f} s | {np.median(theirs):.2f} s | {np.median(ratios):.1f} "
            f"({ratios.min():.1f} … {ratios.max():.1f}) | {apart:.0e} |"
        )
    threads = torch.get_num_threads()
    return "\n".join(
        [
            f"{n} images of 3×{size}×{size}, half of the pixels removed, {threads} thread{'s' * (threads > 1)}.",
            "",
            "| removed | `impute` | pytorch-grad-cam | times as fast | largest difference |",
            "|---|---|---|---|---|",
            *lines,
        ]
    )


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# --- networks and data


def fashion_images(part: str, count: int) -> tuple[Tensor, Tensor]:
    with gzip.open(FASHION / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(FASHION / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    x = (torch.from_numpy(images.copy()).float() / 255 - FASHION_MEAN) / FASHION_STD
    return x, torch.from_numpy(labels.copy()).long()


FASHION_MEAN, FASHION_STD = 0.286, 0.353


def small_network(channels: int = 1, classes: int = 10, seed: int = 0) -> nn.Sequential:
    "Three convolutions; the map has 7×7 cells for 28×28 pixels."
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in pairwise((channels, 16, 32, 64)):
        parts += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if b < 64 else []
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)).eval()


def trained_on_fashion() -> tuple[nn.Module, float]:
    "The small network after three epochs on 12,000 images, and its accuracy."
    net, (x, y) = small_network(), fashion_images("train", 12_000)
    net.train()
    steps = 3 * len(x) // 64
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,))
        loss = F.cross_entropy(net(x[chosen]), y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    x, y = fashion_images("t10k", 2000)
    with torch.no_grad():
        return net, float((net(x).argmax(1) == y).float().mean())


def photos(count: int, size: int) -> Tensor:
    "Validation photos of clothing, a part of each class, as SqueezeNet takes them."
    from PIL import Image

    files = sorted((SHARED / "clothing" / "valid").glob("*/*.jpg"))
    chosen = [files[round(i)] for i in np.linspace(0, len(files) - 1, count)]
    pixels = [np.asarray(Image.open(f).convert("RGB").resize((size, size))) for f in chosen]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def squeezenet(pretrained: bool = True) -> nn.Module:
    os.environ["TORCH_HOME"] = str(SHARED / "torch_home")
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(weights="IMAGENET1K_V1" if pretrained else None).eval()


# --- known order


def order(images: int | None) -> str:
    "Spearman between each metric's order and the true one, of good maps with 0…100 % noise."
    model, _ = trained_on_fashion()
    x = fashion_images("t10k", images or 60)[0]
    target = model(x).argmax(1)
    good = gradcam(model, x, target=target, method="hirescam").maps[0]
    # The network has evidence at each image: an empty map has no good order to spoil.
    some = good.flatten(1).amax(1) > 0
    x, target, good = x[some], target[some], good[some] / good[some].flatten(1).amax(1).view(-1, 1, 1)
    noise = torch.rand(good.shape, generator=torch.Generator().manual_seed(1))
    levels = torch.linspace(0, 1, 11)
    mixed = [(1 - level) * good + level * noise for level in levels]
    how = {"mean": FASHION_MEAN, "std": FASHION_STD}
    ours: dict[str, Callable[[Tensor], float]] = {
        "road": lambda m: road(model, x, m, target, shares=SHARES, **how).mean().item(),
        "road, MoRF": lambda m: -road(model, x, m, target, shares=SHARES, order="morf", **how).mean().item(),
        "road, LeRF": lambda m: road(model, x, m, target, shares=SHARES, order="lerf", **how).mean().item(),
        "deletion": lambda m: -deletion(model, x, m, target, steps=STEPS).mean().item(),
        "insertion": lambda m: insertion(model, x, m, target, steps=STEPS).mean().item(),
        "average_drop": lambda m: -average_drop(model, x, m, target, **how).mean().item(),
        "average_drop, half kept": lambda m: -average_drop(model, x, m, target, keep=0.5, **how).mean().item(),
        "increase": lambda m: increase(model, x, m, target, **how).mean().item(),
    }
    rows = []
    for side, scores in (("ours", ours), ("peer", _peers(model, x, target))):
        for name, score in scores.items():
            values = [score(m) for m in mixed]
            rho = spearmanr(values, -levels.numpy()).statistic
            rows.append(f"| {name} | {side} | {rho:.2f} | {values[0]:.3f} | {values[5]:.3f} | {values[10]:.3f} |")
    return "\n".join(
        [
            f"HiResCAM of {len(x)} images of Fashion-MNIST, mixed with 0, 10 … 100 % noise; each score turned so that "
            "higher is better.",
            "",
            "| metric | whose | Spearman with the true order | no noise | half | noise only |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _peers(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Callable[[Tensor], float]]:
    "The metrics of pytorch-grad-cam and torchcam, called as their documentation says."
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    targets = [ClassifierOutputSoftmaxTarget(int(t)) for t in target]

    def upsampled(maps: Tensor) -> np.ndarray:
        low, high = maps.flatten(1).amin(1).view(-1, 1, 1), maps.flatten(1).amax(1).view(-1, 1, 1)
        scaled = (maps - low) / (high - low).clamp(min=1e-7)
        return F.interpolate(scaled[:, None], size=x.shape[2:], mode="bilinear")[:, 0].numpy()

    class Given:
        def __init__(self, maps: Tensor) -> None:
            self.model, self.maps = model, maps

        def __call__(self, *args: object, **kwargs: object) -> list[Tensor]:
            return [self.maps]

        def fuse_cams(self, cams: list[Tensor]) -> Tensor:
            return cams[0]

        def _hooks_off(self) -> object:
            return torch.no_grad()

    def of_torchcam(metric: type, key: str, maps: Tensor, **how: object) -> float:
        one = metric(Given(maps / maps.amax((1, 2), keepdim=True)), lambda logits: logits.softmax(1), **how)
        one.update(x, target.tolist())
        return one.summary()[key]

    return {
        "pytorch-grad-cam ROADCombined": lambda m: float(
            ROADCombined([100 * s for s in SHARES])(x, upsampled(m), targets, model).mean()
        ),
        "pytorch-grad-cam DropInConfidence": lambda m: (
            -float(DropInConfidence()(x, upsampled(m), targets, model).mean())
        ),
        "pytorch-grad-cam IncreaseInConfidence": lambda m: float(
            IncreaseInConfidence()(x, upsampled(m), targets, model).mean()
        ),
        "torchcam average drop": lambda m: -of_torchcam(ClassificationMetric, "avg_drop", m),
        "torchcam deletion": lambda m: -of_torchcam(DeletionInsertionMetric, "deletion_auc", m, steps=STEPS),
        "torchcam insertion": lambda m: of_torchcam(DeletionInsertionMetric, "insertion_auc", m, steps=STEPS),
    }


# --- false certificates

# The smallest difference that counts (`LEAST`) is held against networks of the first seeds; the others are reported.
CALIBRATED, REPORTED = range(100, 110), range(10)


def certificates(images: int | None) -> str:
    "How often a network that has learned nothing is said to look better than a centre blob."
    fashion = fashion_images("t10k", images or 30)[0]
    photographed = photos(images or 30, 64)

    def random_squeezenet(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return squeezenet(pretrained=False)

    cases = [
        ("three convolutions, Fashion-MNIST", lambda s: small_network(seed=s), fashion, FASHION_MEAN, FASHION_STD),
        ("three convolutions, photos", lambda s: small_network(3, seed=s), photographed, MEAN, STD),
        ("SqueezeNet 1.1, photos", random_squeezenet, photographed, MEAN, STD),
    ]
    rows, verdicts, lows = [], [], []
    for name, make, x, mean, std in cases:
        beside = [
            check(make(seed), x, metrics=["road"], baselines=["centre"], mean=mean, std=std).iloc[0]
            for seed in (*CALIBRATED, *REPORTED)
        ]
        before, after = beside[: len(CALIBRATED)], beside[len(CALIBRATED) :]
        said, low = [row.verdict for row in after], max(row.difference_low for row in before)
        verdicts, lows = verdicts + said, [*lows, low]
        rows.append(
            f"| {name} | {len(x)} | {low:.4f} | {len(said)} | {said.count('better')} | {said.count('no better')} | "
            f"{max(row.difference_low for row in after):.4f} |"
        )
    wrong = verdicts.count("better")
    return "\n".join(
        [
            f"| untrained networks | images | greatest lower bound of {len(CALIBRATED)} others | networks | said to be "
            "better than a centre blob | said to be no better | greatest lower bound |",
            "|---" * 7 + "|",
            *rows,
            "",
            f"{wrong} of {len(verdicts)} certificates are false: {wrong / len(verdicts):.0%}. The difference that "
            f"counts, {LEAST}, was chosen, then held against other networks (seeds {CALIBRATED[0]} to "
            f"{CALIBRATED[-1]}): it is {LEAST / max(lows):.0f} times the greatest lower bound among these.",
        ]
    )


# --- which method


def fashion(images: int | None) -> str:
    model, accuracy = trained_on_fashion()
    x = fashion_images("t10k", images or 150)[0]
    head = f"Three convolutions, {accuracy:.0%} right on Fashion-MNIST; maps of 7×7 cells; {len(x)} test images."
    return head + "\n\n" + _table(model, x, FASHION_MEAN, FASHION_STD)


def of_photos(images: int | None) -> str:
    x = photos(images or 48, 112)
    head = "SqueezeNet 1.1, trained on ImageNet, at its last block, `features.12`; maps of 6×6 cells; "
    head += f"{len(x)} photos of clothing, 112 × 112 pixels."
    # Its default layer has a map for each class and nothing after it but a mean: nine methods give one map there.
    return head + "\n\n" + _table(squeezenet(), x, MEAN, STD, layer="features.12")


def _table(model: nn.Module, x: Tensor, mean: object, std: object, layer: str | None = None) -> str:
    with torch.no_grad():
        target = torch.cat([model(part).argmax(1) for part in x.split(32)])
    maps = {
        name: torch.cat(
            [
                gradcam(model, a, target=t, method=name, layer=layer).maps[0]
                for a, t in zip(x.split(16), target.split(16), strict=True)
            ]
        )
        for name in METHODS
    }
    rivals = {name: baseline(name, x, maps["gradcam"]) for name in BASELINES}
    how: dict[str, dict] = {
        "road": {"shares": SHARES, "mean": mean, "std": std},
        "insertion": {"steps": STEPS},
        "deletion": {"steps": STEPS},
        "average_drop": {"mean": mean, "std": std},
    }
    found = {
        metric: {
            name: metrics[metric].function(model, x, m, target, **options) for name, m in {**maps, **rivals}.items()
        }
        for metric, options in how.items()
    }
    lines = ["| map | " + " | ".join(f"`{m}` {'↑' if metrics[m].better > 0 else '↓'}" for m in how) + " |"]
    lines.append("|---" * (len(how) + 1) + "|")
    best = {m: max(METHODS, key=lambda name, m=m: metrics[m].better * found[m][name].nanmean().item()) for m in how}
    for name in [*METHODS, *rivals]:
        cells = []
        for metric in how:
            one = interval(found[metric][name])
            behind = interval(found[metric][best[metric]], found[metric][name])
            level = name == best[metric] or not (behind.low > ROUNDING or behind.high < -ROUNDING)
            text = f"{one.mean:.3f} ({one.low:.3f} … {one.high:.3f})"
            cells.append(f"**{text}**" if level else text)
        shown = f"`{name}`" if name in METHODS else f"*{name}*"
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    lines += ["", "Bold: the best method, and all maps that its lead does not exceed by more than the interval. "]
    lines[-1] += " ".join(_best(metric, best[metric], found[metric]) for metric in how)
    return "\n".join([*lines, "", _disagreement(found)])


def _best(metric: str, best: str, of: dict[str, Tensor]) -> str:
    sign = metrics[metric].better
    second = max((n for n in METHODS if n != best), key=lambda name: sign * of[name].nanmean().item())
    lead = interval(sign * of[best], sign * of[second])
    sure = "more" if lead.low > ROUNDING else "no more"
    return (
        f"By `{metric}` the best is `{best}`, ahead of `{second}` by {lead.mean:.4f} "
        f"({lead.low:.4f} … {lead.high:.4f}): {sure} than chance."
    )


def _disagreement(found: dict[str, dict[str, Tensor]]) -> str:
    names = list(found)
    means = {m: [metrics[m].better * found[m][name].nanmean().item() for name in METHODS] for m in names}
    lines = ["| order of the methods | " + " | ".join(f"`{n}`" for n in names) + " |", "|---" * (len(names) + 1) + "|"]
    for a in names:
        cells = [f"{spearmanr(means[a], means[b]).statistic:.2f}" for b in names]
        lines.append(f"| `{a}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PARTS = {"speed": speed, "order": order, "certificates": certificates, "fashion": fashion, "photos": of_photos}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--images", type=int, help="fewer or more than the part's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--print", action="store_true", help="leave docs/faithfulness.md as it is")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    for name, part in PARTS.items():
        if args.only not in (None, name):
            continue
        text = part(args.images)
        print(f"## {name}\n\n{text}\n", flush=True)
        if not args.print and DOC.exists():
            begin, end = f"<!-- benchmarks/faithfulness.py: {name} -->", f"<!-- end of {name} -->"
            place = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
            DOC.write_text(
                place.sub(lambda _, text=text: text + "\n", DOC.read_text(encoding="utf-8")), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
