"""The command line's options and help. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._version import __version__

__all__ = ["METHODS", "make_parser"]

CODES = """
exit status:
  0    done
  1    the work failed, or an image could not be read
  2    the request does not fit; a line says why
  130  interrupted (Ctrl-C)
  141  the reader of the output closed it, as `| head` does
"""

EPILOG = f"""
examples:
  fastai-gradcam demo                         draw the fish set, train a resnet34 on it, watch where it looks
  fastai-gradcam demo --shortcut              the same with a coloured tag that gives the species away
  fastai-gradcam train photos --epochs 5      your own folder of images, one folder per class
  fastai-gradcam explain model.pkl a.jpg b/   where a trained learner looks, on images or folders of them
  fastai-gradcam judge model.pkl photos       what each class depends on, tried by changing images
  fastai-gradcam atlas model.pkl photos       where it looks on all images, by class and by habit
  fastai-gradcam report runs/my-run           make the interactive report of a run again
  fastai-gradcam app model.pkl                a page in the browser to try a trained learner on

`fastai-gradcam COMMAND --help` lists the options of a command.
{CODES}"""

DEMO_EPILOG = f"""
examples:
  fastai-gradcam demo                                  what the README shows
  fastai-gradcam demo --shortcut --epochs 3            a model that cheats, and maps that show it
  fastai-gradcam demo --layer 7 --method layercam      another layer, another method
  fastai-gradcam demo --layer all                      every stage of the network
{CODES}"""

TRAIN_EPILOG = f"""
examples:
  fastai-gradcam train photos                          a resnet34, 5 epochs, runs in photos/gradcam
  fastai-gradcam train photos --export model.pkl       also keep the learner, for `fastai-gradcam explain`
  fastai-gradcam train photos --arch resnet18 --layer 6 --size 128 --bs 64
  fastai-gradcam train photos --json | jq .metrics     for scripts: run, metrics, mask_share, status
{CODES}"""

EXPLAIN_EPILOG = f"""
examples:
  fastai-gradcam explain model.pkl trout.jpg           the map of the predicted class
  fastai-gradcam explain model.pkl photos --out maps   each image below photos
  fastai-gradcam explain model.pkl trout.jpg --target Trout --target "Sea Bass"
  fastai-gradcam explain model.pkl trout.jpg --layer all
  fastai-gradcam explain model.pkl photos --json | jq -r .pred
{CODES}"""

JUDGE_EPILOG = f"""
examples:
  fastai-gradcam judge model.pkl photos                a line per class: its strongest test, effect and control
  fastai-gradcam judge model.pkl photos --out verdicts --n 400
  fastai-gradcam judge model.pkl photos --test transplant --test place
  fastai-gradcam judge model.pkl photos --json | jq 'select(.verdict == "shortcut")'
{CODES}"""

ATLAS_EPILOG = f"""
examples:
  fastai-gradcam atlas model.pkl photos                writes atlas/atlas.html, and the folder that it is made from
  fastai-gradcam atlas model.pkl photos --resume       goes on with one that was stopped
  torchrun --nproc_per_node 8 -m fastai_gradcam atlas model.pkl photos    each process takes its share
{CODES}"""

REPORT_EPILOG = f"""
examples:
  fastai-gradcam report photos/gradcam/my-run          writes photos/gradcam/my-run/report.html
  fastai-gradcam report my-run --out my-run.html       a single file to send to somebody
  fastai-gradcam report my-run --threshold confident=0.6
{CODES}"""

APP_EPILOG = f"""
examples:
  fastai-gradcam app model.pkl                         the page, at http://127.0.0.1:7860
  fastai-gradcam app model.pkl --examples photos/valid/trout --run photos/gradcam/my-run
  fastai-gradcam app model.pkl --host 0.0.0.0 --flag said    for others in your network; keeps what they send
{CODES}"""

# Written out, so that --help need not import torch.
METHODS = (
    "gradcam, gradcam++, xgradcam, hirescam, layercam, gradcam_elementwise, eigencam, eigengradcam, smoothgradcam++, "
    "scorecam, ablationcam"
)
METHOD_HELP = f"how maps are made: {METHODS}; +noise, +aug and +eigen may follow a name (default: gradcam)"
LAYER_HELP = (
    "a number i for learn.model[0][i] (-1 is the last), a dotted name such as 0.6.1, or 'all' for every stage of "
    "the network"
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastai-gradcam",
        description="Watch where an image model looks while it learns.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_train, _add_explain, _add_judge, _add_atlas, _add_report, _add_app):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    demo = commands.add_parser(
        "demo",
        help="train on drawn fish and watch",
        description="Draws a small set of nine species of fish in the layout of Kaggle's 'A Large Scale Fish Dataset',\n"  # noqa: E501
        "trains on it with GradCAMCallback, and says where the pictures are. Without a network connection it\n"
        "trains from scratch.",
        epilog=DEMO_EPILOG,
    )
    demo.add_argument("--out", type=Path, default=Path("fish"), help="folder for images and runs (default: fish)")
    demo.add_argument(
        "--shortcut", action="store_true", help="put a coloured tag that gives the species away beside each fish"
    )
    demo.add_argument("--seed", type=int, default=0, help="another seed draws other fish (default: 0)")
    demo.add_argument("--per-species", type=int, help="images of each species, 2 or more (default: 40)")
    _add_training_options(demo, arch="resnet34", epochs=None, size=None, bs=None)
    demo.set_defaults(kept="frames taken so far are kept")
    return demo


def _add_train(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    train = commands.add_parser(
        "train",
        help="train on your own folder of images and watch",
        description="Fine-tunes a network on a folder of images with GradCAMCallback.\n\n"
        "DATA holds one folder of images per class, or such a tree in each of train/ and valid/, or the layout of\n"
        "Kaggle's fish set, whose '<Species> GT' folders are read as masks. Without a split, a fifth of each class\n"
        "is for validation.",
        epilog=TRAIN_EPILOG,
    )
    train.add_argument("data", type=Path, metavar="DATA", help="the folder of images")
    train.add_argument("--out", type=Path, help="folder for runs (default: DATA/gradcam)")
    train.add_argument(
        "--seed", type=int, default=42, help="another seed chooses other validation images (default: 42)"
    )
    train.add_argument("--export", type=Path, help="also save the trained learner in this file, for 'explain'")
    _add_training_options(train, arch="resnet34", epochs=5, size=224, bs=32)
    train.set_defaults(kept="frames taken so far are kept")
    return train


def _add_explain(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    explain = commands.add_parser(
        "explain",
        help="where a trained learner looks on images",
        description="Writes an overlay for each image and table.csv into a folder, and prints the table: the\n"
        "prediction, the class that the map explains, and their probabilities. An image that cannot be read is named\n"
        "and skipped.\n\n"
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
        help="class to explain: its name, or its index if no class has that name; may be repeated (default: the "
        "predicted one)",
    )
    explain.add_argument("--layer", type=_layer, help=f"layer to explain: {LAYER_HELP} (default: the last with space)")
    explain.add_argument("--method", default="gradcam", metavar="METHOD", help=METHOD_HELP)
    explain.add_argument("--json", action="store_true", help="print JSON, one object per map")
    explain.set_defaults(kept="overlays written so far are kept")
    return explain


def _add_judge(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    judge = commands.add_parser(
        "judge",
        help="what each class of a trained learner depends on",
        description="Changes images on purpose (a patch pasted into other classes, a class's corner or colours given\n"
        "to others, …), asks the learner again, and compares with a control. Writes verdicts.csv and the patches\n"
        "that decided into a folder, and prints the strongest test of each class.\n\n"
        "DATA holds one folder of images per class, named as the learner's classes; if it has train/ and valid/,\n"
        "those in valid/ are taken. LEARNER is a file that learn.export() wrote. Loading one runs code from that\n"
        "file: load only what you trust.",
        epilog=JUDGE_EPILOG,
    )
    judge.add_argument("learner", type=Path, metavar="LEARNER", help="a learner exported by learn.export()")
    judge.add_argument("data", type=Path, metavar="DATA", help="the folder of images")
    judge.add_argument("--out", type=Path, default=Path("judged"), help="folder for verdicts.csv (default: judged)")
    judge.add_argument("--n", type=int, default=200, help="images to judge by, spread over the classes (default: 200)")
    judge.add_argument("--test", action="append", metavar="TEST", help="a test to hold; may be repeated (default: all)")
    judge.add_argument("--layer", type=_layer, help=f"layer of the maps: {LAYER_HELP} (default: the last with space)")
    judge.add_argument("--method", default="gradcam", metavar="METHOD", help=METHOD_HELP)
    judge.add_argument("--seed", type=int, default=42, help="another seed chooses other images (default: 42)")
    judge.add_argument("--json", action="store_true", help="print JSON, one object per class and test")
    judge.set_defaults(kept="nothing was written")
    return judge


def _add_atlas(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    atlas = commands.add_parser(
        "atlas",
        help="where a trained learner looks on a whole folder of images",
        description="Maps, predictions and losses of all images in one pass: mean maps by class, habits within\n"
        "classes, and a page. DATA and LEARNER are as for 'judge'.",
        epilog=ATLAS_EPILOG,
    )
    atlas.add_argument("learner", type=Path, metavar="LEARNER", help="a learner exported by learn.export()")
    atlas.add_argument("data", type=Path, metavar="DATA", help="the folder of images")
    atlas.add_argument("--out", type=Path, default=Path("atlas"), help="folder of the atlas (default: atlas)")
    atlas.add_argument("--layer", type=_layer, help=f"layer of the maps: {LAYER_HELP} (default: the last with space)")
    atlas.add_argument("--method", default="gradcam", metavar="METHOD", help=METHOD_HELP)
    atlas.add_argument("--seed", type=int, default=42, help="as for 'train' (default: 42)")
    atlas.add_argument("--resume", action="store_true", help="go on with the atlas in that folder")
    atlas.add_argument("--json", action="store_true", help="print a JSON object: atlas, page, images, missing, flagged")
    atlas.set_defaults(kept="parts written so far are kept; --resume goes on")
    return atlas


def _add_report(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    report = commands.add_parser(
        "report",
        help="make the interactive report of a run",
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
        help="from which value something is a finding, such as confident=0.6; may be repeated (default: those of "
        "Thresholds)",
    )
    report.add_argument("--json", action="store_true", help="print a JSON object: report, frames, status")
    report.set_defaults(kept="")
    return report


def _add_app(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    app = commands.add_parser(
        "app",
        help="a page in the browser to try a trained learner on",
        description="Serves a page: drop, paste or take a photograph; see the predictions, the map of each class, two\n"
        'classes side by side, several images. Needs Gradio: pip install "fastai_gradcam[app]".\n\n'
        "LEARNER is a file that learn.export() wrote. Loading one runs code from that file: load only what you trust.",
        epilog=APP_EPILOG,
    )
    app.add_argument("learner", type=Path, metavar="LEARNER", help="a learner exported by learn.export()")
    app.add_argument("--examples", type=Path, metavar="FOLDER", help="a folder of images to offer, at most 12")
    app.add_argument("--run", type=Path, help="the run folder of the training, for a link to its report")
    app.add_argument("--host", default="127.0.0.1", help="address to serve at (default: 127.0.0.1, this machine only)")
    app.add_argument("--port", type=int, help="port to serve at (default: the first free one from 7860)")
    app.add_argument("--share", action="store_true", help="also a public link, through Gradio's servers")
    app.add_argument(
        "--flag", type=Path, metavar="FOLDER", help="keep the image, map and words of visitors who send them"
    )
    app.set_defaults(kept="")
    return app


def _add_training_options(
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
    parser.add_argument("--json", action="store_true", help="print only one JSON object on stdout, at the end")


def _layer(given: str) -> int | str:
    return int(given) if given.removeprefix("-").isdecimal() else given
