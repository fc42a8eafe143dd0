"""How the cost of `gradcam()` grows with images, their size, depth, layers and classes, as multiples of a forward pass.

python benchmarks/growth.py --help
"""

import argparse
import csv
from pathlib import Path

import torch
from cost import ratios
from torchvision.models import resnet34

from fastai_gradcam import gradcam

STAGES = ["layer4", "layer3", "layer2", "layer1"]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16, help="images where their number is not what varies")
    parser.add_argument("--size", type=int, default=224, help="pixels a side where the size is not what varies")
    parser.add_argument("--most", type=int, default=256, help="the largest number of images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def passes(net, x, stage, classes):
    "The work that any implementation must do: a forward pass, and a backward pass per class from the head to `stage`."
    with torch.no_grad():
        early = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for k in range(1, 5):
            early = getattr(net, f"layer{k}")(early)
            if f"layer{k}" == stage:
                break
    early.requires_grad_()
    late = early
    for after in range(k + 1, 5):
        late = getattr(net, f"layer{after}")(late)
    output = net.fc(torch.flatten(net.avgpool(late), 1))
    many = classes.shape[1] if classes.ndim == 2 else 1
    for c in range(many):
        score = output.gather(1, classes.view(len(x), -1)[:, c : c + 1]).sum()
        torch.autograd.grad(score, early, retain_graph=c + 1 < many)


def subjects(args):
    "(what varies, its value, images, size, layers, classes per image)"
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if n <= args.most:
            yield "images", n, n, args.size, STAGES[:1], 1
    for size in (64, 96, 128, 160, 224, 320, 448):
        yield "pixels a side", size, args.n, size, STAGES[:1], 1
    for stage in STAGES:
        yield "depth of the layer", stage, args.n, args.size, [stage], 1
    for k in range(1, 5):
        yield "layers in one call", k, args.n, args.size, STAGES[:k], 1
    for k in (1, 2, 3, 5, 8):
        yield "classes per image", k, args.n, args.size, STAGES[:1], k


def measure(args):
    torch.manual_seed(0)
    net = resnet34(weights=None).eval().to(args.device)
    rows = []
    for what, value, n, size, layers, k in subjects(args):
        x = torch.randn(n, 3, size, size, device=args.device)
        classes = torch.randint(0, 1000, (n, k), device=args.device)
        classes = classes[:, 0] if k == 1 else classes

        def forward(x=x):
            with torch.no_grad():
                net(x)

        def ours(x=x, layers=layers, classes=classes):
            gradcam(net, x, layer=layers, target=classes)

        def limit(x=x, stage=layers[-1], classes=classes):
            passes(net, x, stage, classes)

        cost = ratios(ours, forward, args.runs, args.device)
        least = ratios(limit, forward, args.runs, args.device)
        rows.append((what, value, *cost[:3], *least[:3]))
        print(f"{what:<20} {value!s:>7}  {cost[0]:5.2f} × forward ({cost[1]:.2f} … {cost[2]:.2f}), "
              f"limit {least[0]:.2f} ({least[1]:.2f} … {least[2]:.2f})", flush=True)  # fmt: skip
    return rows


def plot(rows, file):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row[0] for row in rows))
    fig, axes = plt.subplots(1, len(kinds), figsize=(2.7 * len(kinds), 2.9), layout="constrained", sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        of = [row for row in rows if row[0] == kind]
        at = range(len(of))
        ax.axhline(1, color="#57606a", linewidth=1, label="forward pass")
        ax.plot(at, [row[5] for row in of], color="#afb8c1", linewidth=5, label="limit: the passes alone")
        ax.errorbar(at, [row[2] for row in of], yerr=[[row[2] - row[3] for row in of], [row[4] - row[2] for row in of]],
                    color="#0969da", marker="o", markersize=4, linewidth=1.5, elinewidth=0.8, label="gradcam()")  # fmt: skip  # noqa: E501
        ax.set_xticks(list(at), [str(row[1]) for row in of], fontsize=8)
        ax.set_title(kind, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_ylim(0)
    axes[0].set_ylabel("times a forward pass")
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    fig.savefig(file, dpi=110)


def main():
    args = options()
    torch.set_num_threads(args.threads)
    print(f"resnet34, {args.device}, {args.threads} threads, {args.runs} runs")
    rows = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "growth.csv", "w", newline="") as file:
        head = ("what", "value", "median", "min", "max", "limit median", "limit min", "limit max")
        csv.writer(file).writerows([head, *rows])
    plot(rows, args.out / "growth.png")


if __name__ == "__main__":
    main()
