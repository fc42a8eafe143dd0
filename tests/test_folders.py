"""Folders of images: which layouts are known, what is a class and what is a mask, and how training starts on them."""

import re

import numpy as np
import pytest
import torch
from fastai.vision.all import noop, resnet18
from PIL import Image
from torch import nn

from fastai_gradcam import GradCAMError
from fastai_gradcam._cli.folders import read_folder
from fastai_gradcam._cli.train import Training, train
from fastai_gradcam.demo import fish_items, fish_mask, make_fish, scratch_learner, species


def draw(path, *names, count=5):
    "A few noise images in each of the folders `names` below `path`."
    for k, name in enumerate(names):
        folder = path / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = np.random.default_rng([k, i]).integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    return make_fish(tmp_path_factory.mktemp("fish"), per_species=5, size=48)


@pytest.mark.slow
def test_the_fish_layout_has_nine_classes_and_masks_that_are_no_class(fish):
    folder = read_folder(fish)
    dls = folder.dataloaders(32, bs=4)
    assert sorted(folder.items) == fish_items(fish)
    assert list(dls.vocab) == sorted(species)
    assert folder.masks is fish_mask
    assert folder.masks(folder.items[0]).parent.name.endswith(" GT")


@pytest.mark.slow
def test_a_fifth_of_each_class_is_for_validation_and_the_seed_chooses_it(fish):
    valid = read_folder(fish, seed=1).dataloaders(32, bs=4).valid_ds.items
    assert sorted(f.parent.name for f in valid) == sorted(species)
    assert valid == read_folder(fish, seed=1).dataloaders(32, bs=4).valid_ds.items
    assert valid != read_folder(fish, seed=2).dataloaders(32, bs=4).valid_ds.items


@pytest.mark.parametrize(("one", "other"), [("train", "valid"), ("train", "val"), ("Training", "Test")])
def test_train_and_validation_folders_are_the_split(tmp_path, one, other):
    draw(tmp_path, f"{one}/cat", f"{one}/dog", f"{other}/cat", f"{other}/dog")
    dls = read_folder(tmp_path).dataloaders(32, bs=2)
    assert {f.parent.parent.name for f in dls.train_ds.items} == {one}
    assert {f.parent.parent.name for f in dls.valid_ds.items} == {other}
    assert list(dls.vocab) == ["cat", "dog"]


def test_a_class_whose_name_ends_in_GT_is_a_class_where_nothing_says_otherwise(tmp_path):
    draw(tmp_path, "Golf GT", "Polo")
    folder = read_folder(tmp_path)
    assert list(folder.dataloaders(32, bs=2).vocab) == ["Golf GT", "Polo"]
    assert folder.masks is None


def test_without_augmentation_images_are_squeezed_whole(tmp_path):
    path = draw(tmp_path, "a", "b")
    whole = Image.new("RGB", (64, 32), "black")
    whole.paste("white", (0, 0, 4, 32))
    for f in path.rglob("*.png"):
        whole.save(f)
    squeezed = read_folder(path).dataloaders(32, bs=2, augment=False).valid.one_batch()[0]
    cropped = read_folder(path).dataloaders(32, bs=2).valid.one_batch()[0]
    assert squeezed[0, :, :, 0].min() > 0.9
    assert cropped.max() < 0.1


@pytest.mark.parametrize(("names", "words"), [((), "There are no images"), (("only",), "are of one class, 'only'")])
def test_a_folder_that_cannot_be_learned_from_is_named(tmp_path, names, words):
    draw(tmp_path, *names)
    with pytest.raises(ValueError, match=words) as caught:
        read_folder(tmp_path)
    assert repr(str(tmp_path)) in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(repr(str(tmp_path / "none")))):
        read_folder(tmp_path / "none")


def test_a_network_from_scratch_begins_with_blocks_that_change_nothing(fish):
    learn = scratch_learner(read_folder(fish).dataloaders(32, bs=4), resnet18)
    block = learn.model[0][4][1].eval()
    x = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(x), x)
    assert all(p.requires_grad for p in learn.model.parameters())
    scratch_learner(learn.dls, resnet18)
    assert [type(t).__name__ for t in learn.dls.after_batch.fs].count("Normalize") == 1


def test_an_unknown_network_is_answered_with_the_nearest(fish, tmp_path):
    with pytest.raises(ValueError, match=r"no network 'resnet33'\. Did you mean 'resnet"):
        train(read_folder(fish), Training(tmp_path, arch="resnet33"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"lr": float("inf")}, "lr must be positive, got inf"),
        ({"size": 1}, "size must be at least 32 pixels, got 1"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
    ],
)
def test_numbers_that_make_no_training_are_refused(tmp_path, given, words):
    with pytest.raises(GradCAMError, match=words):
        Training(tmp_path, **given)


class NoPool(nn.Module):
    "As mobilenet_v2: nothing to cut before, `vision_learner` finds no pooling layer."

    def __init__(self, pretrained=False):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3)
        self.classifier = nn.Linear(8, 10)


class Beside(nn.Module):
    "As googlenet: its parts do not run one after the other, because one of them stands beside the others."

    def __init__(self, pretrained=False):
        super().__init__()
        self.first, self.beside = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [NoPool, Beside])
def test_a_network_that_cannot_be_cut_is_named(tmp_path, monkeypatch, arch):
    monkeypatch.setattr("fastai_gradcam._cli.train._network", lambda name: arch)
    folder = read_folder(draw(tmp_path / "images", "cat", "dog"))
    words = f"vision_learner cannot cut {arch.__name__} into .* choose another network"
    with pytest.raises(GradCAMError, match=words):
        train(folder, Training(tmp_path / "runs", size=32, bs=2), say=noop)


@pytest.mark.slow
def test_fewer_images_than_a_batch_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    folder, said = read_folder(draw(tmp_path / "images", "cat", "dog")), []
    learn = train(folder, Training(tmp_path / "runs", arch="squeezenet1_1", epochs=2, size=32, bs=64), said.append)
    assert len(learn.recorder.losses) == 2
    assert "batches of 8, not 64: there are no more images to train on" in said


def test_images_without_any_to_validate_on_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There are no images to validate on"):
        train(read_folder(draw(tmp_path, "cat", "dog", count=1)), Training(tmp_path / "runs"))


def test_pictures_of_runs_below_the_images_are_no_images(tmp_path):
    draw(tmp_path, "cat", "dog", "gradcam/first/panel", "gradcam/first/frames")
    (tmp_path / "gradcam" / "first" / "run.json").write_text("{}")
    assert {f.parent.name for f in read_folder(tmp_path).items} == {"cat", "dog"}


def test_a_class_of_one_image_is_trained_on(tmp_path):
    draw(tmp_path, "cat", "dog")
    draw(tmp_path, "lonely", count=1)
    dls = read_folder(tmp_path).dataloaders(32, bs=2)
    assert list(dls.vocab) == ["cat", "dog", "lonely"]
    assert {f.parent.name for f in dls.valid_ds.items} == {"cat", "dog"}


def test_an_image_that_breaks_off_is_named_when_training_reaches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    path = draw(tmp_path / "images", "cat", "dog", count=6)
    folder = read_folder(path)
    broken = folder.dataloaders(32, bs=2).train_ds.items[0]
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(ValueError, match=re.escape(repr(str(broken)))):
        train(folder, Training(tmp_path / "runs", arch="squeezenet1_1", epochs=1, size=32, bs=2), say=noop)
