"""The contents of a run of the callback: frames, grids, maps and rows, for every kind of training and target."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    ColSplitter,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    F1Score,
    ImageBlock,
    Learner,
    MixUp,
    PILImageBW,
    Resize,
    accuracy,
    error_rate,
    get_image_files,
    vision_learner,
)
from PIL import Image
from torch import nn
from training import Quiet, one_thread, tiny, tiny_learner, watch  # noqa: F401

from fastai_gradcam import GradCAMCallback, Run, gradcam
from fastai_gradcam._draw.frame import heading
from fastai_gradcam._run.words import frame_name
from fastai_gradcam.measures import MEASURES, measure
from fastai_gradcam.render import RIGHT, WRONG, overlay
from fastai_gradcam.run import HISTORY_COLUMNS

pytestmark = pytest.mark.usefixtures("one_thread")

DESIGN_COLUMNS = """frame, fit, epoch, item, layer, label, target, prob, pred, pred_prob, correct, loss, evidence,
negative_share, entropy, concentration, border_share, centroid_y, centroid_x, centroid_shift, similarity_prev,
similarity_first, iou_prev, mask_share, pointing_hit"""


class Kept(Callback):
    "The rows of the progress table, epoch by epoch."

    def before_fit(self):
        self.logs = getattr(self, "logs", [])

    def after_epoch(self):
        self.logs.append(dict(zip(self.recorder.metric_names, self.recorder.log, strict=False)))


@pytest.fixture(scope="module")
def tuned(image_folder, tmp_path_factory, request):
    "A `fine_tune(2)` with the callback on two layers, with masks."
    learn = tiny_learner(image_folder, tmp_path_factory.mktemp("tuned"), metrics=[accuracy, error_rate], cbs=Kept())
    run = watch(
        learn,
        lambda learn: learn.fine_tune(2, 1e-2),
        n=5,
        layer=[2, 1],
        masks=lambda file: (0, 0, 32, 64) if file.parent.name != "red" else None,
        name="tuned",
    )
    return SimpleNamespace(learn=learn, run=run, panel=learn.grad_cam.panel, logs=learn.kept.logs)


@pytest.mark.slow
def test_fine_tune_has_a_frame_before_training_and_one_after_each_epoch_of_both_fits(tuned):
    run = tuned.run
    assert [(f["frame"], f["fit"], f["epoch"]) for f in run.frames] == [(0, 0, -1), (1, 0, 0), (2, 1, 0), (3, 1, 1)]
    assert {f["status"] for f in run.frames} == {"ok"} and run.status == "finished"
    assert run.path == tuned.learn.path / "gradcam" / "tuned" and run.layers == ["0.2", "0.1"]
    for folder, suffix in (("frames", "png"), ("maps", "npz")):
        names = sorted(f.name for f in (run.path / folder).iterdir())
        assert names == [f"frame-{k:03d}.{suffix}" for k in range(4)]


@pytest.mark.slow
def test_run_json_says_what_the_design_says(tuned):
    info = json.loads((tuned.run.path / "run.json").read_text())
    assert set(info) >= set(
        "schema_version status name created settings arch layers vocab panel frames versions".split()
    )
    assert info["schema_version"] == 1 and info["arch"] == "tiny" and info["vocab"] == ["blue", "green", "red"]
    assert info["settings"]["n"] == 5 and info["settings"]["layer"] == [2, 1] and info["settings"]["target"] == "true"
    assert info["versions"]["torch"] == torch.__version__ or info["versions"]["torch"] in torch.__version__
    item = info["panel"][0]
    assert list(item) == ["item", "name", "label", "image", "mask", "width", "height"]
    assert [p["label"] for p in info["panel"]] == tuned.panel.labels and len(set(tuned.panel.labels)) == 3


def test_metrics_are_the_recorders_and_end_up_in_the_heading(tuned):
    frames = tuned.run.contents().frames
    assert frames[0].metrics == {} and heading(frames[0]) == "Before training\nframe 0"
    for frame, log in zip(frames[1:], tuned.logs, strict=True):
        assert list(frame.metrics) == ["train_loss", "valid_loss", "accuracy", "error_rate"]
        for name, value in frame.metrics.items():
            assert value == pytest.approx(float(log[name]), rel=1e-12)
        words = heading(frame)
        assert words.startswith(f"{frame_name(frame).capitalize()}\n")
        assert frame.frozen == (frame.fit == 0) == ("frozen" in words)
        assert f"accuracy {frame.metrics['accuracy']:.4g}" in words and "valid_loss" in words


def test_history_has_the_columns_of_the_design_and_a_row_per_frame_image_and_layer(tuned):
    history = tuned.run.history
    header = (tuned.run.path / "history.csv").read_text().splitlines()[0]
    assert header.split(",") == HISTORY_COLUMNS == DESIGN_COLUMNS.replace("\n", " ").split(", ")
    assert len(history) == 4 * 5 * 2
    assert len(history.drop_duplicates(["frame", "item", "layer"])) == len(history)
    for column in ("mask_share", "pointing_hit"):
        masked = (history["label"] != "red") & (history["evidence"] > 0)
        assert (history[column].notna() == masked).all() and masked.sum() > 5


def test_maps_are_raw_and_at_the_layers_own_resolution(tuned):
    for k in range(4):
        maps = tuned.run.maps(k)
        assert {name: m.shape for name, m in maps.items()} == {"0.2": (5, 4, 4), "0.1": (5, 8, 8)}
        assert all(m.dtype == np.float32 and m.min() >= 0 and np.isfinite(m).all() for m in maps.values())
    last = gradcam(tuned.learn.model, tuned.panel.x, layer=["0.2", "0.1"], target=tuned.panel.y[0].long())
    for stored, made in zip(tuned.run.maps(3).values(), last.maps, strict=True):
        assert np.allclose(stored, made.numpy(), rtol=1e-4, atol=1e-7) and stored.max() > 0


def test_the_numbers_of_every_row_follow_from_the_maps_and_the_masks(tuned):
    run = tuned.run
    stored = [run.maps(k) for k in range(4)]
    checked = 0
    for row in run.history.itertuples():
        map = stored[row.frame][row.layer][row.item]
        previous = stored[row.frame - 1][row.layer][row.item] if row.frame else None
        first = stored[0][row.layer][row.item] if row.frame else None
        expected = measure(map, row.negative_share, previous, first, run.mask(row.item))
        for name in MEASURES:
            value, wanted = getattr(row, name), expected[name]
            if wanted is None or wanted != wanted:
                assert pd.isna(value), (name, value)
            else:
                assert value == pytest.approx(wanted, rel=1e-4, abs=1e-5), name
                checked += 1
    assert checked > 300


def test_predictions_losses_and_verdicts_are_the_models(tuned):
    model, panel, rows = tuned.learn.model.eval(), tuned.panel, tuned.run.history.query("frame == 3")
    with torch.no_grad():
        probs = model(panel.x).softmax(1)
    for row in rows.itertuples():
        p, vocab = probs[row.item], tuned.run.vocab
        assert row.label == row.target == panel.labels[row.item]
        assert row.prob == pytest.approx(float(p[vocab.index(row.label)]), abs=1e-5)
        assert row.pred == vocab[int(p.argmax())] and row.pred_prob == pytest.approx(float(p.max()), abs=1e-5)
        assert row.correct == (row.pred == row.label)
        assert row.loss == pytest.approx(-np.log(float(p[vocab.index(row.label)])), abs=1e-4)


# Grids


def frames_of_cells(page):
    "The colours of the pictures' outlines in a grid, in reading order."
    pixels = np.array(page.convert("RGB")).astype(int)
    found = []
    for name, colour in (("right", RIGHT), ("wrong", WRONG)):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        at = (np.abs(pixels - rgb).max(2) <= 2).astype(int)
        # the top left corner of an outline: a run of its colour to the right and downwards
        for y, x in zip(*np.nonzero(at), strict=True):
            if (y == 0 or not at[y - 1, x]) and (x == 0 or not at[y, x - 1]):
                if at[y, x : x + 150].all() and at[y : y + 150, x].all() and len(at[y, x : x + 150]) == 150:
                    found.append((y, x, name))
    return [name for _, _, name in sorted(found)]


@pytest.mark.slow
def test_every_cell_is_green_where_the_prediction_is_right_and_red_where_it_is_wrong(image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path)
    run = watch(learn, lambda learn: learn.fit(6, 3e-2), n=6)
    seen = set()
    for k in range(7):
        correct = run.history.query("frame == @k").sort_values("item")["correct"]
        wanted = ["right" if c else "wrong" for c in correct]
        assert frames_of_cells(run.grid(k)) == wanted
        seen |= set(wanted)
    assert seen == {"right", "wrong"}


@pytest.mark.slow
@pytest.mark.parametrize("n, columns, rows", [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2)])
def test_a_grid_is_about_as_wide_as_high(image_folder, tmp_path, n, columns, rows):
    run = watch(tiny_learner(image_folder, tmp_path), n=n)
    page, cell = run.grid(0), 208
    assert columns * cell < page.width < columns * cell * 1.25
    assert rows * cell < page.height < rows * cell * 1.45 + 100


@pytest.mark.slow
def test_the_cell_shows_the_image_with_its_heatmap(image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path)
    run = watch(learn, n=1, name="hot", method=lambda A, G: A.abs().sum(1))
    plain = tiny_learner(image_folder, tmp_path)
    empty = watch(plain, n=1, name="cold", method=lambda A, G: torch.zeros_like(A[:, 0]))
    picture = np.array(run.image(0).resize((208, 208), Image.Resampling.BICUBIC)).astype(float)
    page = np.array(empty.grid(0)).astype(float)
    y = next(y for y in range(30, 150) if np.abs(page[y + 60 : y + 190, 23:203] - picture[60:190, 10:190]).mean() < 8)
    hot = run.image(0).resize((208, 208), Image.Resampling.BICUBIC)
    hot = np.array(overlay(hot, run.maps(0)["0.2"][0])).astype(float)
    shown = np.array(run.grid(0)).astype(float)[y + 60 : y + 190, 23:203]
    assert np.abs(shown - hot[60:190, 10:190]).mean() < 0.5 * np.abs(shown - picture[60:190, 10:190]).mean()


@pytest.mark.slow
def test_grids_maps_and_rows_are_there_while_training_runs(image_folder, tmp_path):
    seen = []

    class Look(Callback):
        def before_batch(self):
            if self.training and self.iter == 0:
                run = Run(tmp_path / "gradcam" / "live")
                self.learn.grad_cam.flush()
                frames = run.frames
                with Image.open(run.path / f"frames/frame-{frames[-1]['frame']:03d}.png") as page:
                    page.load()
                seen.append((self.epoch, run.status, len(frames), len(run.history), len(run.maps(-1)["0.2"])))

    watch(tiny_learner(image_folder, tmp_path, cbs=Look()), lambda learn: learn.fit(3), name="live")
    assert seen == [(k, "running", k + 1, 4 * (k + 1), 4) for k in range(3)]


@pytest.mark.slow
def test_the_grid_of_an_epoch_appears_without_waiting_for_the_next(image_folder, tmp_path):
    import time

    there = []

    class Patient(Callback):
        order = 60

        def after_epoch(self):
            file = tmp_path / "gradcam" / "live" / "frames" / f"frame-{self.epoch + 1:03d}.png"
            until = time.monotonic() + 30
            while not file.exists() and time.monotonic() < until:
                time.sleep(0.02)
            there.append(file.exists())

    watch(tiny_learner(image_folder, tmp_path, cbs=Patient()), lambda learn: learn.fit(2), name="live")
    assert there == [True, True]


# Kinds of trainings, data and networks


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs",
    [
        {"change": lambda learn: learn.to_fp16()},
        {"cbs": MixUp},
        {"metrics": [F1Score(average="macro")]},
        {"metrics": []},
        {"loss_func": lambda pred, y: nn.functional.cross_entropy(pred, y).mean()},
    ],
    ids=["to_fp16", "MixUp", "F1", "no metrics", "a loss function without a class"],
)
def test_a_run_is_complete_in_every_kind_of_training(kwargs, image_folder, tmp_path):
    change = kwargs.pop("change", lambda learn: None) if "change" in kwargs else lambda learn: None
    kwargs = {k: v() if k == "cbs" else v for k, v in kwargs.items()}
    learn = tiny_learner(image_folder, tmp_path, **kwargs)
    change(learn)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="GradCAMCallback")
        run = watch(learn, lambda learn: learn.fit(2))
    assert [f["status"] for f in run.frames] == ["ok"] * 3 and len(run.history) == 12
    history = run.history
    assert history[["prob", "pred_prob", "loss", "evidence"]].notna().all().all()
    assert np.allclose(history["loss"], -np.log(history["prob"]), atol=1e-3)
    assert (history["prob"] > 0.01).all() and np.isfinite(run.maps(2)["0.2"]).all()


@pytest.mark.slow
def test_a_data_block_of_a_table_names_its_images_by_their_file(image_folder, tmp_path):
    files = get_image_files(image_folder)
    table = pd.DataFrame(
        {
            "file": [f.relative_to(image_folder).as_posix() for f in files],
            "colour": [f.parent.name for f in files],
            "is_valid": [f.parts[-3] == "valid" for f in files],
        }
    )
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_x=ColReader("file", pref=f"{image_folder}/"),
        get_y=ColReader("colour"),
        splitter=ColSplitter(),
        item_tfms=Resize(32),
    )
    dls = block.dataloaders(table, bs=4, num_workers=0)
    run = watch(vision_learner(dls, tiny, cut=-3, pretrained=False, path=tmp_path))
    for about in run.panel:
        assert about["name"].startswith(f"valid/{about['label']}/")
    assert run.status == "finished" and len(run.history) == 8


@pytest.mark.slow
def test_a_network_of_one_channel_is_watched_in_grey(image_folder, tmp_path):
    block = DataBlock(
        (ImageBlock(PILImageBW), CategoryBlock),
        get_items=get_image_files,
        get_y=lambda file: file.parent.name,
        item_tfms=Resize(32),
    )
    dls = block.dataloaders(image_folder, bs=4, num_workers=0)
    run = watch(vision_learner(dls, tiny, cut=-3, pretrained=False, n_in=1, path=tmp_path), n=2)
    assert np.ptp(np.array(run.image(0)).astype(int), axis=2).max() <= 2 and run.maps(1)["0.2"].max() > 0


class Stripes(torch.utils.data.Dataset):
    "Plain PyTorch, not square."

    def __len__(self):
        return 6

    def __getitem__(self, i):
        x = torch.zeros(3, 32, 48)
        x[i % 3, :, 4 * i :] = 1
        return x, i % 3


@pytest.mark.slow
def test_data_and_a_network_of_plain_pytorch_are_watched(tmp_path):
    model = nn.Sequential(tiny()[:3], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)))
    dls = DataLoaders.from_dsets(Stripes(), Stripes(), bs=3, num_workers=0)
    run = watch(Learner(dls, model, loss_func=CrossEntropyLossFlat(), path=tmp_path), n=6, layer=1 - 1)
    assert run.vocab is None and [p["label"] for p in run.panel] == list("012012")
    assert run.image(0).size == (48, 32) and run.maps(1)["0.0"].shape == (6, 16, 24)
    assert set(run.history["target"]) == {"0", "1", "2"} and run.history["correct"].notna().all()


# Targets, layers and empty maps


@pytest.mark.slow
@pytest.mark.parametrize("target", [["red", "blue"], [2, 0], ("red", 0)])
def test_several_classes_per_image_have_a_row_and_a_map_each(target, image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path)
    run = watch(learn, target=target, n=3, layer=["0.2", "0.1"])
    assert run.maps(1)["0.2"].shape == (3, 2, 4, 4) and run.maps(1)["0.1"].shape == (3, 2, 8, 8)
    history = run.history.query("frame == 1")
    assert len(history) == 12
    assert list(history.query("item == 0 and layer == '0.2'")["target"]) == ["red", "blue"]
    for k, label in enumerate(("red", "blue")):
        alone = gradcam(learn.model, learn.grad_cam.panel.x, layer="0.2", target=run.vocab.index(label))
        assert np.allclose(run.maps(1)["0.2"][:, k], alone.maps[0].numpy(), rtol=1e-4, atol=1e-7)
        rows = history[(history["target"] == label) & (history["layer"] == "0.2")]
        assert np.allclose(rows["evidence"], alone.maps[0].sum((1, 2)), rtol=1e-4)
        assert np.allclose(rows["prob"], alone.output.softmax(1)[:, run.vocab.index(label)], atol=1e-5)
    width, height = run.grid(1).size  # a row per image, its two classes at two layers side by side
    assert 4 * 208 < width < 5 * 208 and 3 * 208 < height < 5 * 208


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pred", None, "green", 1, lambda output: output[:, 1]])
def test_every_kind_of_target_is_explained(target, image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path)
    run = watch(learn, target=target)
    history = run.history
    x = learn.grad_cam.panel.x
    wanted = gradcam(learn.model, x, layer="0.2", target=None if target in ("pred", None) else 1).maps[0]
    assert np.allclose(run.maps(1)["0.2"], wanted.numpy(), rtol=1e-4, atol=1e-7)
    if callable(target):
        assert set(history["target"]) == {""} and history["prob"].isna().all()
    elif target in ("pred", None):
        assert (history["target"] == history["pred"]).all() and (history["prob"] == history["pred_prob"]).all()
    else:
        assert set(history["target"]) == {"green"}
    assert history["correct"].notna().all()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["a method of zeros", "a constant logit"])
def test_an_empty_map_is_shown_as_empty_and_nothing_divides_by_zero(case, image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path)
    settings = {"method": lambda A, G: torch.zeros_like(A[:, 0])}
    if case == "a constant logit":
        settings = {"layer": 2, "target": "green"}
        with torch.no_grad():
            last = learn.model[1][-1]
            last.weight[1] = 0
        last.register_forward_hook(lambda m, i, o: o * torch.tensor([1.0, 0.0, 1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("error", message="GradCAMCallback")
        run = watch(learn, lambda learn: learn.fit(2), **settings)
        page, history = run.grid(2), run.history
    assert all(m.max() == 0 for k in range(3) for m in run.maps(k).values())
    undefined = (
        "entropy concentration border_share centroid_y centroid_x similarity_prev iou_prev negative_share".split()
    )
    assert history[undefined].isna().all().all() and (history["evidence"] == 0).all()
    # the picture under the words is the image itself
    shown, image = np.array(page).astype(float), np.array(run.image(0).resize((208, 208))).astype(float)
    best = min(np.abs(shown[y + 60 : y + 190, 23:203] - image[60:190, 10:190]).mean() for y in range(30, 150))
    assert best < 10
    run.evolution(), run.findings()


# Several callbacks and learners


def test_learn_grad_cam_run_is_the_run_on_the_disk(tuned):
    assert isinstance(tuned.run, Run) and tuned.learn.grad_cam.run is tuned.run
    again = Run(tuned.run.path)
    assert again.info == tuned.run.info and again.history.equals(tuned.run.history)
    assert GradCAMCallback().run is None


@pytest.mark.slow
def test_two_learners_in_one_process_have_runs_of_their_own(image_folder, tmp_path):
    learners = [tiny_learner(image_folder, tmp_path / str(i)) for i in range(2)]
    runs = [watch(learn, n=3 + i, layer=i) for i, learn in enumerate(learners)]
    with Quiet():
        learners[0].fit(1, 1e-2)
    assert [len(run.frames) for run in runs] == [3, 2] and [len(run.panel) for run in runs] == [3, 4]
    assert [f["fit"] for f in runs[0].frames] == [0, 0, 1]
    assert [run.layers for run in runs] == [["0.0"], ["0.1"]]
    for run, learn in zip(runs, learners, strict=True):
        assert run.path.is_relative_to(learn.path)
        last = gradcam(learn.model, learn.grad_cam.panel.x, layer=run.layers, target=learn.grad_cam.panel.y[0].long())
        assert np.allclose(run.maps(-1)[run.layers[0]], last.maps[0].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_path_and_name_say_where_the_run_lies(image_folder, tmp_path):
    run = watch(tiny_learner(image_folder, tmp_path), path=tmp_path / "else" / "where", name="so")
    assert run.path == tmp_path / "else" / "where" / "so" and run.name == "so"
    assert not (tmp_path / "gradcam").exists()
    timed = watch(tiny_learner(image_folder, tmp_path), path=str(tmp_path / "timed"))
    assert timed.path.parent == tmp_path / "timed" and len(timed.name) >= 19


@pytest.mark.slow
def test_the_same_training_gives_the_same_run_twice(image_folder, tmp_path):
    one, other = (watch(tiny_learner(image_folder, tmp_path), name=name) for name in ("one", "other"))
    assert [p["name"] for p in one.panel] == [p["name"] for p in other.panel]
    assert one.history.equals(other.history)
    assert all(np.array_equal(one.maps(k)["0.2"], other.maps(k)["0.2"]) for k in (0, 1))
    assert one.grid(1).tobytes() == other.grid(1).tobytes()
