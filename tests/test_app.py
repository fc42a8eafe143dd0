"""The page to try a model on, in a real browser: what visitors see is what `learn.gradcam` says."""

import base64
import io
import json
import sys
import time

import numpy as np
import pytest
from PIL import Image
from training import Quiet, tiny_learner

from fastai_gradcam import GradCAMCallback, GradCAMError
from fastai_gradcam._app.looks import Bounds, Looks
from fastai_gradcam._fastai.explain import Top
from fastai_gradcam.cli import main
from fastai_gradcam.targets import contrast


@pytest.fixture(scope="module")
def learn(image_folder, tmp_path_factory):
    with Quiet():
        return tiny_learner(image_folder, tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def photos(image_folder):
    return sorted((image_folder / "train").rglob("*.png"))[:8]


# ---- what visitors ask, without a browser


def test_the_top_classes_are_those_of_gradcam_with_their_probabilities(learn, photos):
    cams = Looks(learn).top(str(photos[0]), None, "gradcam")
    assert [c.label for c in cams] == sorted(learn.dls.vocab, key=lambda v: -{c.label: c.prob for c in cams}[v])
    assert sum(c.prob for c in cams) == pytest.approx(1)
    for cam in cams:
        alone = learn.gradcam(photos[0], target=cam.label)
        assert cam.pred == cams[0].label and np.allclose(cam.map, alone.map, atol=1e-6)


def test_the_top_classes_of_a_regression_are_its_score(learn, photos):
    from fastai_gradcam._watch.head import REGRESSION, Head
    from fastai_gradcam._watch.tasks import Task

    decided = Task([Head(REGRESSION, None)]).top(5)
    import torch

    assert decided.pick(decided.read(torch.ones(2, 1))).tolist() == [0, 0]


def test_why_this_rather_than_that_is_the_contrast(learn, photos):
    this, that, why = Looks(learn).pair(str(photos[0]), "red", "blue", None, "gradcam")
    assert (this.label, that.label) == ("red", "blue")
    assert np.array_equal(why.map, learn.gradcam(photos[0], target=contrast("red", "blue")).map)


def test_files_that_are_no_images_get_a_sentence(learn, photos, tmp_path):
    looks = Looks(learn, bounds=Bounds(bytes=30_000, pixels=10_000))
    broken, long, huge = tmp_path / "broken.png", tmp_path / "long.png", tmp_path / "huge.png"
    broken.write_bytes(photos[0].read_bytes()[:500])
    long.write_bytes(b"x" * 40_000)
    Image.new("L", (200, 100)).save(huge)
    for file, words in (
        (broken, "The file 'broken.png' cannot be read as an image."),
        (long, "The file 'long.png' is too large: at most 0 MB."),
        (huge, "The image 'huge.png' is too large: 200 × 100 pixels, at most 0 million."),
        (tmp_path / "gone.png", "The upload 'gone.png' is no longer here: give it again."),
    ):
        with pytest.raises(GradCAMError) as caught:
            looks.top(str(file), None, "gradcam")
        assert str(caught.value) == words
    found = looks.several([str(broken), str(photos[0])], None, "gradcam")
    assert found[0] == "The file 'broken.png' cannot be read as an image." and found[1].image.size == (32, 32)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(learn, tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (1000, 1000)).save(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(GradCAMError, match=r"'bomb.png' is too large: more pixels than fit into memory"):
        Looks(learn).top(str(bomb), None, "gradcam")


def test_a_phone_held_sideways_is_turned_upright(learn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (32, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    opened = Looks(learn)._opened(str(tmp_path / "a.png"))
    assert opened.size == (32, 64)


def test_an_answer_that_takes_too_long_is_a_sentence_and_faults_are_no_tracebacks(learn, photos, monkeypatch):
    looks = Looks(learn, bounds=Bounds(seconds=0.05))
    with pytest.raises(GradCAMError, match=r"^No answer within 0.05 seconds: try again later, or another method.$"):
        looks._ask(lambda: time.sleep(0.3))
    with pytest.raises(GradCAMError, match=r"^The model could not look at this image.$"):
        Looks(learn)._ask(lambda: 1 / 0)
    with pytest.raises(GradCAMError, match="There is no layer 'nowhere'"):
        Looks(learn).top(str(photos[0]), "nowhere", "gradcam")


def test_only_what_visitors_send_is_kept_and_not_without_end(learn, photos, tmp_path):
    looks = Looks(learn, tmp_path / "said", Bounds(kept=1))
    cam = looks.top(str(photos[0]), None, "gradcam")[1]
    looks.keep(cam, "not the fish")
    (folder,) = (tmp_path / "said").iterdir()
    assert sorted(f.name for f in folder.iterdir()) == ["about.json", "image.png", "map.npy", "overlay.png"]
    about = json.loads((folder / "about.json").read_text())
    assert (about["words"], about["label"], about["pred"]) == ("not the fish", cam.label, cam.pred)
    assert np.array_equal(np.load(folder / "map.npy"), cam.map)
    for full in (looks, Looks(learn)):
        with pytest.raises(GradCAMError, match="Nothing more is kept"):
            full.keep(cam, "again")


def test_methods_that_ask_once_per_channel_are_not_offered(learn):
    offered = Looks(learn).methods()
    assert "layercam" in offered and not {"scorecam", "ablationcam"} & set(offered)


def test_the_command_refuses_what_is_not_there(tmp_path, capsys):
    assert main(["app", str(tmp_path / "no.pkl")]) == 2
    assert "There is no learner file" in capsys.readouterr().err
    (tmp_path / "yes.pkl").touch()
    assert main(["app", str(tmp_path / "yes.pkl"), "--examples", str(tmp_path / "none")]) == 2
    assert "There is no folder of examples" in capsys.readouterr().err


def test_without_gradio_the_error_says_what_to_install(learn, monkeypatch):
    from fastai_gradcam.app import build

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "fastai_gradcam._app.page", raising=False)
    with pytest.raises(GradCAMError, match=r'The page needs Gradio: pip install "fastai_gradcam\[app\]"\.'):
        build(learn)


# ---- in the browser


@pytest.fixture(scope="module")
def site(learn, image_folder, tmp_path_factory):
    "A served page: its address, the folder for what visitors send, and the run whose report it links."
    pytest.importorskip("gradio")
    from fastai_gradcam.app import build

    folder = tmp_path_factory.mktemp("site")
    watched = GradCAMCallback(n=2, path=folder, name="watched", judge=None)
    with Quiet(), learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=watched)
    examples = sorted((image_folder / "valid").rglob("*.png"))[:3]
    page = build(learn, examples, run=watched.run, flag=folder / "said")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    yield url, folder / "said", watched.run
    page.close(verbose=False)


@pytest.fixture
def visit(browser, site):
    "`visit(n)`: n visitors at the page; at the end nobody asked for anything but the page's own machine."
    contexts, asked = [], []

    def come(n=1):
        pages = []
        for i in range(n):
            # A browser has six connections to a place, and a page keeps two open.
            if i % 2 == 0:
                contexts.append(browser.new_context(viewport={"width": 1200, "height": 1000}))
                contexts[-1].on("request", lambda request: asked.append(request.url))
            pages.append(contexts[-1].new_page())
            pages[-1].set_default_timeout(30000)
            pages[-1].goto(site[0], wait_until="commit")
        for page in pages:
            page.wait_for_selector("#photo input[type=file]", state="attached")
        return pages

    yield come
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith((site[0], "data:", "blob:"))] == []


def upload(page, file, at="#photo"):
    page.locator(f"{at} input[type=file]").first.set_input_files(str(file))


def pixels(page, at="#map img"):
    url = page.locator(at).first.get_attribute("src")
    data = page.evaluate(
        "async url => { const d = new Uint8Array(await (await fetch(url)).arrayBuffer());"
        " return btoa(Array.from(d, b => String.fromCharCode(b)).join('')) }",
        url,
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def shows(page, cam, alpha=0.5, at="#map img"):
    "Wait until the page's map is that of `cam`, to the last pixel."
    expected, end = np.asarray(cam.overlay(alpha)), time.monotonic() + 30
    while True:
        shown = pixels(page, at) if page.locator(at).count() else None
        if shown is not None and np.array_equal(shown, expected):
            return
        assert time.monotonic() < end, f"the page does not show {cam}"
        time.sleep(0.05)


def choose(page, at, words):
    page.locator(f"{at} input").click()
    page.locator(f"{at} [role=option][aria-label='{words}']").click()


@pytest.mark.slow
def test_upload_click_on_a_class_layer_method_opacity_and_words(visit, site, learn, photos):
    (page,) = visit()
    upload(page, photos[0])
    first, second, _ = learn.gradcam(photos[0], target=Top(3))
    shows(page, first)
    bars = page.locator("#bars button.confidence-set")
    assert bars.count() == 3 and str(first.label) in bars.first.inner_text()
    bars.nth(1).click()
    shows(page, second)
    page.locator("#how button").first.click()
    choose(page, "#layer", "0.0.2")
    shows(page, learn.gradcam(photos[0], target=second.label, layer="0.0.2"))
    choose(page, "#method", "layercam")
    cam = learn.gradcam(photos[0], target=second.label, layer="0.0.2", method="layercam")
    shows(page, cam)
    page.locator("#alpha input[type=number]").fill("0.8")
    shows(page, cam, 0.8)
    page.locator("#words textarea").fill("that is not the fish")
    page.locator("#send").click()
    page.get_by_text("Kept, with the map").wait_for()
    (kept,) = site[1].iterdir()
    assert np.array_equal(np.asarray(Image.open(kept / "image.png")), np.asarray(cam.image))


@pytest.mark.slow
def test_a_broken_file_gets_a_sentence_and_no_map_of_another_image(visit, photos, learn, tmp_path):
    (page,) = visit()
    upload(page, photos[0])
    shows(page, learn.gradcam(photos[0]))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    page.get_by_label("Remove Image").click()
    upload(page, broken)
    page.get_by_text("The file 'broken.png' cannot be read as an image.").wait_for()
    assert page.locator("#map img").count() == 0


@pytest.mark.slow
def test_two_classes_several_images_and_the_report(visit, site, photos, learn):
    (page,) = visit()
    upload(page, photos[0])
    shows(page, learn.gradcam(photos[0]))
    page.locator("#pair button").first.click()
    choose(page, "#this", "red")
    choose(page, "#that", "blue")
    page.locator("#compare").click()
    page.get_by_text("red rather than blue").first.wait_for()
    shows(page, learn.gradcam(photos[0], target="red"), at="#both img >> nth=0")
    shows(page, learn.gradcam(photos[0], target=contrast("red", "blue")), at="#both img >> nth=2")
    page.locator("#several button").first.click()
    page.locator("#files input[type=file]").set_input_files([str(p) for p in photos[:3]])
    for i, photo in enumerate(photos[:3]):
        shows(page, learn.gradcam(photo), at=f"#maps img >> nth={i}")
    link = page.locator("#report a").get_attribute("href")
    answer = page.request.get(f"{site[0]}{link}")
    assert answer.text() == (site[2].path / "report.html").read_text() and "text/html" in answer.headers["content-type"]


@pytest.mark.slow
def test_eight_visitors_at_once_see_the_maps_of_their_own_images(visit, photos, learn):
    pages = visit(len(photos))
    for page, photo in zip(pages, photos, strict=True):
        upload(page, photo)
    expected = [learn.gradcam(photo) for photo in photos]
    for page, cam in zip(pages, expected, strict=True):
        shows(page, cam)
    assert len({np.asarray(cam.overlay()).tobytes() for cam in expected}) == len(photos)
