"""Score-CAM and Ablation-CAM beside pytorch-grad-cam's, on the same network and image: times as ratios of one run.

python benchmarks/gradient_free.py --help
"""

import argparse
import contextlib
import copy
import io
import statistics
import time

import torch
import torchvision.models as zoo
from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from fastai_gradcam import gradcam

PEERS = {"ablationcam": AblationCAM, "scorecam": ScoreCAM}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--layer", default="layer4")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of each")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def clock(run, device):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    given = options()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    net = getattr(zoo, given.arch)(weights=None).eval().to(given.device)
    x = torch.randn(1, 3, given.size, given.size, device=given.device)
    theirs_net = copy.deepcopy(net)
    gradcam(net, x, layer=given.layer)
    print(f"{given.arch}, {given.layer}, {given.size} pixels, {given.device}, {given.threads} thread(s)")
    for method, peer in PEERS.items():
        cam = peer(theirs_net, [theirs_net.get_submodule(given.layer)])

        def theirs(cam=cam):
            with torch.no_grad():
                cam(x, [ClassifierOutputTarget(1)])

        def ours(method=method):
            gradcam(net, x, layer=given.layer, target=1, method=method)

        pairs = [(clock(theirs, given.device), clock(ours, given.device)) for _ in range(given.runs)]
        each = sorted(a / b for a, b in pairs)
        took = statistics.median(b for _, b in pairs)
        print(
            f"{method:12} {statistics.median(each):6.1f} times as fast as {peer.__name__} "
            f"({each[0]:.1f} to {each[-1]:.1f}), {took:.2f} s"
        )


if __name__ == "__main__":
    main()
