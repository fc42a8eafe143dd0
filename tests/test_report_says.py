"""The page explains itself, to everybody: words, names of controls, tables, without JavaScript, and what axe finds."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import embedded, until
from PIL import Image
from report_fixture import judge_run, make_run

from fastai_gradcam import Run
from fastai_gradcam.report import write_report

STATES = {
    "desktop": {"viewport": {"width": 1400, "height": 900}},
    "phone": {"viewport": {"width": 420, "height": 800}},
    "dark": {"viewport": {"width": 1400, "height": 900}, "color_scheme": "dark"},
    "forced colours": {"viewport": {"width": 1400, "height": 900}, "forced_colors": "active"},
}


@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    "With masks, an empty map, a failed frame and a shortcut that was confirmed."
    path = make_run(tmp_path_factory.mktemp("fish") / "run", n=8, frames=6, empty=[(5, 3)], failed=(3,))
    return write_report(Run(judge_run(path)))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "Two layers and three classes."
    path = tmp_path_factory.mktemp("many") / "run"
    return write_report(Run(make_run(path, n=4, frames=4, layers=("0.6.5", "0.7.2"), classes=3, masks=False)))


@pytest.fixture
def as_seen(browser):
    "`as_seen(path, hash, **context)`: the page under other conditions than `open_page` has."
    contexts = []

    def show(path, hash="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.goto(f"{Path(path).as_uri()}{hash}")
        return page

    yield show
    for context in contexts:
        context.close()


# --- words


@pytest.mark.slow
def test_the_page_says_what_a_map_is_and_how_not_to_read_it(fish, open_page):
    page = open_page(fish)
    assert page.is_visible("#reading summary") and page.is_hidden("#reading p")
    page.focus("#reading summary")
    page.keyboard.press("Enter")
    words = page.inner_text("#reading")
    assert "Grad-CAM" in words and "validation" in words and page.locator("#reading li").count() == 6
    assert len(words.split()) <= 120
    assert "16 validation images" not in page.inner_text("#summary") and "8 validation images" in page.inner_text(
        "#summary"
    )


def test_each_number_has_one_name_and_a_meaning_that_needs_no_mouse(fish, open_page):
    page = open_page(fish, "#item=0")
    facts = page.locator("#facts dt").all_inner_texts()
    assert len(facts) > 12 and all(text.strip() for text in page.locator("#facts dd").all_inner_texts())
    page.keyboard.press("Escape")
    page.focus("#glossary summary")
    page.keyboard.press("Enter")
    names = page.locator("#meanings dt").all_inner_texts()
    assert all(text.strip() for text in page.locator("#meanings dd").all_inner_texts())
    for name in names[:-1]:
        assert any(fact.endswith(name) for fact in facts), name
    curves = page.locator("#curves .key bdi").all_inner_texts()
    assert {name for name in curves if name in names} == {"Inside the mask", "On the border", "Like the frame before"}
    whole = page.inner_text("body").lower()
    assert "evidence" not in page.inner_text(".images").lower() and "mask share" not in whole


def test_settings_are_said_in_words(tmp_path):
    settings = {"n": 3, "items": None, "target": "true", "show": None, "on_error": "warn", "resume": False}
    data = embedded(write_report(Run(make_run(tmp_path / "run", n=3, frames=1, info={"settings": settings}))))
    said = {"n": "3", "on error": "warn", "resume": "no", "class explained": "each image's label"}
    assert data["settings"] == said


def test_nothing_is_called_clear_that_was_not_looked_for(tmp_path, open_page):
    path = make_run(tmp_path / "run", n=6, frames=4, masks=False)
    history = pd.read_csv(path / "history.csv", dtype=str, keep_default_na=False)
    for wrong, found in ((5, True), (1, False)):
        correct = np.where(history["item"].astype(int) < wrong, "False", "True")
        history.assign(correct=correct, pred_prob="0.3", border_share="0.4").to_csv(path / "history.csv", index=False)
        page = open_page(Run(path).report(tmp_path / f"{wrong}.html"))
        words = page.inner_text("#findings-section")
        assert "nothing stood out" not in words.lower()
        assert ("No finding." in words) != found and ("right on only 1 of 6 images" in words) == found
        assert "Looked for: " in words and "(no masks)" in words and "(fewer than 5 frames)" in words


def test_a_volume_says_which_of_its_slices_are_drawn(tmp_path, open_page):
    path = make_run(tmp_path / "run", n=2, frames=2)
    info = json.loads((path / "run.json").read_text())
    for entry in info["panel"]:
        entry["depth"] = 12
    plain = write_report(Run(path), tmp_path / "plain.html")
    (path / "run.json").write_text(json.dumps(info))
    grab = "document.querySelector('.tile canvas').toDataURL()"
    drawn = "document.querySelector('.tile canvas').getContext('2d').getImageData(0, 0, 1, 1).data[3] === 255"
    pages = [open_page(file, "#heat=0") for file in (plain, write_report(Run(path)))]
    for page in pages:
        until(page, drawn)
    assert "4 of 12 slices each" in pages[1].inner_text("#summary") and "slices" not in pages[0].inner_text("#summary")
    assert pages[0].evaluate(grab) != pages[1].evaluate(grab)


# --- controls


def test_sliders_are_named_by_their_labels(fish, open_page):
    page = open_page(fish, "#item=0")
    for name in ("alpha", "threshold", "large-alpha"):
        labels = f"[...document.getElementById('{name}').labels].map((label) => label.textContent)"
        assert page.evaluate(labels) == ["Hide below" if name == "threshold" else "Opacity"]
        assert page.evaluate(f"document.getElementById('{name}').getAttribute('aria-valuetext')") in ("50%", "off")
    assert 'slider "Opacity"' in page.locator("#large").aria_snapshot()
    page.keyboard.press("Escape")
    assert 'slider "Opacity"' in page.locator("#tools").aria_snapshot()


@pytest.mark.parametrize("width", [1400, 420])
def test_the_heat_maps_have_a_switch_that_agrees_with_its_key(fish, open_page, width):
    page = open_page(fish, width=width, height=800)
    assert page.is_visible("#heat") and page.is_checked("#heat")
    page.keyboard.press("h")
    assert not page.is_checked("#heat")
    page.click("text=Heat maps")
    assert page.is_checked("#heat")


@pytest.mark.parametrize("width, height", [(1400, 900), (420, 800)])
def test_the_large_view_has_the_frame_in_sight_while_it_plays_and_an_outline_that_can_be_off(
    fish, open_page, width, height
):
    page = open_page(fish, "#item=1&frame=0", width=width, height=height)
    page.click("#large-play")
    until(page, "document.getElementById('large-frame').value !== '0'")
    words = page.inner_text("#large-when")
    assert words.startswith("Frame ") and "epoch" in words
    box = page.locator("#large-when").bounding_box()
    assert 0 <= box["y"] and box["y"] + box["height"] <= height
    page.keyboard.press("End")
    assert not page.is_checked("#large-outline")
    grab = "document.getElementById('large-canvas').toDataURL()"
    before = page.evaluate(grab)
    page.check("#large-outline")
    assert page.evaluate(grab) != before and page.evaluate("document.getElementById('outline').checked")


def test_layers_and_classes_stand_side_by_side_in_the_large_view(many, open_page):
    page = open_page(many, "#item=1")
    until(page, "document.querySelectorAll('#beside canvas').length === 6")
    names = page.locator("#beside button").all_text_contents()
    assert names == [f"{c} · {layer}" for layer in ("0.6.5", "0.7.2") for c in ("Trout", "Salmon", "Perch")]
    pictures = page.eval_on_selector_all("#beside canvas", "all => all.map((canvas) => canvas.toDataURL())")
    assert len(set(pictures)) == 6
    page.locator("#beside button").nth(1).click()
    assert page.input_value("#large-layer") == "0" and page.input_value("#large-cls") == "1"
    assert "map of Salmon" in page.inner_text("#large-answer").replace("\n", " ")
    assert "Probability of Salmon" in page.inner_text("#large-curves")


def test_maps_that_vanish_below_the_threshold_are_counted(tmp_path, open_page):
    path = make_run(tmp_path / "run", n=2, frames=2)
    with np.load(path / "maps/frame-000.npz") as stored:
        weak = {name: maps * np.float32(0.01) for name, maps in stored.items()}
    np.savez(path / "maps/frame-000.npz", **weak)
    page = open_page(write_report(Run(path)), "#frame=0&scale=all&threshold=0.5")
    assert page.inner_text("#vanished") == "2 of 2 maps are wholly below 50% of this scale and not drawn."
    page.select_option("#scale", "map")
    assert page.is_hidden("#vanished")


def test_pictures_can_be_smaller_and_larger(fish, open_page):
    page = open_page(fish)
    widths = []
    for size in ("small", "medium", "large"):
        page.select_option("#size", size)
        widths.append(page.locator(".tile").first.bounding_box()["width"])
    assert widths == sorted(widths) and widths[2] > 1.8 * widths[0]


def test_images_are_sorted_by_their_labels(fish, open_page):
    page = open_page(fish)
    page.select_option("#sort", "label")
    labels = page.locator(".tile .label").all_text_contents()
    assert labels == [name for name in dict.fromkeys(labels) for _ in range(2)]


@pytest.mark.slow
def test_on_a_phone_the_first_finding_is_near_the_top(tmp_path, open_page):
    path = make_run(tmp_path / "run", n=64, frames=2, masks=False, empty=[(1, 0), (1, 4), (1, 8)])
    page = open_page(write_report(Run(path)), width=420, height=800)
    assert page.locator(".finding").first.bounding_box()["y"] < 800
    assert page.locator("#story button", has_text="finding").bounding_box()["y"] < 800


def test_images_are_filtered_by_how_sure_the_prediction_is(fish, open_page):
    page = open_page(fish)
    sure = page.locator(".tile .prob").all_text_contents()
    for chosen, low, high in (("above", 80, 101), ("between", 50, 80), ("below", 0, 50)):
        page.select_option("#sure", chosen)
        shown = page.locator(".tile .prob").all_text_contents()
        assert shown == [text for text in sure if low <= float(text.rstrip("%")) < high]
        assert page.is_visible("#clear")
    page.click("#clear")
    assert page.locator(".tile").count() == 8 and page.input_value("#sure") == ""


def test_the_large_picture_can_be_saved_as_it_is_shown(fish, open_page, tmp_path):
    page = open_page(fish, "#item=1&frame=2")
    until(page, "document.getElementById('large-canvas').getContext('2d').getImageData(9, 9, 1, 1).data[3] === 255")
    with page.expect_download() as saved:
        page.click("#large-save")
    assert saved.value.suggested_filename == "run-Salmon-frame-2.png"
    saved.value.save_as(tmp_path / "saved.png")
    shown = page.evaluate("(({ width, height }) => [width, height])(document.getElementById('large-canvas'))")
    assert list(Image.open(tmp_path / "saved.png").size) == shown and "item=1" in page.url


# --- curves


def test_every_value_of_a_curve_is_visible(tmp_path, open_page):
    rng = np.random.default_rng(0)
    path = make_run(tmp_path / "run", n=6, frames=8, masks=False)
    history = pd.read_csv(path / "history.csv", dtype=str, keep_default_na=False)
    known = rng.random(len(history)) < 0.5
    history.assign(prob=np.where(known, history["prob"], "")).to_csv(path / "history.csv", index=False)
    page = open_page(write_report(Run(path)), "#item=0")
    for item in range(6):
        rows = known[(history["item"].astype(int) == item).to_numpy()]
        if rows.any():
            chart = page.locator("#large-curves .chart", has_text="Probability")
            path_ = chart.locator("path.line").get_attribute("d")
            parts = [part.count("L") + 1 for part in path_.split("M") if part]
            alone = chart.locator("circle.alone").count()
            assert sum(parts) == rows.sum() and alone == parts.count(1)
        page.keyboard.press("n")


def test_shares_and_correlations_have_one_axis(fish, open_page):
    page = open_page(fish, "#item=0")
    for title in ("Attention", "Change", "Probability"):
        ticks = page.locator("#large-curves .chart", has_text=title).first.locator("svg text").all_text_contents()
        assert {"100%", "0%"} <= set(ticks) or {"1", "0"} <= set(ticks), (title, ticks)


def test_a_chart_has_its_values_as_text_and_as_a_table(fish, open_page):
    page = open_page(fish)
    chart = page.locator("#curves .chart").first
    name = chart.locator("svg").get_attribute("aria-label")
    assert re.fullmatch(r"Attention, mean of the panel, frame 5: Inside the mask \d+%, On the border \d+%", name), name
    chart.locator("summary").focus()
    page.keyboard.press("Enter")
    rows = chart.locator("table tr").all_inner_texts()
    assert rows[0].split("\t") == ["Frame", "Inside the mask", "On the border"] and len(rows) == 7
    assert rows[1].startswith("0, before training\t") and rows[4].endswith("–\t–")  # frame 3 failed


# --- everybody


@pytest.mark.slow
def test_without_javascript_the_newest_grid_is_there_and_no_dead_control(tmp_path, as_seen):
    path = make_run(tmp_path / "run", n=4, frames=3, empty=[(2, 1)])
    for k, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (1600, 1200), colour).save(path / f"frames/frame-{k:03d}.png")
    page = as_seen(write_report(Run(path)), java_script_enabled=False)
    assert page.locator("img:visible").count() == 1 and page.locator("img").get_attribute("alt")
    assert page.locator("button:visible, input:visible, select:visible, canvas:visible").count() == 0
    assert page.inner_text("h1") == "run" and "The newest frame, fit 2 · epoch 1." in page.inner_text("body")
    assert "Empty maps: Salmon (1 image)" in page.inner_text("body") and "Looked for: " in page.inner_text("body")
    assert page.is_visible("#reading summary")
    (path / "frames/frame-002.png").unlink()  # the newest that can be read
    assert "fit 1 · epoch 1" in as_seen(write_report(Run(path)), java_script_enabled=False).inner_text("body")


def test_play_is_seen_where_the_system_chooses_the_colours(fish, as_seen, tmp_path):
    page = as_seen(fish, **STATES["forced colours"])
    page.locator("#play").screenshot(path=tmp_path / "play.png")
    pixels = np.asarray(Image.open(tmp_path / "play.png").convert("L"), int)
    middle = pixels[pixels.shape[0] // 3 : -pixels.shape[0] // 3, pixels.shape[1] // 3 : -pixels.shape[1] // 3]
    assert middle.max() - middle.min() > 100


@pytest.fixture(scope="session")
def axe():
    "The script of axe-core; without it these tests are skipped, except under CI, where they fail."
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs axe (pip install axe-playwright-python)")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("run", ["fish", "many"])
def test_axe_finds_nothing(run, state, axe, as_seen, request):
    page = as_seen(request.getfixturevalue(run), **STATES[state])
    for view in ("page", "large"):
        if view == "large":
            page.evaluate("document.querySelector('.tile button').click()")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        page.wait_for_timeout(100)
        page.evaluate(f"{axe}; undefined")
        found = page.evaluate(
            "axe.run().then(({violations}) => violations.map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 150))]))"
        )
        assert found == [], view
