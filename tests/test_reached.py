"""State that no copy of a network has of its own, on classes and in globals: put back, or the training not watched."""

import collections
import itertools
import pathlib
import random
import types

import numpy as np
import pytest
import torch
from torch import nn

from fastai_gradcam import GradCAMError, Watch
from fastai_gradcam._net.reached import Reached

SEEN, TALLY, RNG, ARRAY = [], {"calls": 0}, random.Random(0), np.zeros(2)
NUMPY, TORCH, NESTED = np.random.default_rng(0), torch.Generator().manual_seed(0), {"a": [collections.deque([1])]}
BUFFER, SPACE, COUNT = torch.zeros(2), types.SimpleNamespace(calls=0), 0
COUNTER = itertools.count(1)
helper = types.ModuleType("helper")
helper.calls = 0


class Keeps(nn.Module):
    def forward(self, x):
        return x + 0.01 * float(self.number())


class OnTheClass(Keeps):
    calls = 0

    def number(self):
        type(self).calls += 1
        return self.calls


class OnABaseClass(OnTheClass):
    def number(self):
        OnTheClass.calls += 1
        return self.calls


class DequeOnTheClass(Keeps):
    seen = collections.deque(maxlen=3)  # noqa: RUF012

    def number(self):
        self.seen.append(len(self.seen) + sum(self.seen))
        return sum(self.seen)


class TensorOnTheClass(Keeps):
    total = torch.zeros(1)

    def number(self):
        return self.total.add_(1)


class NewAttributeOfTheClass(Keeps):
    def number(self):
        kind = type(self)
        kind.calls = getattr(kind, "calls", 0) + 1
        return kind.calls


class ByAClassMethod(Keeps):
    calls = 0

    @classmethod
    def number(cls):
        cls.calls += 1
        return cls.calls


class GlobalList(Keeps):
    def number(self):
        SEEN.append(1)
        return len(SEEN)


class GlobalDict(Keeps):
    def number(self):
        TALLY["calls"] += 1
        return TALLY["calls"]


class GlobalNumber(Keeps):
    def number(self):
        global COUNT
        COUNT += 1
        return COUNT


class GlobalArray(Keeps):
    def number(self):
        ARRAY[0] += 1
        return ARRAY[0]


class GlobalTensor(Keeps):
    def number(self):
        BUFFER.add_(1)
        return BUFFER[0]


class GlobalRandom(Keeps):
    def number(self):
        return RNG.random()


class GlobalNumpy(Keeps):
    def number(self):
        return NUMPY.random()


class GlobalTorch(Keeps):
    def number(self):
        return torch.rand((), generator=TORCH)


class GlobalNested(Keeps):
    def number(self):
        NESTED["a"][0].append(2)
        return len(NESTED["a"][0])


class GlobalCounter(Keeps):
    def number(self):
        return next(COUNTER)


class GlobalNamespace(Keeps):
    def number(self):
        SPACE.calls += 1
        return SPACE.calls


class OfAnotherModule(Keeps):
    def number(self):
        helper.calls += 1
        return helper.calls


def _noted():
    _noted.calls += 1
    return _noted.calls


_noted.calls = 0


class OfAFunction(Keeps):
    def number(self):
        return _noted()


def _around():
    calls = [0]

    def count():
        nonlocal calls
        calls = [calls[0] + 1]
        return calls[0]

    return count


_closed = _around()


class AroundAGlobalFunction(Keeps):
    def number(self):
        return _closed()


class _Shared:
    calls = 0

    def __deepcopy__(self, memo):
        return self


class AnObjectThatRefusesCopies(Keeps):
    def __init__(self):
        super().__init__()
        self.shared = _Shared()

    def number(self):
        self.shared.calls += 1
        return self.shared.calls


class SlotsInAGlobal:
    __slots__ = ("calls",)


_slots = SlotsInAGlobal()
_slots.calls = 0


class GlobalSlots(Keeps):
    def number(self):
        _slots.calls += 1
        return _slots.calls


KEEPERS = [c for c in list(globals().values()) if isinstance(c, type) and issubclass(c, Keeps) and c is not Keeps]


class Net(nn.Module):
    def __init__(self, keeper):
        super().__init__()
        self.body, self.keeper = nn.Conv2d(3, 4, 3), keeper
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        return self.head(self.keeper(self.body(x)))


def _trained(keeper, tmp_path, watched, loss_func=nn.functional.cross_entropy):
    "The outputs of a short training."
    torch.manual_seed(0)
    net, x, y = Net(keeper()), torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    opt, made = torch.optim.SGD(net.parameters(), 0.1), []
    watch = Watch(net, x, y=y, loss_func=loss_func, path=tmp_path, show=False) if watched else None
    for epoch in range(2):
        made.append(net(x))
        loss_func(made[-1], y).backward()
        opt.step()
        opt.zero_grad()
        if watch is not None:
            watch(epoch)
    if watch is not None and watch.run is not None:
        watch.flush()
        assert [f["status"] for f in watch.run.frames] == ["ok"] * 3
    return made


@pytest.mark.slow
@pytest.mark.parametrize("keeper", KEEPERS, ids=lambda k: k.__name__)
def test_a_training_goes_on_as_if_nobody_had_looked(keeper, tmp_path):
    noted = Reached([Net(keeper())])
    plain = _trained(keeper, tmp_path, False)
    noted.put_back()
    watched = _trained(keeper, tmp_path, True)
    noted.put_back()
    assert all(map(torch.equal, plain, watched))
    assert not torch.equal(*plain)


def _numbers():
    n = 0
    while True:
        yield n
        n += 1


GENERATOR = _numbers()


class OfAGenerator(Keeps):
    def number(self):
        return next(GENERATOR)


def test_a_state_that_cannot_be_put_back_is_named_and_not_watched(tmp_path):
    with pytest.raises(GradCAMError, match=r"a state outside of it that cannot be put back: 'GENERATOR' of mod"):
        _trained(OfAGenerator, tmp_path, True)
    assert not list(tmp_path.iterdir())


def test_a_loss_may_keep_its_state_on_a_class_or_in_a_global(tmp_path):
    class Loss:
        calls = 0

        def __call__(self, output, y):
            Loss.calls += 1
            SEEN.append(1)
            return nn.functional.cross_entropy(output, y) * (1 + 0.1 * Loss.calls + len(SEEN))

    noted = Reached([Loss()])
    plain = _trained(nn.Identity, tmp_path, False, Loss())
    assert noted.put_back()[0]
    assert all(map(torch.equal, plain, _trained(nn.Identity, tmp_path, True, Loss())))


@pytest.mark.slow
def test_a_network_without_such_a_state_is_noted_once_only(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("fastai_gradcam._watch.looks.Reached", lambda *a: made.append(1) or Reached(*a))
    _trained(nn.Identity, tmp_path, True)
    assert len(made) == 1


def test_objects_of_other_libraries_are_left_to_their_threads():
    import queue

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.jobs, self.path = queue.Queue(), pathlib.Path("a")

    net = Net()
    noted = Reached([net])
    net.jobs.put(1)
    hash(net.path)
    assert noted.put_back() == ([], []) and net.jobs.qsize() == 1
