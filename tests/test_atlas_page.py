"""The atlas's page in a browser: small, complete in itself, safe with any name, and usable on a desk and a phone."""

import numpy as np
import pandas as pd
import pytest
from pages import HOSTILE, embedded
from PIL import Image
from test_atlas import drawn
from test_report_says import axe  # noqa: F401

from fastai_gradcam._atlas.store import ROW_COLUMNS, Plan, Store, image_file
from fastai_gradcam._run.verdicts import write_table
from fastai_gradcam.atlas import Atlas

SIZES = {"desktop": {}, "phone": {"width": 390, "height": 844}, "dark": {"scheme": "dark"}}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "10,000 images, pictures of the typical ones, and a class with a shortcut."
    path = tmp_path_factory.mktemp("large")
    atlas = drawn(path, n=10_000, part=1024)
    (path / "patches").mkdir()
    row = {"label": "a", "test": "transplant", "images": 20, "effect": 0.9, "control": 0.1, "low": 0.5, "high": 0.9}
    write_table(path, "verdicts", [row | {"verdict": "shortcut"}])
    rng = np.random.default_rng(0)
    for i in atlas.shown:
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(path / image_file(i))
    return Atlas(path)


@pytest.fixture(scope="module")
def page_file(large):
    return large.report()


@pytest.mark.slow
def test_the_page_of_10_000_images_is_small_and_has_them_all(page_file, large):
    assert page_file == large.path / "atlas.html"
    assert page_file.stat().st_size < 5_000_000
    data = embedded(page_file)
    assert len(data["points"]["index"]) == 10_000
    assert set(data["images"]) == {str(i) for i in large.shown}


@pytest.mark.slow
def test_findings_are_said_in_words(page_file, open_page):
    page = open_page(page_file)
    words = page.inner_text(".found")
    assert "1000 images (20%) of 'a'" in words and "has a shortcut (test 'transplant')" in words
    assert page.locator(".habit.flagged").count() == 1
    assert "10,000 images" in page.inner_text("#summary")


def test_filters_choose_images_and_habits(page_file, open_page, large):
    page = open_page(page_file)
    page.select_option("#finding", "flagged")
    assert page.inner_text("#count") == "1,000 of 10,000 images match"
    assert page.locator(".habit").count() == 1
    page.select_option("#finding", "wrong")
    wrong = int((~large.table.correct).sum())
    assert page.inner_text("#count").startswith(f"{wrong} of")
    page.click("#clear")
    page.select_option("#label", "b")
    assert page.inner_text("#count").startswith("5,000 of") and page.locator(".habit").count() == 1
    page.click("#clear")
    page.locator(".habit button").first.click()
    assert page.input_value("#label") == "a" and page.input_value("#habit") == "1"
    assert page.inner_text("#count").startswith("1,000 of")


def test_a_click_in_the_scatter_shows_the_image(page_file, open_page, large):
    page = open_page(page_file)
    index = large.shown[0]
    x, y = map(float, large.places[index])
    box = page.locator("#scatter").bounding_box()
    page.mouse.click(box["x"] + (14 + x * 692) * box["width"] / 720, box["y"] + (14 + y * 492) * box["height"] / 520)
    assert "predicted" in page.inner_text("#one")
    page.locator("#matches button").first.click()  # 9999.png has the highest loss, and a picture
    assert "9999.png" in page.inner_text("#one") and page.locator("#one img").count() == 1
    # The file lies in the folder of the data set, as seen from the page.
    assert page.get_attribute("#one a", "href") == "./9999.png"


def test_heat_maps_can_be_switched_off(page_file, open_page):
    page = open_page(page_file)
    canvas = page.locator(".habit canvas").first
    assert canvas.is_visible()
    page.uncheck("#heat")
    assert not canvas.is_visible()


@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_and_nothing_is_cut_off(size, page_file, open_page, axe):  # noqa: F811
    page = open_page(page_file, **SIZES[size])
    page.locator("#matches button").first.click()
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate(f"{axe}; undefined")
    assert page.evaluate("axe.run().then(({violations}) => violations.map((v) => v.id))") == []


def test_names_and_labels_do_no_harm(tmp_path, open_page):
    store = Store(tmp_path, "csv")
    n = len(HOSTILE)
    store.begin(Plan(n, n, n, "0", [2, 2], "true", "gradcam", "w", "d", str(tmp_path), list(HOSTILE)))
    names = dict.fromkeys(("name", "label", "target", "pred"), HOSTILE)
    rows = pd.DataFrame({c: np.ones(n) for c in ROW_COLUMNS}).assign(index=range(n), **names)
    store.write(0, rows, np.ones((n, 2, 2)), np.ones((n, 3)))
    page = open_page(Atlas(tmp_path).report())
    for button in page.locator("#matches button").all():
        button.click()
    assert page.evaluate("window.pwned === undefined")
    assert page.locator("#classes tbody tr").count() == n


@pytest.mark.slow
def test_many_images_and_classes_are_cut_to_what_a_page_holds(tmp_path, monkeypatch):
    import fastai_gradcam.report.atlas as page

    monkeypatch.setattr(page, "POINTS", 50)
    monkeypatch.setattr(page, "CLASSES", 1)
    data = embedded(drawn(tmp_path).report(tmp_path / "elsewhere" / "a.html"))
    assert len(data["points"]["index"]) == 50 and len(data["classes"]) == 1
    assert "1 of 2 classes" in data["info"]["notes"][0] and "50 of 400 images" in data["info"]["notes"][1]
    assert data["points"]["root"] == ".."
