"""Verdicts of interventions, on the page: patches, images before and after, effect and control, and since when."""

import base64
import io

import pytest
from pages import embedded
from PIL import Image
from report_fixture import judge_run, make_run

from fastai_gradcam import Run
from fastai_gradcam._findings.tried import TITLE
from fastai_gradcam.findings import checks_in_words, checks_of
from fastai_gradcam.report import write_report


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return judge_run(make_run(tmp_path_factory.mktemp("tried") / "run", n=8, frames=5))


@pytest.fixture(scope="module")
def report(path):
    return write_report(Run(path))


def tried_on(report):
    return [finding["tried"] for finding in embedded(report)["findings"] if finding["tried"]]


def test_a_finding_that_was_tried_has_its_pictures_and_numbers(report):
    data = embedded(report)
    (tried,) = tried_on(report)
    assert tried["bars"] == [["effect", 0.75], ["control", 0.05]] and tried["interval"] == [0.4, 0.9]
    assert [(f["width"], f["height"]) for f in tried["figures"]] == [(228, 112), (344, 228)]
    assert [f["words"] for f in tried["figures"]] == [
        "Trout: the hottest patches",
        "Before (above) and after (below): Perch became Trout; Salmon became Trout",
    ]
    stored = Image.open(io.BytesIO(base64.b64decode(tried["figures"][0]["image"].partition(",")[2])))
    red, green, blue = stored.getpixel((50, 50))
    assert min(red, blue) > 200 and green < 60  # magenta
    assert tried["since"] == 2 and data["alarms"] == [{"frame": 2, "label": "Trout"}]
    assert all("tried" in finding for finding in data["findings"])


def test_the_page_shows_them_beside_the_finding_and_the_frame_where_it_began(report, open_page):
    page = open_page(report)
    card = page.locator(".finding", has_text=TITLE)
    assert card.locator("figure img").evaluate_all("all => all.map((one) => one.naturalWidth)") == [228, 344]
    rails = [card.locator(".rail").nth(i).bounding_box()["width"] for i in (0, 1)]
    fills = [card.locator(".rail i").nth(i).bounding_box()["width"] for i in (0, 1)]
    assert [round(fill / (rail - 2), 2) for fill, rail in zip(fills, rails, strict=True)] == [0.75, 0.05]
    words = card.inner_text()
    assert "effect\n75%" in words and "control\n5%" in words and "40% to 90%" in words
    assert page.locator("#ticks .alarm").count() == 1 and page.is_hidden("#alarm")
    assert page.locator("#curves line.alarm").count() == page.locator("#curves .chart").count() > 0
    card.locator("button", has_text="frame 2, fit 2").click()
    assert page.input_value("#frame") == "2"
    assert page.inner_text("#alarm") == "From here on, a shortcut is confirmed for Trout."


def test_a_page_of_a_run_that_was_not_judged_has_none_of_it(tmp_path, open_page):
    page = open_page(write_report(Run(make_run(tmp_path / "run", n=4, frames=2))))
    assert page.locator(".alarm, .evidence, .bar").count() == 0 and page.is_hidden("#alarm")


def test_a_picture_that_cannot_be_read_is_left_out(path, tmp_path):
    judge_run(make_run(tmp_path / "run", n=4, frames=5))
    next((tmp_path / "run/patches").glob("00-*.png")).write_bytes(b"no picture")
    (tried,) = tried_on(write_report(Run(tmp_path / "run")))
    assert [figure["width"] for figure in tried["figures"]] == [344]


def test_whether_anything_was_tried_is_among_what_was_looked_for(path, tmp_path):
    assert checks_of(Run(path))[TITLE] == ""
    bare = Run(make_run(tmp_path / "run", n=4, frames=2))
    assert checks_of(bare)[TITLE] == "no judging"
    assert "a shortcut, confirmed by changing images (no judging)" in checks_in_words(checks_of(bare))
    judge_run(bare.path)
    (bare.path / "verdicts.csv").unlink()
    (bare.path / "patches/classes.csv").write_text(
        "label,place,area,alike,spread,stands_out,colour,left_out\n,,,,,,,A model with several inputs is not judged.\n"
    )
    assert checks_of(bare)[TITLE] == "A model with several inputs is not judged"
