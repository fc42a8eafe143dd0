"""`fastai-gradcam explain`: overlays of images by an exported learner, and a table of them."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastai.data.transforms import get_files, get_image_files
from fastai.learner import Learner, load_learner

from .._errors import GradCAMError
from .._fastai.explain import Seen, explain, see_item
from .._run.words import brief
from ..learner import CAM
from ..methods import resolve_method
from .terminal import columns, progress

__all__ = ["COLUMNS", "Overlays", "cams_by_image", "image_files", "load", "run_explain", "table"]

COLUMNS = ("image", "overlay", "target", "prob", "pred", "pred_prob", "layer")
_TOGETHER = 16
# Letters of a line of the table in the terminal, and of the name of a class or a layer in it.
_WIDEST, _NAME = 100, 18


def run_explain(options: Namespace) -> int:
    if not options.learner.is_file():
        raise GradCAMError(f"There is no learner file {str(options.learner)!r}.")
    missing = [p for p in options.images if not p.exists()]
    if missing:
        raise GradCAMError(f"There is no image or folder {str(missing[0])!r}.")
    resolve_method(options.method)
    images = image_files(options.images, options.out)
    learn = load(options.learner)
    overlays, unread = Overlays(options.out, images), 0
    explained = cams_by_image(learn, images, options.target or None, options.layer, options.method)
    try:
        with progress(len(images)) as advance:
            for done, (image, cams) in enumerate(explained, 1):
                if isinstance(cams, Exception):
                    unread += 1
                    print(brief(f"{image}: {cams}", 1000), file=sys.stderr)
                else:
                    for row in overlays.write(image, cams):
                        if options.json:
                            print(json.dumps(row, ensure_ascii=False))
                advance(done)
    finally:
        written = overlays.write_table()
    if not options.json:
        print(f"{table(overlays.rows)}\noverlays and table: {written.parent}")
    return 1 if unread else 0


def load(file: Path) -> Learner:
    "The learner that `learn.export()` wrote in `file`. A `GradCAMError` says what is missing, or what the file is not."
    try:
        with warnings.catch_warnings():
            # The command's help says that loading runs code.
            warnings.simplefilter("ignore")
            found = load_learner(file)
    except Exception as error:
        cause = _missing(file) or error if isinstance(error, UnboundLocalError) else error
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            raise GradCAMError(
                f"{str(file)!r} cannot be loaded: it needs the module {cause.name!r}, which is not installed here. If "
                "it is a file of your own, run the command in its folder, with PYTHONPATH=."
            ) from error
        if isinstance(cause, AttributeError) and "Custom classes or functions" in str(cause):
            reason = str(cause).strip().splitlines()[-1].strip()
            raise GradCAMError(
                f"{str(file)!r} cannot be loaded: it needs a function or class that the notebook or program which made "
                f"the learner defined ({reason}). Define it in a module, import it there, and export again."
            ) from error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise GradCAMError(f"{str(file)!r} is not what learn.export() wrote: {reason}") from error
    if not isinstance(found, Learner):
        raise GradCAMError(f"{str(file)!r} is not what learn.export() wrote, but a {type(found).__name__}.")
    return found


def _missing(file: Path) -> ImportError | None:
    "The failed import behind an `UnboundLocalError`: fastai's `load_learner` swallows it, and then has no learner."
    try:
        torch.load(file, map_location="cpu", weights_only=False)
    except ImportError as error:
        return error
    return None


def image_files(paths: Sequence[Path], out: Path) -> list[Path]:
    """The images among `paths`, and those below the folders among them, without the overlays in `out`.

    Raises `GradCAMError` if there are none, or if `out` is itself a folder of images to explain.
    """
    found: list[Path] = []
    written = out.resolve()
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        if path.resolve() == written:
            raise GradCAMError(f"--out {str(out)!r} is a folder of images to explain: choose another for the overlays.")
        inside = path.resolve() in written.parents
        # A learner may open files of another kind, such as arrays or DICOM.
        files = get_image_files(path) or get_files(path)
        found += [o for o in sorted(files) if not (inside and written in o.resolve().parents)]
    if not found:
        raise GradCAMError(f"There are no images in {', '.join(map(str, paths))}.")
    return found


def cams_by_image(
    learn: Learner, images: Sequence[Path], target: Any = None, layer: Any = None, method: str = "gradcam"
) -> Iterator[tuple[Path, list[CAM] | Exception]]:
    "(image, its CAMs or the error that prevented them), in batches. One unreadable image does not affect the others."
    for at in range(0, len(images), _TOGETHER):
        readable: list[Path] = []
        seen: list[Seen] = []
        for image in images[at : at + _TOGETHER]:
            try:
                # Opened by the learner's own pipeline, as in `learn.predict`.
                seen.append(see_item(learn, image))
                readable.append(image)
            except GradCAMError as error:
                yield image, error
        if seen:
            yield from zip(readable, explain(learn, seen.copy, len(seen), target, layer, method), strict=True)


@dataclass
class Overlays:
    """Writes overlays into the folder `out`, each under a name of its own; `rows` describe them, with the keys
    `COLUMNS`.
    """

    out: Path
    images: Sequence[Path]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self._taken = {image.resolve() for image in self.images}

    def write(self, image: Path, cams: Sequence[CAM]) -> list[dict[str, Any]]:
        "Save the overlays of one image and return their rows."
        name_label = len({cam.label for cam in cams}) > 1
        name_layer = len({cam.layer for cam in cams}) > 1
        rows = []
        for cam in cams:
            file = self._file(image, [str(cam.label)] * name_label + [cam.layer] * name_layer)
            cam.save(file)
            about = (str(image), str(file), cam.label, cam.prob, cam.pred, cam.pred_prob, cam.layer)
            rows.append(dict(zip(COLUMNS, about, strict=True)))
        self.rows += rows
        return rows

    def _file(self, image: Path, parts: Sequence[str]) -> Path:
        stem = f"{image.parent.name}-{image.stem}" if image.parent.name else image.stem
        words = ["".join(c if c.isalnum() or c in "-_." else "_" for c in part)[:60] for part in parts]
        stem, k = "-".join([stem, *words]), 1
        file = self.out / f"{stem}.png"
        while file.resolve() in self._taken:
            k += 1
            file = self.out / f"{stem}-{k}.png"
        self._taken.add(file.resolve())
        return file

    def write_table(self) -> Path:
        "Save the rows as `table.csv`."
        file = self.out / "table.csv"
        with open(file, "w", newline="", encoding="utf-8", errors="backslashreplace") as opened_file:
            writer = csv.DictWriter(opened_file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        return file


def table(rows: Sequence[dict[str, Any]]) -> str:
    "The rows as text in columns, at most `_WIDEST` wide: image, prediction, explained class, and layer if several."
    lines = [["image", "predicted", "", "map of", "", "layer"]]
    for r in rows:
        image, pred, target = r["image"], r["pred"] or "", "the output" if r["target"] is None else r["target"]
        lines.append([image, pred, _percent(r["pred_prob"]), target, _percent(r["prob"]), r["layer"]])
    if len({r["layer"] for r in rows}) < 2:
        lines = [line[:-1] for line in lines]
    # Names of classes and layers first, then what is left for the images' names.
    for i in (1, 3, *range(5, len(lines[0]))):
        for line in lines:
            line[i] = brief(line[i], _NAME)
    room = _WIDEST - sum(max(len(line[i]) for line in lines) + 2 for i in range(1, len(lines[0])))
    for line in lines:
        line[0] = brief(line[0], room)
    return columns(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}".rjust(4)
