"""An atlas: what it holds of every image, whoever makes it, in whatever pieces; and what is read from it."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from atlases import WHOLE, atlas_learner, differences, made
from blocks import data, learner_of, net
from fastai.vision.all import ImageBlock, MSELossFlat, PointBlock, aug_transforms
from PIL import Image
from processes import python
from training import Quiet, left_by, state_around, tiny_learner
from training import differences as differ

import fastai_gradcam.atlas as door
from fastai_gradcam import GradCAMCallback, GradCAMError
from fastai_gradcam._atlas.store import ROW_COLUMNS, Plan, Store
from fastai_gradcam._run.verdicts import write_table
from fastai_gradcam.atlas import Atlas
from fastai_gradcam.cli import main


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    return atlas_learner(tmp_path_factory.mktemp("atlas"))


@pytest.fixture(scope="module")
def atlas(learn):
    return made(learn, WHOLE)


# --- what it holds


@pytest.mark.slow
def test_each_image_has_a_row_in_the_order_of_the_data_set(atlas, learn):
    table = atlas.table
    assert list(table.columns) == ROW_COLUMNS
    assert table["index"].tolist() == list(range(90))
    assert table.label.tolist() == ["left", "right"] * 45
    assert table.target.tolist() == table.label.tolist()


@pytest.mark.slow
def test_predictions_and_losses_are_those_of_the_learner(atlas, learn):
    probs, y, losses = learn.get_preds(with_loss=True)
    table = atlas.table
    assert np.allclose(table.prob, probs[torch.arange(90), y], atol=1e-6)
    assert np.allclose(table.pred_prob, probs.max(1).values, atol=1e-6)
    assert np.allclose(table.loss, losses, atol=1e-6)
    assert table.correct.tolist() == (probs.argmax(1) == y).tolist()


def test_maps_are_those_of_learn_gradcam(atlas, learn):
    for i in (0, 41, 89):
        x, y = learn.dls.valid_ds[i]
        cam = learn.gradcam(x, target=y)
        assert cam.layer == atlas.plan.layer
        assert np.allclose(atlas.map(i), cam.map, atol=1e-3 * float(cam.map.max()))
        assert atlas.table.evidence[i] == pytest.approx(float(cam.map.sum()), rel=1e-4, abs=1e-8)


@pytest.mark.slow
def test_the_model_runs_once_for_each_image_and_once_to_begin(learn, tmp_path):
    class Counting(torch.nn.Flatten):
        seen = 0

        def forward(self, x):
            Counting.seen += len(x)
            return super().forward(x)

    other = atlas_learner(tmp_path)
    other.model[4] = Counting()
    made(other, "warm", layer="0")
    Counting.seen = 0
    made(other, "counted", layer="0")
    assert Counting.seen == 91


@pytest.mark.slow
def test_nothing_of_the_learner_changes(learn):
    before = state_around(learn.model)
    made(learn, "unchanged", judge=True)
    after = state_around(learn.model)
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else repr(value) == repr(after[name])
        assert same, name


@pytest.mark.slow
def test_another_loader_is_seen_in_order_and_without_augmentation(image_folder, tmp_path):
    with Quiet():
        learn = tiny_learner(image_folder, tmp_path, batch_tfms=aug_transforms())
    one, other = (made(learn, name, dl=learn.dls.train) for name in ("one", "other"))
    assert len(one.table) == 12 and one.table.name[0].endswith(".png")
    assert differences(one, other) == []


@pytest.mark.slow
def test_masks_give_the_share_of_attention_inside(image_folder, tmp_path):
    with Quiet():
        learn = tiny_learner(image_folder, tmp_path)
    atlas = made(learn, "masks", masks=lambda item: (0, 0, 32, 64), layer="0.0")  # the left half
    for i, share in enumerate(atlas.table.mask_share):
        map = atlas.map(i)
        assert share == pytest.approx(float(map[:, :8].sum() / map.sum()), abs=0.1)
    assert set(atlas.table.pointing_hit.unique()) <= {0.0, 1.0}
    assert atlas.classes.mask_share.notna().all()


# --- whatever does not fit is said before the pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": [0, 1]}, "one map for each image"),
        ({"layer": ["0", "1"]}, "one map for each image"),
        ({"target": "up"}, "There is no class 'up'"),
        ({"method": "grad"}, "There is no method 'grad'"),
        ({"dl": [1, 2]}, "needs a fastai DataLoader"),
        ({"name": "a/b"}, "name must be the name of one folder"),
        ({"name": None, "resume": True}, "needs the name="),
        ({"name": WHOLE}, "There is an atlas in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words, atlas, learn):
    settings = {"name": "refused", **settings}
    with pytest.raises(GradCAMError, match=words):
        made(learn, **settings)
    assert not (learn.path / "gradcam/refused/parts").exists()


@pytest.mark.slow
def test_resuming_with_other_weights_is_refused(tmp_path):
    learn = atlas_learner(tmp_path)
    made(learn, "a")
    torch.nn.init.zeros_(learn.model[5].bias)
    with pytest.raises(GradCAMError, match="weights was"):
        made(learn, "a", resume=True)


def test_a_folder_without_an_atlas_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no atlas in"):
        Atlas(tmp_path)


def test_a_damaged_plan_and_a_damaged_part_are_named(learn, tmp_path):
    broken = made(atlas_learner(tmp_path, n=8), "broken")
    (broken.path / "parts/00001.npz").write_bytes(b"PK")
    with pytest.raises(GradCAMError, match="part '00001"):
        Atlas(broken.path).classes  # noqa: B018 (read when asked for)
    (broken.path / "plan.json").write_text("{")
    with pytest.raises(GradCAMError, match="damaged"):
        Atlas(broken.path)


# --- in pieces


@pytest.mark.slow
def test_missing_parts_are_named_and_made_by_resuming(atlas, learn):
    again = made(learn, "again")
    for k in (3, 4):
        (again.path / f"parts/{k:05d}.npz").unlink()
    (again.path / "atlas.json").unlink()
    partial = Atlas(again.path)
    assert partial.missing == [3, 4]
    assert "2 of 23 parts are missing" in partial.notes[0]
    assert len(partial.table) == 82 and partial.map(89).shape == (4, 4)
    assert len(partial.groups) and len(partial.classes) == 2
    with pytest.raises(IndexError):
        partial.map(12)
    assert differences(atlas, made(learn, "again", resume=True)) == []


def test_points_have_an_atlas_without_classes(image_folder, tmp_path):
    blocks = (ImageBlock, PointBlock)
    learn = learner_of(data(image_folder, blocks, lambda f: np.array([[3.0, 4.0]])), net(2), tmp_path, MSELossFlat())
    atlas = learn.gradcam_atlas(path=tmp_path / "atlas")
    assert len(atlas.table) == 6 and not len(atlas.groups) and not len(atlas.classes)
    assert atlas.report().exists()


@pytest.mark.slow
def test_an_atlas_that_was_killed_twice_is_the_same_after_resuming(tmp_path, nursery):
    # Steps of the file system: the plan, three in each write, two writes for each of 23 parts.
    done = nursery.run(__file__.replace("test_atlas", "atlases"), "killed", tmp_path, 1, 6, 71, 137)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("moment")]
    assert len(lines) == 4 and all(line.endswith("missing [], differences: []") for line in lines), lines


@pytest.mark.slow
def test_two_processes_share_the_work_and_make_the_same_atlas(tmp_path, atlas, nursery):
    done = nursery.run(__file__.replace("test_atlas", "atlases"), "shared", tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0: missing [], manifest True" in done.stdout and "rank 1: missing []" in done.stdout
    assert differences(atlas, Atlas(tmp_path / "gradcam/shared")) == []
    # One that never came costs its share, which one process makes later.
    assert "lost: missing True" in done.stdout
    resumed = made(atlas_learner(tmp_path), "lost", resume=True)
    assert resumed.missing == [] and differences(atlas, resumed) == []


def test_parts_do_not_depend_on_the_number_of_processes():
    for images, bs in ((1, 64), (90, 4), (10_000, 64), (1_000_000, 64), (10_000_000, 256)):
        part = Plan.part_for(images, bs)
        assert part % bs == 0 and part <= max(bs, 1024)
        plan = Plan(images, part, bs, "0", [7, 7], "true", "gradcam", "", "")
        assert [i for k in range(plan.parts) for i in plan.indices(k)][-1] == images - 1 if images < 2e5 else True


def test_several_processes_need_a_name(learn, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GradCAMError, match="needs the name="):
        made(learn, None)


# --- what is read from it, on drawn parts


def drawn(path, n=400, part=64):
    "Two classes: `a` looks at two places, the second in a fifth of its images and mostly wrong; `b` looks at one."
    rng = np.random.default_rng(0)
    store = Store(path)
    plan = Plan(n, part, part, "0.7", [7, 7], "true", "gradcam", "w", "d", str(path), ["b", "a"])
    store.begin(plan)
    for k in range(plan.parts):
        index = np.array(plan.indices(k))
        label = np.where(index % 2, "b", "a")
        odd = (label == "a") & (index % 10 == 0)
        maps = rng.random((len(index), 7, 7)) * 0.1
        maps[~odd, 1:3, 1:3] += 1
        maps[odd, 5:7, 5:7] += 1
        features = rng.normal(0, 0.05, (len(index), 8))
        features[odd, 0] += 1
        correct = np.where(odd, rng.random(len(index)) < 0.2, 1.0)
        rows = pd.DataFrame(index=range(len(index)), columns=ROW_COLUMNS)
        rows = rows.assign(index=index, name=[f"{i}.png" for i in index], label=label, target=label)
        rows = rows.assign(pred=np.where(correct == 1, label, "b"), correct=correct, prob=0.5, pred_prob=0.5)
        rows = rows.assign(loss=index / n, peak=2.0)
        maps /= maps.max((1, 2), keepdims=True)
        store.write(k, rows.astype(dict.fromkeys(ROW_COLUMNS[5:], float)), maps, features)
    return Atlas(path)


@pytest.fixture(scope="module")
def two_habits(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("drawn"))


def test_classes_are_in_the_order_of_the_vocabulary_with_their_mean_maps(two_habits):
    assert two_habits.classes.label.tolist() == two_habits.labels == ["b", "a"]
    raw = np.stack([m for m, label in zip(two_habits.maps(), two_habits.table.label, strict=True) if label == "a"])
    each = raw / raw.sum((1, 2), keepdims=True)
    assert np.allclose(two_habits.mean_map("a"), each.mean(0), atol=1e-5)
    spread = np.abs(each - each.mean(0)).sum((1, 2)).mean() / 2
    assert two_habits.classes.spread[1] == pytest.approx(spread, abs=1e-4)
    assert two_habits.classes.accuracy[0] == 1.0
    with pytest.raises(GradCAMError, match="There is no class 'c'"):
        two_habits.mean_map("c")


def test_the_least_typical_images_are_those_that_look_elsewhere(two_habits):
    row = two_habits.classes.iloc[1]
    assert all(i % 10 == 0 for i in row.atypical) and not any(i % 10 == 0 for i in row.typical)


@pytest.mark.slow
def test_a_habit_of_its_own_is_found_and_is_the_most_suspicious(two_habits):
    first = two_habits.groups.iloc[0]
    assert (first.label, first.images, first.taken_for) == ("a", 40, "b")
    assert all(i % 10 == 0 for i in first.typical)
    assert first.accuracy < 0.4 < first.rest and first.suspicion > 0.3
    assert first.purity == pytest.approx(1 - first.accuracy, abs=1e-6)
    assert "40 images (20%) of 'a'" in first.text and "taken for 'b'" in first.text
    assert (two_habits.groups.label == "b").sum() == 1  # one habit, however many could be cut out of it


@pytest.mark.slow
def test_no_habit_is_flagged_before_interventions_confirm_a_shortcut(two_habits, tmp_path):
    assert not two_habits.groups.flagged.any() and set(two_habits.groups.verdict) == {""}
    judged = drawn(tmp_path)
    (tmp_path / "patches").mkdir()
    row = {"label": "a", "test": "transplant", "images": 20, "effect": 0.9, "control": 0.1, "low": 0.5, "high": 0.9}
    write_table(tmp_path, "verdicts", [row | {"verdict": "shortcut"}])
    write_table(
        tmp_path,
        "trials",
        [
            {"index": i, "label": "a", "test": "transplant", "effect": int(i % 10 == 0), "control": 0}
            for i in range(0, 40, 2)
        ],
    )
    groups = judged.groups
    assert groups.flagged.tolist() == [True, False, False]
    assert (groups.trials[0], groups.effect[0], groups.control[0]) == (4, 1.0, 0.0)
    assert "has a shortcut (test 'transplant'); in 4 trials" in groups.text[0]
    other = groups[(groups.label == "a") & ~groups.flagged].iloc[0]
    assert (other.trials, other.effect) == (16, 0.0)


def test_the_worst_have_the_highest_loss(two_habits):
    assert two_habits.worst(3)["index"].tolist() == [399, 398, 397]


def test_two_atlases_are_compared_by_class_and_by_name(two_habits, atlas, tmp_path):
    same = two_habits.compare(two_habits.path)
    assert same.similarity.tolist() == pytest.approx([1.0, 1.0]) and same.changed.tolist() == [0, 0]
    assert len(two_habits.compare(atlas)) == 0


@pytest.mark.slow
def test_parts_in_parquet_give_the_same_table(two_habits, tmp_path):
    pytest.importorskip("pyarrow", reason="rows are CSV where pyarrow is not installed")
    table = drawn(tmp_path).table
    assert list(tmp_path.glob("parts/*.parquet"))
    text = Store(tmp_path / "text", "csv")
    text.begin(two_habits.plan)
    for k in range(two_habits.plan.parts):
        text.write(k, Store(tmp_path).rows(k), *Store(tmp_path).arrays(k))
    pd.testing.assert_frame_equal(Atlas(tmp_path / "text").table, table)


def test_a_class_called_na_keeps_its_name(tmp_path):
    text = Store(tmp_path, "csv")
    text.begin(Plan(1, 1, 1, "0", [1, 1], "true", "gradcam", "w", "d"))
    rows = pd.DataFrame([dict.fromkeys(ROW_COLUMNS, None) | {"index": 0, "label": "NA", "name": "nan", "correct": 1.0}])
    text.write(0, rows, np.ones((1, 1, 1)), np.ones((1, 1)))
    table = Atlas(tmp_path).table
    assert (table.label[0], table.name[0], table.loss.isna()[0]) == ("NA", "nan", True)


# --- whole, with interventions and pictures


@pytest.fixture(scope="module")
def judged(learn):
    return made(learn, "judged", judge=True)


@pytest.mark.slow
def test_interventions_are_held_and_their_trials_name_images(judged):
    manifest = json.loads((judged.path / "atlas.json").read_text())
    assert manifest["images"] == 90 and manifest["notes"] == []
    assert len(judged.verdicts) and set(judged.trials["index"]) <= set(range(90))
    labels = judged.table.label.astype(str)[judged.trials["index"]].tolist()
    lends = judged.trials.test.isin(["transplant", "cover"]).tolist()
    assert all(a == b for a, b, used in zip(labels, judged.trials.label, lends, strict=True) if used)


@pytest.mark.slow
def test_typical_images_have_pictures_as_the_model_sees_them(judged):
    assert judged.shown
    for i in judged.shown:
        assert judged.image(i).size == (16, 16)
    typical = {i for row in judged.groups.typical for i in row[:4]}
    assert typical <= set(judged.shown)


def test_any_loader_is_judged_by_its_own_images(learn):
    atlas = made(learn, "training images", dl=learn.dls.train, judge=True)
    assert atlas.notes == [] and len(atlas.verdicts)
    labels = [learn.dls.vocab[learn.dls.train_ds[i][1]] for i in atlas.trials["index"]]
    lends = atlas.trials.test.isin(["transplant", "cover"])
    assert all(a == b for a, b, used in zip(labels, atlas.trials.label, lends, strict=True) if used)


def test_what_cannot_be_judged_leaves_a_note(learn, monkeypatch):
    def refused(*_, **__):
        raise GradCAMError("One class only.")

    monkeypatch.setattr("fastai_gradcam._fastai.atlas.judging_set", refused)
    atlas = made(learn, "not judged", judge=True)
    assert atlas.notes == ["Nothing was judged. One class only."] and len(atlas.verdicts) == 0


# --- without torch


@pytest.mark.slow
def test_an_atlas_is_read_without_torch_and_fastai(judged, tmp_path):
    code = f"""
import sys
from fastai_gradcam.atlas import Atlas, to_spotlight
atlas = Atlas({str(judged.path)!r})
atlas.table, atlas.classes, atlas.groups, atlas.mean_map("left"), atlas.map(0), atlas.worst(), atlas.compare(atlas)
to_spotlight(atlas)
print(sorted(m for m in ("torch", "fastai", "fastcore", "torchvision") if m in sys.modules))
"""
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


# --- for other tools


def test_spotlight_gets_a_dataframe_with_habits_and_files(two_habits):
    Image.new("RGB", (4, 4)).save(two_habits.path / "7.png")
    frame = door.to_spotlight(two_habits)
    assert frame.image[7] == str(two_habits.path / "7.png") and frame.image[8] == ""
    assert set(frame.habit) == {0, 1}


def test_wandb_gets_a_table_with_pictures(judged, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    table = door.to_wandb(judged)
    assert len(table.data) == 90
    at = table.columns.index("picture")
    assert [i for i, row in enumerate(table.data) if row[at] is not None] == judged.shown


def test_fiftyone_gets_samples_with_the_map_as_a_heatmap(two_habits, monkeypatch):
    # FiftyOne brings a database of its own; the stand-in has the names that are used.
    class Sample(dict):
        pass

    added = []
    fiftyone = SimpleNamespace(
        Dataset=lambda name: SimpleNamespace(add_samples=added.extend),
        Sample=Sample,
        Classification=lambda **kwargs: kwargs,
        Heatmap=lambda **kwargs: kwargs,
    )
    monkeypatch.setitem(__import__("sys").modules, "fiftyone", fiftyone)
    Image.new("RGB", (4, 4)).save(two_habits.path / "7.png")
    door.to_fiftyone(two_habits)
    assert [sample["filepath"].rpartition("/")[2] for sample in added] == ["7.png"]
    assert np.array_equal(added[0]["gradcam"]["map"], two_habits.map(7)) and added[0]["ground_truth"]["label"] == "b"


# --- the callback and the command


@pytest.mark.slow
def test_the_callback_makes_one_after_each_fit_and_the_training_stays_the_same(image_folder, tmp_path):
    with Quiet():
        learn = tiny_learner(image_folder, tmp_path / "with", cbs=GradCAMCallback(n=2, atlas=True, judge=None))
        learn.fit(1, 1e-2)
        learn.fit(1, 1e-2)
        plain = tiny_learner(image_folder, tmp_path / "without")
        plain.fit(1, 1e-2)
        plain.fit(1, 1e-2)
    left, expected = left_by(learn), left_by(plain)
    assert differ(left, expected) == []
    atlas = Atlas(learn.grad_cam.run.path / "atlas")
    losses = learn.get_preds(with_loss=True)[2]
    assert np.allclose(atlas.table.loss, losses, atol=1e-5)  # of the second fit


@pytest.mark.slow
def test_an_atlas_that_fails_does_not_end_the_training(image_folder, tmp_path):
    cb = GradCAMCallback(n=2, atlas=True, judge=None, target=["red", "blue"])
    with Quiet():
        learn = tiny_learner(image_folder, tmp_path, cbs=cb)
    with pytest.warns(UserWarning, match="the atlas failed, training goes on"):
        learn.fit(1, 1e-2)
    assert learn.grad_cam.run.status == "finished"


@pytest.mark.slow
def test_the_command_makes_an_atlas_and_its_page(image_folder, tmp_path, capsys, monkeypatch):
    with Quiet():
        learn = tiny_learner(image_folder, tmp_path)
        learn.export(tmp_path / "model.pkl")
    asked = ["atlas", str(tmp_path / "model.pkl"), str(image_folder), "--out", str(tmp_path / "out")]
    assert main([*asked, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == 6 and facts["missing"] == [] and (tmp_path / "out/atlas.html").exists()
    assert sorted(Atlas(tmp_path / "out").table.name)[0] == "valid/blue/0.png"
    assert main(asked) == 2 and "resume" in capsys.readouterr().err
    assert main([*asked, "--resume"]) == 0 and "page:" in capsys.readouterr().out
    assert main([*asked[:2], str(tmp_path / "nowhere")]) == 2
