"""The model sees what the training loop gives it: callbacks, openers, several inputs, data that changes."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import body, by_split, data, head, label, learner_of, net
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    ClassificationInterpretation,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IntToFloatTensor,
    PILImage,
    PILImageBW,
    Resize,
    TensorImage,
    ToTensor,
    TransformBlock,
    fastuple,
    get_files,
    get_image_files,
    noop,
)
from PIL import Image
from torch import nn
from training import heard, one_thread, places, statuses, watch  # noqa: F401

from fastai_gradcam import GradCAMCallback, GradCAMError, Run
from fastai_gradcam.cli import main

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def photo(image_folder):
    return image_folder / "valid" / "red" / "0.png"


def predicted(learn, item):
    "The answer of `learn.predict`, without a decoding that the loss may lack."
    with learn.no_bar():
        return learn.get_preds(dl=learn.dls.test_dl([item], num_workers=0))[0][0]


def agree(learn, item):
    "`learn.gradcam` and `learn.predict` say the same of `item`; the probabilities, whether or not the loss makes them."
    learn.loss_func = nn.CrossEntropyLoss()
    probs = predicted(learn, item).softmax(0)
    cam = learn.gradcam(item)
    assert cam.pred_prob == pytest.approx(float(probs.max()), abs=1e-4)
    assert cam.pred == str(learn.dls.vocab[int(probs.argmax())])
    return cam


# --- callbacks before the batch


class Normalised(Callback):
    def before_batch(self):
        self.learn.xb = tuple((x - 0.5) / 0.05 for x in self.xb)


class OneChannel(Callback):
    def before_batch(self):
        self.learn.xb = (self.xb[0][:, :1],)


class Larger(Callback):
    def before_batch(self):
        self.learn.xb = (nn.functional.interpolate(self.xb[0], scale_factor=2),)


class Second(Callback):
    "Computes a second input."

    def before_batch(self):
        x = self.xb[0]
        self.learn.xb = (x, x.flip(-1))


class Ordered(Callback):
    "Runs after `Normalised`, and undoes it."

    order = 20

    def before_batch(self):
        self.learn.xb = tuple(x * 0.05 + 0.5 for x in self.xb)


class OnlyInTraining(Callback):
    run_valid = False

    def before_batch(self):
        self.learn.xb = tuple(torch.zeros_like(x) for x in self.xb)


class ByX(Callback):
    "Asks for the batch by the learner's shorter names."

    def before_batch(self):
        self.learn.xb = (self.x - 0.5,)
        self.learn.yb = () if self.y is None else (self.y,)


class InPlace(Callback):
    def before_batch(self):
        self.xb[0].mul_(-1)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.head = body(), head(3, 16)

    def forward(self, a, b):
        return self.head(torch.cat([self.enc(a), self.enc(b)], 1))


PREPARED = {
    "normalised": ([Normalised()], net),
    "channels dropped": ([OneChannel()], lambda: net(channels=1)),
    "resized": ([Larger()], net),
    "a second input": ([Second()], Pair),
    "two, in their order": ([Ordered(), Normalised()], net),
    "in training only": ([OnlyInTraining()], net),
    "by x and y": ([ByX()], net),
    "in place": ([InPlace()], net),
}


@pytest.mark.parametrize("kind", PREPARED)
def test_inputs_pass_through_the_learners_callbacks(kind, image_folder, photo, tmp_path):
    cbs, make = PREPARED[kind]
    learn = learner_of(data(image_folder), make(), tmp_path, cbs=[copy.deepcopy(cb) for cb in cbs])
    agree(learn, photo)
    shown = learn.show_gradcam(max_n=3, shuffle=False)
    assert [c.pred for c in shown] == [learn.gradcam(f).pred for f in learn.dls.valid_ds.items[:3]]
    run = watch(learn, n=3)
    for item, about in enumerate(run.panel):  # noqa: B007 (the query reads it)
        probs = predicted(learn, image_folder / about["name"] if not Path(about["name"]).exists() else about["name"])
        row = run.history.query("frame == 1 and item == @item").iloc[0]
        assert row.pred_prob == pytest.approx(float(probs.softmax(0).max()), abs=1e-4)


class Unpack(Callback):
    "Dict batches: the image is one of several entries."

    def before_batch(self):
        batch = self.xb[0]
        self.learn.xb, self.learn.yb = (batch["image"],), (batch["label"],)


class Dicts(torch.utils.data.Dataset):
    def __init__(self):
        self.x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return ({"image": self.x[i], "label": i % 3},)


def test_dict_batches_that_a_callback_unpacks_are_watched(tmp_path):
    dls = DataLoaders.from_dsets(Dicts(), Dicts(), bs=3, num_workers=0, device=torch.device("cpu"))
    learn = learner_of(dls, net(), tmp_path, cbs=Unpack())
    run = watch(learn, n=6)
    assert statuses(run) == ["ok", "ok"]
    assert [p["label"] for p in run.panel] == list("012012")
    assert run.history.loss.notna().all()


# --- integers, openers, items of every kind


class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        assert not x.is_floating_point()
        return self.net(x.float() / 255)


def test_integers_stay_integers(image_folder, photo, tmp_path):
    blocks = (TransformBlock(type_tfms=PILImage.create, item_tfms=ToTensor), CategoryBlock)
    learn = learner_of(data(image_folder, blocks), Bytes(), tmp_path)
    agree(learn, photo)
    assert statuses(watch(learn, n=2)) == ["ok", "ok"]


class Grey16(PILImageBW):
    "16-bit grey, scaled to 8 bits."

    @classmethod
    def create(cls, fn, **kwargs):
        pixels = np.asarray(Image.open(fn) if isinstance(fn, (str, Path)) else fn)
        return cls(Image.fromarray((pixels // 256).astype(np.uint8) if pixels.dtype != np.uint8 else pixels))


def load_npy(file):
    return TensorImage(torch.from_numpy(np.load(file)).float())


def folder_of(path, suffix):
    "Two classes in files of another kind."
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        for k, name in enumerate("ab"):
            (path / split / name).mkdir(parents=True)
            for i in range(3):
                file = path / split / name / f"{i}.{suffix}"
                high = rng.integers(1000 + 20000 * k, 30000 + 20000 * k, (32, 40)).astype(np.uint16)
                colour = rng.integers(0, 100 + 100 * k, (32, 40, 3), dtype=np.uint8)
                if suffix == "npy":
                    np.save(file, (high / 60000)[None].astype(np.float32))
                elif suffix == "png":
                    Image.fromarray(high).save(file)
                elif suffix == "gif":
                    Image.fromarray(colour).quantize(16).save(file)
                elif suffix == "tiff":
                    Image.fromarray(np.dstack([colour, high.astype(np.uint8)]), "RGBA").save(file)
                else:
                    exif = Image.Exif()
                    exif[0x0112] = 6  # on its side
                    Image.fromarray(colour).save(file, exif=exif)
    return path


OPENERS = {
    "png": (ImageBlock(Grey16), 1),
    "npy": (TransformBlock(type_tfms=load_npy), 1),
    "gif": (ImageBlock, 3),
    "tiff": (ImageBlock, 3),
    "jpg": (ImageBlock, 3),
}


@pytest.mark.parametrize("suffix", OPENERS)
def test_every_file_is_opened_as_the_learner_opens_it(suffix, tmp_path, capsys):
    block, channels = OPENERS[suffix]
    folder = folder_of(tmp_path / "files", suffix)
    tfms = None if suffix == "npy" else Resize(32)
    files = get_files if suffix == "npy" else get_image_files
    blocks = DataBlock((block, CategoryBlock), get_items=files, get_y=label, splitter=by_split, item_tfms=tfms)
    dls = blocks.dataloaders(folder, bs=4, num_workers=0, device=torch.device("cpu"))
    learn = learner_of(dls, net(2, channels=channels), tmp_path)
    file = folder / "valid" / "a" / f"0.{suffix}"
    agree(learn, file)
    if suffix == "npy":
        alone = torch.from_numpy(np.load(file))
        assert learn.gradcam(alone).pred_prob == pytest.approx(learn.gradcam(file).pred_prob, abs=1e-5)
    learn.export(tmp_path / "learn.pkl")
    for given in (file, folder / "valid" / "a"):
        main(["explain", str(tmp_path / "learn.pkl"), str(given), "--json", "--out", str(tmp_path / "out")])
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        assert len(rows) == (1 if given == file else 3)
        for row in rows:
            probs = predicted(learn, Path(row["image"])).softmax(0)
            assert row["pred_prob"] == pytest.approx(float(probs.max()), abs=1e-4)


def test_items_are_whatever_is_at_hand(image_folder, photo, tmp_path):
    learn = learner_of(data(image_folder), net(), tmp_path)
    plain = learn.gradcam(photo)
    index = list(learn.dls.valid_ds.items).index(photo)
    for item in (learn.dls.valid_ds[index], Image.open(photo), PILImage.create(photo)):
        assert learn.gradcam(item).pred_prob == pytest.approx(plain.pred_prob, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = watch(learn, items=[Image.open(photo), Image.open(photo)], target="pred")
    assert len(run.panel) == 2 and run.panel[0]["label"] is None


def test_torchs_own_loaders_work_with_learn_gradcam(tmp_path):
    samples = [(torch.rand(3, 16, 16), i % 3) for i in range(6)]
    dls = DataLoaders(*(torch.utils.data.DataLoader(samples, 3) for _ in range(2)))
    learn = learner_of(dls, net(), tmp_path)
    assert torch.equal(learn.gradcam(samples[1][0]).map, learn.gradcam(samples[1]).map)


def test_a_learner_of_tables_gets_a_sentence(tmp_path):
    import pandas as pd
    from fastai.tabular.all import CategoryBlock, Normalize, RandomSplitter, TabularDataLoaders, tabular_learner

    table = pd.DataFrame({"a": np.arange(20.0), "y": ["p", "q"] * 10})
    dls = TabularDataLoaders.from_df(
        table, y_names="y", cont_names=["a"], procs=[Normalize], y_block=CategoryBlock, bs=4,
        valid_idx=RandomSplitter(seed=1)(range(20))[1],
    )  # fmt: skip
    learn = tabular_learner(dls, layers=[4], path=tmp_path)
    with pytest.raises(GradCAMError, match="is a table or a text"):
        watch(learn)


def test_masks_of_0_and_255_for_two_codes_are_pointed_out(image_folder, tmp_path):
    from fastai.vision.all import MaskBlock, PILMask

    def mask(file):
        pixels = np.zeros((64, 64), np.uint8)
        pixels[10:40] = 255
        return PILMask.create(pixels)

    learn = learner_of(
        data(image_folder, (ImageBlock, MaskBlock(codes=["back", "fish"])), mask),
        nn.Sequential(body(), nn.Conv2d(8, 2, 1), nn.Upsample(scale_factor=4)),
        tmp_path,
        lambda o, y: nn.functional.cross_entropy(o, y.clamp(max=1).long()),
    )
    learn.add_cb(GradCAMCallback(n=2, target="pred"))
    with pytest.warns(UserWarning, match="values 0 and 255, and the data has 2 codes"):
        learn.fit(1)


# --- several inputs


@pytest.fixture(scope="module")
def pairs(image_folder):
    mirrored = lambda f: f.parent / f"{1 - int(f.stem) if int(f.stem) < 2 else f.stem}.png"
    return data(image_folder, (ImageBlock, ImageBlock, CategoryBlock), n_inp=2, get_x=[noop, mirrored])


def test_each_of_two_inputs_has_its_map(pairs, image_folder, tmp_path):
    learn = learner_of(pairs, Pair(), tmp_path)
    files = [image_folder / "valid" / name / "0.png" for name in ("red", "blue")]
    one, other = (learn.gradcam(tuple(files), target="red", input=i) for i in (0, 1))
    assert not np.array_equal(one.image, other.image)
    a, b = (learn.dls.test_dl([f], num_workers=0).one_batch()[0].as_subclass(torch.Tensor) for f in files)
    m = learn.model.eval()
    A, B = m.enc(a), m.enc(b)
    grads = torch.autograd.grad(m.head(torch.cat([A, B], 1))[0, 2], [A, B])
    for cam, t, g in zip((one, other), (A, B), grads, strict=True):
        wanted = torch.relu((g.mean((2, 3), keepdim=True) * t).sum(1))[0].detach()
        assert torch.allclose(
            learn.gradcam(tuple(files), target="red", layer="enc", input=int(cam is other)).map, wanted, atol=1e-6
        )
    with pytest.raises(GradCAMError, match="no input 2"):
        learn.gradcam(tuple(files), input=2)
    with pytest.raises(GradCAMError, match="2 inputs, got 3"):
        learn.gradcam((*files, files[0]))
    assert len(learn.gradcam([tuple(files), tuple(files[::-1])])) == 2


@pytest.mark.parametrize("entry", ["callback", "show_gradcam", "plot_top_gradcams"])
def test_learners_of_two_images_work_everywhere(entry, pairs, tmp_path):
    learn = learner_of(pairs, Pair(), tmp_path)
    if entry == "callback":
        run = watch(learn, n=3)
        assert statuses(run) == ["ok", "ok"] and run.history.loss.notna().all()
    elif entry == "show_gradcam":
        assert all(c.actual for c in learn.show_gradcam(max_n=3))
    else:
        assert len(ClassificationInterpretation.from_learner(learn).plot_top_gradcams(2)) >= 2


def test_a_tuple_of_images_in_one_input_is_refused_with_what_to_do(image_folder, tmp_path):
    class Two(fastuple):
        @classmethod
        def create(cls, file):
            return cls(PILImage.create(file), PILImage.create(file))

    class Net(Pair):
        def forward(self, two):
            return super().forward(*two)

    block = TransformBlock(type_tfms=Two.create, batch_tfms=IntToFloatTensor)
    learn = learner_of(data(image_folder, (block, CategoryBlock)), Net(), tmp_path)
    with pytest.raises(GradCAMError, match=r"Input 0 is a Two of 2 parts.*n_inp=2"):
        watch(learn, n=2)


class WithRow(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.head = body(), nn.Linear(8 + 2, 3)

    def forward(self, row, image):
        return self.head(torch.cat([row, self.enc(image).mean((2, 3))], 1))


def row_of(file):
    return torch.tensor([float(file.stem), float(len(file.parent.name))])


def test_a_row_of_a_table_beside_the_image_is_passed_along(image_folder, tmp_path):
    blocks = (TransformBlock(type_tfms=row_of), ImageBlock, CategoryBlock)
    learn = learner_of(data(image_folder, blocks, n_inp=2, get_x=[noop, noop]), WithRow(), tmp_path)
    run = watch(learn, n=3)
    assert statuses(run) == ["ok", "ok"] and run.image(0).size == (32, 32)
    assert all(c.map.shape == (8, 8) for c in learn.show_gradcam(max_n=2))


# --- data that changes between fits


def in_split(part):
    "A splitter by which every third image, from `part` on, is for validation."
    return lambda files: (
        [i for i in range(len(files)) if i % 3 != part],
        [i for i in range(len(files)) if i % 3 == part],
    )


def test_other_classes_begin_a_run_of_their_own(image_folder, tmp_path):
    learn = learner_of(data(image_folder), net(), tmp_path)
    for name in (None, "night"):
        learn.dls, learn.model = data(image_folder), net()
        cb = GradCAMCallback(n=3, name=name)
        learn.fit(1, cbs=cb)
        first = cb.run
        learn.dls = data(image_folder, get_y=lambda f: "red" if label(f) == "red" else "other")
        learn.model = net(2)
        learn.create_opt()
        learn.fit(1, cbs=cb)
        assert cb.run.path != first.path and cb.run.vocab == ["other", "red"]
        assert statuses(cb.run) == statuses(first) == ["ok", "ok"]
        assert name is None or cb.run.name == "night_2"


def test_other_sizes_show_the_same_images_anew(image_folder, tmp_path):
    learn = learner_of(data(image_folder), net(), tmp_path)
    cb = GradCAMCallback(n=3)
    learn.fit(1, cbs=cb)
    names, run = list(cb.panel.names), cb.run
    learn.dls = data(image_folder, item_tfms=Resize(48))
    assert heard(learn, lambda learn: learn.fit(1, cbs=cb)) == []
    assert cb.run is run and places(run) == [(0, -1), (0, 0), (1, 0)] and statuses(run) == ["ok"] * 3
    assert cb.panel.names == names and cb.panel.x.shape[-2:] == (48, 48)
    assert [run.maps(k)[run.layers[0]].shape for k in (1, 2)] == [(3, 8, 8), (3, 12, 12)]


def test_a_panel_image_that_is_now_trained_on_is_said_in_a_warning_and_in_the_run(image_folder, tmp_path):
    learn = learner_of(data(image_folder, splitter=in_split(0)), net(), tmp_path)
    cb = GradCAMCallback(n=3)
    learn.fit(1, cbs=cb)
    learn.dls = data(image_folder, splitter=in_split(1))
    with pytest.warns(UserWarning, match="now trains on 3 of the panel's images"):
        learn.fit(1, cbs=cb)
    panel = Run(cb.run.path).info["panel"]
    assert [p["trained_on_since_fit"] for p in panel] == [1, 1, 1]
    assert places(cb.run) == [(0, -1), (0, 0), (1, 0)]


@pytest.mark.parametrize("name", [None, "folds"])
def test_one_callback_goes_through_k_folds(name, image_folder, tmp_path):
    cb, runs = GradCAMCallback(n=3, name=name), []
    for fold in range(3):
        learn = learner_of(data(image_folder, splitter=in_split(fold)), net(), tmp_path)
        assert heard(learn, lambda learn: learn.fit(1, cbs=cb)) == []
        runs.append(cb.run)
    assert len({run.path for run in runs}) == 3
    assert all(statuses(run) == ["ok", "ok"] for run in runs)
    assert name is None or [run.name for run in runs] == ["folds", "folds_2", "folds_3"]


# --- averaged weights


class Average(Callback):
    "An exponential average that is validated; `how` it is put in the place of the weights."

    def __init__(self, how, order):
        self.how, self.order = how, order

    def before_fit(self):
        self.average = copy.deepcopy(self.learn.model)

    def after_batch(self):
        if self.training:
            for a, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
                a.data.mul_(0.5).add_(0.5 * p.data)

    def before_validate(self):
        self.trained = self.learn.model if self.how == "model" else [p.data.clone() for p in self.model.parameters()]
        if self.how == "model":
            self.learn.model = self.average
        else:
            for p, a in zip(self.model.parameters(), self.average.parameters(), strict=True):
                p.data.copy_(a.data)

    def after_validate(self):
        if self.how == "model":
            self.learn.model = self.trained
        else:
            for p, value in zip(self.model.parameters(), self.trained, strict=True):
                p.data.copy_(value)


@pytest.mark.parametrize("how", ["model", "in place"])
@pytest.mark.parametrize("order", [0, 55])
def test_the_frame_shows_the_weights_that_the_metrics_are_of(how, order, image_folder, tmp_path):
    learn = learner_of(data(image_folder), net(), tmp_path, cbs=Average(how, order))
    run = watch(learn, lambda learn: learn.fit(1, 3e-2), n=6)
    frame = run.history.query("frame == 1")
    assert frame.loss.mean() == pytest.approx(run.frames[1]["metrics"]["valid_loss"], abs=1e-4)


# --- small things


def test_a_folder_that_cannot_be_written_says_path(image_folder, tmp_path, monkeypatch):
    learn = learner_of(data(image_folder), net(), tmp_path)
    make = Path.mkdir

    def read_only(self, *args, **kwargs):
        if "gradcam" in str(self):
            raise PermissionError(13, "Permission denied", str(self))
        return make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(GradCAMError, match=r"cannot be written.*path="):
        watch(learn)


def test_a_copied_learner_keeps_the_settings(image_folder, tmp_path):
    score = lambda output: output[:, 0]
    learn = learner_of(data(image_folder), net(), tmp_path, cbs=GradCAMCallback(n=2, target=score, items=[0, 1]))
    other = copy.deepcopy(learn)
    assert other.grad_cam.settings["target"] is score and other.grad_cam.settings["items"] == [0, 1]
    assert other.grad_cam.learn is other
    other.fit(1)
    assert learn.grad_cam.run is None and statuses(other.grad_cam.run) == ["ok", "ok"]


def test_the_callback_of_a_fit_stays_at_hand(image_folder, tmp_path):
    learn = learner_of(data(image_folder), net(), tmp_path)
    cb = GradCAMCallback(n=2)
    learn.fit(1, cbs=cb)
    assert learn.grad_cam is cb and cb not in learn.cbs and statuses(learn.grad_cam.run) == ["ok", "ok"]
