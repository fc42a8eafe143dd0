"""The command `fastai-gradcam`: demo, train, explain, report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import one_of

if TYPE_CHECKING:
    from .findings import Thresholds
    from .run import Run

__all__ = ["main"]

CODES = """
exit status:
  0    done
  1    the work failed, or an image could not be read
  2    what was asked for does not fit; a line says why
  130  interrupted (Ctrl-C)
  141  who reads the output closed it, as `| head` does
"""

EPILOG = f"""
examples:
  fastai-gradcam demo                         draw the fish set, train a resnet34 on it, watch where it looks
  fastai-gradcam demo --shortcut              the same with a coloured tag that gives the species away
  fastai-gradcam train photos --epochs 5      your own folder of images, one folder per class
  fastai-gradcam explain model.pkl a.jpg b/   where a trained learner looks, on images or folders of them
  fastai-gradcam report runs/my-run           make the interactive report of a run again

`fastai-gradcam COMMAND --help` says what a command takes.
{CODES}"""

DEMO_EPILOG = f"""
examples:
  fastai-gradcam demo                                  what the README shows
  fastai-gradcam demo --shortcut --epochs 3            a model that cheats, and maps that show it
  fastai-gradcam demo --layer 7 --method layercam      another layer, another method
  fastai-gradcam demo --layer all                      every child of learn.model[0]
{CODES}"""

TRAIN_EPILOG = f"""
examples:
  fastai-gradcam train photos                          a resnet34, 5 epochs, runs in photos/gradcam
  fastai-gradcam train photos --export model.pkl       and keep the learner for `fastai-gradcam explain`
  fastai-gradcam train photos --arch resnet18 --layer 6 --size 128 --bs 64
  fastai-gradcam train photos --json | jq .metrics     what a script reads: run, metrics, mask_share, status
{CODES}"""

EXPLAIN_EPILOG = f"""
examples:
  fastai-gradcam explain model.pkl trout.jpg           the map of what is predicted
  fastai-gradcam explain model.pkl photos --out maps   each image below photos
  fastai-gradcam explain model.pkl trout.jpg --target Trout --target "Sea Bass"
  fastai-gradcam explain model.pkl trout.jpg --layer all
  fastai-gradcam explain model.pkl photos --json | jq -r .pred
{CODES}"""

REPORT_EPILOG = f"""
examples:
  fastai-gradcam report photos/gradcam/my-run          writes photos/gradcam/my-run/report.html
  fastai-gradcam report my-run --out my-run.html       a single file to send to somebody
  fastai-gradcam report my-run --threshold confident=0.6
{CODES}"""

# Written out, so that --help need not import torch.
METHODS = (
    "gradcam, gradcam++, xgradcam, hirescam, layercam, gradcam_elementwise, eigencam, eigengradcam, smoothgradcam++, "
    "scorecam, ablationcam"
)
METHOD_HELP = f"how maps are made: {METHODS}; +noise, +aug and +eigen may stand behind a name (default: gradcam)"
LAYER_HELP = (
    "a number i for learn.model[0][i] (-1 is the last), a dotted name such as 0.6.1, or 'all' for every child of "
    "learn.model[0]"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 the work failed, 2 what was asked for does not fit.

    `argv`: the arguments without the program's name, default `sys.argv`.
    """
    options = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            # What torch and fastai will do in their next versions is nothing that a user of the command can mend.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            status = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"\ninterrupted; {options.kept}" if options.kept else "\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who reads has enough, as `| head` does; what is left in the buffer goes nowhere at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if options.debug:
            raise
        asked = isinstance(error, (ValueError, TypeError, OSError)) and str(error)
        words = f"{error}" if asked else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"fastai-gradcam {options.command}: {words}", file=sys.stderr)
        return 2 if asked else 1


def _parser() -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="fastai-gradcam",
        description="Watch where an image model looks while it learns.",
        epilog=EPILOG,
        formatter_class=kind,
    )
    from ._version import __version__

    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train on drawn fish and watch",
        formatter_class=kind,
        description="Draws a small set of nine species of fish in the layout of Kaggle's 'A Large Scale Fish Dataset',\n"
        "trains on it with GradCAMCallback, and says where the pictures are. Without a network it trains from scratch.",
        epilog=DEMO_EPILOG,
    )
    demo.add_argument("--out", type=Path, default=Path("fish"), help="folder for images and runs (default: fish)")
    demo.add_argument(
        "--shortcut", action="store_true", help="put a coloured tag that gives the species away beside each fish"
    )
    demo.add_argument("--seed", type=int, default=0, help="draws other fish (default: 0)")
    demo.add_argument("--per-species", type=int, help="images of each species, 2 or more (default: 40)")
    _training_options(demo, arch="resnet34", epochs=None, size=None, bs=None)
    demo.set_defaults(run=_demo, kept="frames taken so far are kept")

    train = commands.add_parser(
        "train",
        help="train on your own folder of images and watch",
        formatter_class=kind,
        description="Fine-tunes a network on a folder of images with GradCAMCallback.\n\n"
        "DATA holds one folder of images per class, or such a tree in each of train/ and valid/, or the layout of\n"
        "Kaggle's fish set, whose '<Species> GT' folders are read as masks. Without a split, every fifth image is for validation.",
        epilog=TRAIN_EPILOG,
    )
    train.add_argument("data", type=Path, metavar="DATA", help="the folder of images")
    train.add_argument("--out", type=Path, help="folder for runs (default: DATA/gradcam)")
    train.add_argument("--seed", type=int, default=42, help="splits off other validation images (default: 42)")
    train.add_argument("--export", type=Path, help="also save the trained learner in this file, for 'explain'")
    _training_options(train, arch="resnet34", epochs=5, size=224, bs=32)
    train.set_defaults(run=_train, kept="frames taken so far are kept")

    explain = commands.add_parser(
        "explain",
        help="where a trained learner looks on images",
        formatter_class=kind,
        description="Writes an overlay for each image and table.csv into a folder, and prints the table: what is predicted,\n"
        "what the map is of, with their probabilities. An image that cannot be read is named, and costs no other.\n\n"
        "LEARNER is a file that learn.export() wrote. Loading one runs code from that file: load only what you trust.",
        epilog=EXPLAIN_EPILOG,
    )
    explain.add_argument("learner", type=Path, metavar="LEARNER", help="a learner exported by learn.export()")
    explain.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="an image, or a folder of images")
    explain.add_argument("--out", type=Path, default=Path("explained"), help="folder for overlays (default: explained)")
    explain.add_argument(
        "--target",
        action="append",
        metavar="CLASS",
        help="class to explain, by its name, or by its index where no class has that name; may be repeated "
        "(default: what is predicted)",
    )
    explain.add_argument("--layer", type=_layer, help=f"layer to explain: {LAYER_HELP} (default: the last with space)")
    explain.add_argument("--method", default="gradcam", metavar="METHOD", help=METHOD_HELP)
    explain.add_argument("--json", action="store_true", help="print JSON, one object per map")
    explain.set_defaults(run=_explain, kept="overlays written so far are kept")

    report = commands.add_parser(
        "report",
        help="make the interactive report of a run",
        formatter_class=kind,
        description="Makes the interactive report of a run: one HTML file that needs neither a network nor Python.\n\n"
        "RUN may still be training; the report then holds the frames taken so far.",
        epilog=REPORT_EPILOG,
    )
    report.add_argument("path", type=Path, metavar="RUN", help="a run folder: one that holds run.json")
    report.add_argument("--out", type=Path, help="the report's file (default: RUN/report.html)")
    report.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="from when on something is a finding, such as confident=0.6; may be repeated (default: those of Thresholds)",
    )
    report.add_argument("--json", action="store_true", help="print a JSON object: report, frames, status")
    report.set_defaults(run=_report, kept="")
    for command in (demo, train, explain, report):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _training_options(
    parser: argparse.ArgumentParser, *, arch: str, epochs: int | None, size: int | None, bs: int | None
) -> None:
    layer = "the last with space" if epochs else "5 for a resnet, else the last with space"

    def default(value: object) -> str:
        return f" (default: {value})" if value is not None else " (default: what suits the demo)"

    parser.add_argument("--arch", default=arch, help=f"a torchvision network, or a timm one by name{default(arch)}")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"epochs of training{default(epochs)}")
    parser.add_argument("--size", type=int, default=size, help=f"pixels that images are cropped to{default(size)}")
    parser.add_argument("--bs", type=int, default=bs, help=f"images per batch{default(bs)}")
    parser.add_argument("--lr", type=float, help="learning rate (default: 2e-3, or what suits the demo)")
    parser.add_argument("--layer", type=_layer, help=f"layer to watch: {LAYER_HELP} (default: {layer})")
    parser.add_argument("--n", type=int, default=16, help="images to watch (default: 16)")
    parser.add_argument("--method", default="gradcam", metavar="METHOD", help=METHOD_HELP)
    parser.add_argument("--name", help="the run's name (default: the time)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: 0)")
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON object on stdout, at the end")


def _demo(options: argparse.Namespace) -> int:
    from . import demo
    from .methods import resolve_method

    resolve_method(options.method)
    count = demo.PER_SPECIES if options.per_species is None else options.per_species
    if count < 2:
        raise ValueError(f"--per-species must be at least 2, one to learn from and one to validate on, got {count}.")
    # A folder of its own for each count: one that was larger before would be learned from whole.
    images = options.out / ("images-shortcut" if options.shortcut else "images") / f"seed-{options.seed}-{count}-each"
    total = count * len(demo.species)
    _say(options, f"drawing {total} fish in {images} …")
    with _bar(total) as advance:
        demo.make_fish(images, per_species=count, seed=options.seed, shortcut=options.shortcut, advance=advance)
    return _watch(options, images, options.out / "runs", demo.recipe(options.arch, _given(options)))


def _train(options: argparse.Namespace) -> int:
    from .methods import resolve_method

    resolve_method(options.method)
    if options.export is not None:
        _check_writable(options.export)
    return _watch(options, options.data, options.out or options.data / "gradcam", _given(options))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {k: getattr(options, k) for k in ("epochs", "size", "bs", "lr", "layer") if getattr(options, k) is not None}


def _check_writable(file: Path) -> None:
    "Hours of training would be lost by learning it afterwards. Raises `OSError`."
    if file.is_dir():
        raise IsADirectoryError(f"--export is the learner's file; {str(file)!r} is a folder.")
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with open(file, "ab"):
        pass
    if new:
        file.unlink()


def _watch(options: argparse.Namespace, data: Path, out: Path, settings: dict[str, Any]) -> int:
    "Train on `data` with the callback, and say where the pictures are."
    # fastai's table and bars go beside what a script reads.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        from ._cli.folders import read_folder
        from ._cli.train import train

        learn = train(
            read_folder(data, options.seed),
            arch=options.arch,
            out=out,
            name=options.name,
            n=options.n,
            method=options.method,
            num_workers=options.workers,
            seed=options.seed,
            say=lambda words: _say(options, words),
            **settings,
        )
        if getattr(options, "export", None):
            learn.export(options.export.resolve())
            _say(options, f"learner: {options.export}")
    _conclude(options, learn.grad_cam.run)
    return 0


def _conclude(options: argparse.Namespace, run: Run) -> None:
    last = run.frames[-1]
    shares = run.history.groupby("frame")["mask_share"].mean()
    if options.json:
        share = None if shares.isna().all() else float(shares.iloc[-1])
        print(json.dumps({"run": str(run.path), "metrics": last["metrics"], "mask_share": share, "status": run.status}))
        return
    accuracy = last["metrics"].get("accuracy")
    print()
    if accuracy is not None:
        print(f"accuracy on the validation images: {accuracy:.0%}")
    if not shares.isna().all():
        words = " → ".join(f"{s:.0%}" for s in shares)
        print(f"share of the attention that lies on the object, frame by frame: {words}")
    print(f"grids:  {run.path / 'frames'}")
    for what, file in (("report", "report.html"), ("course", "evolution.png")):
        if (run.path / file).exists():
            print(f"{what}: {run.path / file}")


def _explain(options: argparse.Namespace) -> int:
    if not options.learner.is_file():
        raise FileNotFoundError(f"There is no learner file {str(options.learner)!r}.")
    missing = [p for p in options.images if not p.exists()]
    if missing:
        raise FileNotFoundError(f"There is no image or folder {str(missing[0])!r}.")
    from ._cli.explain import Overlays, cams_by_image, class_of, image_files, load, table
    from .methods import resolve_method

    resolve_method(options.method)
    images = image_files(options.images, options.out)
    learn = load(options.learner)
    target = [class_of(learn, given) for given in options.target] if options.target else None
    overlays, unread = Overlays(options.out, images), 0
    explained = cams_by_image(learn, images, target, options.layer, options.method)
    try:
        with _bar(len(images)) as advance:
            for done, (image, cams) in enumerate(explained, 1):
                if isinstance(cams, Exception):
                    unread += 1
                    print(f"{image}: {cams}", file=sys.stderr)
                else:
                    for row in overlays.write(image, cams):
                        if options.json:
                            print(json.dumps(row, ensure_ascii=False))
                advance(done)
    finally:
        written = overlays.write_table()
    if not options.json:
        print(f"{table(overlays.rows)}\ntable: {written}")
    return 1 if unread else 0


def _report(options: argparse.Namespace) -> int:
    from .run import Run

    if options.out is not None and options.out.is_dir():
        raise IsADirectoryError(f"--out is the report's file; {str(options.out)!r} is a folder.")
    run = Run(options.path)
    written = run.report(options.out, _thresholds(options.threshold))
    told = {"report": str(written), "frames": len(run.frames), "status": run.status}
    print(json.dumps(told, ensure_ascii=False) if options.json else written)
    return 0


def _thresholds(given: Sequence[str]) -> Thresholds:
    from .findings import Thresholds

    known = asdict(Thresholds())
    values = {}
    for words in given:
        name, _, value = words.partition("=")
        if name not in known:
            raise ValueError(one_of("threshold", name, list(known), most=len(known)))
        try:
            values[name] = type(known[name])(value)
        except ValueError:
            kind = "a whole number" if isinstance(known[name], int) else "a number"
            raise ValueError(
                f"--threshold {name} is {kind}, such as {name}={known[name]:.3g}, got {words!r}."
            ) from None
    return Thresholds(**values)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    "A progress bar in a terminal, beside what is printed for a script; yields what is told how much is done."
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from fastprogress.fastprogress import progress_bar

    with redirect_stdout(sys.stderr):
        bar = progress_bar(range(total), leave=False)

    def advance(done: int) -> None:
        with redirect_stdout(sys.stderr):
            bar.update(done)

    advance(0)
    yield advance


def _layer(given: str) -> int | str:
    return int(given) if given.removeprefix("-").isdecimal() else given


def _say(options: argparse.Namespace, words: str) -> None:
    print(words, file=sys.stderr if options.json else sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
