"""The panel: which images, that each is decoded once, that pictures and masks are what the model sees."""

import random
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    ColSplitter,
    DataBlock,
    ImageBlock,
    Normalize,
    RandomResizedCrop,
    Resize,
    ResizeMethod,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    load_image,
    vision_learner,
)
from PIL import Image
from training import Quiet, one_thread, tiny, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback
from fastai_gradcam._fastai.panel import build_panel

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"ant": 7, "bee": 5, "cat": 2, "dog": 9}
OBJECT = (250, 0, 0)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    "Four classes of 7, 5, 2 and 9 validation images; each shows a red square on blue noise, 80 × 60 pixels."
    path = tmp_path_factory.mktemp("uneven")
    rng = np.random.default_rng(0)
    for label, count in SIZES.items():
        for split, many in (("train", 2), ("valid", count)):
            for name in ("", "masks"):
                (path / name / split / label).mkdir(parents=True)
            for i in range(many):
                pixels = np.zeros((60, 80, 3), np.uint8)
                pixels[..., 2] = rng.integers(0, 120, (60, 80))
                y, x = rng.integers(5, 30), rng.integers(15, 45)
                pixels[y : y + 20, x : x + 20] = OBJECT
                Image.fromarray(pixels).save(path / split / label / f"{i}.png")
                mask = Image.new("L", (80, 60))
                mask.paste(255, (x, y, x + 20, y + 20))
                mask.save(path / "masks" / split / label / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def learn(uneven, tmp_path_factory):
    "Shared: leave it as it is."
    return tiny_learner(uneven, tmp_path_factory.mktemp("learn"))


# Which images


@pytest.mark.parametrize("n", [1, 3, 4, 8, 10, 15, 22, 23])
def test_the_panel_is_spread_over_the_classes(learn, n):
    counts = Counter(build_panel(learn, n).labels)
    assert counts.total() == n
    most = max(counts.values())
    for label, there in SIZES.items():
        # at most one less than any other class, unless the class has no more
        assert counts[label] >= min(most - 1, there)


def test_no_image_is_there_twice_and_classes_stand_together(learn):
    panel = build_panel(learn, 14)
    assert len(set(panel.names)) == 14
    assert panel.labels == sorted(panel.labels)
    assert [Path(n).parts[:2] for n in panel.names] == [("valid", label) for label in panel.labels]


@pytest.mark.slow
def test_the_seed_decides_and_nothing_else(learn, uneven, tmp_path):
    names = build_panel(learn, 9, seed=1).names
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    assert build_panel(learn, 9, seed=1).names == names
    assert build_panel(tiny_learner(uneven, tmp_path, bs=2), 9, seed=1).names == names
    assert len({tuple(build_panel(learn, 9, seed=s).names) for s in range(5)}) > 3
    singles = {build_panel(learn, 1, seed=s).labels[0] for s in range(20)}
    assert len(singles) > 2


def test_a_panel_larger_than_the_set_takes_all_of_it_and_says_so(learn):
    with pytest.warns(UserWarning, match="takes all 23 images of the validation set, not n=40"):
        panel = build_panel(learn, 40)
    assert Counter(panel.labels) == SIZES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(build_panel(learn, 23)) == 23


def test_items_are_indices_in_the_callers_order(learn):
    files = learn.dls.valid_ds.items
    for items in ([5, 0, 22], (5, 0, 22), np.array([5, 0, 22]), torch.tensor([5, 0, 22]), range(5, 8)):
        panel = build_panel(learn, items=items)
        chosen = [int(i) for i in items]
        assert panel.names == [files[i].relative_to(learn.dls.path).as_posix() for i in chosen]
        assert panel.labels == [files[i].parent.name for i in chosen]
        assert [learn.dls.vocab[y] for y in panel.y[0]] == panel.labels


def test_items_are_files_of_anywhere_with_their_labels(learn, uneven, tmp_path):
    own = tmp_path / "bee" / "mine.png"
    own.parent.mkdir()
    Image.new("RGB", (50, 50), OBJECT).save(own)
    panel = build_panel(learn, items=[own, uneven / "train" / "dog" / "1.png"])
    assert panel.names == [own.as_posix(), "train/dog/1.png"] and panel.labels == ["bee", "dog"]
    assert panel.images[0].getpixel((16, 16)) == OBJECT
    assert build_panel(learn, items=own).names == [own.as_posix()]
    assert build_panel(learn, items=[str(own)]).labels == ["bee"]
    again = build_panel(learn, 5)
    assert build_panel(learn, items=again.names).names == again.names
    assert build_panel(learn, items=again.names).labels == again.labels


def test_items_are_rows_of_a_table(uneven):
    files = get_image_files(uneven, folders=["train", "valid"])
    files = [f for f in files if "masks" not in f.parts]
    table = pd.DataFrame(
        {
            "file": [f.relative_to(uneven).as_posix() for f in files],
            "kind": [f.parent.name for f in files],
            "is_valid": [f.parts[-3] == "valid" for f in files],
        }
    )
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_x=ColReader("file", pref=f"{uneven}/"),
        get_y=ColReader("kind"),
        splitter=ColSplitter(),
        item_tfms=Resize(32),
    )
    learn = vision_learner(block.dataloaders(table, bs=4, num_workers=0), tiny, cut=-3, pretrained=False)
    rows = table.iloc[[3, 17, 8]]
    for items in ([row for _, row in rows.iterrows()], rows):
        panel = build_panel(learn, items=items)
        assert panel.names == list(rows["file"]) and panel.labels == list(rows["kind"])
    spread = build_panel(learn, 8)
    assert Counter(spread.labels) == dict.fromkeys(SIZES, 2) and all(n.startswith("valid/") for n in spread.names)


def test_labels_are_read_without_opening_an_image(learn, monkeypatch):
    opened = count_opened(monkeypatch)
    build_panel(learn, 6)
    assert len(opened) == 6


# The contents of the panel


def count_opened(monkeypatch):
    "The files that are opened as images from now on."
    opened, open_ = [], Image.open

    def counting(file, *args, **kwargs):
        opened.append(str(file))
        return open_(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counting)
    return opened


@pytest.mark.slow
@pytest.mark.parametrize("judge", [None, "end"])
@pytest.mark.parametrize("with_masks", [False, True])
def test_each_image_of_the_panel_is_decoded_once_in_a_whole_training(uneven, tmp_path, monkeypatch, with_masks, judge):
    "A judging at the end reads its own set twice more, which the panel is part of."
    opened = count_opened(monkeypatch)
    counts = []
    for watched in (False, True):
        masks = (lambda file: (10, 10, 40, 40)) if with_masks else None
        cbs = [GradCAMCallback(n=6, masks=masks, path=tmp_path / "runs", show=False, judge=judge)] if watched else None
        learn = tiny_learner(uneven, tmp_path, cbs=cbs)
        opened.clear()
        with Quiet():
            learn.fit(3)
        counts.append(Counter(opened))
    more = Counter({file: k for file, k in (counts[1] - counts[0]).items() if file.startswith(str(uneven))})
    names = [str(uneven / p["name"]) for p in learn.grad_cam.run.panel]
    by_judging = 2 if judge else 0
    assert {name: more.pop(name) for name in names} == dict.fromkeys(names, 1 + by_judging)
    assert set(more.values()) == ({by_judging} if judge else set())


@pytest.mark.slow
@pytest.mark.parametrize(
    "item_tfms, batch_tfms",
    [
        (Resize(32), None),
        (Resize((24, 40)), [Normalize.from_stats(*imagenet_stats, cuda=False)]),
        (Resize(48), [*aug_transforms(size=32), Normalize.from_stats(*imagenet_stats, cuda=False)]),
        (RandomResizedCrop(40), None),
    ],
    ids=["resized", "normalised", "augmented in batches", "cropped at random in training"],
)
def test_the_panel_is_what_the_validation_loader_gives(uneven, tmp_path, item_tfms, batch_tfms):
    learn = tiny_learner(uneven, tmp_path, item_tfms=item_tfms, batch_tfms=batch_tfms)
    learn.dls.train.one_batch()  # leaves the transforms in the training split
    panel = build_panel(learn, items=range(23))
    x, y = learn.dls.valid.new(bs=23).one_batch()
    assert torch.equal(panel.x, torch.Tensor(x)) and type(panel.x) is torch.Tensor
    assert torch.equal(panel.y[0], y.as_subclass(torch.Tensor))
    decoded = learn.dls.valid.decode((x, y))[0].as_subclass(torch.Tensor).float()
    decoded = decoded * 255 if decoded.max() <= 1 else decoded
    for image, seen in zip(panel.images, decoded, strict=True):
        assert image.mode == "RGB" and image.size == tuple(seen.shape[:0:-1])
        assert np.abs(np.array(image) - seen.permute(1, 2, 0).numpy()).max() <= 1


# Masks


def red(image):
    "Where the object is, by its colour."
    pixels = np.array(image).astype(int)
    return (pixels[..., 0] > 125) & (pixels[..., 2] < 110)


def masks_of(kind, uneven):
    inside = {f: uneven / "masks" / f.relative_to(uneven) for f in get_image_files(uneven) if "masks" not in f.parts}
    by_name = {f.relative_to(uneven).as_posix(): mask for f, mask in inside.items()}
    return {
        "a callable to files": lambda f: inside[f],
        "a callable to images": lambda f: Image.open(inside[f]),
        "a callable to arrays": lambda f: np.array(Image.open(inside[f])) > 0,
        "a folder": uneven / "masks",
        "a folder by its name": str(uneven / "masks"),
        "a mapping from files": inside,
        "a mapping from text": {str(f): str(mask) for f, mask in inside.items()},
        "a mapping from names": by_name,
        "boxes": {k: Image.open(v).getbbox() for k, v in by_name.items()},
        "lists of boxes": {k: [Image.open(v).getbbox(), (0, 0, 1, 1)] for k, v in by_name.items()},
        "colours": lambda f: Image.merge("RGB", [Image.new("L", (80, 60)), *[Image.open(inside[f])] * 2]),
        "faint blue": lambda f: Image.merge(
            "RGB", [Image.new("L", (80, 60))] * 2 + [Image.open(inside[f]).point(lambda v: v // 255)]
        ),
        "a bit per pixel": lambda f: Image.open(inside[f]).convert("1"),
    }[kind]


MASKS = """a callable to files|a callable to images|a callable to arrays|a folder|a folder by its name
a mapping from files|a mapping from text|a mapping from names|boxes|lists of boxes|colours|faint blue
a bit per pixel""".replace("\n", "|").split("|")


@pytest.mark.parametrize("kind", MASKS)
def test_masks_come_in_many_ways_and_lie_on_the_object(uneven, tmp_path, kind):
    learn = tiny_learner(uneven, tmp_path, item_tfms=Resize(60))  # cropped, not scaled: every pixel is certain
    panel = build_panel(learn, 4, masks=masks_of(kind, uneven))
    for image, mask in zip(panel.images, panel.masks, strict=True):
        assert mask.dtype == bool and mask.shape == image.size[::-1]
        assert np.array_equal(mask, red(image)) and mask.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "item_tfms, batch_tfms",
    [
        (Resize(40), None),
        (Resize((48, 30)), None),
        (Resize(40, method=ResizeMethod.Squish), None),
        (Resize(40, method=ResizeMethod.Pad, pad_mode="zeros"), None),
        (Resize(60), [*aug_transforms(size=40, max_rotate=45, max_zoom=1.5)]),
        (RandomResizedCrop(40, min_scale=0.5), [Normalize.from_stats(*imagenet_stats, cuda=False)]),
    ],
    ids=["crop", "crop to a portrait", "squish", "pad", "augmented in batches", "cropped at random in training"],
)
def test_masks_follow_the_image_through_every_transform(uneven, tmp_path, item_tfms, batch_tfms):
    learn = tiny_learner(uneven, tmp_path, item_tfms=item_tfms, batch_tfms=batch_tfms)
    panel = build_panel(learn, 23, masks=uneven / "masks")
    for image, mask in zip(panel.images, panel.masks, strict=True):
        seen = red(image)
        assert mask.shape == seen.shape == image.size[::-1]
        # the object's edge is a pixel wide
        assert (mask & seen).sum() / (mask | seen).sum() > 0.75
        assert mask.sum() == pytest.approx(seen.sum(), rel=0.3)


def test_an_image_without_a_mask_has_none(uneven, learn):
    panel = build_panel(learn, 4, masks=lambda f: None if f.parent.name == "bee" else (20, 20, 40, 40))
    assert [m is None for m in panel.masks] == [label == "bee" for label in panel.labels]
    some = dict.fromkeys(panel.names[:1], (20, 20, 40, 40))
    assert [m is not None for m in build_panel(learn, 4, masks=some).masks] == [True, False, False, False]


def test_masks_of_another_suffix_are_found_and_a_jpeg_is_read_by_half(uneven, learn, tmp_path):
    for split in ("valid",):
        for file in (uneven / "masks" / split).rglob("*.png"):
            to = tmp_path / "masks" / file.relative_to(uneven / "masks").with_suffix(".jpg")
            to.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).save(to, quality=60)
    panel = build_panel(learn, 4, masks=tmp_path / "masks")
    exact = build_panel(learn, 4, masks=uneven / "masks")
    for mask, wanted in zip(panel.masks, exact.masks, strict=True):
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9


def test_masks_of_items_from_elsewhere_are_asked_for_with_these_items(learn, uneven):
    asked = []
    items = [uneven / "train" / "ant" / "0.png", uneven / "train" / "cat" / "1.png"]

    def masks(item):
        asked.append(item)
        return uneven / "masks" / Path(item).relative_to(uneven)

    panel = build_panel(learn, items=items, masks=masks)
    assert asked == items and all(m.any() for m in panel.masks)


def test_what_the_model_sees_of_an_image_is_its_own_file_when_nothing_is_transformed(uneven, tmp_path):
    learn = tiny_learner(uneven, tmp_path, item_tfms=[])
    panel = build_panel(learn, 2)
    for image, name in zip(panel.images, panel.names, strict=True):
        assert image.tobytes() == load_image(uneven / name).tobytes()
