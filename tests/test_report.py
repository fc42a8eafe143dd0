"""The interactive page: what is written, and what a browser makes of it."""

import base64
import io
import json
import os
import socket
import threading
import time

import numpy as np
import pandas as pd
import pytest
from pages import HOSTILE, blocked_in, embedded, until, work
from PIL import Image
from report_fixture import make_run

from fastai_gradcam.findings import COLUMNS, KINDS, TITLES, TRIED_TITLES, Thresholds
from fastai_gradcam.render import overlay
from fastai_gradcam.report import write_report
from fastai_gradcam.run import Run


def report_of(folder, path=None, found=None):
    "The report of the run in `folder`; `found`: its findings, in place of those that there are."
    with pytest.MonkeyPatch.context() as patch:
        if found is not None:
            table = pd.DataFrame([row_of_findings(**row) for row in found], columns=list(COLUMNS))
            patch.setattr("fastai_gradcam.report.page.findings_of", lambda run, thresholds: table)
        return write_report(Run(folder), path)


def row_of_findings(**given):
    known = {"kind": "wrong", "severity": 0.5, "frame": 1, "layer": "0.7.2", "label": "", "items": (0,), "text": "Look"}
    return known | given


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Six images, five frames, masks."
    return make_run(tmp_path_factory.mktemp("small") / "run", empty=[(4, 5)])


@pytest.fixture(scope="module")
def found():
    return [
        {"kind": "outside", "severity": 0.9, "frame": 2, "label": "Trout", "items": (0, 3)},
        {"kind": "empty", "severity": 0.1, "frame": 4, "items": (5,), "text": "No map"},
    ]


# ------------------------------------------------------------------------------------- what is written


def test_the_page_lies_in_the_run_folder_and_nothing_else_does(small):
    before = sorted(small.rglob("*"))
    assert report_of(small) == small / "report.html"
    assert sorted({*small.rglob("*")} - {*before}) == [small / "report.html"]


def test_the_page_can_be_written_elsewhere(small, tmp_path):
    path = write_report(Run(small), tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html" and path.stat().st_size > 10_000


def test_an_older_page_survives_when_a_new_one_cannot_be_written(small, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("older")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(Run(small), path)
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_two_threads_may_write_one_page(small, tmp_path, monkeypatch):
    path, replace, meet, failed = tmp_path / "page.html", os.replace, threading.Barrier(2, timeout=20), []

    def both_at_once(part, whole):
        if whole == path:  # a thread that another test left behind may replace a file of its own
            meet.wait()
        replace(part, whole)

    def write():
        try:
            write_report(Run(small), path)
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr("os.replace", both_at_once)
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and list(tmp_path.iterdir()) == [path] and len(embedded(path)["frames"]) == 5


def test_maps_are_embedded_to_within_half_a_step_of_their_maximum(small):
    run = Run(small)
    layer = embedded(write_report(run))["maps"][0]
    for frame in range(5):
        raw = run.maps(frame)["0.7.2"]
        cells = np.frombuffer(base64.b64decode(layer["cells"][frame]), np.uint8).reshape(raw.shape)
        peaks = np.array(layer["peaks"][frame])[:, None, None]
        assert np.allclose(cells / 255 * peaks, raw, atol=raw.max() / 255 * 0.51)


def test_numbers_find_their_frame_layer_class_and_image(tmp_path):
    run = Run(make_run(tmp_path / "run", n=3, frames=2, layers=("a", "b"), classes=2))
    data = embedded(write_report(run))["history"]
    shape = (2, 2, 2, 3)
    rows = run.history[(run.history["layer"] == "b") & (run.history["frame"] == 1) & (run.history["item"] == 2)]
    for k in range(2):
        at = np.ravel_multi_index((1, k, 1, 2), shape)
        assert data["columns"]["evidence"][at] == pytest.approx(rows["evidence"].iloc[k], rel=0.01)
        target = data["columns"]["target"]
        assert data["names"][target[at % len(target)]] == rows["target"].iloc[k]
    assert data["classes"] == ["Trout", "Salmon"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cells": 28}, {"layers": "abcde"}], ids=["7x7", "28x28", "7x7 to 112x112"])
def test_sixteen_images_over_a_hundred_frames_stay_below_two_megabytes(tmp_path, options):
    run = Run(make_run(tmp_path / "run", n=16, frames=100, size=(224, 224), **options))
    start = time.perf_counter()
    path = write_report(run)
    print(f"16 x 100: {path.stat().st_size / 1e6:.2f} MB, written in {time.perf_counter() - start:.2f} s")
    assert path.stat().st_size < 2_000_000
    assert len(embedded(path)["frames"]) == 100


@pytest.mark.slow
def test_a_row_that_is_missing_leaves_the_other_classes_in_their_places(tmp_path):
    folder = make_run(tmp_path / "run", n=2, frames=3, classes=3, labels=["a", "b", "c"])
    whole = embedded(report_of(folder))["history"]
    history = pd.read_csv(folder / "history.csv")
    gone = (history["frame"] == 1) & (history["item"] == 0) & (history["target"] == "a")
    assert gone.sum() == 1
    history[~gone].to_csv(folder / "history.csv", index=False)
    data = embedded(report_of(folder))
    for name in ("evidence", "prob", "entropy"):
        was, now = (np.array(h["columns"][name], float).reshape(3, 3, 2) for h in (whole, data["history"]))
        assert np.isnan(now[0, 1, 0])
        was[0, 1, 0] = now[0, 1, 0] = 0
        assert (was == now).all()
    assert data["history"]["classes"] == ["a", "b", "c"]
    assert data["notes"] == ["Frame 1: the numbers of 1 of 2 images are missing."]
    # A class that no frame with all of its rows knows has no place.
    rest = history[~gone & (history["frame"] == 1)]
    rest.to_csv(folder / "history.csv", index=False)
    evidence = np.array(embedded(report_of(folder))["history"]["columns"]["evidence"], float).reshape(3, 3, 2)
    assert np.isnan(evidence[:, :, 0]).all() and np.isfinite(evidence[:, 1, 1]).all()


def test_small_layers_leave_the_room_they_do_not_need_to_the_large_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("fastai_gradcam.report.maps.CELL_BUDGET", 6 * 2 * (7 * 7 + 14 * 14 + 20 * 20))
    run = Run(make_run(tmp_path / "run", frames=2, cells=7, layers=("c", "b", "a")))
    assert [layer["height"] for layer in embedded(write_report(run))["maps"]] == [20, 14, 7]


def test_answers_that_are_the_same_in_every_layer_are_embedded_once(tmp_path):
    folder = make_run(tmp_path / "run", n=3, frames=2, layers=("a", "b"))
    columns = embedded(report_of(folder))["history"]["columns"]
    assert {name: len(columns[name]) for name in ("prob", "pred", "loss", "target", "correct", "evidence")} == {
        **dict.fromkeys(("prob", "pred", "loss", "target", "correct"), 6),
        "evidence": 12,
    }
    history = pd.read_csv(folder / "history.csv")
    history.loc[history["layer"] == "b", "prob"] = 0.125
    history.to_csv(folder / "history.csv", index=False)
    assert embedded(report_of(folder))["history"]["columns"]["prob"][6:] == [0.125] * 6


@pytest.mark.slow
def test_a_refreshed_page_encodes_images_only_once_and_follows_those_that_change(tmp_path, monkeypatch):
    run, kept = Run(make_run(tmp_path / "run", n=4, frames=2)), {}
    read = []
    monkeypatch.setattr(Run, "image", lambda self, item, plain=Run.image: read.append(item) or plain(self, item))
    first = embedded(write_report(run, pictures=kept))
    assert read == [0, 1, 2, 3] and embedded(write_report(run, pictures=kept)) == first and read == [0, 1, 2, 3]
    Image.new("RGB", (128, 128), "red").save(run.path / "panel/002.jpg")
    Image.new("L", (128, 128), 255).save(run.path / "panel/001-mask.png")
    make_run(tmp_path / "longer", n=4, frames=3)
    for name in ("maps/frame-002.npz", "history.csv", "run.json"):
        os.replace(tmp_path / "longer" / name, run.path / name)
    second = embedded(write_report(run, pictures=kept))
    assert read == [0, 1, 2, 3, 1, 2] and len(second["frames"]) == 3
    assert [a["image"] == b["image"] for a, b in zip(first["panel"], second["panel"], strict=True)] == [
        True,
        True,
        False,
        True,
    ]
    assert second["panel"][1]["mask_area"] == 1 != first["panel"][1]["mask_area"]


def test_large_maps_are_averaged_so_that_the_file_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr("fastai_gradcam.report.maps.CELL_BUDGET", 6 * 2 * 14 * 14)
    run = Run(make_run(tmp_path / "run", frames=2, cells=56))
    data = embedded(write_report(run))
    assert (data["maps"][0]["height"], data["maps"][0]["width"]) == (14, 14)
    assert any("averaged from 56×56 to 14×14" in note for note in data["notes"])
    cells = np.frombuffer(base64.b64decode(data["maps"][0]["cells"][1]), np.uint8).reshape(6, 14, 14)
    means = run.maps(1)["0.7.2"].reshape(6, 14, 4, 14, 4).mean((2, 4))
    assert np.allclose(cells / 255, means / means.max((1, 2), keepdims=True), atol=0.51 / 255)


def test_frames_that_cannot_be_read_are_left_out_by_name(tmp_path):
    folder = make_run(tmp_path / "run", frames=6, failed=[1])
    (folder / "maps/frame-002.npz").unlink()
    whole = (folder / "maps/frame-003.npz").read_bytes()
    (folder / "maps/frame-003.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(folder / "maps/frame-004.npz", **{"0.7.2": np.ones((2, 7, 7), np.float32)})
    data = embedded(report_of(folder))
    notes = [frame["note"] for frame in data["frames"]]
    assert notes[0] is None and notes[5] is None
    assert notes[1] == "failed: RuntimeError: out of memory"
    assert all(note.startswith("left out: ") for note in notes[2:5])
    assert [cells is not None for cells in data["maps"][0]["cells"]] == [True, False, False, False, False, True]


def test_rows_that_are_missing_or_halved_leave_gaps_and_are_named(tmp_path):
    folder = make_run(tmp_path / "run", n=4, frames=3)
    lines = (folder / "history.csv").read_text().splitlines(keepends=True)
    (folder / "history.csv").write_text("".join(lines[:-2]) + "2,1,1")
    data = embedded(report_of(folder))
    assert data["notes"] == ["Frame 2: the numbers of 2 of 4 images are missing."]
    assert data["history"]["columns"]["prob"][-2:] == [None, None]
    assert data["history"]["columns"]["prob"][-3] is not None


def test_rows_of_unknown_images_frames_and_layers_are_dropped(tmp_path):
    folder = make_run(tmp_path / "run", n=2, frames=2)
    good = embedded(report_of(folder))["history"]
    history = pd.read_csv(folder / "history.csv")
    places = {"item": [9, -1, 0, 0], "frame": [0, 0, 77, 0], "layer": ["0.7.2"] * 3 + ["?"]}
    alien = history.iloc[[0, 0, 0, 0]].assign(**places, prob=9.0)
    pd.concat([history, alien]).to_csv(folder / "history.csv", index=False)
    assert embedded(report_of(folder))["history"] == good


def test_a_map_that_is_not_finite_is_marked_and_leaves_the_others_alone(tmp_path):
    folder = make_run(tmp_path / "run", n=2, frames=1)
    maps = Run(folder).maps(0)["0.7.2"].copy()
    maps[0, 0, 0] = np.nan
    np.savez(folder / "maps/frame-000.npz", **{"0.7.2": maps})
    peaks = embedded(report_of(folder))["maps"][0]["peaks"][0]
    assert peaks[0] is None and peaks[1] == pytest.approx(maps[1].max(), rel=1e-5)


def test_a_run_without_frames_or_history_still_gives_a_page(tmp_path):
    folder = make_run(tmp_path / "run", n=2, frames=0)
    (folder / "history.csv").write_text("frame,item,layer\n")
    assert embedded(report_of(folder))["frames"] == []


def test_the_page_tells_nothing_of_where_it_was_made(tmp_path):
    secret = tmp_path / "home" / "somebody"
    elsewhere = "D:\\somebody\\a b.png"
    settings = {"path": str(secret / "runs"), "masks": str(secret / "masks"), "more": [elsewhere], "method": "a/b"}
    names = [str(secret / "photos" / "x.png"), elsewhere, "Perch/3.png", "Perch/4.png"]
    folder = make_run(secret / "run", n=4, frames=5, names=names, failed=[2], info={"settings": settings})
    (folder / "panel/001.jpg").unlink()
    (folder / "maps/frame-001.npz").write_bytes(b"PK half")
    (folder / "maps/frame-003.npz").unlink()
    info = json.loads((folder / "run.json").read_text())
    info["frames"][2]["error"] = f"OSError: no room for {secret / 'tmp.npz'} on '{elsewhere}' (3/4 and/or 1/2)"
    (folder / "run.json").write_text(json.dumps(info))
    text = write_report(Run(folder)).read_text(encoding="utf-8")
    assert "somebody" not in text and str(tmp_path) not in text
    data = embedded(folder / "report.html")
    assert data["settings"] == {"path": "runs", "masks": "masks", "more": '["a b.png"]', "method": "a/b"}
    assert [entry["name"] for entry in data["panel"]] == ["x.png", "a b.png", "Perch/3.png", "Perch/4.png"]
    assert data["frames"][2]["note"] == "failed: OSError: no room for tmp.npz on 'a b.png' (3/4 and/or 1/2)"
    assert "maps/frame-003.npz" in data["frames"][3]["note"] and "panel/001.jpg" in data["panel"][1]["note"]
    (folder / "history.csv").write_text("frame\n0\n")
    assert "somebody" not in write_report(Run(folder)).read_text(encoding="utf-8")


def test_a_runs_own_findings_are_on_the_page(small):
    kinds = [finding["kind"] for finding in embedded(report_of(small))["findings"]]
    assert kinds == Run(small).findings()["kind"].tolist() and "empty" in kinds


@pytest.mark.slow
def test_when_something_is_a_finding_can_be_chosen(small, tmp_path):
    page = tmp_path / "page.html"
    strict = Thresholds(confident=0.0, class_images=1)
    for thresholds in (None, strict):
        expected = Run(small).findings(thresholds)["text"].tolist()
        assert [one["text"] for one in embedded(Run(small).report(page, thresholds=thresholds))["findings"]] == expected
    assert expected != Run(small).findings()["text"].tolist()


def test_findings_that_raise_are_named_and_do_not_cost_the_page(small, monkeypatch):
    def broken(run, thresholds):
        raise ValueError("no such column")

    monkeypatch.setattr("fastai_gradcam.report.page.findings_of", broken)
    data = embedded(report_of(small))
    assert data["notes"] == ["The findings could not be worked out (ValueError: no such column)."]
    assert data["findings"] is None


def test_each_kind_of_finding_has_a_title_on_the_page(small):
    assert (
        embedded(report_of(small))["titles"] == TITLES | TRIED_TITLES
        and TITLES.keys() | TRIED_TITLES.keys() == KINDS.keys()
    )


def test_no_text_can_end_the_element_that_holds_the_data(tmp_path):
    name = HOSTILE[1] + "\udce9"
    run = Run(make_run(tmp_path / "run", n=len(HOSTILE), frames=1, labels=HOSTILE, info={"name": name}))
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("</script>") == 2 and html.count("<script") == 2
    assert "window.pwned = 2</" not in html and "onerror=" not in html.replace('onerror=\\"', "")
    assert "\u2028" not in html


# ------------------------------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def small_page(small, found):
    return report_of(small, small.parent / "page.html", found)


def pixels(page, item):
    "The pixels of one tile's canvas, uint8 (H, W, 3)."
    canvas = f'.tile[data-item="{item}"] canvas'
    until(page, f"document.querySelector('{canvas}').getContext('2d').getImageData(0, 0, 1, 1).data[3] === 255")
    uri = page.eval_on_selector(canvas, "canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def embedded_image(path, item):
    uri = embedded(path)["panel"][item]["image"]
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def difference(a, b):
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()


def order(page):
    return page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => Number(tile.dataset.item))")


def frame(page):
    return int(page.input_value("#frame"))


@pytest.mark.parametrize("cmap", ["inferno", "viridis", "jet"])
def test_the_overlay_in_the_browser_agrees_with_python(small, small_page, open_page, cmap):
    run = Run(small)
    page = open_page(small_page, f"#frame=1&cmap={cmap}&alpha=0.6")
    for item in range(6):
        shown = pixels(page, item)
        cam = run.maps(1)["0.7.2"][item]
        assert difference(shown, overlay(embedded_image(small_page, item), cam, 0.6, cmap)) < 1
        assert difference(shown, overlay(run.image(item), cam, 0.6, cmap)) < 4
        assert difference(shown, run.image(item)) > 10


@pytest.mark.parametrize("cells", [1, 2, 56])
def test_maps_of_any_resolution_agree_with_python(tmp_path, open_page, cells):
    run = Run(make_run(tmp_path / "run", n=2, frames=1, cells=cells, size=(96, 80)))
    path = write_report(run)
    page = open_page(path)
    for item in range(2):
        expected = overlay(embedded_image(path, item), run.maps(0)["0.7.2"][item])
        assert difference(pixels(page, item), expected) < 1


def test_each_scale_divides_by_its_own_maximum(small, small_page, open_page):
    run = Run(small)
    page = open_page(small_page, "#frame=0")
    maps = np.stack([run.maps(i)["0.7.2"] for i in range(5)])
    for scale, vmax in (("image", maps[:, 2].max()), ("all", maps.max()), ("map", maps[0, 2].max())):
        page.select_option("#scale", scale)
        expected = overlay(embedded_image(small_page, 2), maps[0, 2], vmax=float(vmax))
        assert difference(pixels(page, 2), expected) < 1, scale


def test_the_threshold_shows_the_image_where_there_is_less_evidence(small, small_page, open_page):
    page = open_page(small_page, "#frame=1&threshold=0.5&alpha=1")
    image = np.asarray(embedded_image(small_page, 0), float)
    shown = pixels(page, 0)
    cam = Run(small).maps(1)["0.7.2"][0]
    share = np.asarray(Image.fromarray(cam / cam.max()).resize((128, 128), Image.Resampling.BILINEAR))
    assert np.abs(shown - image)[share < 0.48].mean() < 1
    assert np.abs(shown - image)[share > 0.52].mean() > 20


def test_an_empty_map_shows_the_image_and_says_so(small_page, open_page):
    page = open_page(small_page)
    assert difference(pixels(page, 5), embedded_image(small_page, 5)) < 1
    assert "empty map" in page.inner_text('.tile[data-item="5"]')


def test_slider_keys_and_curves_change_the_frame(small_page, open_page):
    page = open_page(small_page)
    assert frame(page) == 4 and "Frame 4 of 4" in page.inner_text("#when")
    before = pixels(page, 1)
    for key, at in (("ArrowLeft", 3), ("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1), ("End", 4), ("ArrowRight", 4)):
        page.keyboard.press(key)
        assert frame(page) == at, key
    page.keyboard.press("Home")
    assert "before training" in page.inner_text("#when")
    assert difference(pixels(page, 1), before) > 2
    page.locator("#frame").fill("2")
    assert "Frame 2 of 4" in page.inner_text("#when") and "accuracy" in page.inner_text("#scores")
    page.locator(".chart svg").last.click(position={"x": 8, "y": 30})
    assert frame(page) == 0


def test_the_page_says_in_words_where_the_model_looks_now_and_looked_first(small, small_page, open_page):
    page = open_page(small_page)
    history = Run(small).history
    last, first = (history[history["frame"] == i] for i in (4, 0))
    story = page.inner_text("#story")
    assert story.startswith(
        f"Right on {last['correct'].sum()} of the panel's 6 images. {last['mask_share'].mean():.0%} "
    )
    assert " of the attention lies inside the masks, which cover " in story
    area = np.mean([Run(small).mask(item).mean() for item in range(6)])
    before = first["mask_share"].mean()
    assert f"cover {area:.0%} of the pictures; before training it was {before:.0%} (1 empty map not counted)." in story
    most = int(history.groupby("frame")["similarity_prev"].mean().idxmin())
    page.click("#story button")
    assert frame(page) == most
    assert page.locator("#story button").last.inner_text() == "2 findings"


def test_a_frame_that_failed_has_no_numbers_and_the_words_say_so(tmp_path, open_page):
    page = open_page(report_of(make_run(tmp_path / "run", n=2, frames=4, failed=(3,))))
    page.keyboard.press("End")
    seen = page.inner_text("#when"), page.inner_text("#story")
    assert seen[1].startswith("This frame has no numbers. Attention changed most in frame "), seen
    page.keyboard.press("Home")
    assert page.inner_text("#story").startswith("Right on ")


def test_without_masks_the_border_is_told_of_only_beyond_chance(tmp_path, open_page):
    folder = make_run(tmp_path / "run", n=2, frames=2, masks=False)
    story = open_page(report_of(folder)).inner_text("#story")
    assert (
        "Without masks, no number says how much of the attention lies on the objects." in story
        and "border" not in story
    )
    history = pd.read_csv(folder / "history.csv", dtype=str, keep_default_na=False)
    history.assign(border_share="0.9").to_csv(folder / "history.csv", index=False)
    story = open_page(report_of(folder)).inner_text("#story")
    assert "90% of the attention lies on the border, where 49% would lie by chance; before training it was 90%" in story


def test_play_runs_to_the_last_frame_and_space_stops_it(small_page, open_page):
    page = open_page(small_page, "#frame=3")
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    until(page, "document.getElementById('frame').value === '4'")
    until(page, "document.getElementById('play').getAttribute('aria-label') === 'Play'")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(" ")
    assert frame(page) == 0 and page.get_attribute("#play", "aria-label") == "Pause"
    page.keyboard.press(" ")
    assert page.get_attribute("#play", "aria-label") == "Play"


def test_opacity_colours_and_outline_change_the_picture(small_page, open_page):
    page = open_page(small_page, "#frame=2")
    before = pixels(page, 0)
    page.select_option("#cmap", "viridis")
    coloured = pixels(page, 0)
    page.check("#outline")
    outlined = pixels(page, 0)
    page.uncheck("#outline")
    page.locator("#alpha").fill("0")
    assert difference(before, coloured) > 2 and difference(coloured, outlined) > 1
    assert difference(pixels(page, 0), embedded_image(small_page, 0)) < 1


def test_filters_let_through_what_they_name(small, small_page, open_page):
    page = open_page(small_page, "#frame=1")
    correct = Run(small).history.query("frame == 1")["correct"].tolist()
    page.select_option("#label", "Salmon")
    assert order(page) == [1, 5] and page.inner_text("#count") == "2 of 6 images"
    page.click("#clear")
    page.select_option("#answer", "wrong")
    assert order(page) == [item for item in range(6) if not correct[item]] != list(range(6))
    page.select_option("#answer", "right")
    assert order(page) == [item for item in range(6) if correct[item]]
    page.select_option("#answer", "")
    page.select_option("#finding", "any")
    assert order(page) == [0, 3, 5]
    page.select_option("#finding", "kind:empty")
    assert order(page) == [5]
    page.select_option("#label", "Trout")
    assert order(page) == [] and page.is_visible("#nothing")


@pytest.mark.parametrize(
    "name, column, ascending",
    [
        ("change", "similarity_prev", True),
        ("drift", "similarity_first", True),
        ("shift", "centroid_shift", False),
        ("mask", "mask_share", True),
        ("border", "border_share", False),
        ("loss", "loss", False),
        ("prob", "prob", True),
        ("evidence", "evidence", True),
        ("entropy", "entropy", False),
    ],
)
def test_images_are_sorted_by_their_numbers(small, small_page, open_page, name, column, ascending):
    page = open_page(small_page, "#frame=2")
    page.select_option("#sort", name)
    rows = Run(small).history.query("frame == 2")
    expected = rows.sort_values(column, ascending=ascending, kind="stable")["item"].tolist()
    numbers = rows.set_index("item")[column]
    assert np.allclose(numbers[order(page)], numbers[expected], atol=1e-3) and len(order(page)) == 6
    page.select_option("#sort", "panel")
    assert order(page) == list(range(6))


def test_layers_and_classes_can_be_chosen(tmp_path, open_page):
    run = Run(make_run(tmp_path / "run", n=2, frames=2, layers=("0.6.5", "0.7.2"), classes=2))
    path = write_report(run)
    page = open_page(path)
    for layer, name in enumerate(run.layers):
        for k in range(2):
            page.select_option("#layer", str(layer))
            page.select_option("#cls", str(k))
            expected = overlay(embedded_image(path, 1), run.maps(1)[name][1, k])
            assert difference(pixels(page, 1), expected) < 1
    assert "Salmon" in page.inner_text("#cls")


def test_what_there_is_no_choice_of_is_not_offered(tmp_path, open_page):
    page = open_page(report_of(make_run(tmp_path / "run", n=2, frames=2, masks=False), found=[]))
    for control in ("layer-control", "cls-control", "outline-control", "finding-control"):
        assert page.is_hidden(f"#{control}")
    assert page.inner_text("#findings") == "No finding." and "(no masks)" in page.inner_text("#checked")
    assert "mask" not in page.inner_text("#sort") and "mask" not in page.text_content("#meanings")


def test_the_large_view_opens_steps_and_closes_by_keys(small_page, open_page):
    page = open_page(small_page, "#frame=2")
    page.focus('.tile[data-item="1"] button')
    page.keyboard.press("Enter")
    assert page.is_visible("#large") and page.inner_text("#large-label") == "Salmon"
    assert page.locator("#large .chart").count() == 4 and page.locator("#film button").count() == 5
    grab = "document.getElementById('large-canvas').toDataURL()"
    until(page, "document.getElementById('large-canvas').width === 560")
    pictures = [page.evaluate(grab)]
    for key in ("ArrowRight", "n", "h"):
        page.keyboard.press(key)
        pictures.append(page.evaluate(grab))
    assert len(set(pictures)) == 4
    assert frame(page) == 3 and page.inner_text("#large-label") == "Perch"
    page.keyboard.press("p")
    page.keyboard.press("p")
    assert page.inner_text("#large-label") == "Trout" and "Look" in page.inner_text("#large-findings")
    page.keyboard.press("Escape")
    assert page.is_hidden("#large")
    until(page, "document.activeElement.closest('.tile')?.dataset.item === '0'")


def test_the_large_view_outlines_the_mask(small, small_page, open_page):
    page = open_page(small_page, "#item=2&heat=0&outline=1")
    until(page, "document.getElementById('large-canvas').width === 560")
    uri = page.evaluate("document.getElementById('large-canvas').toDataURL()")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), float)
    plain = np.asarray(embedded_image(small_page, 2).resize((560, 560), Image.Resampling.BILINEAR), float)
    changed = np.abs(shown - plain).max(-1) > 60
    mask = np.asarray(Image.fromarray(Run(small).mask(2)).resize((560, 560)))
    edge = np.zeros_like(mask)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    assert changed[edge].mean() > 0.5
    near = np.asarray(Image.fromarray((edge * 255).astype(np.uint8)).reduce(8).resize((560, 560))) > 0
    assert changed[~near].mean() < 0.02


def test_without_its_image_the_large_view_shows_the_map_alone_and_says_so(tmp_path, open_page):
    folder = make_run(tmp_path / "run", n=3, frames=3, size=(128, 96))
    (folder / "panel/001.jpg").unlink()
    page = open_page(report_of(folder), "#item=0")
    until(page, "document.getElementById('large-canvas').width === 560")
    page.keyboard.press("n")
    assert page.inner_text("#large-label") == "Salmon" and "image left out" in page.inner_text("#large-answer")
    until(page, "document.querySelectorAll('#film button').length === 3")
    uri = page.evaluate("document.getElementById('large-canvas').toDataURL()")
    shown = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB").resize((128, 96))
    grey = Image.new("RGB", (128, 96), (128, 128, 128))
    page.keyboard.press("Escape")
    expected = overlay(grey, Run(folder).maps(2)["0.7.2"][1])
    assert difference(pixels(page, 1), expected) < 1
    assert difference(shown, expected) < 12


@pytest.mark.slow
def test_the_large_view_is_empty_until_the_image_is_there(tmp_path, open_page):
    page = open_page(report_of(make_run(tmp_path / "run", n=40, frames=2)), "#item=0")
    until(page, "document.getElementById('large-canvas').width === 560 && document.querySelector('#film button')")
    # Decoding never ends: the picture of the image before must not stand in for this one.
    page.evaluate("() => { HTMLImageElement.prototype.decode = () => new Promise(() => {}) }")
    left = page.evaluate(
        """() => {
            document.getElementById('large-previous').click();
            const stage = document.getElementById('large-canvas');
            const data = stage.getContext('2d').getImageData(0, 0, stage.width, stage.height).data;
            return [data.some((x) => x), document.querySelectorAll('#film button').length];
        }"""
    )
    assert "00039" in page.inner_text("#large-file") and left == [False, 0]


def test_colour_maps_that_colour_blind_people_can_read_come_first(small_page, open_page):
    page = open_page(small_page)
    offered = page.eval_on_selector_all("#cmap option", "options => options.map(option => option.value)")
    assert offered == ["viridis", "magma", "cividis", "inferno", "jet", "turbo"]
    assert page.input_value("#cmap") == "inferno"


def test_metrics_may_be_called_as_parts_of_the_language_are(tmp_path, open_page):
    names = ("constructor", "toString", "__proto__")
    page = open_page(report_of(make_run(tmp_path / "run", n=2, frames=4, metrics=("valid_loss", *names))))
    for name in names:
        assert name in page.text_content("#curves") and name in page.text_content("#scores")
    assert all("NaN" not in path for path in page.eval_on_selector_all("path", "all => all.map(p => p.outerHTML)"))
    page.keyboard.press("Home")
    assert "before training" in page.inner_text("#when") and "–" in page.locator("#curves .key").last.text_content()


@pytest.mark.parametrize("text", ["__proto__=1", "toString=1", "heat=constructor", "hasOwnProperty=frame"])
def test_an_address_of_parts_of_the_language_is_ignored(small_page, open_page, text):
    page = open_page(small_page, "#" + text)
    assert frame(page) == 4 and page.locator("#curves .chart").count() and page.is_hidden("#large")
    page.click('.tile[data-item="0"] button')
    assert page.is_checked("#heat")


def test_findings_lead_to_their_frame_and_images(small_page, open_page):
    page = open_page(small_page)
    card = page.locator(".finding").first
    card.get_by_text("only these").click()
    assert frame(page) == 2 and order(page) == [0, 3]
    page.keyboard.press("End")
    card.locator(".thumb").nth(1).click()
    assert frame(page) == 2 and page.inner_text("#large-label") == "Sea bass"


def test_the_address_keeps_the_view_over_a_reload(small_page, open_page):
    page = open_page(small_page)
    page.select_option("#cmap", "cividis")
    page.select_option("#answer", "right")
    page.locator("#threshold").fill("0.3")
    page.keyboard.press("Tab")
    page.locator("#frame").fill("3")
    until(page, "location.hash.includes('frame=3')")
    page.reload()
    until(page, "document.querySelectorAll('.tile').length > 0")
    assert (frame(page), page.input_value("#cmap"), page.input_value("#threshold")) == (3, "cividis", "0.3")
    assert page.input_value("#answer") == "right"


@pytest.mark.slow
def test_reloading_a_running_run_on_its_last_frame_goes_on_to_the_newer_one(tmp_path, open_page):
    writer = {"status": "running", "info": {"pid": os.getpid(), "host": socket.gethostname()}}
    page = open_page(report_of(make_run(tmp_path / "run", n=2, frames=3, **writer)), "#cmap=viridis")
    assert page.is_visible("#running") and page.inner_text("#status") == "running"
    report_of(make_run(tmp_path / "run", n=2, frames=4))
    page.click("#reload")
    until(page, "document.getElementById('status').textContent === 'finished'")
    assert frame(page) == 3 and page.input_value("#cmap") == "viridis" and page.is_hidden("#running")


def test_nonsense_in_the_address_is_ignored(small_page, open_page):
    page = open_page(small_page, "#frame=99&cmap=__proto__&alpha=7&layer=-1&item=1e9&sort=<b>&finding=x&constructor=1")
    assert frame(page) == 4 and page.input_value("#cmap") == "inferno" and page.input_value("#alpha") == "0.5"
    assert page.is_hidden("#large") and len(order(page)) == 6


@pytest.mark.parametrize("act", ["only these", "frame 2"])
def test_on_a_phone_a_finding_brings_its_images_into_sight(small_page, open_page, act):
    page = open_page(small_page, width=375, height=600)
    page.locator(".finding").first.get_by_text(act).click()
    top, bar = page.evaluate(
        """() => [document.querySelector('.tile').getBoundingClientRect().top,
                  document.querySelector('.transport').getBoundingClientRect().bottom]"""
    )
    assert frame(page) == 2 and bar <= top < 350
    if act == "only these":
        assert page.locator("#count").inner_text() == "2 of 6 images"
        box = page.locator("#clear").bounding_box()
        assert bar <= box["y"] < 350
        page.click("#clear")
        assert order(page) == list(range(6)) and page.inner_text("#count") == ""


@pytest.mark.slow
def test_images_without_a_label_are_offered_and_spoken_of_without_one(tmp_path, open_page):
    folder = make_run(tmp_path / "run", n=2, frames=2)
    info = json.loads((folder / "run.json").read_text())
    name = "document.querySelector('.tile .picture').getAttribute('aria-label')"
    labelled = open_page(report_of(folder)).evaluate(name)
    row = Run(folder).history.query("frame == 1 and item == 0").iloc[0]
    right = "right" if row["correct"] else "wrong"
    assert labelled == f"Enlarge image 1, Trout. {right}: {row['pred']}, {row['pred_prob']:.0%}"
    for label in (None, "Trout"):
        info["panel"][0]["label"] = None
        info["panel"][1]["label"] = label
        (folder / "run.json").write_text(json.dumps(info))
        page = open_page(report_of(folder))
        assert page.locator("#label").is_hidden() == (label is None)
        options = page.eval_on_selector_all("#label option", "all => all.map(option => option.textContent)")
        assert options == ["all labels", "Trout"][: 1 if label is None else 2]
        assert page.evaluate(name).startswith("Enlarge image 1. ")


def test_long_names_that_differ_at_their_end_can_be_told_apart(tmp_path, open_page):
    long = ["L" * 290 + end for end in "abc"]
    page = open_page(report_of(make_run(tmp_path / "run", n=3, frames=2, labels=long)))
    options = page.eval_on_selector_all("#label option", "all => all.map(option => option.textContent)")
    assert len(set(options)) == 4 and max(map(len, options)) == 60


def test_severities_differ_in_colour_and_in_words(small, tmp_path, open_page):
    page = open_page(report_of(small, tmp_path / "page.html", [{"severity": s} for s in (0.9, 0.5, 0.1)]))
    assert page.locator(".severity").all_inner_texts() == ["severity high", "severity medium", "severity low"]
    colour = "all => all.map(card => getComputedStyle(card).borderLeftColor)"
    assert len(set(page.eval_on_selector_all(".finding", colour))) == 3


def test_keys_work_with_caps_lock(small_page, open_page):
    page = open_page(small_page, "#item=1")
    assert page.inner_text("#large-label") == "Salmon"
    page.keyboard.press("N")
    assert page.inner_text("#large-label") == "Perch"
    page.keyboard.press("P")
    page.keyboard.press("H")
    assert page.inner_text("#large-label") == "Salmon" and not page.is_checked("#heat")


def test_what_is_touched_on_a_phone_is_large_enough_for_a_finger(small_page, open_page):
    page = open_page(small_page, "#finding=any", width=375, height=700)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    small = """all => all.filter(one => one.offsetParent && !one.closest('.story, .skip')).map(one =>
        [one.id || one.textContent, (one.closest('label.check, label') || one).getBoundingClientRect().height,
         one.getBoundingClientRect()]).filter(([, height, box]) => Math.min(height, 44) < 43.5 || box.height < 24
            || box.width < 24).map(([name, height, box]) => [name, height, box.width, box.height])"""
    touched = "button, select, input, summary"
    assert page.eval_on_selector_all(touched, small) == []
    assert page.locator("#frame").bounding_box()["height"] >= 43.5
    page.evaluate("document.querySelector('.tile button').click()")
    assert page.eval_on_selector_all(f"#large :is({touched})", small) == []


def test_a_finding_fits_into_the_list_of_findings(small, tmp_path, open_page):
    page = open_page(report_of(small, tmp_path / "page.html", [{"severity": 1.0, "label": "Trout"}]), width=1280)
    page.select_option("#finding", "0")
    room, needed = page.evaluate(
        """() => {
            const list = document.getElementById('finding');
            const context = document.createElement('canvas').getContext('2d');
            context.font = getComputedStyle(list).font;
            return [list.clientWidth, context.measureText(list.selectedOptions[0].textContent).width];
        }"""
    )
    assert page.locator("#finding option:checked").text_content() == "1. Wrong, and where it looked: Trout"
    assert needed + 40 < room  # the arrow and the padding


def test_the_large_view_has_its_own_choice_of_layer_class_colours_and_scale(tmp_path, open_page):
    run = Run(make_run(tmp_path / "run", n=2, frames=2, layers=("0.6.5", "0.7.2"), classes=2))
    page = open_page(write_report(run), "#item=1")
    until(page, "document.getElementById('large-canvas').width === 560 && document.querySelector('#film canvas')")
    grab = "[document.getElementById('large-canvas'), document.querySelector('#film canvas')].map(c => c.toDataURL())"
    before = page.evaluate(grab)
    for name, choice in (("layer", "0"), ("cls", "1"), ("cmap", "cividis"), ("scale", "all")):
        page.select_option(f"#large-{name}", choice)
        after = page.evaluate(grab)
        assert before[0] != after[0] and before[1] != after[1], name
        assert page.evaluate(f"document.getElementById('{name}').value") == choice
        before = after
    assert page.is_visible("#large") and page.inner_text("#large-cls option:checked") == "Salmon"


def test_damaged_frames_are_named_marked_and_skipped_by_play(tmp_path, open_page):
    folder = make_run(tmp_path / "run", n=2, frames=4, failed=[2])
    (folder / "maps/frame-001.npz").write_bytes(b"PK half")
    path = report_of(folder)
    page = open_page(path, "#frame=1")
    assert "Frame 1 left out" in page.inner_text("#notes") and "Frame 2 failed" in page.inner_text("#notes")
    assert page.locator("#ticks .failed").count() == 2
    assert "Frame 1 left out" in page.inner_text("#missing")
    assert difference(pixels(page, 0), embedded_image(path, 0)) < 1
    page.click("#play")
    until(page, "document.getElementById('frame').value !== '1'")
    assert frame(page) == 3 and page.is_hidden("#missing")


def test_hostile_names_are_shown_as_text(tmp_path, open_page):
    names = [f"{label}\udce9.png" for label in HOSTILE]
    metrics = ("valid_loss", *HOSTILE[:3], *HOSTILE[-3:])
    info = {"name": HOSTILE[1], "settings": {HOSTILE[0]: HOSTILE[2]}, "versions": {HOSTILE[1]: HOSTILE[2]}}
    named = {"labels": HOSTILE, "names": names, "layers": HOSTILE[1:3], "metrics": metrics, "info": info}
    run = Run(make_run(tmp_path / "run", n=len(HOSTILE), frames=2, **named))
    page = open_page(report_of(run.path, found=[dict.fromkeys(("kind", "text", "label"), HOSTILE[2])]), "#frame=0")
    assert page.locator(".tile .label").all_text_contents() == HOSTILE
    answers = page.locator(".tile .answer bdi").all_text_contents()
    assert answers == run.history.query("frame == 0").drop_duplicates("item")["pred"].tolist()
    assert page.text_content("#name") == HOSTILE[1]
    page.keyboard.press("End")
    assert HOSTILE[0] in page.text_content("#scores") and HOSTILE[2] in page.text_content(".finding p")
    page.select_option("#label", "Cat")
    assert page.locator(".tile .label").all_text_contents() == ["Cat"]
    page.click(".tile button")
    assert page.inner_text("#large-label") == "Cat"
    assert page.evaluate("window.pwned") is None and page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_a_script_that_got_in_would_neither_run_nor_reach_the_network(small_page, browser):
    page = browser.new_page()
    page.goto(small_page.as_uri())
    assert blocked_in(page) == ["img-src", "script-src-elem"]
    assert page.evaluate("window.pwned") is None
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_scrolling_sideways(small_page, open_page, scheme):
    page = open_page(small_page, width=375, height=700, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    red = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert (page.evaluate(red) > 128) == (scheme == "light")
    while page.get_attribute("#theme", "aria-label") != f"Theme: {'dark' if scheme == 'light' else 'light'}":
        page.click("#theme")
    assert (page.evaluate(red) > 128) == (scheme == "dark")
    page.click('.tile[data-item="0"] button')
    assert page.evaluate("document.getElementById('large').scrollWidth") <= 375


def test_a_run_without_frames_says_so(tmp_path, open_page):
    folder = make_run(tmp_path / "run", n=2, frames=0)
    assert "no frames yet" in open_page(report_of(folder)).inner_text("#notes")


@pytest.mark.slow
def test_a_hundred_frames_open_soon(tmp_path, open_page):
    # 64 × 200 maps of 7 × 7 cells are 0.8 MB as text, their numbers 1.5 MB, 64 images 0.6 MB: 4 MB is still a mail.
    for n, frames, most in ((16, 100, 2e6), (64, 200, 4e6)):
        path = report_of(make_run(tmp_path / f"{n}", n=n, frames=frames, size=(224, 224), masks=n < 64))
        assert path.stat().st_size < most
        start = time.perf_counter()
        page = open_page(path, measured=True)
        pixels(page, 0)
        seconds, busy = time.perf_counter() - start, work(page)
        print(f"{n} x {frames}: {path.stat().st_size / 1e6:.2f} MB, opened in {seconds:.2f} s, {busy:.2f} s of work")
        assert busy < 1  # the page's own time; by the clock, other work on this machine counts as well
        full = "canvas => canvas.getContext('2d').getImageData(0, 0, 1, 1).data[3]"
        drawn = page.evaluate(f"[...document.querySelectorAll('.tile canvas')].filter({full}).length")
        assert 8 <= drawn <= 40, "only what is in sight, or nearly, is drawn"
