"""The page itself: its parts, and which question each of them asks. Gradio is imported here alone."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Asked for before Gradio is imported, which would else report its start.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from .._errors import GradCAMError
from .._fastai.cams import CAM
from ..render import DEFAULT_ALPHA
from .looks import Looks

__all__ = ["page"]

AUTO = "the last with space"
INTRO = (
    "Drop, paste or take a photograph. A map shows what raised the score of one class, at one layer: it does not say "
    "that the model understands it. Images are deleted after some minutes."
)
CSS = """
.gradio-container { max-width: 1100px !important }
#said { color: var(--error-text-color) }
#map img { width: 100%; height: 100%; object-fit: contain }
footer { display: none }
"""
MINUTES = 10


class Page:
    "The parts of the page, and the handlers of what visitors do with them."

    def __init__(self, looks: Looks, examples: Sequence[Path], report: Path | None):
        self.looks, self.vocab = looks, looks.vocab
        self.cams = gr.State([], time_to_live=60 * MINUTES)
        self.chosen = gr.State(0)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.photo = gr.Image(
                    label="Photo",
                    type="filepath",
                    sources=["upload", "clipboard", "webcam"],
                    elem_id="photo",
                    height=300,
                )
                # Whether a file is an image within bounds is not for Gradio to say. (A subclass would write a file
                # of types beside this one.)
                self.photo.preprocess = lambda upload: None if upload is None else upload.path
                if examples:
                    gr.Examples([str(e) for e in examples], self.photo, cache_examples=False, label="Examples")
                self._how()
            with gr.Column(scale=1, min_width=300):
                self.said = gr.Markdown(elem_id="said", visible=False)
                self.map = gr.Image(
                    label="Map", format="png", interactive=False, elem_id="map", height=340, buttons=["download"]
                )
                self.alpha = gr.Slider(0, 1, DEFAULT_ALPHA, step=0.05, label="Opacity of the map", elem_id="alpha")
                self.bars = gr.Label(label="Predictions: click on one for its map", elem_id="bars", show_heading=False)
                if looks.flag is not None:
                    self._flag()
        if len(self.vocab) > 1:
            self._pair()
        self._several()
        if report is not None:
            gr.Markdown("[How the model learned to look: the report of its training](report)", elem_id="report")
        asks = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        look = [self.photo, self.layer, self.method, self.alpha, self.cams, self.chosen]
        for part in (self.photo, self.layer, self.method):
            part.change(self.look, look, self._shown(), **asks)
        drawn = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.bars.select(self.click, [self.cams, self.alpha], [self.map, self.chosen], **drawn)
        self.alpha.input(self.draw, [self.cams, self.chosen, self.alpha], self.map, trigger_mode="always_last", **drawn)

    def _how(self) -> None:
        with gr.Accordion("How the map is made", open=False, elem_id="how"):
            self.layer = gr.Dropdown([AUTO, *self.looks.layers()], value=AUTO, label="Layer", elem_id="layer")
            self.method = gr.Dropdown(self.looks.methods(), value="gradcam", label="Method", elem_id="method")

    def _flag(self) -> None:
        words = gr.Textbox(label="What do you see? Sending keeps the image", max_length=1000, elem_id="words")
        send, kept = gr.Button("Send", elem_id="send"), gr.Markdown(elem_id="kept")
        send.click(self.keep, [self.cams, self.chosen, words], kept, concurrency_id="flag", api_visibility="private")

    def _pair(self) -> None:
        with gr.Accordion("Two classes side by side", open=False, elem_id="pair"):
            with gr.Row():
                self.this = gr.Dropdown(self.vocab, value=self.vocab[0], label="This", elem_id="this")
                self.that = gr.Dropdown(self.vocab, value=self.vocab[1], label="rather than that", elem_id="that")
            compare, said = gr.Button("Compare", elem_id="compare"), gr.Markdown()
            both = gr.Gallery(
                columns=3,
                format="png",
                object_fit="contain",
                label="Each, and why this rather than that",
                elem_id="both",
            )
            compare.click(
                self.compare,
                [self.photo, self.this, self.that, self.layer, self.method, self.alpha],
                [both, said],
                concurrency_id="model",
                api_visibility="private",
            )
            self.photo.change(lambda: ([], ""), None, [both, said], queue=False, api_visibility="private")

    def _several(self) -> None:
        with gr.Accordion("Several images", open=False, elem_id="several"):
            files = gr.File(file_count="multiple", type="filepath", label="Images", elem_id="files")
            said, maps = (
                gr.Markdown(),
                gr.Gallery(columns=4, format="png", object_fit="contain", label="Maps", elem_id="maps"),
            )
            files.change(
                self.several,
                [files, self.layer, self.method, self.alpha],
                [maps, said],
                concurrency_id="model",
                api_visibility="private",
            )

    def _shown(self) -> list[Any]:
        pair = [self.this, self.that] if len(self.vocab) > 1 else []
        return [self.cams, self.chosen, self.map, self.bars, self.said, *pair]

    def look(
        self, file: str | None, layer: str, method: str, alpha: float, before: list[CAM], chosen: int
    ) -> tuple[Any, ...]:
        pair = [gr.skip()] * 2 if len(self.vocab) > 1 else []
        if file is None:
            return [], 0, None, None, _sentence(""), *pair
        try:
            cams = self.looks.top(file, _layer(layer), method)
        except GradCAMError as error:
            return [], 0, None, None, _sentence(str(error)), *pair
        # Another layer or method of the same image: the class stays.
        label = before[chosen].label if chosen < len(before) else None
        at = next((i for i, cam in enumerate(cams) if cam.label == label), 0) if chosen else 0
        labels = [str(cam.label) for cam in cams]
        pair = [gr.update(value=v) for v in labels[:2]] if pair and len(labels) > 1 else pair
        return cams, at, _map(cams[at], alpha), _bars(cams), _sentence(" ".join(cams[at].notes)), *pair

    def click(self, cams: list[CAM], alpha: float, event: gr.SelectData) -> tuple[Any, int]:
        at = next((i for i, cam in enumerate(cams) if cam.label == event.value), 0)
        return _map(cams[at], alpha) if cams else None, at

    def draw(self, cams: list[CAM], chosen: int, alpha: float) -> Any:
        return _map(cams[chosen], alpha) if chosen < len(cams) else None

    def compare(
        self, file: str | None, this: str, that: str, layer: str, method: str, alpha: float
    ) -> tuple[list[Any], str]:
        if file is None:
            return [], "Give a photo first."
        try:
            cams = self.looks.pair(file, this, that, _layer(layer), method)
        except GradCAMError as error:
            return [], html.escape(str(error))
        words = [cams[0].title(), cams[1].title(), f"{this} rather than {that}"]
        return [(cam.overlay(alpha), w) for cam, w in zip(cams, words, strict=True)], ""

    def several(self, files: list[str] | None, layer: str, method: str, alpha: float) -> tuple[list[Any], str]:
        if not files:
            return [], ""
        most = self.looks.bounds.images
        said = [f"Only the first {most} images are shown."] if len(files) > most else []
        try:
            found = self.looks.several(files, _layer(layer), method)
        except GradCAMError as error:
            return [], html.escape(str(error))
        said += [one for one in found if isinstance(one, str)]
        return [(c.overlay(alpha), c.title()) for c in found if isinstance(c, CAM)], html.escape("\n\n".join(said))

    def keep(self, cams: list[CAM], chosen: int, words: str) -> str:
        if chosen >= len(cams):
            return "Give a photo first."
        try:
            self.looks.keep(cams[chosen], words)
        except GradCAMError as error:
            return str(error)
        return "Kept, with the map. Thank you."


def page(looks: Looks, title: str, examples: Sequence[Path], report: Path | None) -> gr.Blocks:
    "The page as Gradio's blocks, whose `launch` knows its bounds."
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 60 * MINUTES)) as blocks:
        gr.Markdown(f"# {html.escape(title)}\n{INTRO}")
        Page(looks, examples, report)
    blocks.queue(max_size=looks.bounds.waiting, default_concurrency_limit=4, api_open=False)
    routes = [] if report is None else [_route(report)]
    blocks.launch = partial(
        blocks.launch,
        max_file_size=looks.bounds.bytes,
        state_session_capacity=500,
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        css=CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"routes": routes},
    )
    return blocks


def _route(report: Path) -> Any:
    from starlette.responses import FileResponse
    from starlette.routing import Route

    return Route("/report", lambda request: FileResponse(report, media_type="text/html"))


def _gallery(label: str, id: str, columns: int) -> gr.Gallery:
    return gr.Gallery(label=label, elem_id=id, columns=columns, format="png", object_fit="contain", interactive=False)


def _layer(given: str) -> str | None:
    return None if given == AUTO else given


def _map(cam: CAM, alpha: float) -> Any:
    what = "Map" if cam.map.gt(0).any() else "Empty map: nothing raises the score"
    words = f"{what} of {cam.title()}, layer {cam.layer}"
    return gr.Image(value=cam.overlay(alpha), label=words, alt_text=words)


def _bars(cams: list[CAM]) -> Any:
    probs = {str(cam.label): cam.prob for cam in cams if cam.prob is not None}
    return probs or str(cams[0].pred)


def _sentence(words: str) -> Any:
    return gr.Markdown(value=html.escape(words), visible=bool(words))
