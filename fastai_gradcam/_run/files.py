"""Files that are whole or not there, and pictures as bytes."""

from __future__ import annotations

import io
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from .._errors import GradCAMError

__all__ = ["append_at", "image_bytes", "is_unfinished", "open_image", "remove_unfinished", "stamp_of"]
__all__ += ["write_whole"]


def write_whole(file: Path, data: bytes) -> None:
    """Replace `file` by `data` in one step.

    A reader sees the old contents or the new, never a part, and several threads or processes may write at once.
    """
    # A name of its own for each writer, short enough for every file system.
    temporary = file.with_name(f".{file.name[:80]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_unfinished(name: str, of: str) -> bool:
    "Whether `name` is the temporary file of a killed process that was writing a file whose name matches `of`."
    return re.fullmatch(rf"\.(?:{of})(?:\.\d+-\d+)?\.part", name) is not None


def remove_unfinished(folder: Path) -> None:
    for file in folder.rglob(".*.part"):
        file.unlink(missing_ok=True)


def append_at(file: Path, data: bytes, at: int) -> int:
    """Write `data` into `file` at the byte `at`, cut off what lies beyond, and return the new size.

    It costs the same however long the file is. After a failure the file ends at `at` again; where not even that can be
    done, the next call does it.
    """
    try:
        with file.open("r+b") as out:
            out.truncate(at)
            out.seek(at)
            out.write(data)
    except BaseException:
        with suppress(OSError):
            os.truncate(file, at)
        raise
    return at + len(data)


def image_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    "`image` as the contents of a file of `kind`, such as `PNG`; `options` as in Pillow's `save`."
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def open_image(file: Path) -> Image.Image:
    "The picture in `file`, RGB. Raises `GradCAMError` if it cannot be read."
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise GradCAMError(f"The picture {str(file)!r} cannot be read: {error}") from error


def stamp_of(file: Path) -> tuple[int, ...] | None:
    "A value that changes when `file` is written or replaced; `None` if there is no such file."
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino
