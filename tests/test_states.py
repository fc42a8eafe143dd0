"""Whatever a network, a loss, a transform or a data set keeps, it keeps as if nobody had watched."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from blocks import body, data, head, learner_of
from fastai.vision.all import Callback, ItemTransform, PILImage, Transform, set_seed
from torch import nn
from training import differences, left_by, one_thread  # noqa: F401

from fastai_gradcam import GradCAMCallback

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


class Noise(nn.Module):
    "Adds what `draw()` gives to its input, in evaluation as well."

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + 0.1 * self.draw(x)


class TorchNoise(Noise):
    def __init__(self):
        super().__init__(lambda x: torch.randn(x.shape, generator=self.rng))
        self.rng = torch.Generator().manual_seed(0)


class Draws(nn.Module):
    "Noise from a generator of `kind`, kept in `place`."

    def __init__(self, make, draw, place=lambda rng: rng):
        super().__init__()
        self.kept, self.draw = place(make()), draw

    def forward(self, x):
        return x + 0.1 * float(self.draw(self.kept))


class Keeps(nn.Module):
    "Adds the mean of what it has seen, kept in `memory`; `note(memory, value)` keeps."

    def __init__(self, memory, note, mean):
        super().__init__()
        self.memory, self.note, self.mean = memory, note, mean

    def forward(self, x):
        self.note(self.memory, float(x.detach().mean()))
        return x + 0.05 * float(self.mean(self.memory))


class Counter(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.seen = torch.zeros(3)

    def forward(self, x):
        self.calls += 1
        self.seen[self.calls % 3] = float(x.detach().mean())
        return x * (1 + 0.01 * self.calls) + self.seen.mean()


class Clamped(nn.Module):
    "Writes into its own parameter."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 1.5))

    def forward(self, x):
        self.scale.data.mul_(0.999)
        return x * self.scale


def closed():
    seen = []

    def remember(x):
        seen.append(float(x.detach().mean()))
        return sum(seen[-3:])

    return Noise(remember)


def append(memory, value):
    memory.append(value)


# Each training begins with these anew.
SHARED = {}


def on_its_class():
    class Counts(nn.Module):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return x * (1 + 0.01 * self.calls)

    return Counts()


class InAGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        SHARED["seen"] = deque(maxlen=3)

    def forward(self, x):
        SHARED["seen"].append(float(x.detach().mean()))
        return x + 0.05 * float(np.mean(SHARED["seen"]))


LAYERS = {
    "a number on its class": on_its_class,
    "a deque in a global": InAGlobal,
    "a generator of torch's": lambda: Draws(
        lambda: torch.Generator().manual_seed(0), lambda g: torch.randn((), generator=g)
    ),
    "a generator of numpy's": lambda: Draws(lambda: np.random.default_rng(0), lambda g: g.normal()),
    "a generator of python's": lambda: Draws(lambda: random.Random(0), lambda g: g.gauss(0, 1)),
    "a generator in a dict in a list": lambda: Draws(
        lambda: random.Random(0), lambda k: k[0]["rng"].gauss(0, 1), lambda g: [{"rng": g}]
    ),
    "a list": lambda: Keeps([], append, lambda m: np.mean(m[-3:])),
    "a deque": lambda: Keeps(deque(maxlen=3), append, np.mean),
    "a dict": lambda: Keeps({}, lambda m, v: m.update({len(m): v}), lambda m: np.mean(list(m.values())[-3:])),
    "a counter and a tensor that is written into": Counter,
    "a variable of the function around it": closed,
    "its own parameter": Clamped,
}


class LossWithMemory:
    def __init__(self):
        self.seen = []

    def __call__(self, pred, y):
        loss = nn.functional.cross_entropy(pred, y)
        self.seen.append(float(loss.detach()))
        return loss * float(np.mean(self.seen[-4:]))


def closed_loss():
    count = 0

    def loss(pred, y):
        nonlocal count
        count += 1
        return nn.functional.cross_entropy(pred, y) * (1 + 0.1 * (count % 5))

    return loss


class Shifts(ItemTransform):
    "Shifts images by what a generator of its own draws, of all sets."

    def __init__(self):
        self.rng, self.count = random.Random(0), 0

    def encodes(self, pair):
        self.count += 1
        shift = (1, 0, self.rng.randint(-6, 6), 0, 1, self.count % 3)
        return (PILImage.create(pair[0].transform(pair[0].size, 0, shift)), *pair[1:])


class Fades(Transform):
    order = 100

    def __init__(self):
        self.rng, self.seen = np.random.default_rng(0), []

    def encodes(self, x: torch.Tensor):
        if not x.is_floating_point():
            return x
        self.seen.append(float(x.mean()))
        return x * float(self.rng.uniform(0.5, 1)) + float(np.mean(self.seen[-3:]))


def fades_by_its_class():
    class FadesByItsClass(Transform):
        order, calls = 100, 0

        def encodes(self, x: torch.Tensor):
            if not x.is_floating_point():
                return x
            FadesByItsClass.calls += 1
            return x * (1 + 0.01 * (FadesByItsClass.calls % 7))

    return FadesByItsClass()


class ShiftsByAGlobal(ItemTransform):
    def __init__(self):
        SHARED["rng"] = np.random.default_rng(0)

    def encodes(self, pair):
        shift = (1, 0, int(SHARED["rng"].integers(-6, 6)), 0, 1, 0)
        return (PILImage.create(pair[0].transform(pair[0].size, 0, shift)), *pair[1:])


class Scales(Callback):
    "Prepares the input by a state of its own."

    order = 5

    def __init__(self):
        self.rng, self.count = random.Random(0), [0]

    def before_batch(self):
        self.count[0] += 1
        self.learn.xb = tuple(x * (self.rng.random() + 0.01 * self.count[0]) for x in self.xb)


def fades_by_a_closure():
    rng = random.Random(0)

    class FadesByAClosure(Transform):
        order = 100

        def encodes(self, x: torch.Tensor):
            return x * rng.uniform(0.5, 1) if x.is_floating_point() else x

    return FadesByAClosure()


def plain_loss():
    return nn.CrossEntropyLoss()


def trained(folder, path, layer=nn.Identity, loss=plain_loss, cbs=(), items=(), batches=(), watching=()):
    from fastai.vision.all import Resize

    set_seed(3)
    dls = data(folder, item_tfms=[Resize(32), *(t() for t in items)], batch_tfms=[t() for t in batches])
    model = nn.Sequential(nn.Sequential(*body(), layer()), head())
    learn = learner_of(dls, model, path, loss(), [cb() for cb in cbs])
    set_seed(4)
    learn.add_cbs(watching)
    learn.fit(2, 1e-2)
    return learn


KINDS = {
    **{f"a layer that keeps {name}": {"layer": layer} for name, layer in LAYERS.items()},
    "a loss that keeps a list": {"loss": LossWithMemory},
    "a loss that keeps a variable around it": {"loss": closed_loss},
    "an item transform": {"items": [Shifts]},
    "a batch transform": {"batches": [Fades]},
    "a batch transform that keeps a number on its class": {"batches": [fades_by_its_class]},
    "a batch transform with a generator around it": {"batches": [fades_by_a_closure]},
    "an item transform with a generator in a global": {"items": [ShiftsByAGlobal]},
    "a callback that prepares the input": {"cbs": [Scales]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_bit_for_bit(kind, image_folder, tmp_path):
    plain = left_by(trained(image_folder, tmp_path / "a", **KINDS[kind]))
    again = left_by(trained(image_folder, tmp_path / "b", **KINDS[kind]))
    assert differences(plain, again) == [], "the training itself does not repeat"
    learn = trained(image_folder, tmp_path / "c", **KINDS[kind], watching=[GradCAMCallback(n=4, show=False)])
    assert [f["status"] for f in learn.grad_cam.run.frames] == ["ok"] * 3
    assert differences(plain, left_by(learn)) == []


def test_a_frame_leaves_states_of_every_kind_as_they_were(image_folder, tmp_path):
    "As above, seen at the states themselves: what only a later batch would show is found, too."
    learn = trained(image_folder, tmp_path, loss=LossWithMemory, cbs=[Scales], batches=[Fades])
    kept = (
        len(learn.loss_func.seen),
        learn.scales.count[0],
        learn.scales.rng.getstate(),
        len(learn.dls.valid.after_batch.fs[-1].seen),
    )
    learn.gradcam(learn.dls.valid_ds.items[0])
    learn.show_gradcam(max_n=2)
    assert kept == (
        len(learn.loss_func.seen),
        learn.scales.count[0],
        learn.scales.rng.getstate(),
        len(learn.dls.valid.after_batch.fs[-1].seen),
    )


class Uncopyable(nn.Module):
    "Holds what nobody can copy."

    def __init__(self, file):
        super().__init__()
        self.file = open(file, "w")

    def forward(self, x):
        return x


def test_a_network_that_cannot_be_copied_is_not_watched_and_trains(image_folder, tmp_path):
    with pytest.warns(UserWarning, match="GradCAMCallback: this training is not watched.*'file' of module"):
        learn = trained(
            image_folder,
            tmp_path,
            lambda: Uncopyable(tmp_path / "log.txt"),
            watching=[GradCAMCallback(n=2)],
        )
    assert len(learn.recorder.values) == 2 and learn.grad_cam.run is None
    assert not (tmp_path / "gradcam").exists()
