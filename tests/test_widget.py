"""The report inside of a notebook, in a real browser, and what a run says of itself as a cell's last line."""

import base64
import io
import json
import os
import re
import socket
import time

import numpy as np
import pytest
from pages import blocked_in, until
from PIL import Image
from report_fixture import make_run

from fastai_gradcam.run import Run

HOSTILE = [
    '"><script>window.pwned = 1</script>',
    "</iframe><script>window.pwned = 2</script>",
    "' onload='window.pwned = 3",
    "&quot;&gt;<img src=x onerror=window.pwned=4>",
    "cat",
]


def notebook(view, path):
    "A page with the view in it, as a notebook would have it."
    text = f'<!doctype html><meta charset="utf-8"><title>n</title><h1 id="top">Notebook</h1>{view._repr_html_()}'
    (path / "notebook.html").write_text(text, encoding="utf-8")
    return (path / "notebook.html").as_uri()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture
def in_cell(browser, tmp_path):
    """`in_cell(view)`: a notebook's page with the view in it, and the view's frame.

    At the end nothing may have been said on the console, nothing but the notebook itself asked for, and no text of the
    view may have become a script.
    """
    contexts, said, asked = [], [], []

    def show(view, width=1000, height=1000):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(notebook(view, tmp_path))
        frame = page.frames[1]
        until(frame, "document.querySelectorAll('.tile').length > 0")
        return page, frame

    yield show
    pwned = [frame.evaluate("window.pwned") for context in contexts for frame in context.pages[0].frames]
    for context in contexts:
        context.close()
    assert said == []
    assert pwned and not any(pwned)
    own = [url for url in asked if not url.startswith(("data:", "about:"))]
    assert own == [(tmp_path / "notebook.html").as_uri()] * len(contexts)


def shown_frame(frame):
    return int(frame.input_value("#frame"))


def tile(frame, item):
    "The pixels of one tile's canvas."
    canvas = f'.tile[data-item="{item}"] canvas'
    until(frame, f"document.querySelector('{canvas}').getContext('2d').getImageData(0, 0, 1, 1).data[3] === 255")
    uri = frame.eval_on_selector(canvas, "canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), float)


def test_keys_and_slider_step_through_the_frames(small, in_cell):
    page, frame = in_cell(Run(small).widget())
    assert shown_frame(frame) == 4 and "Frame 4 of 4" in frame.inner_text("#when")
    last = tile(frame, 1)
    frame.locator("#name").click()
    for key, at in (("ArrowLeft", 3), ("Home", 0), ("ArrowRight", 1), ("End", 4)):
        page.keyboard.press(key)
        assert shown_frame(frame) == at, key
    page.keyboard.press("Home")
    first = tile(frame, 1)
    assert "before training" in frame.inner_text("#when") and np.abs(first - last).mean() > 2
    box = frame.locator("#frame").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert shown_frame(frame) == 2 and "Frame 2 of 4" in frame.inner_text("#when")
    # Until the page would have written its state into an address.
    time.sleep(0.4)
    assert page.url.endswith("notebook.html") and frame.url == "about:srcdoc"


def test_the_large_view_opens_and_closes_in_the_frame(small, in_cell):
    page, frame = in_cell(Run(small).widget())
    frame.click('.tile[data-item="1"] button')
    assert frame.is_visible("#large") and frame.inner_text("#large-label") == "Salmon"
    page.keyboard.press("Escape")
    assert frame.is_hidden("#large")


def test_the_link_to_the_images_stays_in_the_page(small, in_cell):
    page, frame = in_cell(Run(small).widget())
    frame.focus(".skip")
    page.keyboard.press("Enter")
    until(frame, "document.activeElement.id === 'panel'")
    assert frame.url == "about:srcdoc" and page.url.endswith("notebook.html")


def test_names_from_elsewhere_are_shown_as_text(tmp_path, in_cell):
    about = {"info": {"name": HOSTILE[1]}, "names": HOSTILE, "layers": HOSTILE[2:3], "metrics": HOSTILE[:2]}
    folder = HOSTILE[0].replace("/", "")
    run = Run(make_run(tmp_path / folder, n=5, frames=2, labels=HOSTILE, **about))
    page, frame = in_cell(run.widget())
    assert frame.locator(".tile .label").all_text_contents() == HOSTILE
    assert frame.text_content("#name") == HOSTILE[1]
    assert len(page.frames) == 2 and page.locator("script, img").count() == 0
    assert folder in page.text_content("small") and page.get_attribute("iframe", "title").endswith(folder)


def test_a_folder_whose_name_is_no_text_can_be_sent_to_the_browser(tmp_path):
    run = Run(make_run(tmp_path / os.fsdecode(b"caf\xe9"), n=1, frames=1))
    for shown in (run.widget()._repr_html_(), run._repr_html_(), repr(run), repr(run.widget())):
        assert b"caf" in shown.encode("utf-8")


def test_the_frame_may_run_its_scripts_and_nothing_else(small, browser, tmp_path):
    page = browser.new_page()
    page.goto(notebook(Run(small).widget(), tmp_path))
    assert page.get_attribute("iframe", "sandbox") == "allow-scripts"
    frame = page.frames[1]
    assert frame.evaluate("origin") == "null"
    tried = "() => { try { return String(%s) } catch (error) { return error.name } }"
    for reach in ("parent.document.title", "localStorage.length", "top.location.href"):
        assert frame.evaluate(tried % reach) == "SecurityError", reach
    assert blocked_in(frame) == ["img-src", "script-src-elem"]
    assert frame.evaluate("window.pwned") is None
    page.close()


def test_the_height_is_the_users(small, in_cell):
    page, _ = in_cell(Run(small).widget(height=400))
    high = lambda: page.locator("iframe").bounding_box()["height"]
    assert 370 < high() <= 400
    box = page.locator(".gradcam-report").bounding_box()
    right, below = box["x"] + box["width"] - 4, box["y"] + box["height"] - 4
    page.mouse.move(right, below)
    page.mouse.down()
    page.mouse.move(right, below + 150, steps=5)
    page.mouse.up()
    assert 520 < high() <= 550
    for height in (0, 199, True, "720px", 1e3):
        with pytest.raises(ValueError, match="height must be a number of pixels from 200 up"):
            Run(small).widget(height=height)


def test_a_narrow_cell_is_not_scrolled_sideways(small, in_cell):
    page, frame = in_cell(Run(small).widget(), width=420)
    box = page.locator("iframe").bounding_box()
    assert box["x"] + box["width"] <= 420
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_run_that_grows_is_shown_as_it_is_and_asks_for_the_cell(tmp_path, in_cell):
    writer = {"status": "running", "info": {"pid": os.getpid(), "host": socket.gethostname()}}
    run = Run(make_run(tmp_path / "run", n=2, frames=3, **writer))
    view = run.widget()
    make_run(tmp_path / "run", n=2, frames=4, **writer)
    _, frame = in_cell(view)
    assert frame.inner_text("#running").strip().endswith("Run the cell again for newer frames.")
    assert frame.is_hidden("#reload") and "Frame 2 of 2" in frame.inner_text("#when")
    _, again = in_cell(run.widget())
    assert "Frame 3 of 3" in again.inner_text("#when")


def test_a_widget_leaves_the_folder_as_it_is_and_has_a_line_for_the_console(small):
    before = sorted(small.rglob("*"))
    view = Run(small).widget()
    assert repr(view) == "ReportView(run 'run', 5 frames): a notebook shows it"
    assert sorted(small.rglob("*")) == before


# ------------------------------------------------------------------------------ a run as a cell's last line


def test_a_run_shows_its_name_status_and_newest_grid(small, tmp_path):
    folder = make_run(tmp_path / "my-run", n=2, frames=3)
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (80, 60), colour).save(folder / f"frames/frame-{number:03d}.png")
    html = Run(folder)._repr_html_()
    assert "<b>my-run</b>: finished · 3 frames · 2 images · resnet34 · layer 0.7.2" in html
    picture = re.search(r'src="data:image/jpeg;base64,([^"]+)"', html)[1]
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))), int)
    assert grid.shape == (60, 80, 3) and grid[..., 2].mean() > 200 > 60 > grid[..., 0].mean()
    assert "widget()" in html


def test_a_run_without_pictures_is_words(tmp_path):
    for frames in (0, 1):  # the fixture saves no grids
        html = Run(make_run(tmp_path / f"{frames}", n=1, frames=frames))._repr_html_()
        assert "<img" not in html and f"{frames} frame{'' if frames == 1 else 's'} · 1 image ·" in html


def test_what_a_run_says_of_itself_is_text(tmp_path):
    folder = make_run(tmp_path / "<i>run", n=1, frames=1, layers=["<script>"], info={"arch": "<b>net"})
    html = Run(folder)._repr_html_()
    assert "&lt;i&gt;run" in html and "&lt;b&gt;net" in html and "layer &lt;script&gt;" in html
    assert "<script" not in html and "<i>" not in html


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_a_run_whose_folder_was_moved_or_damaged_says_so(tmp_path, damage):
    run = Run(make_run(tmp_path / "run", n=1, frames=1))
    file = run.path / "run.json"
    written = json.dumps(run.info)
    file.unlink()
    if damage == "half":
        file.write_text(written[: len(written) // 2])
    reason = "it has no run.json" if damage == "gone" else "is damaged"
    assert reason in repr(run) and reason in run._repr_html_()
