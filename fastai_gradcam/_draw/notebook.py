"""A run in a notebook: the grid below a cell that trains, the run in brief, its report in a frame."""

from __future__ import annotations

import sys
from base64 import b64encode
from contextlib import suppress
from html import escape
from typing import Any

from PIL import Image

from .._errors import GradCAMError
from .._run.reader import RunFiles
from ..report import report_page
from .picture import picture

__all__ = ["NotebookGrid", "ReportView", "in_brief", "in_notebook"]

_LOWEST = 200
# Pixels a side of the grid in a run's own words: those of a large panel fill several screens.
_SMALL = 760


def in_notebook() -> bool:
    "Whether a cell's output is seen as a picture: under IPython, and not in its terminal."
    # fastcore's own `in_notebook` says yes in a terminal, too, where a picture would be a line of text.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and not any("Terminal" in kind.__name__ for kind in type(shell).__mro__)


class NotebookGrid:
    "Shows a picture below the running cell, in place of the one before it."

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, image: Image.Image) -> None:
        from IPython import display as ipython

        # The run has the lossless picture; a notebook keeps what it shows.
        shown = ipython.Image(data=picture(image)._repr_jpeg_(), format="jpeg")
        if self._handle is None:
            self._handle = ipython.display(shown, display_id=True)
        else:
            self._handle.update(shown)


class ReportView:
    """The report of a run inside of a notebook, as `Run.widget` gives it. As the last line of a cell, it shows itself.

    The page is the self-contained one that `Run.report` writes, in a frame. It does not use ipywidgets: they bring a
    dozen packages and a part for the browser that has to fit them, are empty in a notebook that is opened later without
    a kernel, and would be a second page to keep. The frame works in all of these, and after nbconvert.

    The frame may run its own scripts and nothing else: no access to the notebook or its server, no forms, no windows.
    """

    def __init__(self, run: RunFiles, height: int = 720):
        if isinstance(height, bool) or not isinstance(height, int) or height < _LOWEST:
            raise GradCAMError(f"height must be a number of pixels from {_LOWEST} up, got {height!r}.")
        self.height, self._name, self._frames = height, _text(run.name), len(run.frames)
        self._page = report_page(run)

    def _repr_html_(self) -> str:
        title = escape(f"Report of the run {self._name}")
        # Room below the frame, where the handle of `resize` lies by itself.
        outer = f"height:{self.height}px;min-height:{_LOWEST}px;padding-bottom:14px;box-sizing:border-box;"
        inner = "width:100%;height:100%;border:1px solid #8888;border-radius:6px;box-sizing:border-box"
        return (
            f'<div class="gradcam-report" style="{outer}resize:vertical;overflow:hidden">'
            f'<iframe title="{title}" sandbox="allow-scripts" referrerpolicy="no-referrer" style="{inner}" '
            f'srcdoc="{escape(self._page)}"></iframe></div>'
            f"<p><small>{escape(self._name)}: click into the page, then ← and → step through its "
            f"{_count(self._frames, 'frame')} and space plays them. Where there is no page above, this viewer keeps "
            "scripts out; <code>run.report()</code> writes it as a file.</small></p>"
        )

    def __repr__(self) -> str:
        return f"ReportView(run {self._name!r}, {_count(self._frames, 'frame')}): a notebook shows it"


def in_brief(run: RunFiles) -> str:
    "A run in a few words, and its newest grid, as HTML. Parts that cannot be read are left out."
    try:
        info, status = run.contents(), run.status
    except (OSError, ValueError):
        return f"<p>{escape(repr(run))}</p>"
    images = _count(len(info.panel), "image")
    about = [_count(len(info.frames), "frame"), images, str(info.arch), f"layer {', '.join(info.layers)}"]
    html = f"<p><b>{escape(_text(run.name))}</b>: {escape(status)} · {escape(' · '.join(about))}<br>"
    html += "<small><code>.widget()</code> steps through the frames; <code>.history</code> and "
    html += "<code>.findings()</code> have the numbers.</small></p>"
    with suppress(IndexError, OSError, ValueError):
        newest = run.grid()
        newest.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS)
        grid = b64encode(picture(newest)._repr_jpeg_()).decode("ascii")
        html += f'<img alt="The newest grid" style="max-width:100%" src="data:image/jpeg;base64,{grid}">'
    return html


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _text(name: str) -> str:
    "A folder's name, which need not be valid text, as a browser can read it."
    return name.encode("utf-8", "replace").decode()
