"""Masks that hold nothing, and boxes: what is an object, what is none, and what is a mistake."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fastcore.foundation import L
from PIL import Image
from training import Quiet, one_thread, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback, Run
from fastai_gradcam._fastai.masks import _boxes, finder
from fastai_gradcam._fastai.panel import build_panel

pytestmark = pytest.mark.usefixtures("one_thread")


def panel_of(image_folder, tmp_path, masks, n=6):
    return build_panel(tiny_learner(image_folder, tmp_path), n, masks=masks)


def drawn(boxes, size=(20, 10)):
    return np.asarray(_boxes(np.asarray(boxes, dtype=float).reshape(-1, 4), size))


@pytest.mark.slow
@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 4)), np.array([])], ids=repr)
def test_no_boxes_mean_no_object_and_no_warning(nothing, image_folder, tmp_path, recwarn):
    panel = panel_of(image_folder, tmp_path, lambda f: nothing if f.parent.name == "red" else (0, 0, 32, 64))
    for mask, label in zip(panel.masks, panel.labels, strict=True):
        assert mask.shape == (32, 32) and mask.dtype == bool and mask.any() == (label != "red")
    assert not [w for w in recwarn if "mask" in str(w.message)]


@pytest.mark.slow
def test_an_image_without_an_object_has_no_share_and_no_hit_and_the_run_shows_it(image_folder, tmp_path):
    black = Image.new("L", (64, 64))
    given = {"red": [], "green": black, "blue": (0, 0, 32, 64)}
    cb = GradCAMCallback(n=6, masks=lambda f: given[f.parent.name], path=tmp_path / "runs", name="run", show=False)
    with warnings.catch_warnings(record=True) as said, Quiet():
        warnings.simplefilter("always")
        tiny_learner(image_folder, tmp_path, cbs=cb).fit(1)
    said = [str(w.message) for w in said if "mask" in str(w.message)]
    assert len(said) == 1 and "for 2 of the panel's images: 'valid/green/" in said[0] and "red" not in said[0]
    run = Run(tmp_path / "runs" / "run")
    history = run.history
    assert (history["mask_share"].notna() == ((history["label"] == "blue") & (history["evidence"] > 0))).all()
    assert history.loc[history["label"] != "blue", "pointing_hit"].isna().all()
    assert [run.mask(i).any() for i in range(6)] == [p["label"] == "blue" for p in run.panel]
    run.findings(), run.evolution(), run.report()


def test_an_object_that_the_crop_cuts_off_is_told(image_folder, tmp_path):
    from fastai.vision.all import CropPad

    learn = tiny_learner(image_folder, tmp_path, item_tfms=CropPad(32))
    with pytest.warns(UserWarning, match=r"mask is empty.*for 3 of the panel's images: .*transforms cut it off"):
        build_panel(learn, 6, masks=lambda f: (0, 0, 10, 10) if f.stem == "0" else (20, 20, 40, 40))


@pytest.mark.parametrize(
    "boxes, pixels",
    [((0.1, 0.25, 0.5, 0.75), "(6, 16, 32, 48)"), ([(0, 0, 1, 1)], "(0, 0, 64, 64)"), ([(0, 0, 0.5, 1)] * 3, "64)")],
)
def test_boxes_in_shares_are_refused_with_the_pixels_they_would_be(boxes, pixels, image_folder, tmp_path):
    with pytest.raises(ValueError, match=r"mask of image 'valid/.*in shares of the image.*in pixels") as error:
        panel_of(image_folder, tmp_path, lambda f: boxes)
    assert pixels in str(error.value) and "64×64" in str(error.value)


def test_a_box_covers_each_pixel_that_it_touches():
    assert drawn((2, 3, 5, 7)).sum() == 3 * 4 and drawn((2, 3, 5, 7))[3:7, 2:5].all()
    assert drawn((2.2, 3.1, 2.8, 3.9)).sum() == 1 and drawn((2.2, 3.1, 2.8, 3.9))[3, 2]
    assert drawn((1.5, 0, 3.5, 2)).sum() == 3 * 2
    assert drawn([(0, 0, 1, 1), (10, 5, 20, 10)]).sum() == 1 + 50  # beside a real box, a pixel is a pixel


def photos_and_masks(image_folder, tmp_path, tree=False):
    "A learner whose images lie outside of its path, and a folder of masks: the upper left quarter of each image."
    learn = tiny_learner(image_folder, tmp_path)
    learn.dls.path = tmp_path / "elsewhere"
    folder = tmp_path / "masks"
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 32))
    for file in (image_folder / "valid").rglob("*.png"):
        to = folder / (file.relative_to(image_folder) if tree else file.name)
        to.parent.mkdir(parents=True, exist_ok=True)
        mask.save(to)
    return learn, folder


def test_a_photo_from_outside_of_the_learners_path_is_not_its_own_mask(image_folder, tmp_path):
    learn, folder = photos_and_masks(image_folder, tmp_path)
    items = sorted((image_folder / "valid" / "red").glob("*.png"))[:2]
    panel = build_panel(learn, items=items, masks=folder)
    assert all(Path(name).is_absolute() for name in panel.names)
    assert [mask.mean() for mask in panel.masks] == [0.25, 0.25]


def test_a_name_that_leads_out_of_the_folder_is_only_a_file_name(tmp_path):
    photo, mask = tmp_path / "photos" / "a.png", tmp_path / "masks" / "a.png"
    for file in (photo, mask):
        file.parent.mkdir()
        Image.new("L", (4, 4), 255).save(file)
    find = finder(tmp_path / "masks")
    for name in ("../photos/a.png", "x/../../photos/a.png", str(photo)):
        assert find(None, name) == mask


@pytest.mark.parametrize("masks", ["folder", "callable", "mapping"])
def test_an_image_is_refused_as_its_own_mask(masks, image_folder, tmp_path):
    given = {"folder": image_folder, "callable": lambda file: file, "mapping": {"0.png": None}}[masks]
    if masks == "mapping":
        given = {str(f): str(f) for f in image_folder.rglob("*.png")}
    with pytest.raises(ValueError, match=r"mask of image 'valid/.*\.png' is the image itself"):
        panel_of(image_folder, tmp_path, given)


def test_masks_may_lie_beside_the_photos_under_another_suffix(tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.new("L", (4, 4), 255).save(tmp_path / name)
    assert finder(tmp_path)(tmp_path / "a.jpg", "a.jpg") == tmp_path / "a.png"


def test_images_that_share_a_mask_by_their_file_name_are_told(image_folder, tmp_path, recwarn):
    _, flat = photos_and_masks(image_folder, tmp_path)
    with pytest.warns(UserWarning, match=r"^6 of the panel's images share a mask .*/0\.png' and .*/0\.png' both take"):
        panel_of(image_folder, tmp_path, flat)
    recwarn.clear()
    _, tree = photos_and_masks(image_folder, tmp_path / "tree", tree=True)
    panel_of(image_folder, tmp_path, tree)
    assert not [w for w in recwarn if "mask" in str(w.message)]


BOXES = [(0, 0, 32, 64), (0, 0, 64, 16), [(0, 0, 16, 16), (48, 48, 64, 64)], None]
SHARES = [0.5, 0.25, 0.125, None]


@pytest.mark.parametrize("by", ["indices", "paths"])
@pytest.mark.parametrize("kind", [list, tuple, L, iter], ids=["list", "tuple", "L", "iterator"])
def test_masks_may_be_a_list_with_one_for_each_item(kind, by, image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path)
    items = [3, 0, 2, 1] if by == "indices" else [learn.dls.valid_ds.items[i] for i in (3, 0, 2, 1)]
    if kind is iter:
        with pytest.raises(TypeError, match=r"a list with one for each of items=, got <list_iterator"):
            build_panel(learn, items=items, masks=kind(BOXES))
        return
    panel = build_panel(learn, items=items, masks=kind(BOXES))
    assert [None if m is None else m.mean() for m in panel.masks] == SHARES


def test_masks_may_be_an_array_with_a_box_or_a_mask_for_each_item(image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path)
    boxes = np.array([(0, 0, 32, 64), (0, 0, 64, 16)])
    drawn = np.stack([np.asarray(_boxes(box[None], (64, 64))) for box in boxes])
    for masks in (boxes, torch.tensor(boxes), drawn):
        assert [m.mean() for m in build_panel(learn, items=[1, 4], masks=masks).masks] == SHARES[:2]


@pytest.mark.parametrize(
    ("items", "words"),
    [(None, r"masks is a list of 4, .* give items=, one for each mask"), ([0, 1], r"masks has 4 entries for 2 items=")],
)
def test_a_list_of_masks_that_fits_no_items_is_refused(items, words, image_folder, tmp_path):
    with pytest.raises(ValueError, match=words):
        build_panel(tiny_learner(image_folder, tmp_path), 4, items=items, masks=BOXES)


@pytest.mark.slow
def test_a_run_is_watched_with_a_list_of_boxes(image_folder, tmp_path):
    cb = GradCAMCallback(items=[0, 3], masks=BOXES[:2], path=tmp_path / "runs", name="run", show=False)
    with Quiet():
        tiny_learner(image_folder, tmp_path, cbs=cb).fit(1)
    run = Run(tmp_path / "runs" / "run")
    assert [run.mask(i).mean() for i in (0, 1)] == SHARES[:2]
