"""Things that the tests share: real data where it is at hand, a small network, a small image folder, equal seeds."""

import os
import random
import re
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that spin while they wait make a busy machine slower by a factor; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from pages import until
from PIL import Image
from processes import Nursery
from torch import nn

# Side by side (`-n 2`) each process has a core; alone it may use two.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

ROOT = Path(__file__).resolve().parent.parent

CHROMIUM = "/usr/bin/chromium"
ARGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


NURSERY = pytest.StashKey[Nursery]()


def pytest_make_parametrize_id(val):
    """A parameter is named by its short text, without addresses: the processes of `-n 2` must find equal tests."""
    if isinstance(val, str) or hasattr(val, "__name__"):
        return None
    text = re.sub(r" at 0x[0-9a-f]+", "", str(val))
    return text if 0 < len(text) < 100 and text.isprintable() else None


# Files that take longest begin first, so that the other process has something to do until the end.
LONGEST = """
test_docs.py test_shortcut.py test_notebooks.py test_unchanged.py test_report.py test_models.py test_faults.py
test_real.py test_loops_faults.py test_events.py test_endurance.py test_examples.py test_atlas.py
""".split()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    for item in items:
        # Chromium takes half a second for a page, and two to start.
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish(session):
    if any("nursery" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config.stash[NURSERY] = Nursery()


@pytest.fixture(scope="session")
def nursery(pytestconfig) -> Nursery:
    "Starts programs at once: see `processes.Nursery`."
    yield (made := pytestconfig.stash[NURSERY])
    made.end()


@pytest.fixture(autouse=True)
def seeded():
    "Every test starts from the same random state, in whatever order tests run."
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    "The folder of real photos and weights; without it the test is skipped, except under CI, where it fails."
    path = Path(os.environ.get("FASTAI_GRADCAM_SHARED") or ROOT.parent / "shared" / "data")
    if (path / "torch_home").is_dir():
        return path
    reason = f"needs the photos and weights of {path}, not found (FASTAI_GRADCAM_SHARED names another place)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def torch_home(shared_data) -> Path:
    "Makes torchvision find the pretrained SqueezeNet, for the rest of the session."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(shared_data / "torch_home"))
        yield shared_data / "torch_home"


@pytest.fixture(scope="session")
def pretrained_squeezenet(torch_home) -> nn.Module:
    "squeezenet1_1 trained on ImageNet, in evaluation mode. Shared: leave it as it is."
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(weights="IMAGENET1K_V1").eval()


# For one module at a time: while it is there, its event loop is in the way of others.
@pytest.fixture(scope="module")
def browser():
    "Chromium; without it these tests are skipped, except under CI, where they fail."
    reason = None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "needs playwright (pip install playwright)"
    if not Path(CHROMIUM).exists():
        reason = f"needs {CHROMIUM} (apt-get install chromium)"
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    "`open_page(path, hash)`: an open page; at the end nothing may have left it or been said on the console."
    contexts, said, asked = [], [], []

    def open_one(path, hash="", width=1200, height=1000, scheme="light", measured=False):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        if measured:
            page.gauge = context.new_cdp_session(page)
            page.gauge.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(f"{Path(path).as_uri()}{hash}")
        until(page, "document.querySelectorAll('.tile').length > 0")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)


@pytest.fixture
def undrawn(monkeypatch):
    "Runs have frames, maps and history; not a report and pictures of their course, which take half of a small fit."
    monkeypatch.setattr("fastai_gradcam._watch.core.publish", lambda path: None)
    monkeypatch.setattr("fastai_gradcam._watch.publish.write_report", lambda *args, **how: None)


@pytest.fixture
def tiny_net() -> nn.Sequential:
    "Five classes from `(N, 3, h, w)`; 2 and 4 have space; an in-place ReLU follows both convolutions."
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    "`train` and `valid`: three classes of 4 + 2 images of 64 pixels, a square of its colour on noise."
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("valid", 2)):
        for channel, label in enumerate(("red", "green", "blue")):
            (path / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
                y, x = rng.integers(0, 40, 2)
                pixels[y : y + 24, x : x + 24, channel] = 230
                Image.fromarray(pixels).save(path / split / label / f"{i}.png")
    return path


@pytest.fixture
def make_learner(image_folder, tmp_path):
    "`make_learner(arch, size, **kwargs)`: an untrained `vision_learner` on `image_folder`, own path."
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, resnet18, vision_learner

    def make(arch=resnet18, size=64, **kwargs):
        tfms = Resize(size)
        dls = ImageDataLoaders.from_folder(image_folder, valid="valid", item_tfms=tfms, bs=4, num_workers=0)
        kwargs = {"pretrained": False, "metrics": accuracy, "path": tmp_path, **kwargs}
        return vision_learner(dls, arch, **kwargs)

    return make


@pytest.fixture
def learner(image_folder, tmp_path):
    "`learner(*callbacks, **settings)`: a tiny learner; its runs, if any, lie under its own path."
    from training import Quiet, tiny_learner

    def make(*cbs, **settings):
        with Quiet():
            return tiny_learner(image_folder, tmp_path, cbs=cbs, **settings)

    return make
