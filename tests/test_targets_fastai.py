"""Targets through fastai: several labels, one logit, regression, segmentation, in the notebook and while training."""

import warnings

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    CategoryBlock,
    DataBlock,
    DataLoaders,
    DynamicUnet,
    ImageBlock,
    L1LossFlat,
    Learner,
    MaskBlock,
    MultiCategoryBlock,
    PILMask,
    PointBlock,
    RegressionBlock,
    Resize,
    get_image_files,
    unet_learner,
    vision_learner,
)
from torch import nn

from fastai_gradcam import CAM, GradCAMCallback, gradcam
from fastai_gradcam._fastai.tasks import task_of
from fastai_gradcam.learner import CAMList
from fastai_gradcam.targets import contrast, segment

_labels = {"red": ["stop", "warm"], "green": ["go"], "blue": []}


def _net(n_out, grow=1.0):
    "Small, in fastai's form of body and head."
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    net = nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out)))
    with torch.no_grad():
        net[1][2].weight.mul_(grow)
    return net


def _dls(image_folder, block, get_y, bs=4):
    data = DataBlock(
        blocks=(ImageBlock, block),
        get_items=get_image_files,
        get_y=get_y,
        splitter=lambda items: (
            [i for i, f in enumerate(items) if f.parent.parent.name == "train"],
            [i for i, f in enumerate(items) if f.parent.parent.name == "valid"],
        ),
        item_tfms=Resize(32),
    )
    return data.dataloaders(image_folder, bs=bs, num_workers=0)


@pytest.fixture
def learner(image_folder, tmp_path):
    def make(block, get_y, n_out, grow=1.0, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dls = _dls(image_folder, block, get_y)
        return Learner(dls, _net(n_out, grow), path=tmp_path, **kwargs)

    return make


@pytest.fixture
def photo(image_folder):
    return image_folder / "valid" / "red" / "0.png"


@pytest.fixture
def photos(image_folder):
    return sorted((image_folder / "valid").rglob("*.png"))


def _labels_of(file):
    return _labels[file.parent.name]


def _fit(learn, epochs=1, **settings):
    learn.add_cb(GradCAMCallback(show=False, on_error="raise", **settings))
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="CUDA is not available|.*GradScaler.*|.*pin_memory.*")
        learn.fit(epochs)
    run = learn.grad_cam.run
    assert [f["status"] for f in run.frames] == ["ok"] * (epochs + 1)
    return run


def _logits(learn, files):
    "The model's output for `files`, by fastai's own way, before any activation."
    with torch.no_grad(), learn.no_bar():
        x = torch.cat([b[0] for b in learn.dls.test_dl(files, bs=len(files))])
        return learn.model.eval()(x.as_subclass(torch.Tensor)), x.as_subclass(torch.Tensor)


# Several labels per image


@pytest.fixture
def multilabel(learner):
    return learner(MultiCategoryBlock(), _labels_of, 3, grow=30)


def test_each_predicted_label_has_a_map_of_its_own(multilabel, photos):
    with torch.no_grad():
        multilabel.model[1][2].bias.copy_(torch.tensor([5.0, -5.0, 5.0]) - _logits(multilabel, photos)[0].mean(0))
    logits, x = _logits(multilabel, photos[:1])
    on = logits[0].gt(0).nonzero().flatten().tolist()
    made = multilabel.gradcam(photos[0])
    assert len(on) == 2 and isinstance(made, CAMList) and len(made) == 2
    assert {c.target for c in made} == set(on) and {c.label for c in made} == {multilabel.dls.vocab[c] for c in on}
    for cam in made:
        assert cam.prob == pytest.approx(float(logits[0, cam.target].sigmoid()), abs=1e-5) and cam.prob > 0.5
        assert cam.pred == ", ".join(multilabel.dls.vocab[c] for c in on)
        assert cam.pred_prob == pytest.approx(float(logits[0, on].sigmoid().min()), abs=1e-5)
        assert torch.allclose(cam.map, gradcam(multilabel.model, x, target=cam.target).maps[0][0])


def test_images_with_different_numbers_of_labels_each_have_their_own(multilabel, photos):
    logits, _ = _logits(multilabel, photos)
    with torch.no_grad():
        multilabel.model[1][2].bias.sub_(logits.median(0).values)
    on = _logits(multilabel, photos)[0].gt(0)
    made = multilabel.gradcam(photos)
    expected = [max(1, int(n)) for n in on.sum(1)]
    assert len(set(expected)) > 1 and len(made) == sum(expected)
    at = 0
    for row, count in zip(on, expected, strict=True):
        explained = [c.target for c in made[at : at + count]]
        assert len(set(explained)) == count and (
            not row.any() or set(explained) == set(row.nonzero().flatten().tolist())
        )
        at += count


def test_where_no_label_is_predicted_the_nearest_is_explained_and_said_to_be_none(multilabel, photo):
    with torch.no_grad():
        multilabel.model[1][2].bias.sub_(100)
    cam = multilabel.gradcam(photo)
    assert isinstance(cam, CAM) and cam.pred == "(none)" and cam.pred_prob > 0.9 and cam.prob < 0.1
    assert cam.target == int(_logits(multilabel, [photo])[0].argmax())


def test_labels_may_be_asked_for_one_or_several(multilabel, photo):
    assert multilabel.gradcam(photo, target="warm").label == "warm"
    assert [c.label for c in multilabel.gradcam(photo, target=["stop", "go"])] == ["stop", "go"]
    with pytest.raises(ValueError, match=r"There is no class 'warn'\. Did you mean 'warm'"):
        multilabel.gradcam(photo, target="warn")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["true", "pred"])
def test_a_run_explains_one_label_of_each_image(multilabel, target):
    run = _fit(multilabel, target=target, n=6)
    history = run.history
    assert len(history) == 12 and run.vocab == ["go", "stop", "warm"]
    true = {"red": "stop, warm", "green": "go", "blue": "(none)"}
    names = [p["name"].split("/")[-2] for p in run.panel]
    assert [p["label"] for p in run.panel] == [true[n] for n in names]
    for _, row in history.iterrows():
        kind = names[row["item"]]
        assert row["label"] == true[kind] and 0 <= row["prob"] <= 1 and row["loss"] > 0
        if target == "true" and kind != "blue":
            assert row["target"] == true[kind].split(", ")[0]
        else:
            assert row["target"] in run.vocab
        assert bool(row["correct"]) == (row["pred"] == row["label"])


def test_a_logit_is_explained_where_its_probability_is_saturated(multilabel, photo):
    with torch.no_grad():
        multilabel.model[1][2].bias.add_(200)
    logits, x = _logits(multilabel, [photo])
    assert logits.sigmoid().eq(1).all()
    signed = gradcam(multilabel.model, x, target=1, method=lambda A, G: (A * G.mean((2, 3), True)).sum(1)).maps[0]
    again = multilabel.gradcam(photo, target=1, method=lambda A, G: (A * G.mean((2, 3), True)).sum(1)).map
    assert torch.allclose(signed[0], again) and again.abs().max() > 0


# A class per image


@pytest.fixture
def colours(learner):
    return learner(CategoryBlock(), lambda f: f.parent.name, 3, grow=30)


_rows = [
    torch.tensor([2, 0, 1]),
    np.array([2, 0, 1]),
    np.array(["red", "blue", "green"]),
    [["red"], ["blue"], ["green"]],
    (np.array([2]), torch.tensor([0]), ["green"]),
]


@pytest.mark.parametrize("target", _rows)
def test_a_row_for_each_image_explains_each_by_its_own_class(colours, photos, target):
    made = colours.gradcam(photos[:3], target=target)
    assert [c.label for c in made] == ["red", "blue", "green"]
    for file, cam in zip(photos, made, strict=False):
        assert torch.allclose(cam.map, colours.gradcam(file, target=cam.label).map, atol=1e-6)
    shown = colours.show_gradcam(max_n=3, shuffle=False, target=target)
    assert [c.label for c in shown] == ["red", "blue", "green"]


@pytest.mark.slow
def test_several_classes_may_be_others_for_each_image_also_over_several_batches(colours, photos):
    rows = [[i % 3, (i + 1) % 3] for i in range(70)]
    for target in (rows, np.array(rows), torch.tensor(rows)):
        made = colours.gradcam([photos[i % 6] for i in range(70)], target=target)
        assert [c.target for c in made] == [c for row in rows for c in row] and made.columns == 2
    flat = colours.gradcam(photos[:2], target=[2, 0])
    assert [c.target for c in flat] == [2, 0, 2, 0], "a flat list names several classes for each image"
    assert [c.target for c in colours.gradcam(photos[0], target=torch.tensor([2, 0]))] == [2, 0]
    assert colours.gradcam(photos[0], target=torch.tensor([2])).target == 2


@pytest.mark.slow
@pytest.mark.parametrize("target", _rows)
def test_a_run_explains_each_image_by_its_own_class(colours, target):
    run = _fit(colours, n=3, target=target)
    assert run.history["target"].tolist() == ["red", "blue", "green"] * 2
    x = colours.grad_cam.panel.x
    expected = gradcam(colours.model, x, target=torch.tensor([2, 0, 1]))
    assert np.allclose(run.maps(1)[run.layers[0]].reshape(3, 8, 8), expected.maps[0], atol=1e-6)


def test_a_regression_may_have_a_score_per_image(learner, photos):
    learn = learner(RegressionBlock(n_out=3), lambda f: [1.0, 2.0, 3.0], 3, loss_func=L1LossFlat())
    made = learn.gradcam(photos[:3], target=[["score 2"], ["-score 1"], [0]])
    assert [c.label for c in made] == ["score 2", "-score 1", "score 0"]
    assert [c.label for c in learn.gradcam(photos[:2], target=torch.tensor([1, 2]))] == ["score 1", "score 2"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (torch.tensor([0, 1]), "target has a row for each of 2 images, but there are 3"),
        ([["red"], ["blue"]], "target has a row for each of 2 images, but there are 3"),
        ([["red"], ["blue", "green"], ["red"]], "target has rows of 1, 2, 1 classes"),
        ([[], [], []], "rows of 0, 0, 0 classes"),
        ([["red"], ["blue"], ["gren"]], "no class 'gren'. Did you mean 'green'"),
        (np.array([0, 1, 7]), "target 7 is out of range"),
    ],
)
def test_rows_that_do_not_fit_are_quoted(colours, photos, target, says):
    with pytest.raises(ValueError, match=says):
        colours.gradcam(photos[:3], target=target)
    colours.add_cb(GradCAMCallback(n=3, target=target, show=False))
    with colours.no_bar(), colours.no_logging(), pytest.raises(ValueError, match=says):
        colours.fit(1)


# Contrasts and segments of labels


def test_a_contrast_may_be_of_labels_and_is_named(colours, photos):
    made = colours.gradcam(photos[:2], target=contrast("red", "blue"), layer="0.2")
    x = _logits(colours, photos[:2])[1]
    expected = gradcam(colours.model, x, target=contrast(2, 0), layer="0.2").maps[0]
    assert all(torch.allclose(cam.map, m, atol=1e-6) for cam, m in zip(made, expected, strict=True))
    assert [c.label for c in made] == ["contrast(red, blue)"] * 2 and made[0].title() == "contrast(red, blue)"
    assert colours.show_gradcam(max_n=1, target=contrast("green"))[0].label == "contrast(green)"
    with pytest.raises(ValueError, match=r"no class 'rde'\. Did you mean 'red'"):
        colours.gradcam(photos[0], target=contrast("rde", "blue"))
    with pytest.raises(ValueError, match="target 3 is out of range"):
        colours.gradcam(photos[0], target=contrast("red", 3))


def test_a_contrast_may_be_another_for_each_image_over_several_batches(colours, photos):
    items, of, against = (
        [photos[i % 6] for i in range(40)],
        [i % 3 for i in range(40)],
        [(i + 1) % 3 for i in range(40)],
    )
    made = colours.gradcam(items, target=contrast(of, torch.tensor(against)))
    names = colours.dls.vocab
    assert [c.label for c in made] == [f"contrast({names[a]}, {names[b]})" for a, b in zip(of, against, strict=True)]
    for i in (0, 35):
        alone = colours.gradcam(items[i], target=contrast(of[i], against[i])).map
        assert torch.allclose(made[i].map, alone, atol=1e-6)
    with pytest.raises(ValueError, match="classes for 2 images, but 3 images"):
        colours.gradcam(photos[:3], target=contrast(["red", "green"], "blue"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (contrast("red", "blue"), ["contrast(red, blue)"] * 3),
        (contrast(["red", "green", 1], 0), ["contrast(red, blue)"] + ["contrast(green, blue)"] * 2),
        (lambda output: output[:, 0], [""] * 3),
    ],
)
def test_a_run_says_which_contrast_it_explains(colours, target, words):
    run = _fit(colours, n=3, target=target)
    assert run.history["target"].tolist() == words * 2 and run.history["prob"].isna().all()
    assert run.grid(1).size and (run.path / "report.html").exists()


def test_a_run_refuses_a_contrast_for_another_number_of_images(colours):
    colours.add_cb(GradCAMCallback(n=3, target=contrast(["red", "green"], "blue"), show=False))
    with colours.no_bar(), colours.no_logging(), pytest.raises(ValueError, match="classes for 2 images, but 3 images"):
        colours.fit(1)


# One logit


@pytest.fixture
def binary(learner):
    return learner(
        CategoryBlock(),
        lambda f: "warm" if f.parent.name == "red" else "cold",
        1,
        grow=30,
        loss_func=BCEWithLogitsLossFlat(),
    )


def test_one_logit_has_both_classes(binary, photo):
    logits, x = _logits(binary, [photo])
    both = binary.gradcam(photo, target=["cold", "warm"], method=lambda A, G: (A * G.mean((2, 3), True)).sum(1))
    assert torch.allclose(both[0].map, -both[1].map) and both[0].map.abs().max() > 0
    score = gradcam(binary.model, x, target=lambda o: o, method=lambda A, G: (A * G.mean((2, 3), True)).sum(1)).maps[0]
    assert torch.allclose(both[1].map, score[0])
    assert both[1].prob == pytest.approx(float(logits.sigmoid()), abs=1e-5)
    assert both[0].prob == pytest.approx(1 - both[1].prob, abs=1e-5)
    assert both[0].pred == ("warm" if float(logits) > 0 else "cold") and both[0].pred_prob >= 0.5
    assert binary.gradcam(photo).label == both[0].pred


@pytest.mark.slow
@pytest.mark.parametrize("target", ["true", "pred", "warm"])
def test_a_run_of_one_logit_names_both_classes(binary, target):
    history = _fit(binary, target=target, n=6).history
    assert set(history["label"]) == {"cold", "warm"}
    for _, row in history.iterrows():
        assert row["target"] == {"true": row["label"], "pred": row["pred"]}.get(target, "warm")
        assert bool(row["correct"]) == (row["pred"] == row["label"]) and row["loss"] > 0
        same = row["target"] == row["pred"]
        assert row["prob"] == pytest.approx(row["pred_prob"] if same else 1 - row["pred_prob"], abs=1e-5)


# Regression


@pytest.fixture
def regression(learner):
    return learner(RegressionBlock(), lambda f: float(f.stem) + 0.25, 1)


def test_a_regression_has_its_score_and_the_negative(regression, photo):
    logits, x = _logits(regression, [photo])
    with torch.no_grad():
        regression.model[1][2].bias.sub_(float(logits) + 3)  # also of a negative score, the score is the default
    signed = {"method": lambda A, G: (A * G.mean((2, 3), True)).sum(1)}
    cam, up, down = (regression.gradcam(photo, target=t, **signed) for t in (None, "score", "-score"))
    assert isinstance(cam, CAM) and cam.label == "score" and down.label == "-score"
    assert torch.equal(cam.map, up.map) and torch.allclose(up.map, -down.map) and up.map.abs().max() > 0
    assert torch.allclose(up.map, gradcam(regression.model, x, target=lambda o: o, **signed).maps[0][0])
    assert cam.prob is None and cam.pred_prob is None and float(cam.pred) == pytest.approx(-3, abs=1e-3)
    assert regression.gradcam(photo, target=0).label == "score" and "score" in repr(cam)
    assert cam.title() == "score" and cam._repr_jpeg_().startswith(b"\xff\xd8")
    both = regression.gradcam(photo, target=["score", "-score"])
    assert [c.label for c in both] == ["score", "-score"]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [("true", "score"), ("pred", "score"), ("-score", "-score")])
def test_a_run_of_a_regression_has_numbers_for_labels_and_no_probabilities(regression, target, name):
    run = _fit(regression, target=target, n=6)
    history = run.history
    assert set(history["target"]) == {name} and history["prob"].isna().all() and history["pred_prob"].isna().all()
    assert history["correct"].isna().all() and set(map(str, history["label"])) == {"0.25", "1.25"}
    for _, row in history.iterrows():
        assert row["loss"] == pytest.approx((float(row["pred"]) - float(row["label"])) ** 2, rel=0.02, abs=1e-3)
    assert run.grid(0).size and (run.path / "report.html").exists() and run.evolution().size
    assert isinstance(run.findings(), list) or run.findings() is not None


def test_several_scores_are_told_apart_by_number(learner, photo):
    learn = learner(RegressionBlock(n_out=3), lambda f: [1.0, 2.0, 3.0], 3, loss_func=L1LossFlat())
    assert learn.gradcam(photo).label == "score 0"
    signed = {"method": lambda A, G: (A * G.mean((2, 3), True)).sum(1)}
    _, x = _logits(learn, [photo])
    for asked in ("score 2", 2):
        cam = learn.gradcam(photo, target=asked, **signed)
        assert cam.label == "score 2" and torch.allclose(
            cam.map, gradcam(learn.model, x, target=2, **signed).maps[0][0]
        )
    assert torch.allclose(learn.gradcam(photo, target="-score 2", **signed).map, -cam.map)
    with pytest.raises(ValueError, match="target 3 is out of range: the model has scores 0 to 2"):
        learn.gradcam(photo, target="score 3")
    with pytest.raises(ValueError, match=r"There is no target 'scroe'\. Did you mean 'score'"):
        learn.gradcam(photo, target="scroe")


def test_points_are_a_regression(learner, photo):
    learn = learner(PointBlock, lambda f: np.array([[3.0, 4.0]]), 2, loss_func=L1LossFlat())
    assert learn.gradcam(photo, target="score 1").label == "score 1"
    assert task_of(learn.dls, learn.loss_func).kind == "regression"


# Segmentation


def _mask(file):
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, : 40 if file.parent.name == "red" else 20] = 1
    return mask


@pytest.fixture
def segmentation(image_folder, tmp_path):
    dls = _dls(image_folder, MaskBlock(codes=["back", "fish"]), _mask, bs=2)
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
    )
    return Learner(dls, DynamicUnet(body, 2, (32, 32)), path=tmp_path)


def test_a_class_of_a_unet_is_explained_over_its_region(segmentation, photo):
    logits, x = _logits(segmentation, [photo])
    cam = segmentation.gradcam(photo, target="fish")
    region = logits.argmax(1).eq(1).float()
    region = region if region.any() else torch.ones_like(region)
    expected = gradcam(segmentation.model, x, target=lambda o: (o[:, 1] * region).sum((1, 2)))
    assert cam.layer == expected.layers[0] and torch.allclose(cam.map, expected.maps[0][0], rtol=1e-4, atol=1e-4)
    assert cam.label == "fish" and cam.map.shape == (32, 32)
    probs = logits.softmax(1)
    assert cam.prob == pytest.approx(float((probs[:, 1] * region).sum() / region.sum()), abs=1e-4)
    largest = "fish" if logits.argmax(1).float().mean() > 0.5 else "back"
    assert segmentation.gradcam(photo).label == segmentation.gradcam(photo).pred == largest


@pytest.mark.slow
@pytest.mark.parametrize("target", ["true", "pred", "fish", ["back", "fish"]])
def test_a_run_of_a_segmentation_explains_the_largest_region_or_a_class(segmentation, target):
    run = _fit(segmentation, target=target, n=6)
    history = run.history
    assert run.vocab == ["back", "fish"]
    for _, row in history.iterrows():
        red = "red/" in run.panel[row["item"]]["name"]
        assert row["label"] == run.panel[row["item"]]["label"] == ("fish" if red else "back")
        if target == "true":
            assert row["target"] == ("fish" if red else "back")
        elif target == "pred":
            assert row["target"] == row["pred"]
        assert 0 < row["prob"] <= 1 and row["loss"] > 0
    assert len(history) == 12 * (2 if isinstance(target, list) else 1)


@pytest.mark.slow
def test_a_segment_may_be_of_a_label_with_masks_over_several_batches(segmentation, photos):
    masks = torch.zeros(6, 32, 32)
    for i in range(6):
        masks[i, i : i + 8] = 1
    files = [*photos, *photos] * 3
    made = segmentation.gradcam(files, target=segment("fish", masks.repeat(6, 1, 1)), layer="layers.3.0")
    assert made[0].label == "segment(fish, mask)" and len(made) == 36
    for i in (1, 34):
        alone = segmentation.gradcam(files[i], target=segment(1, masks[i % 6]), layer="layers.3.0")
        assert torch.allclose(made[i].map, alone.map, atol=1e-4) and alone.map.max() > 0
    assert not torch.allclose(made[1].map, made[2].map, atol=1e-3)


@pytest.mark.slow
def test_a_unet_learner_works_out_of_the_box(image_folder, tmp_path, photo):
    from torchvision.models import resnet18

    dls = _dls(image_folder, MaskBlock(codes=["back", "fish"]), _mask, bs=2)
    learn = unet_learner(dls, resnet18, pretrained=False, path=tmp_path, n_out=2)
    cam = learn.gradcam(photo, target="fish")
    assert cam.label == "fish" and cam.map.shape == (32, 32) and cam.map.isfinite().all()


def test_a_panel_of_masks_is_chosen_without_opening_them(segmentation, monkeypatch):
    from fastai_gradcam._fastai.panel import build_panel

    opened = []
    masks = type(segmentation.dls.valid_ds.tls[-1])
    original = masks.__getitem__

    def counted(self, i):
        found = original(self, i)
        if isinstance(found, PILMask):
            opened.append(i)
        return found

    monkeypatch.setattr(masks, "__getitem__", counted)
    build_panel(segmentation, n=2)
    assert len(opened) == 1 + 2, "one to see what they are, and the panel's own"


# Which task it is, from data and loss


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (nn.CrossEntropyLoss(), "category"),
        (nn.BCEWithLogitsLoss(), "labels"),
        (nn.functional.binary_cross_entropy_with_logits, "labels"),
        (nn.MSELoss(), "regression"),
        (nn.functional.l1_loss, "regression"),
        (L1LossFlat(), "regression"),
    ],
)
def test_plain_data_leaves_the_task_to_the_loss(loss, kind):
    data = [(torch.rand(3, 16, 16), torch.rand(2)) for _ in range(4)]
    assert task_of(DataLoaders.from_dsets(data, data, bs=2), loss).kind == kind


def test_a_vision_learner_of_labels_needs_no_settings(image_folder, tmp_path, photo):
    from torchvision.models import resnet18

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dls = _dls(image_folder, MultiCategoryBlock(), _labels_of)
    learn = vision_learner(dls, resnet18, pretrained=False, path=tmp_path)
    found = learn.gradcam(photo)
    assert {c.label for c in (found if isinstance(found, CAMList) else [found])} <= {"go", "stop", "warm"}


# Volumes


def _volumes(tmp_path):
    from fastai.vision.all import CrossEntropyLossFlat

    data = [(torch.rand(1, 8, 16, 24), i % 2) for i in range(4)]
    body = nn.Sequential(nn.Conv3d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv3d(6, 6, 3, 1, 1))
    net = nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 2)))
    dls = DataLoaders.from_dsets(data, data, bs=2)
    return data, Learner(dls, net, loss_func=CrossEntropyLossFlat(), path=tmp_path)


def test_a_volume_is_drawn_as_slices(tmp_path):
    data, learn = _volumes(tmp_path)
    cam = learn.gradcam(data[0][0], target=1)
    assert cam.map.shape == (4, 8, 12) and cam.image.size == (48, 32)
    assert cam.overlay().size == (48, 32) and cam._repr_jpeg_().startswith(b"\xff\xd8")
    bright = torch.zeros(4, 8, 12)
    bright[3] = 1
    cam.map = bright
    colours = np.asarray(cam.overlay(1.0)).astype(int)
    cold, hot = colours[0, 0], colours[-1, -1]
    assert (colours[20:, 28:] == hot).all() and (colours[:12] == cold).all() and (colours[:, :20] == cold).all()
    assert abs(hot - cold).sum() > 100, "the deepest slice alone, in the last quarter"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["true", [0, 1]])
def test_a_run_of_volumes_holds_their_slices(tmp_path, target):
    _, learn = _volumes(tmp_path)
    run = _fit(learn, n=4, target=target)
    maps = run.maps(1)["0.2"]
    assert maps.shape == ((4, 16, 24) if target == "true" else (4, 2, 16, 24)) and run.image(0).size == (48, 32)
    assert run.evolution().size and len(run.history) == (8 if target == "true" else 16)
