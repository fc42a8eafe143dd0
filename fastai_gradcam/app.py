"""`build(learn)`: a page in the browser where anybody can try a model and see where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastai.learner import Learner

from ._app.looks import Looks
from ._errors import GradCAMError, NoFileError
from .run import Run

if TYPE_CHECKING:
    import gradio

__all__ = ["build"]


def build(
    learn: Learner,
    examples: Sequence[str | Path] = (),
    run: Run | str | Path | None = None,
    flag: str | Path | None = None,
    title: str = "Where does the model look?",
) -> gradio.Blocks:
    """A page to try `learn` on: predictions as bars, a map of each, two classes side by side, several images.

    - `examples`: image files to offer. `title`: the heading.
    - `run`: the training's run, or its folder, for a link to its report; default that of the `GradCAMCallback` on
      `learn`, if it trained in this session.
    - `flag`: a folder that keeps the image, the map and the words of visitors who send them. Without it nothing is
      kept; uploads are deleted after ten minutes.

    `build(learn).launch()` serves the page; `launch` takes what Gradio's does. The model answers one visitor at a time,
    each within 30 seconds, for images of at most 20 MB and 40 million pixels; 32 visitors may wait. Raises
    `GradCAMError` without Gradio (`pip install "fastai_gradcam[app]"`), for an example that does not exist, and for a
    folder without a run.

    >>> from fastai.vision.all import ImageDataLoaders, resnet18
    >>> from fastai_gradcam.app import build
    >>> from fastai_gradcam.demo import fish_items, fish_label, make_fish, scratch_learner
    >>> path = make_fish("few fish", per_species=4, size=64)
    >>> dls = ImageDataLoaders.from_path_func(path, fish_items(path), fish_label, seed=1, bs=4, num_workers=0)
    >>> page = build(scratch_learner(dls, resnet18, path=path), examples=dls.valid_ds.items[:2])
    >>> page.title  # page.launch() opens it
    'Where does the model look?'
    """
    try:
        from ._app.page import page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise GradCAMError('The page needs Gradio: pip install "fastai_gradcam[app]".') from None
    missing = [str(e) for e in examples if not Path(e).is_file()]
    if missing:
        raise NoFileError(f"There is no image file {missing[0]!r}.")
    if flag is not None and Path(flag).exists() and not Path(flag).is_dir():
        raise GradCAMError(f"flag must be a folder, got the file {str(flag)!r}.")
    looks = Looks(learn, None if flag is None else Path(flag))
    return page(looks, title, [Path(e) for e in examples], _report(learn, run))


def _report(learn: Any, run: Run | str | Path | None) -> Path | None:
    if run is None:
        run = next((cb.run for cb in learn.cbs if isinstance(getattr(cb, "run", None), Run)), None)
    if run is None:
        return None
    run = run if isinstance(run, Run) else Run(run)
    file = run.path / "report.html"
    return (file if file.exists() else run.report()).resolve()
