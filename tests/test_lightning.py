"""`GradCAMCallback` in a Lightning `Trainer`: which images, when, and what is said of them."""

import pickle
import random
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from loops import VOCAB, Images, heard, quiet
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset
from training import assert_whole, one_thread, places, statuses  # noqa: F401

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder  # noqa: E402

from fastai_gradcam import GradCAMError  # noqa: E402
from fastai_gradcam._watch.choose import label_reader  # noqa: E402
from fastai_gradcam._watch.dataset import private  # noqa: E402
from fastai_gradcam.lightning import GradCAMCallback  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.body(x))

    def parts(self, batch):
        return batch[:2] if isinstance(batch, (list, tuple)) else (batch["pixel_values"], batch["labels"])

    def training_step(self, batch, i):
        x, y = self.parts(batch)
        loss = cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        self.log("late", float(self.current_epoch))

    def validation_step(self, batch, i):
        x, y = self.parts(batch)
        self.log("valid_loss", cross_entropy(self(x), y))

    def test_step(self, batch, i):
        self.validation_step(batch, i)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def fit(tmp_path):
    "`fit(callback, train, valid, *callbacks, module, **settings)`: the run of a training."

    def run(callback, valid=None, *others, train=None, module=None, **settings):
        settings = {"max_epochs": 2, "default_root_dir": tmp_path, **settings}
        valid = Images(2) if valid is None else valid
        with quiet():
            trainer = lightning.Trainer(
                accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
                enable_model_summary=False, callbacks=[callback, *others], **settings,
            )  # fmt: skip
            loader = valid if isinstance(valid, (DataLoader, list)) else DataLoader(valid, 4)
            trainer.fit(module or Module(), DataLoader(train or Images(1), 4), loader)
        run.trainer = trainer
        return callback.run

    return run


@pytest.mark.slow
def test_the_panel_is_of_the_validation_set_spread_over_its_classes(fit, tmp_path):
    run = assert_whole(fit(GradCAMCallback(n=6)).path)
    assert run.path.parent == tmp_path / "gradcam"
    assert [p["label"] for p in run.panel] == ["red", "red", "green", "green", "blue", "blue"]
    indices = [int(p["name"].removeprefix("item ")) for p in run.panel]
    assert [VOCAB[i % 3] for i in indices] == [p["label"] for p in run.panel]
    assert run.vocab == VOCAB
    assert fit(GradCAMCallback(n=6, seed=1)).panel != run.panel == fit(GradCAMCallback(n=6)).panel
    assert fit(GradCAMCallback(n=6)).settings["seed"] == 12345


@pytest.mark.slow
def test_frames_are_of_the_model_at_the_end_of_each_epoch(fit):
    from fastai_gradcam import gradcam

    states = []

    class Keep(lightning.Callback):
        def on_train_start(self, trainer, module):
            states.append({k: v.clone() for k, v in module.state_dict().items()})

        def on_train_epoch_end(self, trainer, module):
            self.on_train_start(trainer, module)

    # Frame 0 is before training: the sanity check of two batches has none.
    run = fit(GradCAMCallback(items=[4, 0], layer="body"), None, Keep(), num_sanity_val_steps=2)
    assert places(run) == [(0, -1), (0, 0), (0, 1)] and statuses(run) == ["ok"] * 3
    module, data = Module(), Images(2)
    for frame, state in enumerate(states):
        module.load_state_dict(state)
        cams = gradcam(module, data.x[[4, 0]], layer="body", target=torch.tensor([1, 0]))
        assert np.array_equal(run.maps(frame)["body"], cams.maps[0].numpy())


@pytest.mark.slow
def test_the_heading_has_this_epochs_metrics_and_no_others(fit):
    run = fit(GradCAMCallback(n=2), check_val_every_n_epoch=2, max_epochs=3, log_every_n_steps=1)
    names = [sorted(f["metrics"]) for f in run.frames]
    # A value that the module logs in its own `on_train_epoch_end` is there; the second epoch alone was validated.
    assert names == [[], ["late", "train_loss"], ["late", "train_loss", "valid_loss"], ["late", "train_loss"]]
    assert [f["metrics"].get("late") for f in run.frames] == [None, 0, 1, 2]


@pytest.mark.slow
def test_the_last_epoch_before_early_stopping_is_seen(fit):
    stop = EarlyStopping("valid_loss", patience=0, min_delta=100)
    run = fit(GradCAMCallback(n=2, every=5), None, stop, max_epochs=20)
    assert fit.trainer.current_epoch == 2
    assert places(run) == [(0, -1), (0, 1)] and "valid_loss" in run.frames[1]["metrics"]


@pytest.mark.slow
def test_only_fits_are_watched_and_each_has_its_number(fit):
    callback, module = GradCAMCallback(n=2), Module()
    run = fit(callback, module=module, max_epochs=1)
    with quiet():
        fit.trainer.validate(module, DataLoader(Images(2), 4), verbose=False)
        fit.trainer.test(module, DataLoader(Images(2), 4), verbose=False)
    assert fit(callback, module=module, max_epochs=1).path == run.path
    assert places(run) == [(0, -1), (0, 0), (1, 0)] and run.status == "finished"
    other = fit(callback, max_epochs=1)
    assert other.path != run.path and places(other) == [(0, -1), (0, 0)]


@pytest.mark.slow
def test_the_search_for_a_learning_rate_is_not_watched(fit):
    class WithRate(Module):
        lr = 0.1

    run = fit(GradCAMCallback(n=2), None, LearningRateFinder(num_training_steps=5), module=WithRate())
    assert places(run) == [(0, -1), (0, 0), (0, 1)]


@pytest.mark.slow
def test_files_and_pixels_of_an_image_folder(fit, image_folder):
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
    steps = [transforms.Resize(16), transforms.ToTensor(), transforms.Normalize(mean, std)]
    data = ImageFolder(image_folder / "valid", transforms.Compose(steps))
    run = fit(GradCAMCallback(n=3), Subset(data, [5, 4, 3, 2, 1, 0]))
    assert [p["name"].split("/")[0] for p in run.panel] == [p["label"] for p in run.panel] == ["blue", "green", "red"]
    file = image_folder / "valid" / run.panel[0]["name"]
    expected = transforms.Compose(steps[:2])(Image.open(file).convert("RGB"))
    # As a JPEG of this quality keeps it.
    assert np.abs(np.asarray(run.image(0), float) - expected.permute(1, 2, 0).numpy() * 255).mean() < 12
    given = fit(GradCAMCallback(n=3, mean=[0, 0, 0], std=[1, 1, 1]), data)
    assert np.abs(np.asarray(given.image(0), float) - np.asarray(run.image(0), float)).mean() > 20


class Rows(Dataset):
    "Samples of a form of one's own."

    def __init__(self, form):
        self.form, self.data = form, Images(2)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return self.form(*self.data[i], i)


FORMS = {
    "with an index": lambda x, y, i: (x, y, i),
    "with a name": lambda x, y, i: (x, y, f"{i}.png"),
    "a dict": lambda x, y, i: {"pixel_values": x, "labels": y, "index": i},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_are_found_in_a_batch(form, fit):
    run = fit(GradCAMCallback(n=3, vocab=VOCAB), Rows(FORMS[form]), train=Rows(FORMS[form]))
    for panel in run.panel:
        assert panel["label"] == VOCAB[int(panel["name"].removeprefix("item ")) % 3]
    assert statuses(run) == ["ok"] * 3 and len(run.panel) == 3


@pytest.mark.slow
def test_a_batch_of_ones_own_form_is_taken_apart_by_inputs(fit):
    odd = Rows(lambda x, y, i: {"left": x, "right": x * 0, "answer": y})

    class Odd(Module):
        def parts(self, batch):
            return batch["left"], batch["answer"]

    with pytest.raises(GradCAMError, match="target='true'"):
        fit(GradCAMCallback(n=2), odd, train=odd, module=Odd())
    callback = GradCAMCallback(items=[1, 2], vocab=VOCAB, inputs=lambda batch: (batch["left"], batch["answer"]))
    run = fit(callback, odd, train=odd, module=Odd())
    assert [p["label"] for p in run.panel] == ["green", "blue"] and statuses(run) == ["ok"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["module", "data module"])
def test_a_batch_is_prepared_as_in_validation(whose, fit, tmp_path):
    class Prepares:
        calls = 0

        def on_after_batch_transfer(self, batch, index):
            self.calls += 1
            # As augmentation on the device is written: in training only. Normalised in both.
            return [batch[0] / 2 + 100 * self.trainer.training, batch[1]]

    class Prepared(Prepares, Module):
        pass

    class Data(Prepares, lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Images(1), 4)

        def val_dataloader(self):
            return DataLoader(Images(2), 4)

    def train(*callbacks):
        module, data = (Prepared(), None) if whose == "module" else (Module(), Data())
        with quiet():
            trainer = lightning.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
                enable_model_summary=False, default_root_dir=tmp_path, callbacks=list(callbacks),
            )  # fmt: skip
            loaders = (DataLoader(Images(1), 4), DataLoader(Images(2), 4)) if data is None else ()
            trainer.fit(module, *loaders, datamodule=data)
        return (data or module).calls, module

    watch = GradCAMCallback(items=[0, 1])
    (alone, _), (calls, module) = train(), train(watch)
    assert calls == alone
    with torch.no_grad():
        expected = module.eval()(torch.stack([Images(2)[i][0] for i in (0, 1)]) / 2).softmax(1)
    rows = watch.run.history.query("frame == 1")
    assert np.allclose(rows.prob, expected[range(2), [Images(2)[i][1] for i in (0, 1)]], atol=1e-5)


@pytest.mark.slow
def test_several_loaders_and_a_data_module(fit, tmp_path):
    loaders = [DataLoader(Images(2), 4), DataLoader(Images(3), 4)]

    class Two(Module):
        def validation_step(self, batch, i, dataloader_idx=0):
            super().validation_step(batch, i)

    assert statuses(fit(GradCAMCallback(n=2), loaders, module=Two())) == ["ok"] * 3

    class Data(lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Images(1), 4)

        def val_dataloader(self):
            torch.rand(1)
            return DataLoader(Images(2), 4)

    # The trainer opens the validation loader in the second epoch; it has the same random numbers all the same.
    def weights(*callbacks):
        module = Module()
        with quiet():
            trainer = lightning.Trainer(
                max_epochs=3, check_val_every_n_epoch=2, num_sanity_val_steps=0, accelerator="cpu", logger=False,
                enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
                default_root_dir=tmp_path, callbacks=list(callbacks),
            )  # fmt: skip
            torch.manual_seed(0)
            trainer.fit(module, datamodule=Data())
        return torch.get_rng_state(), module.head[2].weight

    watch = GradCAMCallback(n=2)
    assert all(map(torch.equal, weights(), weights(watch)))
    assert statuses(watch.run) == ["ok"] * 4


@pytest.mark.slow
def test_without_a_validation_set_samples_are_given(tmp_path):
    def trained(callback):
        with quiet():
            trainer = lightning.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
                enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback],
            )  # fmt: skip
            trainer.fit(Module(), DataLoader(Images(1), 4))
        return callback.run

    with pytest.raises(GradCAMError, match="no validation set"):
        trained(GradCAMCallback())
    data = Images(1)
    run = trained(GradCAMCallback(items=[data[1], data[2]], vocab=VOCAB))
    assert [p["label"] for p in run.panel] == ["green", "blue"] and statuses(run) == ["ok"] * 2


class Stream(IterableDataset):
    def __len__(self):
        return 12

    def __iter__(self):
        data = Images(2)
        return (data[i] for i in range(12))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n": 0}, "n must be"),
        ({"every": 0}, "every"),
        ({"method": "gradcamm"}, "method"),
        ({"on_error": "ignore"}, "on_error"),
        ({"resume": True}, "name="),
        ({"masks": [None]}, "masks"),
        ({"loggers": ["wandb"]}, "loggers"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_at_once(settings, words):
    with pytest.raises((ValueError, TypeError), match=words):
        GradCAMCallback(**settings)


@pytest.mark.parametrize(
    ("settings", "valid", "words"),
    [
        ({"items": [12]}, None, "index 12"),
        ({"items": []}, None, "items="),
        ({"layer": "tail"}, None, "tail"),
        ({"target": "purple"}, None, "purple"),
        ({"vocab": ["red"], "target": "blue"}, None, "blue"),
        ({}, Stream(), "stream"),
        ({"n": 2}, Rows(lambda x, y, i: {"words": str(i)}), "inputs="),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_the_first_batch(settings, valid, words, fit, tmp_path):
    with pytest.raises((ValueError, TypeError), match=words):
        fit(GradCAMCallback(**settings), valid, num_sanity_val_steps=0)
    assert not (tmp_path / "gradcam").exists() or not list((tmp_path / "gradcam").iterdir())


@pytest.mark.slow
def test_a_panel_larger_than_the_set_takes_all_of_it_with_a_warning(fit):
    run, said = heard(lambda: fit(GradCAMCallback(n=13), max_epochs=1))
    assert len(run.panel) == 12
    assert said == ["The panel takes all 12 images of the validation set, not n=13."]


def test_a_set_that_cannot_be_copied_whole_is_read_by_a_copy_of_the_rest():
    class Streamed(Dataset):
        def __init__(self):
            self.rows, self.reads = (i for i in range(3)), [0]

        def __len__(self):
            return 2

        def __getitem__(self, i):
            self.reads[0] += 1
            return self.reads[0]

    one = Streamed()
    own = private(one)
    assert own[0] == 1 and one.reads == [0] and own.rows is one.rows
    assert private(ConcatDataset([one]))[1] == 1 and one.reads == [0]


RNG, SEEN = random.Random(0), []


class Careless(Images):
    "Keeps what it has read on its class and in globals, and gives what depends on it."

    reads_of_all = 0

    def __init__(self):
        super().__init__(2)
        around = random.Random(0)
        self.transform = lambda x: x * (around.random() + RNG.random())

    def __getitem__(self, i):
        Careless.reads_of_all += 1
        SEEN.append(i)
        x, y = super().__getitem__(i)
        return self.transform(x), y


def test_what_a_data_set_keeps_on_its_class_and_in_globals_is_as_if_nobody_had_looked(fit):
    class Nothing(lightning.Callback):
        run = None

    left = []
    for callback in (Nothing(), GradCAMCallback(n=3)):
        RNG.seed(0)
        SEEN.clear()
        Careless.reads_of_all = 0
        fit(callback, Careless(), max_epochs=1)
        left.append((RNG.getstate(), list(SEEN), Careless.reads_of_all))
    assert left[0] == left[1] and left[0][2] > 0
    assert statuses(callback.run) == ["ok", "ok"]


def test_labels_of_a_set_with_a_transform_are_read_without_it():
    class Shown:
        column_names: ClassVar = ["image", "label"]

        def __init__(self, plain):
            self.plain = plain

        def with_format(self, kind):
            return Shown(True)

        def __len__(self):
            return 3

        def __getitem__(self, name):
            if not self.plain:
                raise KeyError("image")
            return [2, 0, 1]

    assert [label_reader(Shown(False))(i) for i in range(3)] == ["2", "0", "1"]


@pytest.mark.slow
def test_a_run_is_resumed_by_its_name(fit):
    for resume in (False, True):
        run = fit(GradCAMCallback(n=2, name="night", resume=resume), max_epochs=1)
    assert places(run) == [(0, -1), (0, 0), (1, 0)]
    with pytest.raises(GradCAMError, match="There is a run 'night'"):
        fit(GradCAMCallback(n=2, name="night"))


@pytest.mark.slow
def test_masks_of_the_images_given(fit):
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    run = fit(GradCAMCallback(items=[0, 1], masks=[mask, None]))
    share = run.history.set_index(["frame", "item"]).mask_share
    assert share[2, 0] > 0 and np.isnan(share[2, 1])


@pytest.mark.slow
def test_a_callback_goes_to_other_processes_without_its_run(fit):
    callback = GradCAMCallback(n=2, layer="body")
    fit(callback, max_epochs=1)
    copy = pickle.loads(pickle.dumps(callback))
    assert copy.run is None and callback.run is not None
    assert fit(copy, max_epochs=1).layers == ["body"]


@pytest.mark.slow
def test_the_loss_of_each_image_by_a_function_of_ones_own(fit):
    run = fit(GradCAMCallback(n=2, loss_func=cross_entropy), max_epochs=1)
    assert np.allclose(run.history.loss, -np.log(run.history.prob), atol=1e-5)


def test_a_module_that_cannot_be_copied_is_not_watched_and_trains(fit):
    class Streaming(Module):
        def __init__(self):
            super().__init__()
            self.stream = (i for i in range(3))

    class Preparing(Streaming):
        def on_after_batch_transfer(self, batch, index):
            return batch

    for module in (Streaming(), Preparing()):
        run, said = heard(lambda module=module: fit(GradCAMCallback(n=2), module=module))
        assert run is None and fit.trainer.current_epoch == 2
        assert len(said) == 1 and "this training is not watched" in said[0] and "'stream'" in said[0]
    with pytest.raises(GradCAMError, match="stream"):
        fit(GradCAMCallback(n=2, on_error="raise"), module=Streaming())


@pytest.mark.slow
def test_no_warning_of_ours_in_a_plain_training(fit):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="GradCAMCallback|The panel")
        fit(GradCAMCallback(n=2))
