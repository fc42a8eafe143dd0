"""Watching changes not one bit: trainings with and without the callback, compared weight by weight."""

import warnings

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.vision.all import (
    BnFreeze,
    CrossEntropyLossFlat,
    CSVLogger,
    CutMix,
    EarlyStoppingCallback,
    FlipItem,
    GradientAccumulation,
    GradientClip,
    LabelSmoothingCrossEntropy,
    MixUp,
    RandomErasing,
    RandomResizedCrop,
    SaveModelCallback,
    aug_transforms,
    resnet34,
)
from torch import nn
from training import Quiet, differences, left_by, one_thread, random_states, state_around, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback
from fastai_gradcam._net.guard import undisturbed


class CpuAutocast(Callback):
    "As `to_bf16` does on a GPU."

    def before_batch(self):
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        self.autocast.__enter__()

    def after_pred(self):
        self.learn.pred = self.pred.float()

    def after_loss(self):
        self.autocast.__exit__(None, None, None)


class StatefulLoss(nn.Module):
    "Weighs the loss by a running mean of what it has seen."

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(()))

    def forward(self, pred, target):
        loss = nn.functional.cross_entropy(pred, target)
        self.seen.mul_(0.9).add_(0.1 * loss.detach())
        return loss * self.seen


def fit(learn):
    learn.fit(2, 1e-2)


def one_cycle(learn):
    learn.fit_one_cycle(2, 1e-2)


def fine_tune(learn):
    learn.fine_tune(1, 1e-2)


def frozen(learn):
    learn.freeze()
    learn.fit_one_cycle(2, 1e-2)


def partly_frozen(learn):
    learn.freeze_to(1)
    learn.fit(1, 1e-2)
    learn.unfreeze()
    learn.fit(1, 1e-3)


def validate_and_predict(learn):
    learn.fit(1, 1e-2)
    learn.validate()
    learn.get_preds()
    learn.fit(1, 1e-2)


augment_items = [RandomResizedCrop(32, min_scale=0.3), FlipItem()]
augment_batches = [*aug_transforms(size=32, max_rotate=30), RandomErasing(p=0.5)]

# name: (what to call, what the learner is made with). Each way of training and each callback is there once, and each
# meets others: of 30 single variations these are a set that covers all their pairs with a callback.
TRAININGS = {
    "fit": (fit, {}),
    "fine_tune": (fine_tune, {}),
    "frozen without train_bn, BnFreeze": (frozen, {"train_bn": False, "cbs": BnFreeze}),
    "unfrozen without train_bn, channels last": (
        one_cycle,
        {"train_bn": False, "change": lambda learn: learn.model.to(memory_format=torch.channels_last)},
    ),
    "frozen and unfrozen, without concat pooling": (partly_frozen, {"concat_pool": False}),
    "MixUp in fine_tune, augmented items": (fine_tune, {"cbs": MixUp, "item_tfms": augment_items}),
    "CutMix, a deeper head": (one_cycle, {"cbs": CutMix, "lin_ftrs": [16, 8], "ps": 0.7}),
    "label smoothing and MixUp": (one_cycle, {"loss_func": LabelSmoothingCrossEntropy, "cbs": MixUp}),
    "a loss with a state": (fit, {"loss_func": StatefulLoss}),
    "accumulation over the end of an epoch, clipping": (
        one_cycle,
        {"cbs": lambda: [GradientAccumulation(20), GradientClip(0.1)]},
    ),
    "two workers, all augmented": (
        fine_tune,
        {"num_workers": 2, "item_tfms": augment_items, "batch_tfms": augment_batches},
    ),
    "to_fp16, saving and stopping": (
        one_cycle,
        {
            "change": lambda learn: learn.to_fp16(),
            "cbs": lambda: [SaveModelCallback(), EarlyStoppingCallback(patience=0), CSVLogger()],
        },
    ),
    "bf16 on the CPU": (fit, {"cbs": CpuAutocast}),
    "validation in between, to_bf16": (validate_and_predict, {"change": lambda learn: learn.to_bf16()}),
}

WATCHING = {
    "one image": {"n": 1},
    "every second epoch": {"every": 2},
    "the first block": {"layer": 0},
    "three layers": {"layer": [0, 1, 2]},
    "all layers": {"layer": "all"},
    "the predicted class": {"target": "pred"},
    "one class": {"target": "green"},
    "two classes per image": {"target": ["red", "blue"]},
    "three layers, two classes": {"layer": [0, 1, 2], "target": [0, 2], "n": 4},
    "a score of one's own": {"target": lambda output: output.logsumexp(1)},
    "images of one's own": {"items": [0, 3, 5]},
    "with masks": {"masks": lambda item: (10, 10, 40, 40)},
    # Which method explains is nothing to the guard: one with gradients, and one that runs the network many times.
    "method eigengradcam": {"method": "eigengradcam"},
    "method ablationcam": {"method": "ablationcam"},
}


@pytest.fixture(scope="module")
def left_without(image_folder, tmp_path_factory):
    "`left_without(name)`: what the training `name` leaves behind without the callback; trained once."
    known = {}

    def left(name):
        if name not in known:
            path = tmp_path_factory.mktemp("without")
            known[name] = left_by(trained(image_folder, path, name))
        return known[name]

    return left


def trained(folder, path, name, *watching):
    run, settings = TRAININGS[name]
    settings = dict(settings)
    cbs, loss, change = (settings.pop(k, None) for k in ("cbs", "loss_func", "change"))
    with Quiet():
        learn = tiny_learner(folder, path, loss_func=loss() if loss else None, cbs=cbs() if cbs else None, **settings)
        if change:
            change(learn)
        learn.add_cbs(watching)
        run(learn)
    return learn


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_the_training_is_the_same_to_the_last_bit(name, image_folder, tmp_path, left_without):
    learn = trained(image_folder, tmp_path, name, GradCAMCallback(n=3))
    assert [f["status"] for f in learn.grad_cam.run.frames if f["status"] != "ok"] == []
    assert len(learn.grad_cam.run.frames) > 1
    assert differences(left_without(name), left_by(learn)) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", WATCHING)
def test_it_is_the_same_however_it_is_watched(how, image_folder, tmp_path, left_without):
    learn = trained(image_folder, tmp_path, "fine_tune", GradCAMCallback(**{"n": 3, **WATCHING[how]}))
    assert [f["status"] for f in learn.grad_cam.run.frames] == ["ok"] * 3
    assert differences(left_without("fine_tune"), left_by(learn)) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["three layers, two classes", "method eigengradcam"])
@pytest.mark.parametrize("name", ["two workers, all augmented", "label smoothing and MixUp", "bf16 on the CPU"])
def test_it_is_the_same_where_settings_meet(how, name, image_folder, tmp_path, left_without):
    learn = trained(image_folder, tmp_path, name, GradCAMCallback(**WATCHING[how]))
    assert {f["status"] for f in learn.grad_cam.run.frames} == {"ok"}
    assert differences(left_without(name), left_by(learn)) == []


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before the others", "after the others"])
def test_it_is_the_same_with_a_whole_fit_under_autocast(where, image_folder, tmp_path):
    def left(path, *cbs):
        learn = tiny_learner(image_folder, path, cbs=cbs)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=where == "after the others"):
            learn.fit(2, 1e-2)
        return left_by(learn)

    assert differences(left(tmp_path / "a"), left(tmp_path / "b", GradCAMCallback(n=2))) == []


@pytest.mark.slow
def test_two_callbacks_on_one_learner_change_nothing_either(image_folder, tmp_path, left_without):
    one, other = GradCAMCallback(n=2, layer=0), GradCAMCallback(n=2, method="layercam")
    learn = trained(image_folder, tmp_path, "fit", one, other)
    assert one.run.path != other.run.path
    assert [len(cb.run.frames) for cb in (one, other)] == [3, 3]
    assert differences(left_without("fit"), left_by(learn)) == []


class Careless(Callback):
    "A first try at watching, which is careless."

    order = GradCAMCallback.order

    def __init__(self, step):
        self.step = step

    def after_epoch(self):
        self.step(self.learn)


def draws_a_batch(learn):
    learn.dls.valid.one_batch()


def runs_backward(learn):
    x = torch.ones(2, 3, 32, 32)
    with torch.enable_grad():
        learn.model(x)[:, 0].sum().backward()


def looks_in_train_mode(learn):
    learn.model.train()
    with torch.no_grad():
        learn.model(torch.ones(2, 3, 32, 32))


def does_both(learn):
    draws_a_batch(learn)
    runs_backward(learn)


@pytest.mark.slow
@pytest.mark.parametrize("step", [draws_a_batch, runs_backward, looks_in_train_mode, does_both])
def test_a_careless_callback_is_found_out(step, image_folder, tmp_path, left_without):
    learn = trained(image_folder, tmp_path, "fit", Careless(step))
    found = differences(left_without("fit"), left_by(learn))
    assert any(name.startswith("weight") for name in found)
    assert any(name.startswith("values") for name in found)


@pytest.mark.slow
def test_resnet34_on_clothing_photos_is_the_same_to_the_last_bit(shared_data, tmp_path):
    from fastai.vision.all import GrandparentSplitter, Resize, get_image_files

    photos = [f for k, f in enumerate(get_image_files(shared_data / "clothing")) if k % 12 == 0]
    folder = tmp_path / "photos"
    for photo in photos:
        link = folder / photo.relative_to(shared_data / "clothing")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photo)
    # A class may be missing in one of the halves of so small a sample.
    assert GrandparentSplitter()(get_image_files(folder))[1]

    def left(*cbs):
        path = tmp_path / f"with {len(cbs)}"
        learn = tiny_learner(
            folder,
            path,
            arch=resnet34,
            item_tfms=Resize(80),
            batch_tfms=aug_transforms(size=64),
            bs=16,
            loss_func=CrossEntropyLossFlat(),
            cbs=cbs,
        )
        learn.fine_tune(1, 3e-3)
        return left_by(learn), learn

    plain, _ = left()
    watched, learn = left(GradCAMCallback())
    assert [f["status"] for f in learn.grad_cam.run.frames] == ["ok"] * 3
    assert differences(plain, watched) == []


# --- after each frame, everything is as it was -----------------------------------------------------------------


class Before(Callback):
    order = GradCAMCallback.order - 0.5

    def __init__(self):
        self.states = []

    def look(self):
        self.states.append(state_around(self.learn.model))

    before_train = after_epoch = look


class After(Before):
    order = GradCAMCallback.order + 0.5


class Hostile(nn.Module):
    """A layer that, once `armed`, leaves nothing of its network as it found it, and may raise.

    `network`: a list with the network that the layer is part of.
    """

    def __init__(self, network, raising):
        super().__init__()
        self.network, self.raising, self.armed, self.notes = [network], raising, False, {}

    def forward(self, x):
        if self.armed and not self.training:
            self.do(self.network[0])
            if self.raising:
                raise RuntimeError("after all this")
        return x

    def do(self, model):
        for p in model.parameters():
            p.requires_grad = not p.requires_grad
            p.grad = torch.ones_like(p)
        for m in model.modules():
            m.training = True
        for m in model.modules():
            for name, b in m._buffers.items():
                m._buffers[name] = b + 1
                b.add_(1)
        self.notes["looks"] = self.notes.get("looks", 0) + 1
        random_numbers()
        torch.set_grad_enabled(not torch.is_grad_enabled())
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cpu", torch.float16)
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic


class Arm(Callback):
    "Arms the layer for the frames after training, and not for its own batches."

    def __init__(self, layer, epochs):
        self.layer, self.epochs = layer, epochs

    def before_batch(self):
        self.layer.armed = False

    def after_validate(self):
        self.layer.armed = self.learn.epoch in self.epochs


def random_numbers():
    import random

    return random.random(), np.random.rand(), torch.rand(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "raising", "failed"), [((), False, 0), ((0, 1, 2), False, 0), ((0, 1, 2), True, 3), ((1,), True, 1)]
)
def test_each_frame_leaves_everything_as_it_was(epochs, raising, failed, image_folder, tmp_path):
    before, after = Before(), After()
    learn = tiny_learner(image_folder, tmp_path, train_bn=False, cbs=[before, after])
    layer = Hostile(learn.model, raising)
    learn.model[0][0].append(layer)
    learn.add_cbs([Arm(layer, epochs), GradCAMCallback(layer=[0, 2], n=3)])
    learn.freeze()
    cudnn = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learn.fit(3)
    finally:
        torch.backends.cudnn.benchmark = cudnn
    assert [f["status"] for f in learn.grad_cam.run.frames].count("failed") == failed
    assert layer.notes == {}
    assert len(before.states) == len(after.states) == 6
    for one, other in zip(before.states, after.states, strict=True):
        assert differences(one, other) == []


@pytest.mark.slow
def test_the_gradients_of_a_step_that_is_not_complete_survive_a_frame(image_folder, tmp_path):
    before, after = Before(), After()
    cbs = [GradientAccumulation(20), GradCAMCallback(n=2), before, after]
    learn = tiny_learner(image_folder, tmp_path, cbs=cbs)
    learn.fit(1)
    grads = {k: v for k, v in before.states[-1].items() if k.startswith("grad ") and isinstance(v, torch.Tensor)}
    assert any(g.abs().sum() > 0 for g in grads.values())
    assert differences(before.states[-1], after.states[-1]) == []


def test_the_guard_restores_after_a_keyboard_interrupt(tiny_net):
    before = state_around(tiny_net)
    with pytest.raises(KeyboardInterrupt), undisturbed():
        torch.set_grad_enabled(False)
        random_numbers()
        raise KeyboardInterrupt
    assert differences(before, state_around(tiny_net)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_each_cuda_device_keeps_its_random_numbers(tiny_net):
    tiny_net.cuda()
    before = random_states()
    with undisturbed():
        for device in range(torch.cuda.device_count()):
            torch.rand(5, device=f"cuda:{device}")
    assert differences(before, random_states()) == []
