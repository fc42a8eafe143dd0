"""Real photos and a really pretrained network: the whole run of a fine-tuning, and where a dog and a cat are seen."""

import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    GrandparentSplitter,
    ImageBlock,
    Learner,
    Normalize,
    Resize,
    ResizeMethod,
    accuracy,
    aug_transforms,
    imagenet_stats,
    parent_label,
    set_seed,
    squeezenet1_1,
    vision_learner,
)
from PIL import Image
from training import Quiet

from fastai_gradcam import GradCAMCallback, Run, gradcam
from fastai_gradcam.measures import MEASURES, measure
from fastai_gradcam.run import HISTORY_COLUMNS

N, FITS = 16, [0, 0, 1, 1, 1]
DOG, CAT = 243, 282


def some_of_each_class(path):
    "Enough photos to learn from, in a quarter of the time of all."
    classes = sorted(p for part in ("train", "valid") for p in (path / part).iterdir())
    return [file for p in classes for file in sorted(p.iterdir())[: 32 if p.parent.name == "train" else 10]]


@pytest.fixture(scope="module")
def trained(shared_data, torch_home, tmp_path_factory):
    "SqueezeNet after `fine_tune(3, 5e-3)` on photos of clothing, and the run of the callback."
    set_seed(42)
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=some_of_each_class,
        get_y=parent_label,
        splitter=GrandparentSplitter(),
        item_tfms=Resize(128),
        batch_tfms=aug_transforms(size=96),
    )
    dls = block.dataloaders(shared_data / "clothing", path=shared_data / "clothing", bs=32, num_workers=0)
    path = tmp_path_factory.mktemp("clothing")
    learn = vision_learner(dls, squeezenet1_1, metrics=accuracy, path=path, cbs=GradCAMCallback(n=N, name="clothing"))
    with Quiet(), learn.no_bar():
        learn.fine_tune(3, 5e-3)
    if os.environ.get("KEEP_RUN"):
        import shutil

        shutil.copytree(path / "gradcam", os.environ["KEEP_RUN"], dirs_exist_ok=True)
    run = Run(path / "gradcam" / "clothing")
    return SimpleNamespace(learn=learn, run=run, history=run.history, panel=learn.grad_cam.panel)


@pytest.mark.slow
def test_the_run_is_finished_and_complete(trained):
    run = trained.run
    assert run.status == "finished" and run.info["arch"] == "squeezenet1_1" and len(run.layers) == 1
    assert [(f["frame"], f["fit"], f["epoch"]) for f in run.frames] == [
        (0, 0, -1), (1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 1, 2),
    ]  # fmt: skip
    assert all(f["status"] == "ok" and f["error"] is None for f in run.frames)
    for k in range(5):
        assert (run.path / f"frames/frame-{k:03d}.png").exists() and (run.path / f"maps/frame-{k:03d}.npz").exists()
    assert not [f for f in run.path.rglob("*") if f.name.endswith(".part")]


@pytest.mark.slow
def test_the_network_learned_and_the_frames_say_how_well(trained):
    frames, recorder = trained.run.frames, trained.learn.recorder
    assert frames[0]["metrics"] == {}
    assert all(list(f["metrics"]) == ["train_loss", "valid_loss", "accuracy"] for f in frames[1:])
    shown = [list(f["metrics"].values()) for f in frames[2:]]
    assert np.allclose(shown, [list(v) for v in recorder.values])  # the recorder forgets the first fit
    assert frames[-1]["metrics"]["accuracy"] > 0.6 > 0.3 > trained.history.query("frame == 0")["correct"].mean()


@pytest.mark.slow
def test_the_panel_is_of_all_classes_and_as_the_model_sees_it(trained):
    run = trained.run
    counts = Counter(p["label"] for p in run.panel)
    assert set(counts) == set(run.vocab) and set(counts.values()) == {1, 2}
    for i, about in enumerate(run.panel):
        image = run.image(i)
        assert image.size == (about["width"], about["height"]) == (96, 96) and about["mask"] is None
        assert about["name"].startswith(f"valid/{about['label']}/")
        seen = np.array(trained.panel.images[i], dtype=float)
        assert np.abs(np.array(image) - seen).mean() < 3  # saved as JPEG


@pytest.mark.slow
def test_every_map_has_mass_and_moves_while_training(trained):
    for k in range(5):
        (maps,) = trained.run.maps(k).values()
        assert maps.dtype == np.float32 and maps.shape == (N, 5, 5)
        assert np.isfinite(maps).all() and maps.min() >= 0
        assert (maps.reshape(N, -1).max(1) > 0).sum() >= N - 2
    first, last = (next(iter(trained.run.maps(k).values())) for k in (0, 4))
    assert np.abs(first - last).max() > 0.01


@pytest.mark.slow
def test_the_last_maps_are_those_of_the_trained_model(trained):
    cams = gradcam(trained.learn.model, trained.panel.x, layer=trained.run.layers[0], target=trained.panel.y[0].long())
    stored = trained.run.maps(4)[trained.run.layers[0]]
    assert np.allclose(stored, cams.maps[0].numpy(), rtol=1e-4, atol=1e-5)
    rows = trained.history.query("frame == 4")
    probs = cams.output.softmax(1).numpy()
    assert np.allclose(rows["prob"], probs[np.arange(N), trained.panel.y[0]], atol=1e-5)
    assert np.allclose(rows["loss"], -np.log(probs[np.arange(N), trained.panel.y[0]]), rtol=1e-3, atol=1e-4)
    vocab = trained.run.vocab
    assert list(rows["pred"]) == [vocab[i] for i in probs.argmax(1)]


@pytest.mark.slow
def test_the_probabilities_are_those_that_fastai_gives_for_the_same_files(trained):
    learn, rows = trained.learn, trained.history.query("frame == 4").set_index("item")
    for item in (0, 7, 15):
        with learn.no_bar(), learn.no_logging():
            label, _, probs = learn.predict(learn.dls.path / trained.run.panel[item]["name"])
        assert rows.loc[item, "pred"] == label
        assert rows.loc[item, "pred_prob"] == pytest.approx(float(probs.max()), abs=1e-4)


@pytest.mark.slow
def test_every_row_follows_from_the_maps(trained):
    history, run = trained.history, trained.run
    assert list(history.columns) == HISTORY_COLUMNS and len(history) == 5 * N
    stored = [next(iter(run.maps(k).values())) for k in range(5)]
    for row in history.itertuples():
        assert row.fit == FITS[row.frame] and row.layer == run.layers[0]
        assert row.label == row.target == run.panel[row.item]["label"]
        assert row.correct == (row.pred == row.label) and 0 <= row.prob <= row.pred_prob <= 1
        previous = stored[row.frame - 1][row.item] if row.frame else None
        first = stored[0][row.item] if row.frame else None
        expected = measure(stored[row.frame][row.item], row.negative_share, previous, first, None)
        for name in MEASURES:
            value, wanted = getattr(row, name), expected[name]
            undefined = wanted is None or wanted != wanted
            assert pd.isna(value) if undefined else value == pytest.approx(wanted, rel=1e-4, abs=1e-5), name
    later = history.query("frame > 0 and evidence > 0")
    assert later["similarity_prev"].between(-1, 1).sum() > 3 * N


@pytest.mark.slow
def test_the_pictures_of_the_run_are_made(trained, tmp_path):
    run = trained.run
    sizes = {run.grid(k).size for k in range(5)}
    assert len(sizes) <= 2 and all(800 < w < 1100 and 900 < h < 1400 for w, h in sizes)
    page = run.evolution(tmp_path / "evolution.png")
    assert page.width <= 1600 and page.height <= 3200
    with Image.open(run.animation(tmp_path / "evolution.gif")) as gif:
        assert gif.n_frames == 5


@pytest.mark.slow
def test_one_photo_is_explained_at_all_layers_of_the_trained_network(trained):
    surest = trained.history.query("frame == 4").set_index("item")["pred_prob"].idxmax()
    name = trained.run.panel[surest]["name"]
    layers = [f"0.0.{i}" for i in range(13)]
    cams = trained.learn.gradcam(trained.learn.dls.path / name, layer=layers)
    assert [c.layer for c in cams] == layers and all(c.map.max() > 0 for c in cams)
    assert [c.map.shape[0] for c in cams] == [47, 47] + [23] * 3 + [11] * 3 + [5] * 5
    assert [c.layer for c in trained.learn.gradcam(trained.learn.dls.path / name, layer="all")] == layers


# A dog above a cat

ON = {DOG: (75, 10, 160, 135), CAT: (50, 130, 200, 220)}  # x0, y0, x1, y1 of 224


def lies_on(map, which):
    h, w = map.shape
    y, x = np.unravel_index(int(map.argmax()), (h, w))
    x, y = (x + 0.5) / w * 224, (y + 0.5) / h * 224
    x0, y0, x1, y1 = ON[which]
    return x0 <= x <= x1 and y0 <= y <= y1


@pytest.fixture(scope="module")
def both(shared_data):
    return shared_data / "photos" / "dog_and_cat.png"


def test_the_dog_is_seen_on_the_dog_and_the_cat_on_the_cat(pretrained_squeezenet, both):
    mean, std = (torch.tensor(s)[:, None, None] for s in imagenet_stats)
    pixels = np.array(Image.open(both).convert("RGB").resize((224, 224)))
    x = (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std
    for method in ("gradcam", "hirescam", "layercam"):
        cams = gradcam(pretrained_squeezenet, x[None], target=torch.tensor([[DOG, CAT]]), method=method)
        dog, cat = cams.maps[0][0]
        assert lies_on(dog, DOG) and lies_on(cat, CAT), method
        assert not lies_on(dog, CAT) and not lies_on(cat, DOG), method


def test_a_learner_around_the_pretrained_network_sees_them_too(pretrained_squeezenet, both, tmp_path):
    names = [f"class {i}" for i in range(1000)]
    names[DOG], names[CAT] = "bull mastiff", "tiger cat"
    block = DataBlock(
        (ImageBlock, CategoryBlock(vocab=names, sort=False)),
        get_y=lambda file: names[DOG],
        splitter=lambda files: ([0], [1]),
        item_tfms=Resize(224, method=ResizeMethod.Squish),
        batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False),
    )
    dls = block.dataloaders([both, both], bs=1, num_workers=0)
    learn = Learner(dls, pretrained_squeezenet, loss_func=torch.nn.CrossEntropyLoss(), path=tmp_path)
    dog, cat = learn.gradcam(both, target=["bull mastiff", "tiger cat"])
    assert (dog.target, cat.target) == (DOG, CAT) and dog.image.size == (224, 224)
    assert lies_on(dog.map, DOG) and lies_on(cat.map, CAT)
    red = np.array(dog.overlay(1.0, "jet")).astype(int)
    y, x = np.unravel_index((red[..., 0] - red[..., 2]).argmax(), (224, 224))
    assert 75 <= x <= 160 and 10 <= y <= 135
    assert learn.gradcam(both).pred in ("bull mastiff", "tiger cat")
    with pytest.raises(ValueError, match=r"There is no class 'tigre cat'\. Did you mean 'tiger cat'"):
        learn.gradcam(both, target="tigre cat")
