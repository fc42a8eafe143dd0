"""`learn.gradcam`: every kind of item, target and layer, what comes back, and that nothing is changed."""

import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    ColSplitter,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    GrandparentSplitter,
    ImageBlock,
    ImageDataLoaders,
    Learner,
    Normalize,
    PILImage,
    PILImageBW,
    Resize,
    ResizeMethod,
    TensorImage,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    load_learner,
    parent_label,
    vision_learner,
)
from PIL import Image
from torch import nn
from training import differences, one_thread, state_around, tiny, tiny_learner  # noqa: F401

from fastai_gradcam import CAM, GradCAMError, gradcam
from fastai_gradcam.learner import CAMList, resolve_layer
from fastai_gradcam.render import colormap

pytestmark = pytest.mark.usefixtures("one_thread")

NORMALISED = {"batch_tfms": [Normalize.from_stats(*imagenet_stats, cuda=False)]}


@pytest.fixture(scope="module")
def learn(image_folder, tmp_path_factory):
    "Three classes, three blocks of convolutions. Shared: leave it as it is."
    return tiny_learner(image_folder, tmp_path_factory.mktemp("learn"), **NORMALISED)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    "A picture that is not square, of colours that no two channels share."
    pixels = np.random.default_rng(1).integers(0, 256, (10, 15, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC).save(path)
    return path


def as_fastai_predicts(learn, item):
    with learn.no_bar(), learn.no_logging():
        label, index, probs = learn.predict(item)
    return label, int(index), probs


def agrees_with_predict(cam, learn, item):
    label, index, probs = as_fastai_predicts(learn, item)
    assert (cam.pred, cam.label, cam.target) == (label, label, index)
    assert cam.pred_prob == cam.prob == pytest.approx(float(probs[index]), abs=1e-6)


def on_cpu(dls, arch=tiny, **kwargs):
    kwargs = {"cut": -3} | kwargs if arch is tiny else kwargs
    return vision_learner(dls, arch, pretrained=False, **kwargs)


# Items


def items_of(photo):
    image = Image.open(photo).convert("RGB")
    pixels = np.array(image)
    tensor = torch.from_numpy(pixels)
    return {
        "a path": photo,
        "a string": str(photo),
        "bytes": photo.read_bytes(),
        "a bytearray": bytearray(photo.read_bytes()),
        "an RGB image": image,
        "a fastai image": PILImage.create(photo),
        "an RGBA image": image.convert("RGBA"),
        "a grey image": image.convert("L"),
        "a palette image": image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256),
        "an HWC array": pixels,
        "a CHW array": pixels.transpose(2, 0, 1),
        "an RGBA array": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        "an HW array": pixels[..., 0],
        "an HW1 array": pixels[..., :1],
        "a mirrored view of an array": pixels[:, ::-1],
        "an HWC tensor": tensor,
        "a CHW tensor": tensor.permute(2, 0, 1),
        "a fastai tensor": TensorImage(tensor.permute(2, 0, 1)),
        "an HW tensor": tensor[..., 1],
    }


IN_GREY = {"a grey image", "an HW array", "an HW1 array", "an HW tensor"}
KINDS = """a path|a string|bytes|a bytearray|an RGB image|a fastai image|an RGBA image|a grey image|a palette image
an HWC array|a CHW array|an RGBA array|an HW array|an HW1 array|a mirrored view of an array|an HWC tensor|a CHW tensor
a fastai tensor|an HW tensor""".replace("\n", "|").split("|")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_item_is_seen_as_its_image_file_is(learn, photo, tmp_path, kind):
    item = items_of(photo)[kind]
    cam = learn.gradcam(item)
    pixels = {
        "a grey image": lambda: Image.open(photo).convert("L"),
        "a palette image": lambda: item.convert("RGB"),
        "an HW array": lambda: Image.fromarray(item),
        "an HW1 array": lambda: Image.fromarray(item[..., 0]),
        "an HW tensor": lambda: Image.fromarray(item.numpy()),
        "a mirrored view of an array": lambda: Image.fromarray(np.ascontiguousarray(item)),
    }.get(kind, lambda: Image.open(photo))()
    pixels.convert("RGB").save(tmp_path / "same.png")
    agrees_with_predict(cam, learn, tmp_path / "same.png")
    same = learn.gradcam(tmp_path / "same.png")
    assert torch.equal(cam.map, same.map) and cam.image == same.image
    assert cam.map.shape == (4, 4) and cam.map.dtype == torch.float32 and cam.map.max() > 0
    channels = np.array(cam.image).astype(int)
    assert (np.ptp(channels, axis=2).max() <= 1) == (kind in IN_GREY)


def test_a_list_of_items_gives_each_its_own_cam_in_order(learn, photo, image_folder):
    others = get_image_files(image_folder / "valid")
    items = [photo, Image.open(others[0]), others[1].read_bytes(), str(photo)]
    cams = learn.gradcam(items)
    assert isinstance(cams, CAMList) and len(cams) == 4
    for cam, item in zip(cams, items, strict=True):
        alone = learn.gradcam(item)
        assert torch.allclose(cam.map, alone.map, rtol=1e-4, atol=1e-7) and cam.image == alone.image
        assert cam.prob == pytest.approx(alone.prob, abs=1e-6)
    assert cams[0].image != cams[1].image
    assert isinstance(learn.gradcam([photo]), CAMList)


@pytest.mark.slow
def test_more_items_than_a_batch_holds_are_all_explained(learn, photo, image_folder):
    files = [photo, *get_image_files(image_folder)] * 4
    cams = learn.gradcam(files)
    assert len(cams) == len(files) == 76
    assert torch.allclose(cams[40].map, learn.gradcam(files[40]).map, rtol=1e-4, atol=1e-7)


def test_images_of_different_sizes_stand_in_one_list(image_folder, tmp_path, photo):
    learn = tiny_learner(image_folder, tmp_path, item_tfms=[])
    sizes = [(64, 64), (64, 64), (96, 48), (64, 64)]
    images = [Image.open(photo).convert("RGB").resize(size) for size in sizes]
    cams = learn.gradcam(images)
    assert [c.image.size for c in cams] == sizes
    assert [tuple(c.map.shape) for c in cams] == [(8, 8), (8, 8), (6, 12), (8, 8)]
    for cam, image in zip(cams, images, strict=True):
        agrees_with_predict(cam, learn, image)


@pytest.mark.slow
@pytest.mark.parametrize("size, method", [((24, 48), "crop"), ((48, 24), "squish"), (40, "pad")])
def test_an_image_need_not_be_square_and_is_shown_as_the_model_sees_it(image_folder, tmp_path, photo, size, method):
    how = {"crop": ResizeMethod.Crop, "squish": ResizeMethod.Squish, "pad": ResizeMethod.Pad}[method]
    learn = tiny_learner(image_folder, tmp_path, item_tfms=Resize(size, method=how, pad_mode="zeros"), **NORMALISED)
    cam = learn.gradcam(photo)
    (x,) = learn.dls.test_dl([photo], num_workers=0).one_batch()
    mean, std = imagenet_stats
    seen = (torch.Tensor(x)[0].permute(1, 2, 0).numpy() * std + mean) * 255
    assert cam.image.size == (40, 40) if size == 40 else cam.image.size == size[::-1]
    assert np.abs(np.array(cam.image) - seen).max() <= 1.01
    agrees_with_predict(cam, learn, photo)
    assert cam.overlay().size == cam.image.size


def test_the_map_equals_the_engines_on_the_same_input(learn, photo):
    dl = learn.dls.test_dl([photo], num_workers=0)
    (x,) = dl.one_batch()
    for layer, name in [(None, "0.2"), (1, "0.1"), ("0.0.0", "0.0.0")]:
        cams = gradcam(learn.model, torch.Tensor(x), layer=name, target=2, method="layercam")
        cam = learn.gradcam(photo, target=2, layer=layer, method="layercam")
        assert torch.equal(cam.map, cams.maps[0][0]) and cam.layer == name


def test_validation_transforms_are_those_of_predict_not_those_of_training(image_folder, tmp_path, photo):
    batch_tfms = [*aug_transforms(size=32, max_rotate=45), *NORMALISED["batch_tfms"]]
    learn = tiny_learner(image_folder, tmp_path, item_tfms=Resize(48), batch_tfms=batch_tfms)
    learn.dls.train.one_batch()  # leaves the transforms in the training split
    cams = [learn.gradcam(photo) for _ in range(3)]
    assert all(torch.equal(c.map, cams[0].map) for c in cams)
    agrees_with_predict(cams[0], learn, photo)


# Learners from all sorts of data


def table_of(folder):
    files = sorted(get_image_files(folder))
    return pd.DataFrame(
        {
            "name": [f.relative_to(folder).as_posix() for f in files],
            "label": [f.parent.name for f in files],
            "is_valid": [f.parts[-3] == "valid" for f in files],
        }
    )


def from_table(folder):
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_x=ColReader("name", pref=f"{folder}/"),
        get_y=ColReader("label"),
        splitter=ColSplitter(),
        item_tfms=Resize(32),
    )
    return block.dataloaders(table_of(folder), bs=4, num_workers=0)


def from_name_func(folder):
    return ImageDataLoaders.from_name_func(
        folder, get_image_files(folder), str, valid_pct=0.5, item_tfms=Resize(32), bs=4, num_workers=0
    )


def from_csv(folder):
    table_of(folder).to_csv(folder / "labels.csv", index=False)
    return ImageDataLoaders.from_csv(
        folder, "labels.csv", delimiter=",", valid_col="is_valid", item_tfms=Resize(32), bs=4, num_workers=0
    )


def from_folder(folder):
    return ImageDataLoaders.from_folder(folder, valid="valid", item_tfms=Resize(32), bs=4, num_workers=0)


@pytest.mark.parametrize("source", [from_table, from_name_func, from_csv, from_folder])
def test_a_learner_from_any_data_source_explains_files_and_images(source, image_folder, photo):
    learn = on_cpu(source(image_folder))
    for item in (photo, Image.open(photo).convert("RGB"), photo.read_bytes()):
        agrees_with_predict(learn.gradcam(item), learn, photo)


def test_an_item_is_also_what_the_data_source_has_for_one(image_folder):
    table = table_of(image_folder)
    learn = on_cpu(from_table(image_folder))
    cam = learn.gradcam(table.iloc[3])
    agrees_with_predict(cam, learn, table.iloc[3])
    assert torch.equal(cam.map, learn.gradcam(image_folder / table.name[3]).map)


def test_a_getter_that_finds_the_file_finds_it_for_learn_gradcam_too(image_folder):
    names = [str(f.relative_to(image_folder).with_suffix("")) for f in sorted(get_image_files(image_folder))]
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_x=lambda name: Path(f"{image_folder}/{name}.png"),
        get_y=lambda name: Path(name).parent.name,
        item_tfms=Resize(32),
    )
    learn = on_cpu(block.dataloaders(names, bs=4, num_workers=0))
    agrees_with_predict(learn.gradcam(names[5]), learn, names[5])
    assert torch.equal(learn.gradcam(names[5]).map, learn.gradcam(Image.open(f"{image_folder}/{names[5]}.png")).map)


def test_an_opener_of_the_users_own_that_takes_paths_only_is_passed_by_images(image_folder, photo):
    def open_mirrored(path: Path) -> PILImage:
        return PILImage(PILImage.create(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT))

    block = DataBlock(
        (lambda: ImageBlock().__class__(type_tfms=open_mirrored, batch_tfms=ImageBlock().batch_tfms), CategoryBlock),
        get_items=get_image_files,
        get_y=parent_label,
        item_tfms=Resize(32),
    )
    learn = on_cpu(block.dataloaders(image_folder, bs=4, num_workers=0))
    agrees_with_predict(learn.gradcam(photo), learn, photo)
    mirrored = Image.open(photo).convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert learn.gradcam(photo).image == learn.gradcam(mirrored).image


@pytest.mark.parametrize("kind", ["a path", "bytes", "an RGB image", "a grey image", "an HWC array", "a CHW tensor"])
def test_a_network_of_one_channel_sees_every_item_in_grey(image_folder, photo, kind):
    block = DataBlock(
        (ImageBlock(PILImageBW), CategoryBlock),
        get_items=get_image_files,
        get_y=parent_label,
        splitter=GrandparentSplitter("train", "valid"),
        item_tfms=Resize(32),
    )
    learn = on_cpu(block.dataloaders(image_folder, bs=4, num_workers=0), n_in=1)
    cam = learn.gradcam(items_of(photo)[kind])
    agrees_with_predict(cam, learn, photo)
    assert cam.image.mode == "RGB" and np.ptp(np.array(cam.image), axis=2).max() == 0


class Squares(torch.utils.data.Dataset):
    "Plain PyTorch: tensors with a class each."

    def __len__(self):
        return 6

    def __getitem__(self, i):
        x = torch.zeros(3, 32, 32)
        x[i % 3, 4:20, 4:20] = 1
        return x, i % 3


def plain_learner(**kwargs):
    model = nn.Sequential(tiny()[:3], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)))
    dls = DataLoaders.from_dsets(Squares(), Squares(), bs=3, num_workers=0)
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), **kwargs)


def test_a_learner_of_plain_pytorch_data_explains_tensors_as_its_data_gives_them():
    learn = plain_learner()
    x = Squares()[1][0]
    cam = learn.gradcam(x)
    expected = learn.model.eval()(x[None]).detach().softmax(1)[0]
    assert cam.target == int(expected.argmax()) and cam.label == str(cam.target)
    assert cam.prob == pytest.approx(float(expected.max()), abs=1e-6)
    assert np.array(cam.image)[10, 10].tolist() == [0, 255, 0]
    with pytest.raises(TypeError, match=r"Squares, has no transforms that would open an image.*got .*photo\.png"):
        learn.gradcam("photo.png")


# Targets, layers, methods


def test_a_class_is_named_by_its_label_or_its_index(learn, photo):
    vocab = list(learn.dls.vocab)
    probs = as_fastai_predicts(learn, photo)[2]
    maps = []
    for i, label in enumerate(vocab):
        by_label = learn.gradcam(photo, target=label)
        for index in (i, np.int64(i), torch.tensor(i)):
            by_index = learn.gradcam(photo, target=index)
            assert torch.equal(by_label.map, by_index.map) and by_index.label == label
        assert by_label.target == i and by_label.prob == pytest.approx(float(probs[i]), abs=1e-6)
        assert by_label.pred == vocab[int(probs.argmax())]
        maps.append(by_label.map)
    assert not torch.equal(maps[0], maps[1]) and not torch.equal(maps[1], maps[2])


@pytest.mark.parametrize(
    "several", [["red", "blue"], ("red", "blue"), ["red", 0], torch.tensor([2, 0]), np.array([2, 0])], ids=str
)
def test_several_classes_stand_side_by_side(learn, photo, several):
    cams = learn.gradcam(photo, target=several)
    assert [c.label for c in cams] == ["red", "blue"]
    for cam in cams:
        assert torch.allclose(cam.map, learn.gradcam(photo, target=cam.label).map, rtol=1e-5, atol=1e-8)
    page = cams.grid()
    assert page.width > 1.7 * page.height * 208 / 300


def test_several_images_with_several_classes_give_a_row_for_each_image(learn, photo, image_folder):
    other = get_image_files(image_folder / "valid")[0]
    cams = learn.gradcam([photo, other], target=["red", "green", "blue"])
    assert [c.label for c in cams] == ["red", "green", "blue"] * 2 and cams.columns == 3
    assert [c.image == cams[0].image for c in cams] == [True] * 3 + [False] * 3
    page = learn.gradcam([photo, other, photo], target=["red", "green"]).grid()
    assert page.height > page.width  # two columns, three rows


def test_a_score_of_the_callers_own_is_explained_without_a_class(learn, photo):
    cam = learn.gradcam(photo, target=lambda output: output[:, 1])
    assert torch.equal(cam.map, learn.gradcam(photo, target=1).map)
    assert (cam.target, cam.label, cam.prob) == (None, None, None)
    assert cam.pred == learn.gradcam(photo).pred
    assert cam.title() == "0.2" and cam._repr_jpeg_()


def test_layers_are_named_in_every_way(learn, photo):
    body = learn.model[0]
    for layer, name in [(0, "0.0"), (-1, "0.2"), ("0.1.0", "0.1.0"), (body[1], "0.1"), (None, "0.2")]:
        cam = learn.gradcam(photo, layer=layer)
        assert isinstance(cam, CAM) and cam.layer == name
    cams = learn.gradcam(photo, layer=[2, "0.0", body[1][0]])
    assert [c.layer for c in cams] == ["0.2", "0.0", "0.1.0"]
    assert [tuple(c.map.shape) for c in cams] == [(4, 4), (16, 16), (8, 8)]
    assert torch.equal(cams[0].map, learn.gradcam(photo).map)
    assert isinstance(learn.gradcam(photo, layer=[2]), CAMList)


@pytest.mark.slow
def test_all_layers_are_the_children_of_the_body_in_order(make_learner, photo):
    learn = make_learner()  # resnet18
    cams = learn.gradcam(photo, target="red", layer="all")
    assert [c.layer for c in cams] == [f"0.{i}" for i in range(8)]
    assert [tuple(c.map.shape) for c in cams] == [(32, 32)] * 3 + [(16, 16)] * 2 + [(8, 8), (4, 4), (2, 2)]
    for i in (1, 2, 5):
        assert torch.allclose(cams[i].map, learn.gradcam(photo, target="red", layer=i).map, rtol=1e-4, atol=1e-7)
    page = cams.grid()  # three by three
    assert abs(page.width - page.height) < 0.4 * page.width
    assert cams[2:4].columns == cams.columns and len(cams[2:4]) == 2


class Named(nn.Module):
    "As fastai wraps a network of timm: the network, which says itself what its stages are."

    def __init__(self, stages):
        super().__init__()
        self.model = nn.Module()
        self.model.layer1, self.model.layer2 = nn.Identity(), nn.Identity()
        self.model.feature_info = [{"module": name} for name in stages]


FEW = nn.Sequential(nn.Sequential(*[nn.Sequential(nn.ReLU()) for _ in "abc"]), nn.ReLU())
BODIES = {
    "a child alone stands for its children": (nn.Sequential(nn.Sequential(*map(nn.ReLU, [False] * 5))), "0.0.", 5),
    "few children are looked into": (FEW, "0.", 4),
    "enough children are not": (nn.Sequential(*[nn.Sequential(nn.ReLU(), nn.ReLU()) for _ in "abcd"]), "0.", 4),
    "stages of timm": (Named(["layer1", "layer2", "layer3", "layer4"]), "0.model.layer", 4),
}


@pytest.mark.parametrize("body", BODIES)
def test_all_layers_are_at_least_four_where_a_network_has_them(body):
    network, start, count = BODIES[body]
    learn = mock.Mock(model=nn.Sequential(network, nn.Linear(1, 1)))
    names = resolve_layer(learn, "all")
    assert len(names) == len(set(names)) == count and all(name.startswith(start) for name in names)
    assert resolve_layer(learn, -1) == [names[-1]]


def test_all_layers_of_a_network_of_fewer_than_four_are_an_error_that_names_them():
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU())), nn.Linear(1, 1))
    with pytest.raises(GradCAMError, match=r"has 3: name those you want, layer=\['0.0.0', '0.0.1', '0.0.2'\]"):
        resolve_layer(mock.Mock(model=model), "all")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["squeezenet1_1", "mobilenet_v3_small", "regnet_x_400mf", "swin_t"])
def test_networks_that_vision_learner_builds_have_at_least_four_maps(arch):
    import torchvision
    from fastai.vision.learner import create_vision_model

    model = create_vision_model(getattr(torchvision.models, arch), 3, pretrained=False)
    names = resolve_layer(mock.Mock(model=model), "all")
    cams = gradcam(model, torch.rand(1, 3, 64, 64), layer=names, target=0)
    assert len(cams.maps) >= 4 and len({maps.shape for maps in cams.maps}) > 1


def test_a_method_is_a_name_or_a_function(learn, photo):
    by_name = learn.gradcam(photo, layer=1, method="hirescam").map
    assert torch.equal(learn.gradcam(photo, layer=1, method=lambda A, G: (G * A).sum(1).relu()).map, by_name)
    assert not torch.equal(by_name, learn.gradcam(photo, layer=1).map)


def test_the_probability_is_that_of_the_learners_own_loss(image_folder, tmp_path, photo):
    class Halved(CrossEntropyLossFlat):
        def activation(self, x):
            return x.softmax(-1) / 2

    learn = tiny_learner(image_folder, tmp_path, loss_func=Halved())
    cam = learn.gradcam(photo)
    assert cam.prob < 0.5
    agrees_with_predict(cam, learn, photo)


# Nothing changed, whatever state the learner is in


def restored(learn, tmp_path):
    learn.export(tmp_path / "export.pkl")
    return load_learner(tmp_path / "export.pkl")


def after(change):
    def do(learn, tmp_path):
        change(learn)
        return learn

    return do


STATES = {
    "as made": after(lambda learn: None),
    "frozen": after(lambda learn: learn.freeze()),
    "unfrozen": after(lambda learn: learn.unfreeze()),
    "in train mode": after(lambda learn: learn.model.train()),
    "partly in train mode": after(lambda learn: learn.model.eval()[1].train()),
    "after a fit": after(lambda learn: learn.fit(1)),
    "no gradient wanted anywhere": after(lambda learn: learn.model.requires_grad_(False)),
    "exported and loaded": restored,
}


@pytest.mark.parametrize("state", STATES)
def test_a_learner_in_any_state_is_explained_and_left_in_it(state, image_folder, tmp_path, photo):
    learn = STATES[state](tiny_learner(image_folder, tmp_path, **NORMALISED), tmp_path)
    files_before = sorted(tmp_path.rglob("*"))
    before = state_around(learn.model)
    cbs, loaders = list(learn.cbs), [dl.rng.getstate() for dl in learn.dls.loaders]
    attributes = set(vars(learn))
    cams = learn.gradcam([photo, photo], layer="all")
    with torch.no_grad():
        inside = learn.gradcam(photo, layer=2)
    assert differences(before, state_around(learn.model)) == []
    assert list(learn.cbs) == cbs and [dl.rng.getstate() for dl in learn.dls.loaders] == loaders
    assert set(vars(learn)) == attributes and sorted(tmp_path.rglob("*")) == files_before
    same = next(cam for cam in cams if cam.layer == f"{inside.layer}.2")  # the block's last module
    assert torch.allclose(inside.map, same.map, rtol=1e-4, atol=1e-7) and inside.map.max() > 0
    agrees_with_predict(inside, learn, photo)


def test_nothing_is_changed_when_an_item_cannot_be_explained(learn, photo, tmp_path):
    (tmp_path / "no.png").write_text("no image")
    before = state_around(learn.model)
    for kwargs in ({"target": lambda o: o.sum()}, {"layer": "1.2"}, {"item": tmp_path / "no.png"}):
        with pytest.raises(ValueError):
            learn.gradcam(**{"item": photo, **kwargs})
    assert differences(before, state_around(learn.model)) == []


@pytest.mark.slow
def test_a_look_in_the_middle_of_a_training_changes_nothing(image_folder, tmp_path, photo):
    from fastai.callback.core import Callback

    class Look(Callback):
        def after_batch(self):
            self.learn.gradcam(photo, layer="all")

    weights = []
    for cbs in (None, [Look()]):
        learn = tiny_learner(image_folder, tmp_path, cbs=cbs)
        learn.fit(2, 1e-2)
        weights.append({k: v.clone() for k, v in learn.model.state_dict().items()})
    assert differences(*weights) == []


# A CAM's attributes


def test_an_overlay_has_the_images_size_and_blends_by_alpha(learn, photo):
    cam = learn.gradcam(photo)
    assert cam.overlay().size == cam.image.size and cam.overlay().mode == "RGB"
    assert cam.overlay(alpha=0).tobytes() == cam.image.tobytes()
    colours = {tuple(c) for c in np.array(cam.overlay(alpha=1, cmap="jet")).reshape(-1, 3).tolist()}
    assert colours <= {tuple(c) for c in colormap("jet").tolist()} and len(colours) > 10
    image, half = np.array(cam.image, dtype=float), np.array(cam.overlay(0.4, "jet"), dtype=float)
    full = np.array(cam.overlay(1, "jet"), dtype=float)
    assert np.abs(half - (0.6 * image + 0.4 * full)).max() <= 1


def test_the_hottest_place_of_the_overlay_is_the_peak_of_the_map(learn, photo):
    cam = learn.gradcam(photo)
    cam.map = torch.zeros(4, 4)
    cam.map[1, 3] = 2.5
    heat = np.array(cam.overlay(alpha=1, cmap="gray"))[..., 0]
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert (y // 8, x // 8) == (1, 3) and heat.max() > 220 and heat[20:, :16].max() == 0


def test_an_empty_map_shows_the_image_alone(learn, photo):
    cam = learn.gradcam(photo, method=lambda A, G: torch.zeros_like(A[:, 0]))
    assert cam.map.max() == 0 and cam.overlay(alpha=1).tobytes() == cam.image.tobytes()
    assert cam._repr_jpeg_()


def test_show_draws_into_the_axes_given_and_returns_them(learn, photo):
    cam = learn.gradcam(photo)
    axes = plt.subplots()[1]
    assert cam.show(ctx=axes, alpha=1.0, cmap="jet") is axes
    drawn = axes.images[0].get_array()
    assert np.array_equal(drawn, np.array(cam.overlay(1.0, "jet")))
    assert axes.get_title() == f"{cam.label} {cam.prob:.0%}" and not axes.axison
    assert cam.show(ctx=axes, title="mine").get_title() == "mine"
    own = cam.show(figsize=(2, 3))
    assert own is not axes and own.figure.get_size_inches().tolist() == [2, 3]
    cams = learn.gradcam(photo, layer="all")
    assert cams.show(ctx=axes) is axes and cams.show().images
    plt.close("all")


def test_save_writes_the_overlay_and_says_where(learn, photo, tmp_path):
    cam = learn.gradcam(photo)
    file = cam.save(tmp_path / "cam.png", alpha=0.3, cmap="jet")
    assert file == tmp_path / "cam.png" and Image.open(file).tobytes() == cam.overlay(0.3, "jet").tobytes()
    assert Image.open(cam.save(str(tmp_path / "cam.jpg"))).format == "JPEG"
    cams = learn.gradcam(photo, layer="all")
    assert Image.open(cams.save(tmp_path / "all.png")).size == cams.grid().size


def test_a_notebook_shows_a_picture(learn, photo):
    for shown in (learn.gradcam(photo), learn.gradcam(photo, layer="all"), learn.gradcam([photo])):
        with Image.open(io.BytesIO(shown._repr_jpeg_())) as image:
            assert image.format == "JPEG" and min(image.size) > 150
    assert repr(learn.gradcam(photo, target="red")).startswith("CAM('red ")
    assert repr(learn.gradcam(photo, layer=[0, 1, 2])).count("CAM(") == 3


def test_a_map_alone_is_large_enough_to_see_and_is_named(learn, photo):
    cam = learn.gradcam(photo)
    with Image.open(io.BytesIO(cam._repr_jpeg_())) as image:
        assert image.width >= 384
    other = next(name for name in learn.dls.vocab if name != cam.pred)
    predicted = f"predicted {cam.pred} {cam.pred_prob:.0%}"
    assert (cam._cell().title, cam._cell().subtitle) == (cam.title(), "")
    asked = learn.gradcam(photo, target=other)
    assert (asked._cell().title, asked._cell().subtitle) == (f"map of {other} ({asked.prob:.0%})", predicted)
    assert cam._cell().note == "" and learn.gradcam(photo, layer=1)._cell().note == "layer 0.1"
    titles = [cell.title for cell in cells_of(learn.gradcam(photo, target=[cam.pred, other]))]
    assert titles == [f"map of {one.label} ({one.prob:.0%})" for one in (cam, asked)]


def cells_of(cams):
    "The panels that the grid of `cams` draws."
    with mock.patch("fastai_gradcam._fastai.cams.grid", return_value=Image.new("RGB", (1, 1))) as drawn:
        cams.grid()
    return drawn.call_args[0][0]


def test_a_cam_of_a_large_image_is_shown_no_larger_than_a_notebook_is_wide(image_folder, tmp_path, photo):
    learn = tiny_learner(image_folder, tmp_path, item_tfms=Resize(600))
    cam = learn.gradcam(photo)
    assert cam.image.size == (600, 600) and cam.overlay().size == (600, 600)
    with Image.open(io.BytesIO(cam._repr_jpeg_())) as image:
        assert image.width < 500


@pytest.mark.slow
def test_learn_gradcam_is_there_when_fastai_is_imported_after_this_package():
    code = "from fastai_gradcam import GradCAMCallback; from fastai.vision.all import *; "
    code += "print(Learner.gradcam.__module__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "fastai_gradcam.learner", done.stderr
