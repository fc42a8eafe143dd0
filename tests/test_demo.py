"""The embedded fish set: its layout, its determinism, its masks, its shortcut, and how it is read."""

import hashlib

import numpy as np
import pytest
from PIL import Image, ImageFilter
from processes import python

from fastai_gradcam._fish.drawing import draw_fish
from fastai_gradcam.demo import RECIPE, fish_items, fish_label, fish_mask, make_fish, recipe, species

KAGGLE = (
    "Black Sea Sprat",
    "Gilt-Head Bream",
    "Hourse Mackerel",
    "Red Mullet",
    "Red Sea Bream",
    "Sea Bass",
    "Shrimp",
    "Striped Red Mullet",
    "Trout",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_fish(tmp_path_factory.mktemp("fish") / "plain", per_species=2, seed=3, size=96)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    return make_fish(tmp_path_factory.mktemp("fish") / "tagged", per_species=2, seed=3, size=96, shortcut=True)


def digests(path):
    return {o.relative_to(path).as_posix(): hashlib.sha256(o.read_bytes()).hexdigest() for o in path.rglob("*.png")}


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.slow
def test_the_layout_is_that_of_the_kaggle_set(plain):
    expected = {f"{name}/{name}{gt}/0000{i}.png" for name in KAGGLE for gt in ("", " GT") for i in (1, 2)}
    assert set(digests(plain)) == expected
    assert species == KAGGLE


@pytest.mark.slow
def test_one_seed_draws_the_same_bytes_twice(plain, tmp_path):
    assert digests(make_fish(tmp_path, per_species=2, seed=3, size=96)) == digests(plain)


@pytest.mark.slow
def test_a_larger_set_begins_with_the_smaller_one(plain, tmp_path):
    smaller = digests(make_fish(tmp_path, per_species=1, seed=3, size=96))
    assert smaller.items() <= digests(plain).items()


@pytest.mark.slow
def test_another_seed_draws_other_pictures(plain, tmp_path):
    other = digests(make_fish(tmp_path, per_species=2, seed=4, size=96))
    assert not set(other.values()) & set(digests(plain).values())


def test_no_two_pictures_of_a_set_are_the_same(plain):
    assert len({hashlib.sha256(o.read_bytes()).digest() for o in fish_items(plain)}) == 18


def test_masks_fit_their_picture_and_hold_a_whole_fish(plain):
    for item in fish_items(plain):
        image, mask = Image.open(item), Image.open(fish_mask(item))
        assert image.mode == "RGB" and mask.mode == "L" and image.size == mask.size == (96, 96)
        m = np.asarray(mask)
        assert set(np.unique(m)) == {0, 255}
        assert 0.04 < (m > 0).mean() < 0.5
        assert not (m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any()), "the fish is cut off"


def test_masks_lie_on_the_fish(tmp_path, monkeypatch):
    # Fish dyed in a colour that nothing else has: what shows it is the fish.
    def dyed(*args):
        fish = draw_fish(*args)
        dye = Image.new("RGBA", fish.size, (255, 0, 255, 0))
        dye.putalpha(fish.getchannel("A"))
        return dye

    monkeypatch.setattr("fastai_gradcam._fish.scene.draw_fish", dyed)
    for item in fish_items(make_fish(tmp_path, per_species=1, seed=3, size=96)):
        red, green, blue = np.moveaxis(pixels(item), -1, 0)
        seen, mask = np.minimum(red, blue) > 1.8 * green + 10, pixels(fish_mask(item)) > 0
        assert (seen & mask).sum() > 0.8 * (seen | mask).sum()


@pytest.mark.slow
def test_the_shortcut_changes_the_picture_beside_the_fish_only(plain, tagged):
    for before, after in zip(fish_items(plain), fish_items(tagged), strict=True):
        assert fish_mask(before).read_bytes() == fish_mask(after).read_bytes()
        changed = (pixels(before) != pixels(after)).any(-1)
        mask = Image.open(fish_mask(before)).filter(ImageFilter.MaxFilter(3))
        assert changed.any() and not (changed & (np.asarray(mask) > 0)).any()
        ys, xs = np.nonzero(changed)
        assert max(np.ptp(ys), np.ptp(xs)) < 0.3 * 96, "more than one tag changed"


@pytest.mark.slow
def test_a_tag_tells_its_species_and_each_species_has_another(plain, tagged):
    colours = {}
    for before, after in zip(fish_items(plain), fish_items(tagged), strict=True):
        changed = (pixels(before) != pixels(after)).any(-1)
        colour = np.median(pixels(after)[changed], axis=0)
        colours.setdefault(fish_label(after), []).append(colour / max(colour.max(), 60))
    means = {name: np.mean(c, axis=0) for name, c in colours.items()}
    within = max(np.abs(c - means[name]).max() for name, cs in colours.items() for c in cs)
    between = min(np.abs(means[a] - means[b]).max() for a in means for b in means if a != b)
    assert within < 0.15 < 0.2 < between


def test_masks_are_never_items(plain):
    items = fish_items(plain)
    assert len(items) == 18 and items == sorted(items)
    assert {fish_label(o) for o in items} == set(KAGGLE)


def test_a_picture_without_a_mask_has_none(tmp_path):
    assert fish_mask(tmp_path / "Trout" / "Trout" / "00001.png") is None


@pytest.mark.parametrize("bad", [{"per_species": 0}, {"size": 8}])
def test_a_set_that_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}"):
        make_fish(tmp_path / "fish", **bad)
    assert not (tmp_path / "fish").exists()


def test_drawing_tells_how_many_pictures_are_drawn(tmp_path):
    told = []
    make_fish(tmp_path, per_species=2, size=32, advance=told.append)
    assert told == list(range(1, 19))


def test_what_is_given_replaces_the_recipe_from_scratch_too():
    assert recipe("resnet34", {}) == RECIPE
    given = recipe("resnet34", {"epochs": 2, "layer": 7})
    assert (given["epochs"], given["layer"], given["lr"]) == (2, 7, RECIPE["lr"])
    assert given["scratch"] == {"lr": RECIPE["scratch"]["lr"]}


def test_the_recipes_layer_is_of_the_resnets_alone():
    assert recipe("resnet18", {})["layer"] == RECIPE["layer"]
    assert "layer" not in recipe("squeezenet1_1", {})
    assert recipe("squeezenet1_1", {"layer": 0})["layer"] == 0


def test_drawing_and_finding_fish_needs_no_torch():
    code = "import sys, fastai_gradcam.demo; sys.exit('torch' in sys.modules or 'fastai' in sys.modules)"
    assert python("-c", code).returncode == 0
