"""Pictures as a notebook stores them: once, as JPEG."""

from __future__ import annotations

from PIL import Image

from .._run.files import image_bytes

__all__ = ["Picture", "picture"]


class Picture(Image.Image):
    "An image of Pillow, which alone would be stored in a notebook as PNG and as JPEG."

    def _repr_png_(self) -> None:
        return None

    def _repr_jpeg_(self) -> bytes:
        # Whole colours: the grid has fine print.
        return image_bytes(self.convert("RGB"), "JPEG", quality=85, subsampling=0)


def picture(image: Image.Image) -> Picture:
    "The same pixels as `image`."
    made = Picture()
    vars(made).update(vars(image))
    return made
