"""Bad input: an error that quotes it and says what would do, before any training, and leaves nothing behind."""

import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, ImageDataLoaders, Learner, Resize, vision_learner
from PIL import Image
from torch import nn
from training import one_thread, tiny, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback, gradcam

pytestmark = pytest.mark.usefixtures("one_thread")


class Batches(Callback):
    "Counts what training does."

    def __init__(self):
        self.count = 0

    def before_batch(self):
        self.count += 1


@pytest.fixture
def own_folder(image_folder, tmp_path):
    "A copy of the images that a test may damage."
    shutil.copytree(image_folder, tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture(scope="module")
def learn(image_folder, tmp_path_factory):
    "Shared: leave it as it is."
    return tiny_learner(image_folder, tmp_path_factory.mktemp("learn"))


@pytest.fixture(scope="module")
def photo(image_folder):
    return image_folder / "valid" / "red" / "0.png"


def refused(learn, error, words, trains_after=False, **settings):
    "`fit` raises before its first batch, with all `words` in the message, and leaves no run."
    batches = Batches()
    learn.add_cbs([batches, GradCAMCallback(**settings)])
    weights = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(error) as caught, learn.no_bar():
        learn.fit(1)
    for word in words:
        assert word in str(caught.value)
    assert batches.count == 0 and all(map(torch.equal, weights, learn.model.parameters()))
    folder = learn.path / "gradcam"
    assert not folder.exists() or not list(folder.iterdir())
    if trains_after:
        learn.remove_cb(GradCAMCallback)
        learn.fit(1)
        assert batches.count
    return str(caught.value)


# The callback

ROWS = {
    "a label that is nearly one": ({"target": "Redd"}, ["'Redd'", "Did you mean 'red'?", "blue, green, red"]),
    "a label that is none": ({"target": "tench"}, ["'tench'", "blue, green, red"]),
    "a wrong label among several": ({"target": ["red", "gren"]}, ["'gren'", "Did you mean 'green'?"]),
    "a class too high": ({"target": 3}, ["target 3", "0 to 2"]),
    "a negative class": ({"target": -1}, ["target -1", "0 to 2"]),
    "no class": ({"target": []}, ["target=[]"]),
    "a score for the batch": ({"target": lambda output: output.sum()}, ["one score per image", "()"]),
    "a score without the layer": ({"target": lambda o: torch.ones(len(o)), "layer": 2}, ["'0.2'", "score"]),
    "a layer number too high": ({"layer": 3}, ["layer 3", "0 to 2"]),
    "a layer name": ({"layer": "0.2.O"}, ["'0.2.O'", "Did you mean '0.2.", "0.0.0"]),
    "a wrong layer among several": ({"layer": [0, "0.7"]}, ["'0.7'", "0.0.0"]),
    "a module of another network": ({"layer": nn.Conv2d(3, 3, 1)}, ["Conv2d", "not a module of this Sequential"]),
    "a layer without space": ({"layer": "1.8"}, ["'1.8'", "no space", "(2, 3)"]),
    "a method of a wrong shape": ({"method": lambda A, G: A}, ["<lambda>", "maps of shape"]),
    "no items": ({"items": []}, ["items=[]"]),
    "an index too high": ({"items": [0, 6]}, ["index 6", "0 to 5"]),
    "a negative index": ({"items": [-1]}, ["index -1", "0 to 5"]),
    "a mask of the wrong size": ({"masks": lambda f: np.ones((32, 64))}, ["64×32", "64×64", ".png"]),
    "a mask of the wrong shape": ({"masks": lambda f: np.ones((2, 64, 64))}, ["(2, 64, 64)", ".png"]),
    "a box outside": ({"masks": lambda f: (0, 0, 65, 64)}, ["(0, 0, 65, 64)", "64×64", ".png"]),
    "a box the wrong way round": ({"masks": lambda f: (40, 0, 20, 64)}, ["(40, 0, 20, 64)", ".png"]),
    "a mask that is not there": ({"masks": lambda f: "gone.png"}, ["gone.png", "valid/"]),
    "masks that raise": ({"masks": lambda f: {}[f.name]}, ["KeyError", "valid/"]),
    "no mask at all": ({"masks": lambda f: None}, ["no mask for any image", "valid/"]),
    "a mapping to other images": ({"masks": {"other.png": (0, 0, 9, 9)}}, ["no mask for any image", "valid/"]),
    "a folder that is none": ({"masks": "/no/such/folder"}, ["'/no/such/folder'", "not a folder"]),
}  # fmt: skip


@pytest.mark.parametrize("what", ROWS)
def test_a_setting_that_does_not_fit_is_named_with_what_would(what, image_folder, tmp_path):
    settings, words = ROWS[what]
    trains_after = what in ("a label that is nearly one", "a layer without space", "masks that raise")
    refused(tiny_learner(image_folder, tmp_path), ValueError, words, trains_after, n=2, **settings)


def test_masks_of_another_kind_are_named(image_folder, tmp_path):
    refused(tiny_learner(image_folder, tmp_path), TypeError, ["masks must be", "17"], masks=17)


def damage(file, how):
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:2000])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_text("<html>404</html>")


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "no image"])
def test_an_image_of_the_panel_that_cannot_be_read_is_named(how, own_folder, tmp_path):
    learn = tiny_learner(own_folder, tmp_path)
    damage(own_folder / "valid" / "green" / "1.png", how)
    refused(learn, ValueError, ["valid/green/1.png"], n=6)


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "no image"])
def test_an_item_that_cannot_be_read_is_named(how, own_folder, tmp_path):
    learn = tiny_learner(own_folder, tmp_path)
    item = own_folder / "train" / "green" / "1.png"
    damage(item, how)
    refused(learn, ValueError, ["train/green/1.png"], items=[own_folder / "train" / "red" / "0.png", item])


@pytest.mark.parametrize("how", ["truncated", "empty", "no image"])
def test_a_mask_that_cannot_be_read_is_named_by_its_image(how, own_folder, tmp_path):
    learn = tiny_learner(own_folder, tmp_path)
    mask = tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(mask)
    damage(mask, how)
    refused(learn, ValueError, ["mask of image", "valid/"], n=2, masks=lambda file: mask)


def test_a_panel_of_images_of_different_sizes_is_refused_with_the_sizes(own_folder, tmp_path):
    Image.new("RGB", (50, 40)).save(own_folder / "valid" / "green" / "1.png")
    learn = tiny_learner(own_folder, tmp_path, item_tfms=[])
    refused(learn, ValueError, ["(3, 40, 50)", "(3, 64, 64)", "Resize"], n=6)


def test_an_empty_validation_set_is_refused(image_folder, tmp_path):
    dls = ImageDataLoaders.from_folder(image_folder, train="train", valid_pct=0, item_tfms=Resize(32), bs=4)
    learn = vision_learner(dls, tiny, cut=-3, pretrained=False, path=tmp_path)
    refused(learn, ValueError, ["validation set is empty", "items="])


def test_a_loader_that_is_not_fastais_is_refused_with_what_makes_one(tmp_path):
    data = [(torch.rand(3, 32, 32), i % 3) for i in range(6)]
    dls = DataLoaders(*(torch.utils.data.DataLoader(data, 3) for _ in range(2)))
    model = nn.Sequential(tiny()[:3], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), path=tmp_path)
    refused(learn, TypeError, ["torch.utils.data", "DataLoaders.from_dsets"])


def test_items_whose_labels_nobody_knows_are_refused_with_what_to_explain_instead(image_folder, tmp_path):
    names = [f"{split}/{label}/0.png" for split in ("train", "valid") for label in ("red", "green", "blue")]
    table = pd.DataFrame({"name": names, "label": [n.split("/")[1] for n in names], "valid": [False] * 3 + [True] * 3})
    dls = ImageDataLoaders.from_df(table, image_folder, valid_col="valid", item_tfms=Resize(32), bs=3, num_workers=0)
    learn = vision_learner(dls, tiny, cut=-3, pretrained=False, path=tmp_path)
    items = [image_folder / "valid" / "red" / "1.png"]  # the table tells labels by row
    with pytest.warns(UserWarning, match=r"labels of items= could not be read"):
        refused(learn, ValueError, ["target='true'", "target='pred'"], items=items)


def test_a_label_where_there_is_no_vocabulary_is_refused(tmp_path):
    data = [(torch.rand(3, 32, 32), i % 3) for i in range(6)]
    model = nn.Sequential(tiny()[:3], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)))
    learn = Learner(DataLoaders.from_dsets(data, data, bs=3), model, loss_func=CrossEntropyLossFlat(), path=tmp_path)
    refused(learn, ValueError, ["'red'", "no vocabulary"], target="red")


@pytest.mark.slow
def test_a_panel_larger_than_the_set_takes_all_of_it_says_so_and_trains(image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path, cbs=GradCAMCallback(n=100))
    with pytest.warns(UserWarning, match="takes all 6 images of the validation set, not n=100"):
        learn.fit(1)
    assert len(learn.grad_cam.run.panel) == 6 and learn.grad_cam.run.status == "finished"


@pytest.mark.slow
def test_good_settings_raise_and_warn_nothing(image_folder, tmp_path):
    learn = tiny_learner(image_folder, tmp_path, cbs=GradCAMCallback(n=6, target=["red", 0], layer=[0, "0.2"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for words in ("CUDA is not available", ".*GradScaler.*", ".*pin_memory.*"):
            warnings.filterwarnings("ignore", message=words)
        learn.fit(1)


# learn.gradcam


LOOKS = {
    "a label that is nearly one": ({"target": "gren"}, ["'gren'", "Did you mean 'green'?", "blue, green, red"]),
    "a label in other letters": ({"target": "RED"}, ["'RED'", "Did you mean 'red'?"]),
    "a wrong label among several": ({"target": ["red", "blew"]}, ["'blew'", "Did you mean 'blue'?"]),
    "a class too high": ({"target": 17}, ["target 17", "0 to 2"]),
    "a negative class": ({"target": [-2]}, ["target -2", "0 to 2"]),
    "no class": ({"target": []}, ["target=[]"]),
    "a score for the batch": ({"target": lambda output: output.sum()}, ["one score per image"]),
    "a layer number too high": ({"layer": 9}, ["layer 9", "0 to 2"]),
    "a layer number too low": ({"layer": -4}, ["layer -4", "0 to 2"]),
    "a layer name": ({"layer": "0.1.3"}, ["'0.1.3'", "Did you mean '0.1", "0.0.0"]),
    "a layer without space": ({"layer": "1.2"}, ["'1.2'", "no space"]),
    "a module of another network": ({"layer": nn.ReLU()}, ["ReLU", "not a module"]),
    "a method that is nearly one": ({"method": "grad-cam"}, ["'grad-cam'", "Did you mean 'gradcam'?", "layercam"]),
    "no items": ({"item": []}, ["[]", "at least one"]),
    "an array of floats": ({"item": np.zeros((8, 8, 3))}, ["uint8", "float64", "(8, 8, 3)"]),
    "an array of two channels": ({"item": np.zeros((8, 8, 2), np.uint8)}, ["(H, W, C)", "(8, 8, 2)"]),
    "a batch of tensors": ({"item": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, ["uint8", "(2, 3, 8, 8)"]),
    "bytes that are no image": ({"item": b"no image"}, ["item 0", "cannot identify"]),
    "no alpha": ({"alpha": 1.5}, ["alpha", "1.5"]),
    "no colormap": ({"cmap": "jett"}, ["'jett'", "Did you mean 'jet'?"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", LOOKS)
def test_a_look_that_does_not_fit_is_named_with_what_would(what, learn, photo):
    arguments, words = LOOKS[what]
    drawn = {k: v for k, v in arguments.items() if k in ("alpha", "cmap")}
    with pytest.raises(ValueError) as caught:
        cam = learn.gradcam(**{"item": photo} | {k: v for k, v in arguments.items() if k not in drawn})
        cam.overlay(**drawn)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"target": True}, ["target", "True"]),
        ({"target": 1.5}, ["target", "1.5"]),
        ({"layer": 1.5}, ["layer", "1.5"]),
        ({"layer": []}, ["layer", "[]"]),
        ({"method": 5}, ["method", "5"]),
        ({"item": None}, ["path, str, PIL image", "None"]),
        ({"item": 7}, ["path, str, PIL image", "7"]),
        ({"item": {"a": 1}}, ["path, str, PIL image", "{'a': 1}"]),
    ],
    ids=str,
)
def test_a_thing_of_another_kind_is_quoted(arguments, words, learn, photo):
    with pytest.raises(TypeError) as caught:
        learn.gradcam(**{"item": photo} | arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_that_is_missing_is_named(kind, learn, tmp_path, photo):
    gone = kind(tmp_path / "gone.png")
    for item in (gone, [photo, gone]):
        with pytest.raises(FileNotFoundError, match=re.escape(f"There is no image file {str(gone)!r}")):
            learn.gradcam(item)


@pytest.mark.parametrize("how", ["truncated", "empty", "no image", "a folder"])
def test_a_file_that_is_no_image_is_named(how, learn, tmp_path, photo):
    file = tmp_path / "mine.png"
    shutil.copy(photo, file)
    if how == "a folder":
        file.unlink()
        file.mkdir()
    else:
        damage(file, how)
    for item in (file, str(file), [photo, file]):
        with pytest.raises(ValueError, match=re.escape(str(file))):
            learn.gradcam(item)


def test_a_learner_whose_model_is_no_sequence_says_how_to_name_a_layer(image_folder, tmp_path, photo):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = tiny()[:3], nn.Linear(12, 3)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    dls = ImageDataLoaders.from_folder(image_folder, valid="valid", item_tfms=Resize(32), bs=4, num_workers=0)
    learn = Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    for layer in (0, "all"):
        with pytest.raises(ValueError, match=r"this Net does not have: name a layer.*body, head"):
            learn.gradcam(photo, layer=layer)
    assert learn.gradcam(photo).layer == "body.2"


# The engine


def test_a_number_of_targets_that_is_not_the_batchs_is_refused_never_cut(learn):
    x = torch.rand(4, 3, 32, 32)
    for target in (torch.tensor([0, 1, 2]), [0, 1, 2, 0, 1], torch.zeros(2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"for a batch of 4 images"):
            gradcam(learn.model, x, target=target)


@pytest.mark.parametrize("target", [3, -1, torch.tensor([0, 3]), torch.tensor([[0, 1], [1, -1]])], ids=str)
def test_a_class_out_of_range_is_refused_with_the_range(target, learn):
    with pytest.raises(ValueError, match=r"out of range: the model has classes 0 to 2"):
        gradcam(learn.model, torch.rand(2, 3, 32, 32), target=target)


def test_a_score_that_the_layer_has_no_part_in_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.cat([self.one(x).mean((2, 3))[:, :2], self.other(x).mean((2, 3))[:, :2].detach()], 1)

    with pytest.raises(ValueError, match=r"The score does not depend on layer 'other'"):
        gradcam(Two(), torch.rand(2, 3, 16, 16), layer="other", target=0)
