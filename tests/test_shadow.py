"""A look changes nothing, whatever a network keeps; threads do not meet; what cannot be copied is named."""

import collections
import functools
import gc
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fastai_gradcam import GradCAMError, gradcam
from fastai_gradcam._net.guard import undisturbed
from fastai_gradcam._net.shadow import copied, original, shadow


class Net(nn.Module):
    "A small network whose middle is `keeper`."

    def __init__(self, keeper):
        super().__init__()
        self.body, self.keeper = nn.Conv2d(3, 4, 3), keeper
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        return self.head(self.keeper(self.body(x)))


# --- what a module may keep: each in a way of its own adds a number that depends on all calls before


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.rand(x.shape, generator=self.g)


class NumpyGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = {"rng": [np.random.default_rng(0)]}

    def forward(self, x):
        return x + self.state["rng"][0].random()


class OldNumpyGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = np.random.RandomState(0)

    def forward(self, x):
        return x + self.rng.rand()


class PythonGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = random.Random(0)

    def forward(self, x):
        return x + self.rng.random()


class InAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().mean())
        return x + len(self.seen)


class ByABoundMethod(InAList):
    def __init__(self):
        super().__init__()
        self.note = self.seen.append

    def forward(self, x):
        self.note(x.detach().mean())
        return x + len(self.seen)


class InADeque(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = collections.deque([0.0], maxlen=3)

    def forward(self, x):
        self.seen.append(self.seen[-1] + 1)
        return x + self.seen[-1]


class InNestedDicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = {"a": collections.defaultdict(collections.Counter)}

    def forward(self, x):
        self.state["a"]["b"]["calls"] += 1
        return x + self.state["a"]["b"]["calls"]


class InAPlainTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.total = torch.zeros(1)
        self.pair = (torch.zeros(1), [torch.zeros(1)])

    def forward(self, x):
        self.total += 1
        self.pair[1][0].add_(1)
        return x + self.total + self.pair[1][0]


class InAnObject(nn.Module):
    class Count:
        __slots__ = ("n",)

        def __init__(self):
            self.n = 0

    def __init__(self):
        super().__init__()
        self.count = self.Count()

    def forward(self, x):
        self.count.n += 1
        return x + self.count.n


class InABuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        return x + self.n


class InAnArray(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = np.zeros(1)

    def forward(self, x):
        self.n += 1
        return x + float(self.n[0])


class InAClosure(nn.Module):
    def __init__(self):
        super().__init__()
        n = 0

        def count():
            nonlocal n
            n += 1
            return n

        self.count = count

    def forward(self, x):
        return x + self.count()


class InADefault(nn.Module):
    def __init__(self):
        super().__init__()

        def count(seen=[]):  # noqa: B006
            seen.append(1)
            return len(seen)

        self.count = count

    def forward(self, x):
        return x + self.count()


class InAPartial(nn.Module):
    def __init__(self):
        super().__init__()
        self.count = functools.partial(self.add, [])

    @staticmethod
    def add(seen):
        seen.append(1)
        return len(seen)

    def forward(self, x):
        return x + self.count()


class InAHook(nn.Module):
    def __init__(self):
        super().__init__()
        seen = []
        self.register_forward_hook(lambda m, args, output: seen.append(1) or output + len(seen))

    def forward(self, x):
        return x


class ByAWeakReference(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = InAList()
        self.ref = weakref.ref(self.inner)

    def forward(self, x):
        return self.ref()(x)


keepers = [
    OwnGenerator,
    NumpyGenerator,
    OldNumpyGenerator,
    PythonGenerator,
    InAList,
    ByABoundMethod,
    InADeque,
    InNestedDicts,
    InAPlainTensor,
    InAnObject,
    InABuffer,
    InAnArray,
    InAClosure,
    InADefault,
    InAPartial,
    InAHook,
    ByAWeakReference,
]


@pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
@pytest.mark.parametrize("keeper", keepers, ids=lambda k: k.__name__)
def test_a_network_goes_on_as_if_nobody_had_looked(keeper, method):
    x = torch.randn(2, 3, 8, 8)

    def outputs(looks):
        torch.manual_seed(0)
        net = Net(keeper())
        made = []
        for _ in range(3):
            made.append(net(x).detach())
            for _ in range(looks):
                gradcam(net, x, method=method)
        return torch.stack(made)

    expected = outputs(0)
    assert torch.equal(outputs(1), expected) and torch.equal(outputs(2), expected)
    assert not torch.equal(expected[0], expected[1]), "the network does keep something"


@pytest.mark.parametrize("keeper", keepers, ids=lambda k: k.__name__)
def test_two_looks_see_the_same(keeper):
    net, x = Net(keeper()), torch.randn(2, 3, 8, 8)
    one, other = gradcam(net, x, target=1), gradcam(net, x, target=1)
    assert torch.equal(one.maps[0], other.maps[0]) and torch.equal(one.output, other.output)


# --- the copy


def test_a_shadow_shares_the_weights_and_nothing_else():
    net = Net(nn.BatchNorm2d(4))
    net.tied = net.head[2].weight
    made = shadow(net)
    pairs = list(zip(net.parameters(), made.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() and type(a) is type(b) for a, b in pairs)
    assert made.tied is made.head[2].weight
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(net.buffers(), made.buffers(), strict=True))
    assert net.training and not any(m.training for m in made.modules())
    assert original(made) is net and original(shadow(made)) is net and original(net) is net
    own = shadow(net, own_weights=True)
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(net.parameters(), own.parameters(), strict=True))


def _unet():
    from fastai.vision.all import create_unet_model, resnet18

    return create_unet_model(resnet18, 3, (32, 32), pretrained=False)


def _conv():
    return nn.Conv2d(3, 4, 3)


_forms = {
    "weight_norm": lambda: nn.utils.weight_norm(_conv()),
    "spectral_norm": lambda: nn.utils.spectral_norm(_conv()),
    "parametrised weight_norm": lambda: parametrizations.weight_norm(_conv()),
    "parametrised spectral_norm": lambda: parametrizations.spectral_norm(_conv()),
    "pruned": lambda: nn.utils.prune.l1_unstructured(_conv(), "weight", 0.5),
    "traced by fx": lambda: torch.fx.symbolic_trace(nn.Sequential(_conv(), nn.ReLU())),
    "compiled": lambda: nn.Sequential(torch.compile(_conv(), backend="eager")),
    "compiled in place": lambda: [m := _conv(), m.compile(backend="eager")][0],
    "scripted part": lambda: nn.Sequential(_conv(), torch.jit.script(nn.Dropout(0.5))),
    "U-Net with hooks": _unet,
    "made in inference mode": lambda: torch.inference_mode()(_conv)(),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", _forms)
def test_networks_of_every_form_have_a_shadow_that_computes_the_same(form):
    net, x = _forms[form](), torch.randn(2, 3, 32, 32)
    if form != "made in inference mode":
        net.train()(x).sum().backward()
    made = shadow(net)
    with torch.no_grad():
        assert torch.allclose(made(x), net.eval()(x), atol=1e-6)


def test_a_function_that_calls_a_module_of_the_network_calls_the_copys():
    net = Net(InAList())
    net.call = lambda x, inner=net.keeper: inner(x)
    net.again = net.keeper.forward
    made = shadow(net)
    for call in (made.call, made.again):
        call(torch.ones(1))
    assert len(made.keeper.seen) == 2 and not net.keeper.seen


def test_an_observers_hook_is_called_and_not_copied_with_all_it_knows():
    class Learner:
        def __init__(self):
            self.data = Data()

    class Data:
        def __init__(self):
            self.owner = Owner()

    class Owner:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        __reduce_ex__ = __deepcopy__

    class Observer:
        def __init__(self):
            self.learn, self.calls = Learner(), 0

        def hook(self, module, args, output):
            self.calls += 1

    net, observer = Net(nn.ReLU()), Observer()
    net.body.register_forward_hook(observer.hook)
    gradcam(net, torch.randn(1, 3, 8, 8), layer="keeper")
    assert observer.calls == 1


def test_what_a_module_leaves_out_of_its_state_is_left_out_of_the_copy():
    class Lightning(Net):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.trainer = (i for i in "cannot be copied")

        def __getstate__(self):
            return {**vars(self), "trainer": None}

    assert gradcam(Lightning(), torch.randn(1, 3, 8, 8)).layers == ["body"]


def _file(tmp_path):
    return (tmp_path / "log").open("w")


def _generator(tmp_path):
    return (i for i in "ab")


@pytest.mark.parametrize(
    "kept", [_generator, _file, lambda p: {"x": [_generator(p)]}, lambda p: functools.partial(print, _generator(p))]
)
def test_what_cannot_be_copied_is_named_with_its_module(kept, tmp_path):
    net = Net(nn.ReLU())
    net.keeper.kept = kept(tmp_path)
    with pytest.raises(
        GradCAMError, match=r"'kept' of module 'keeper' \(ReLU\) holds a .* cannot be copied .*deepcopy"
    ):
        gradcam(net, torch.randn(1, 3, 8, 8))


def test_a_lock_is_no_obstacle_and_a_lazy_layer_is_asked_to_run_first():
    net = Net(nn.ReLU())
    net.keeper.lock = threading.RLock()
    gradcam(net, torch.randn(1, 3, 8, 8))
    with pytest.raises(GradCAMError, match=r"of module 'head' \(LazyLinear\) are lazy: .*run on a batch"):
        gradcam(nn.ModuleDict({"head": nn.LazyLinear(3)}), torch.randn(1, 3, 8, 8))


def test_any_object_can_be_copied_as_a_shadow_is():
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    loss.seen, loss.hidden = [], loss.weight * torch.ones(3, requires_grad=True)
    made = copied({"loss": loss, "rng": random.Random(0)})
    made["loss"].seen.append(1)
    made["rng"].random()
    assert not loss.seen and made["loss"].training and made["loss"].weight is not loss.weight


@pytest.mark.slow
def test_a_shadow_is_let_go_with_its_model():
    net = Net(nn.ReLU())
    gone = weakref.ref(net), weakref.ref(shadow(net))
    del net
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


# --- threads


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head, self.seen = nn.Linear(4, 3), []

    def forward(self, x):
        self.seen.append(len(x))
        y = checkpoint(self.body, x, use_reentrant=True)
        return self.head(nn.functional.dropout(y, 0.5, self.training).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_eight_threads_and_inference_beside_them_all_get_what_they_get_alone(method):
    net = Checkpointed().eval()
    xs = [torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    maps = [gradcam(net, x, target=i % 3, method=method).maps[0] for i, x in enumerate(xs)]
    with torch.no_grad():
        outputs = [net(x) for x in xs]
    fresh = Checkpointed().eval()  # one whose default layer has yet to be found
    fresh.load_state_dict(net.state_dict())

    def one(i):
        k = i % 8
        if i % 3 == 0:
            with torch.no_grad():
                return torch.equal(fresh(xs[k]), outputs[k])
        return torch.allclose(gradcam(fresh, xs[k], target=k % 3, method=method).maps[0], maps[k], atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(96)))


def test_a_checkpoint_in_another_thread_stays_one_while_a_look_runs():
    net, entered, go = Checkpointed(), threading.Event(), threading.Event()

    def target(output):
        entered.set()
        assert go.wait(20)
        return output[:, 0]

    with ThreadPoolExecutor(1) as pool:
        look = pool.submit(gradcam, net, torch.randn(1, 3, 10, 10), layer="body.0", target=target)
        assert entered.wait(20)
        runs = []
        handle = net.body[0].register_forward_hook(lambda *_: runs.append(1))
        net(torch.randn(1, 3, 10, 10, requires_grad=True)).sum().backward()
        handle.remove()
        go.set()
        look.result()
    assert len(runs) == 2, "once, and once more in the backward pass"


def test_random_numbers_are_put_back_when_the_last_of_several_threads_is_done():
    states = lambda: (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    before, inside, done = states(), threading.Barrier(2), threading.Event()

    def draws():
        with undisturbed():
            inside.wait(20)
            random.random(), np.random.rand(), torch.rand(1)
            done.wait(20)

    thread = threading.Thread(target=draws)
    thread.start()
    with undisturbed():
        inside.wait(20)
        torch.rand(3)
    done.set()
    thread.join()
    assert states() == before
