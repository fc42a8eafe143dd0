"""The looks that visitors ask of a model, within bounds of size and time. Knows nothing of Gradio."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastai.learner import Learner
from PIL import Image, ImageOps

from .._errors import GradCAMError
from .._fastai.cams import CAM, CAMList
from .._fastai.explain import FEWEST, Top, stages_of
from .._fastai.tasks import task_of
from .._net.layers import unwrap
from ..methods import methods
from ..targets import contrast

__all__ = ["Bounds", "Looks"]

Answer = TypeVar("Answer")

_ORIENTATION = 0x0112  # of EXIF: a phone notes down how it was held


@dataclass(frozen=True)
class Bounds:
    "How much a visitor may ask: bytes and pixels of an image, images at once, seconds for an answer, words kept."

    bytes: int = 20 * 2**20
    pixels: int = 40_000_000
    images: int = 12
    seconds: float = 30
    waiting: int = 32
    kept: int = 1000
    classes: int = 5


@dataclass
class Looks:
    """The questions that a page asks of `learn`, one at a time; each answer comes, or a `GradCAMError` that says why.

    `flag`: the folder for what visitors send, if any.
    """

    learn: Learner
    flag: Path | None = None
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        # One at a time: several forward passes side by side are no faster than one after the other.
        self._worker = ThreadPoolExecutor(1, "gradcam-app")
        self._kept = 0

    @property
    def vocab(self) -> list[str]:
        "The names of the classes; empty where they have none."
        return task_of(self.learn.dls, self.learn.loss_func).vocab or []

    def layers(self) -> list[str]:
        "The layers to offer: the children of the model's body, or of the model."
        try:
            return stages_of(unwrap(self.learn.model), FEWEST)
        except GradCAMError:
            return [name for name, _ in self.learn.model.named_children()]

    def methods(self) -> list[str]:
        "Those that need a few passes, and not one for each channel."
        return [name for name, method in methods.items() if not method.weigh]

    def top(self, file: str, layer: str | None, method: str) -> list[CAM]:
        "The maps of the most probable classes, the first one first."
        return self._ask(lambda: self._look(file, Top(self.bounds.classes), layer, method))

    def pair(self, file: str, this: str, that: str, layer: str | None, method: str) -> list[CAM]:
        "The maps of two classes, and that of what speaks for `this` rather than `that`."
        why = contrast(this, that)
        return self._ask(
            lambda: [*self._look(file, [this, that], layer, method), *self._look(file, why, layer, method)]
        )

    def several(self, files: Sequence[str], layer: str | None, method: str) -> list[CAM | str]:
        "For each file its map, or a sentence that says why there is none."
        return self._ask(lambda: self._each(files[: self.bounds.images], layer, method))

    def keep(self, cam: CAM, words: str) -> None:
        "Keep an image, its map and what the visitor says of it, in a folder of their own."
        if self.flag is None or self._kept >= self.bounds.kept:
            raise GradCAMError("Nothing more is kept: the folder for it is full.")
        self._kept += 1
        folder = self.flag / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        cam.image.save(folder / "image.png")
        cam.save(folder / "overlay.png")
        np.save(folder / "map.npy", cam.map.numpy())
        about = {"label": cam.label, "prob": cam.prob, "pred": cam.pred, "pred_prob": cam.pred_prob, "layer": cam.layer}
        text = json.dumps({**about, "words": words[:1000]}, ensure_ascii=False, indent=1)
        (folder / "about.json").write_text(text + "\n", encoding="utf-8")

    def _ask(self, work: Callable[[], Answer]) -> Answer:
        future = self._worker.submit(work)
        try:
            return future.result(self.bounds.seconds)
        except GradCAMError:
            raise
        except OutOfTime:
            future.cancel()
            seconds = f"{self.bounds.seconds:g}"
            raise GradCAMError(f"No answer within {seconds} seconds: try again later, or another method.") from None
        except Exception as error:
            logging.getLogger("fastai_gradcam").exception("The page could not answer.")
            raise GradCAMError("The model could not look at this image.") from error

    def _each(self, files: Sequence[str], layer: str | None, method: str) -> list[CAM | str]:
        found: list[CAM | str] = []
        # A look that is over time is not waited for by anybody.
        end = time.monotonic() + self.bounds.seconds
        for file in files:
            if time.monotonic() > end:
                break
            try:
                found += self._look(file, Top(1), layer, method)
            except GradCAMError as error:
                found.append(str(error))
        return found

    def _look(self, file: str, target: Any, layer: str | None, method: str) -> list[CAM]:
        image = self._opened(file)
        try:
            cams = self.learn.gradcam(image, target=target, layer=layer or None, method=method)
        except GradCAMError as error:
            # Where the file lies on this machine is not a visitor's to know.
            raise GradCAMError(str(error).replace(file, Path(file).name)) from error
        return list(cams) if isinstance(cams, CAMList) else [cams]

    def _opened(self, file: str) -> str | Image.Image:
        "`file`, if it is an image within bounds: as it is, or turned upright."
        path, name = Path(file), repr(Path(file).name)
        if not path.exists():
            raise GradCAMError(f"The upload {name} is no longer here: give it again.")
        if path.stat().st_size > self.bounds.bytes:
            raise GradCAMError(f"The file {name} is too large: at most {self.bounds.bytes >> 20} MB.")
        try:
            with Image.open(path) as image:
                if image.width * image.height <= self.bounds.pixels:
                    image.load()
                    if image.getexif().get(_ORIENTATION, 1) == 1:
                        return file
                    return ImageOps.exif_transpose(image).convert("RGB")
                size = f"{image.width} × {image.height} pixels"
        except Image.DecompressionBombError:
            size = "more pixels than fit into memory"
        except Exception as error:
            raise GradCAMError(f"The file {name} cannot be read as an image.") from error
        raise GradCAMError(f"The image {name} is too large: {size}, at most {self.bounds.pixels // 10**6} million.")
