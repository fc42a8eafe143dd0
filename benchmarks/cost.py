"""The cost of this library beside a plain forward pass, and beside its peers: one table, as ratios.

python benchmarks/cost.py --help
"""

import argparse
import csv
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

warnings.filterwarnings("ignore")

PARTS = ("maps", "memory", "layers", "weights", "frame", "profile", "share", "growth", "start")


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=7, help="interleaved runs of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, help="images for `share`, with train and valid folders (default: noise)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def clock(run, device):
    "Seconds of one run, by events on CUDA."
    import torch

    if device != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def ratios(run, base, runs, device):
    "Median, minimum and maximum of run / base over interleaved runs, and the median time of `base`."
    run(), base()
    pairs = [(clock(run, device), clock(base, device)) for _ in range(runs)]
    each = sorted(a / b for a, b in pairs)
    return statistics.median(each), each[0], each[-1], statistics.median(b for _, b in pairs)


def have(package):
    return importlib.util.find_spec(package) is not None


def subjects(args):
    "name -> a function that makes maps of the last layer once, for this library and the peers that are installed."
    import torch
    import torchvision

    model = torchvision.models.get_model(args.arch, weights=None).eval().to(args.device)
    torch.manual_seed(0)
    x = torch.randn(args.n, 3, args.size, args.size, device=args.device)
    last = model.layer4[-1]
    with torch.no_grad():
        classes = model(x).argmax(1)

    def forward():
        with torch.no_grad():
            model(x)

    from fastai_gradcam import gradcam

    found = {"forward": forward, "fastai_gradcam": lambda: gradcam(model, x, layer=last, target=classes)}
    if have("torchcam"):
        from torchcam.methods import GradCAM

        def torchcam():
            with GradCAM(model, last) as extractor:
                extractor(classes.tolist(), model(x))

        found["torchcam"] = torchcam
    if have("captum"):
        from captum.attr import LayerGradCam

        found["captum"] = lambda: LayerGradCam(model, last).attribute(x, classes, relu_attributions=True)
    if have("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM as PeerGradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def grad_cam():
            with PeerGradCAM(model=model, target_layers=[last]) as cam:
                cam(x, [ClassifierOutputTarget(int(c)) for c in classes])

        found["pytorch-grad-cam"] = grad_cam
    return model, x, found


def maps(args, say):
    _, _, found = subjects(args)
    for name, run in found.items():
        if name != "forward":
            say(
                f"maps of the last layer, {name}",
                *ratios(run, found["forward"], args.runs, args.device)[:3],
                "× forward",
            )


def memory(args, say):
    "Peak memory that one call adds, each in a process of its own."
    base = None
    for name in ("forward", "fastai_gradcam", "torchcam", "captum", "pytorch-grad-cam"):
        command = [sys.executable, __file__, "--memory-of", name, "--arch", args.arch, "--n", str(args.n)]
        command += ["--size", str(args.size), "--device", args.device, "--threads", str(args.threads)]
        each = [float(out) for out in (_output(command) for _ in range(3)) if out]
        if not each:
            continue
        middle = statistics.median(each)
        base = middle if name == "forward" else base
        say(
            f"memory that a call adds, {name} ({middle:.0f} MiB)",
            middle / base,
            min(each) / base,
            max(each) / base,
            "× forward",
        )


def _output(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.split()[-1] if done.returncode == 0 and done.stdout.split() else None


def memory_of(args):
    "MiB that one call adds at its peak."
    import threading

    import torch

    _, _, found = subjects(args)
    run = found.get(args.memory_of)
    if run is None:
        return
    if args.device == "cuda":
        found["forward"]()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    # Libraries load and thread pools start on a single small image; the call that counts is the second.
    small = argparse.Namespace(**{**vars(args), "n": 1, "size": 64})
    subjects(small)[2][args.memory_of]()

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before, peak, over = resident(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not over.wait(0.0005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    over.set()
    watcher.join()
    print((peak - before) / 2**20)


def layers(args, say):
    import torch

    from fastai_gradcam import gradcam

    model, x, found = subjects(args)
    classes = torch.randint(0, 1000, (args.n, 3), device=args.device)
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    run = lambda: gradcam(model, x, layer=stages, target=classes)
    say(
        "four layers × three classes, one call", *ratios(run, found["forward"], args.runs, args.device)[:3], "× forward"
    )

    def limit():
        "The work that any implementation must do: one forward pass, three backward passes from the head to layer1."
        with torch.no_grad():
            early = model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x)))))
        early.requires_grad_()
        output = model.fc(torch.flatten(model.avgpool(model.layer4(model.layer3(model.layer2(early)))), 1))
        for k in range(3):
            score = output.gather(1, classes[:, k : k + 1]).sum()
            torch.autograd.grad(score, early, retain_graph=k < 2)

    say("the same, the limit", *ratios(limit, found["forward"], args.runs, args.device)[:3], "× forward")


def weights(args, say):
    "Gradient-free methods against pytorch-grad-cam's, on two images."
    if not have("pytorch_grad_cam"):
        return
    from pytorch_grad_cam import AblationCAM, ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from fastai_gradcam import gradcam

    model, x, _ = subjects(argparse.Namespace(**{**vars(args), "n": 1, "size": min(args.size, 128)}))
    last = model.layer4[-1]
    for name, peer in (("ablationcam", AblationCAM), ("scorecam", ScoreCAM)):

        def theirs(peer=peer):
            with peer(model=model, target_layers=[last]) as cam:
                cam(x, [ClassifierOutputTarget(3)])

        ours = lambda name=name: gradcam(model, x, layer=last, target=3, method=name)
        quick = ratios(theirs, ours, max(2, args.runs // 3), args.device)
        say(f"{name}: pytorch-grad-cam's time", *quick[:3], "× ours")


def _learner(args, folder):
    import numpy as np
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        ImageBlock,
        RandomSplitter,
        Resize,
        accuracy,
        get_image_files,
        parent_label,
        resnet34,
        vision_learner,
    )
    from PIL import Image

    draw = np.random.default_rng(0)
    for c in "abcd":
        (folder / c).mkdir(parents=True, exist_ok=True)
        for i in range(8):
            Image.fromarray(draw.integers(0, 255, (args.size, args.size, 3), dtype=np.uint8)).save(
                folder / c / f"{i}.png"
            )
    dls = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=get_image_files,
        get_y=parent_label,
        splitter=RandomSplitter(0.5, seed=0),
        item_tfms=Resize(args.size),
    ).dataloaders(folder, bs=16, num_workers=0, device=args.device)
    return vision_learner(dls, resnet34, pretrained=False, metrics=accuracy)


@contextmanager
def _watched(args):
    "The callback of a learner that has been trained for an epoch, and its panel's forward pass."
    import torch

    from fastai_gradcam import GradCAMCallback

    with tempfile.TemporaryDirectory() as folder:
        learn = _learner(args, Path(folder) / "images")
        learn.add_cb(GradCAMCallback(n=args.n, path=Path(folder) / "runs", judge=None))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
        x = learn.grad_cam.panel.x.to(args.device)

        def forward():
            with torch.no_grad():
                learn.model.eval()(x)

        yield learn.grad_cam, forward


def frame(args, say):
    "One frame on the training thread, against the panel's forward pass."
    with _watched(args) as (callback, forward):

        def one():
            callback._session.watcher.take(0, {})

        # Frames are taken an epoch apart: the one before is on the disk by then, and slows no forward pass.
        pairs = []
        for _ in range(args.runs):
            taken = clock(one, args.device)
            callback._session.watcher.writer.flush()
            pairs.append((taken, clock(forward, args.device)))
        each = sorted(a / b for a, b in pairs)
        seconds = statistics.median(a for a, _ in pairs)
        say(
            f"one frame on the training thread ({seconds:.3f} s)",
            statistics.median(each),
            each[0],
            each[-1],
            "× forward",
        )


def profile(args, say):
    "Where the time of a frame goes, stage by stage, with everything written before the next begins."
    from fastai_gradcam._run import writer as record
    from fastai_gradcam._watch import core, look, looks

    with _watched(args) as (watch, forward):
        took, watcher = {}, watch._session.watcher

        def timed(name, function):
            def run(*arguments, **options):
                start = time.perf_counter()
                try:
                    return function(*arguments, **options)
                finally:
                    took[name] = took.get(name, 0) + time.perf_counter() - start

            return run

        stages = [
            (looks, "in_chunks", "training thread: the maps"),
            (look, "measure", "training thread: the numbers"),
            (looks, "losses", "training thread: the losses"),
            (core.Watcher, "take", "training thread: all"),
            (watcher.writer, "draw", "writing thread: the grid is drawn"),
            (record, "image_bytes", "writing thread: the grid is encoded"),
            (record.np, "savez", "writing thread: the maps are packed"),
            (record, "write_whole", "writing thread: files are put in place"),
            (record, "append_at", "writing thread: rows are added"),
            (record.Writer, "_write", "writing thread: all"),
        ]
        kept = [(of, name, getattr(of, name)) for of, name, _ in stages]
        watcher.writer.after_frame = None
        each = {}
        try:
            for of, name, title in stages:
                setattr(of, name, timed(title, getattr(of, name)))
            for k in range(args.runs + 1):
                took.clear()
                watcher.take(0, {})
                watcher.writer.flush()
                base = clock(forward, args.device)
                if k:
                    for title, seconds in took.items():
                        each.setdefault(title, []).append(seconds / base)
        finally:
            for of, name, was in kept:
                setattr(of, name, was)
    for *_, title in stages:
        share = each.get(title, [0])
        say(f"one frame, {title}", statistics.median(share), min(share), max(share), "× forward")


def share(args, say):
    "The callback's part of an epoch of SqueezeNet with a frame after every epoch, for 3,000 images."
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, squeezenet1_1, vision_learner

    from fastai_gradcam import GradCAMCallback

    with tempfile.TemporaryDirectory() as folder:
        data = args.data or _noise(Path(folder) / "images", 600, 146)
        dls = ImageDataLoaders.from_folder(
            data, "train", "valid", item_tfms=Resize(160), batch_tfms=aug_transforms(size=128), bs=32, num_workers=0,
            device=args.device,
        )  # fmt: skip
        learn = vision_learner(dls, squeezenet1_1, pretrained=False, path=Path(folder))
        watch = GradCAMCallback(n=16, path=Path(folder) / "runs", show=False, judge=None)
        frames, written, epochs = [], [], []
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, cbs=watch)
            for _ in range(args.runs):
                epochs.append(clock(lambda: learn.fit(1), args.device))
                with learn.added_cbs(watch):
                    watcher = watch._session.watcher
                    frames.append(clock(lambda: watcher.take(0, {}), args.device))  # noqa: B023
                    written.append(frames[-1] + clock(watcher.writer.flush, args.device))
    scale = 3000 / len(dls.train_ds)
    for what, each in (("on the training thread", frames), ("until all is written", written)):
        ratio = sorted(100 * a / (b * scale) for a, b in zip(each, epochs, strict=True))
        say(f"a frame of an epoch of 3,000 images, {what}", statistics.median(ratio), ratio[0], ratio[-1], "%")
    say(f"an epoch of {len(dls.train_ds)} images", statistics.median(epochs), min(epochs), max(epochs), "s")


def _noise(folder, train, valid):
    "Photos' worth of pixels to decode, in two classes."
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, many in (("train", train), ("valid", valid)):
        for i in range(many):
            place = folder / part / "ab"[i % 2] / f"{i}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(draw.integers(0, 255, (24, 24, 3), dtype=np.uint8))
            small.resize((256, 256)).save(place)
    return folder


def growth(args, say):
    "The cost of a frame at epoch 200 against epoch 2: for the training, and everything written but the report."
    with _watched(argparse.Namespace(**{**vars(args), "size": 64})) as (callback, _):
        training, written = [], []
        refresh, callback._session.watcher.writer.after_frame = callback._session.watcher.writer.after_frame, None
        for epoch in range(200):
            start = time.perf_counter()
            callback._session.watcher.take(epoch, {})
            training.append(time.perf_counter() - start)
            callback._session.watcher.writer.flush()
            written.append(time.perf_counter() - start)
        for what, took in (("on the training thread", training), ("everything written", written)):
            each = sorted(late / early for early, late in zip(took[1:21], took[-20:], strict=True))
            say(f"a frame at epoch 200 against epoch 2, {what}", statistics.median(each), each[0], each[-1], "×")
        # The report of a growing run grows; at most an eleventh of the writing thread's time goes into it.
        seconds = clock(lambda: refresh._refresh(), "cpu")
        say("a refresh of the report behind frame 200", seconds, seconds, seconds, "s")


def start(args, say):
    "Starting: the import on top of fastai's, and a run read in a fresh interpreter."
    code = (
        "import time; from fastai.vision.all import *; t = time.perf_counter(); import fastai_gradcam; "
        "from fastai_gradcam import *; print(time.perf_counter() - t)"
    )
    each = [float(_output([sys.executable, "-c", code])) for _ in range(3)]
    say("import on top of fastai.vision.all", statistics.median(each), min(each), max(each), "s")
    with tempfile.TemporaryDirectory() as folder:
        path = _written_run(Path(folder) / "run", images=16, frames=100)
        code = (
            f"import time; t = time.perf_counter(); from fastai_gradcam import Run; Run({str(path)!r}).history; "
            "import sys; assert not {'torch', 'fastai'} & set(sys.modules); print(time.perf_counter() - t)"
        )
        each = [float(_output([sys.executable, "-c", code])) for _ in range(3)]
        say("Run(path).history of 16 × 100 in a fresh interpreter", statistics.median(each), min(each), max(each), "s")
        code = (
            f"import time; from fastai_gradcam import Run; r = Run({str(path)!r}); t = time.perf_counter(); "
            "r.report(); print(time.perf_counter() - t)"
        )
        each = [float(_output([sys.executable, "-c", code])) for _ in range(3)]
        say("report() of 16 × 100", statistics.median(each), min(each), max(each), "s")
        size = (path / "report.html").stat().st_size / 1e6
        say("report.html of 16 × 100", size, size, size, "MB")


def _written_run(path, images, frames):
    "A run of random maps, written by the writer itself."
    import numpy as np
    from PIL import Image

    from fastai_gradcam._draw.frame import frame_grid
    from fastai_gradcam._run.schema import Frame
    from fastai_gradcam._run.writer import Writer
    from fastai_gradcam.measures import measure

    draw = np.random.default_rng(0)
    smooth = lambda: Image.fromarray(draw.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((224, 224))
    writer = Writer.create(
        path,
        settings={},
        arch="resnet34",
        layers=["layer4"],
        vocab=["a", "b"],
        names=[f"{i}.jpg" for i in range(images)],
        labels=["a"] * images,
        images=[smooth() for _ in range(images)],
        masks=[None] * images,
        draw=frame_grid,
    )
    about = {
        "layer": "layer4",
        "label": "a",
        "target": "a",
        "prob": 0.5,
        "pred": "b",
        "pred_prob": 0.5,
        "correct": False,
    }
    for k in range(frames):
        maps = draw.random((images, 7, 7), dtype=np.float32)
        rows = [
            {
                "frame": k,
                "fit": 0,
                "epoch": k - 1,
                "item": i,
                **about,
                "loss": 1.0,
                **measure(maps[i], 0.1, maps[i - 1], maps[0]),
            }
            for i in range(images)
        ]
        writer.add(Frame(k, 0, k - 1, {"valid_loss": 1.0}, {"layer4": maps}, rows))
    writer.close("finished")
    return path


def plot(rows, file):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The stages of a frame are for the table.
    rows = [r for r in rows if r[4] == "× forward" and "thread: " not in r[0]]
    if not rows:
        return
    fig, ax = plt.subplots(figsize=(9, 0.45 * len(rows) + 1), layout="constrained")
    names = [r[0] for r in rows][::-1]
    middle = [r[1] for r in rows][::-1]
    low = [max(0, r[1] - r[2]) for r in rows][::-1]
    high = [max(0, r[3] - r[1]) for r in rows][::-1]
    others = ("torchcam", "captum", "pytorch", "limit", "forward (")
    ours = ["#afb8c1" if any(other in n for other in others) else "#0969da" for n in names]
    ax.barh(names, middle, xerr=[low, high], color=ours, ecolor="#57606a")
    ax.axvline(1, color="#1f2328", linewidth=1)
    ax.set_xlabel("times a plain forward pass (line: the forward pass itself)")
    fig.savefig(file, dpi=100)


def main():
    args = options()
    import torch

    torch.set_num_threads(args.threads)
    if args.memory_of:
        memory_of(args)
        return
    rows = []

    def say(what, middle, low, high, unit):
        rows.append((what, middle, low, high, unit))
        print(f"{what:<66} {middle:7.3f} {unit:<10} ({low:.3f} … {high:.3f})", flush=True)

    print(f"{args.arch}, {args.n}×3×{args.size}×{args.size}, {args.device}, {args.threads} threads, {args.runs} runs")
    for part in args.only:
        globals()[part](args, say)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "cost.csv", "w", newline="") as file:
        csv.writer(file).writerows([("what", "median", "min", "max", "unit"), *rows])
    plot(rows, args.out / "cost.png")


if __name__ == "__main__":
    main()
