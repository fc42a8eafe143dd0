"""The report of real trainings: while they go on, and with names that mean harm, from the folder to the browser."""

import re
import threading
import time

import numpy as np
import pytest
from fastai.vision.all import (
    AvgMetric,
    Callback,
    CategoryBlock,
    DataBlock,
    FuncSplitter,
    ImageBlock,
    Resize,
    accuracy,
    get_image_files,
    set_seed,
    vision_learner,
)
from pages import HOSTILE, embedded
from PIL import Image
from training import Quiet, one_thread, tiny, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback, Run
from fastai_gradcam.findings import Thresholds

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [*HOSTILE[:7], *HOSTILE[8:12], "line\u2028separators"]
# The limits of a file system: no slash, at most 255 bytes.
FILES = [
    "<script>window.pwned = 5<.png",
    '"><img src=x onerror="window.pwned = 6">.png',
    "'; window.pwned = 7; .png",
    "&lt;b&gt; {{ 7 * 7 }} %2e%2e%2f #a ?b.png",
    "🐟👩‍👩‍👧.png",
    "سمك \u202eabc.png",
    "two\nlines.png",
    "x" * 251 + ".png",
    "a....png",
    "cat.png",
    "Cat.png",
    "not utf-8 \udce9.png",
]
FOLDER, RUN = "<img src=x onerror='window.pwned = 8'>", "</title><b>'\" 🐟 \u202eabc"
RUN = RUN.replace("/", "")


class Embedded(threading.Thread):
    "Reads a page again and again, as somebody who keeps reloading it."

    def __init__(self, file):
        super().__init__(daemon=True)
        self.file, self.counts, self.torn, self.ended = file, [], [], threading.Event()

    def run(self):
        while not self.ended.is_set():
            if self.file.exists():
                text = self.file.read_text(encoding="utf-8")
                if text.rstrip().endswith("</html>"):
                    self.counts.append(len(embedded(self.file)["frames"]))
                else:
                    self.torn.append(len(text))
            time.sleep(0.002)


class Reload(Callback):
    "After each epoch: reloads the page until it shows the epoch's frame."

    order = GradCAMCallback.order + 1

    def __init__(self, file):
        self.file, self.seen = file, []

    def after_epoch(self):
        end = time.monotonic() + 30
        while True:
            data = embedded(self.file)
            if data["frames"][-1]["epoch"] == self.epoch:
                break
            # Never far behind: what is being written is the next.
            assert time.monotonic() < end, f"epoch {self.epoch}: the page ends with {data['frames'][-1]}"
            time.sleep(0.02)
        assert data["info"]["status"] == "running" and all(data["maps"][0]["cells"])
        self.seen.append((self.epoch, len(data["frames"])))


@pytest.mark.slow
def test_a_page_reloaded_during_training_is_whole_and_shows_the_latest_frame(image_folder, tmp_path):
    file = tmp_path / "runs" / "run" / "report.html"
    reader, reload = Embedded(file), Reload(file)
    cbs = [GradCAMCallback(n=6, path=tmp_path / "runs", name="run", show=False, on_error="raise"), reload]
    learn = tiny_learner(image_folder, tmp_path, cbs=cbs)
    reader.start()
    try:
        with Quiet():
            learn.fit(4)
    finally:
        reader.ended.set()
        reader.join()
    assert reload.seen == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert reader.torn == [] and reader.counts == sorted(reader.counts) and set(reader.counts) >= {2, 3, 4}
    assert embedded(file)["info"]["status"] == "finished"


# ------------------------------------------------------------------------------------- names that mean harm


def named(name, function):
    def metric(pred, y):
        return function(pred, y)

    metric.__name__ = name
    return AvgMetric(metric)


def everything(path):
    return {p.relative_to(path).as_posix() for p in path.rglob("*")}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    "A run of a real training whose labels, files, folders, metrics and own name mean harm, and what the folder held."
    path = tmp_path_factory.mktemp("hostile")
    data, rng = path / FOLDER, np.random.default_rng(0)
    label_of, valid = {}, set()
    for i, label in enumerate(LABELS):
        folder = data / f"{FOLDER} {i}"
        folder.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for j, name in enumerate((FILES[i], "a.png", "b.png")):
            pixels = (0.6 * colour + 0.4 * rng.integers(0, 256, (48, 48, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name)
            label_of[folder / name] = label
            if j == 0:
                valid.add(folder / name)
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=get_image_files,
        get_y=lambda file: label_of[file],
        splitter=FuncSplitter(lambda file: file in valid),
        item_tfms=Resize(32),
    )
    set_seed(1)
    dls = block.dataloaders(data, path=data, bs=6, num_workers=0)
    metrics = [named(name, accuracy) for name in (HOSTILE[1], HOSTILE[2], HOSTILE[8])]
    learn = vision_learner(dls, tiny, cut=-3, pretrained=False, metrics=metrics, path=path)
    learn.add_cb(
        GradCAMCallback(
            n=12, masks=lambda f: (8, 8, 40, 40), path=path / "runs", name=RUN, show=False, on_error="raise"
        )
    )
    before = everything(path)
    with Quiet(), learn.no_bar(), learn.no_logging():
        learn.fit(3, 1e-2)
    return Run(path / "runs" / RUN), before, everything(path)


@pytest.mark.slow
def test_hostile_names_write_nothing_outside_of_the_run_folder(hostile):
    _, before, after = hostile
    inside = {name.removeprefix(f"runs/{RUN}/") for name in after - before if name.startswith(f"runs/{RUN}/")}
    assert {name for name in after - before if not name.startswith(f"runs/{RUN}/")} == {"runs", f"runs/{RUN}"}
    own = r"(panel|maps|frames)|panel/0\d\d(-mask\.png|\.jpg)|(maps|frames)/frame-00\d\.(npz|png)"
    own += r"|verdicts\.csv|patches|patches/(pooled|classes|pictures|alarms)\.csv|patches/\d\d-[\w-]+\.png"
    own += r"|run\.json|history\.csv|report\.html|evolution\.(png|gif)"
    assert {name for name in inside if not re.fullmatch(own, name)} == set() and len(inside) > 30


@pytest.mark.slow
def test_hostile_names_come_back_as_they_were(hostile):
    run, _, _ = hostile
    assert sorted(run.vocab) == sorted(LABELS)
    labels = [p["label"] for p in run.panel]
    assert sorted(labels) == sorted(LABELS)
    # A name that is not UTF-8 is told with its bytes as escapes.
    files = [file.encode("utf-8", "backslashreplace").decode() for file in FILES]
    names = {LABELS[i]: f"{FOLDER} {i}/{file}" for i, file in enumerate(files)}
    assert [p["name"] for p in run.panel] == [names[label] for label in labels]
    assert list(run.frames[-1]["metrics"])[2:] == [HOSTILE[1], HOSTILE[2], HOSTILE[8]]
    history = run.history
    for frame in range(4):
        rows = history[history["frame"] == frame]
        assert rows["label"].tolist() == rows["target"].tolist() == labels
        assert rows["correct"].tolist() == (rows["label"] == rows["pred"]).tolist()
    assert set(history["pred"]) <= set(labels)


@pytest.mark.slow
def test_pictures_with_hostile_names_have_sensible_sizes(hostile):
    run, _, _ = hostile
    assert run.grid(-1).width < 1200 and run.grid(-1).height < 1400
    assert run.evolution().width < 1700 and run.compare(run).width < 1700
    assert run.animation(run.path.parent / "a.gif").stat().st_size > 1000


def test_findings_with_hostile_names_are_plain_sentences(hostile):
    found = hostile[0].findings(Thresholds(confident=0.0, class_images=1))
    assert len(found) and {"wrong"} <= set(found["kind"])
    assert set(found["label"]) <= {*LABELS, ""}
    assert found["text"].str.len().max() < 500 and not found["text"].str.contains("\n").any()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 375])
def test_hostile_names_are_text_in_the_browser(hostile, open_page, tmp_path, width):
    run, _, _ = hostile
    thresholds = Thresholds(confident=0.0, class_images=1)
    page = open_page(run.report(tmp_path / "report.html", thresholds), width=width)
    labels = [p["label"] for p in run.panel]
    assert page.locator(".tile .label").all_text_contents() == labels
    assert page.text_content("#name") == RUN and page.title().endswith(RUN)
    for place, name in enumerate(run.frames[-1]["metrics"]):
        assert name in page.text_content("#curves") and (place > 3 or name in page.text_content("#scores"))
    assert page.locator(".finding").count() == len(run.findings(thresholds))
    for text in run.findings(thresholds)["text"]:
        assert text in page.text_content("#findings")
    page.evaluate("document.getElementById('tools').open = true")
    for item in range(len(labels)):
        page.evaluate(f"document.querySelector('.tile[data-item=\"{item}\"] button').click()")
        assert page.text_content("#large-label") == labels[item]
        assert page.text_content("#large-file") == run.panel[item]["name"]
        page.keyboard.press("Escape")
        page.select_option("#label", labels[item])
        assert page.locator(".tile .label").all_text_contents() == [labels[item]]
        page.select_option("#label", "")
    assert page.evaluate("window.pwned") is None and page.locator("img[src=x]").count() == 0
    assert page.locator("#name b, .label img, .label script, #large-label img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
