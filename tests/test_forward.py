"""Methods without gradients against literal loops, the part after a layer against the whole network, and the peers."""

import contextlib
import copy
import io
import math
from collections import defaultdict
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn.functional import relu
from torch.nn.modules.module import register_module_forward_hook

from fastai_gradcam._engine.replay import Replay
from fastai_gradcam._net.inputs import inputs_of
from fastai_gradcam._net.layers import Spot
from fastai_gradcam.cam import gradcam
from fastai_gradcam.methods import methods
from fastai_gradcam.targets import contrast

gradient_free = ["scorecam", "ablationcam"]


class SmallNet(nn.Module):
    "A body of stride 2 and a head that mixes channels, without any in-place operation."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 5, 3, stride=2), nn.Tanh())
        self.head = nn.Sequential(nn.Conv2d(5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 3, 3))

    def forward(self, x):
        return self.head(self.body(x))


# Oracles: in float64, on arrays of one image; the loops are the papers' sums.


def _bilinear(A, height, width):
    "A `(h, w)` at the centres of `height × width` pixels, linearly between the centres of its cells."
    h, w = A.shape
    up = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            v, u = y - top, x - left
            up[i, j] = (1 - v) * ((1 - u) * A[top, left] + u * A[top, right])
            up[i, j] += v * ((1 - u) * A[below, left] + u * A[below, right])
    return up


def _logits(net, x):
    return net(torch.from_numpy(x)[None])[0].detach().numpy()


def _sum_of_weighted_channels(weights, A):
    L = np.zeros(A.shape[1:])
    for i in range(A.shape[1]):
        for j in range(A.shape[2]):
            L[i, j] = max(sum(weights[k] * A[k, i, j] for k in range(len(A))), 0)
    return L


def slow_scorecam(net, x, A, c):
    scores = []
    for k in range(len(A)):
        mask = _bilinear(A[k], *x.shape[1:])
        low, high = mask.min(), mask.max()
        mask = (mask - low) / (high - low) if high > low else np.zeros_like(mask)
        scores.append(_logits(net, x * mask)[c])
    total = sum(math.exp(s) for s in scores)
    return _sum_of_weighted_channels([math.exp(s) / total for s in scores], A)


def slow_ablationcam(net, x, A, c):
    y, weights = _logits(net, x)[c], []
    for k in range(len(A)):
        without = A.copy()
        without[k] = 0
        weights.append((y - _logits(net.head, without)[c]) / abs(y))
    return _sum_of_weighted_channels(weights, A)


oracles = {"scorecam": slow_scorecam, "ablationcam": slow_ablationcam}


def _expected(method, net, x, classes):
    net = copy.deepcopy(net).double()
    x = x.double()
    A = net.body(x).detach().numpy()
    return [[oracles[method](net, x[n].numpy(), A[n], c) for c in row] for n, row in enumerate(classes)]


def _assert_near(made, expected):
    expected = np.array(expected)
    assert made.shape == expected.shape and expected.max() > 0
    assert np.abs(made.numpy() - expected).max() <= 1e-5 * expected.max()


@pytest.fixture
def net():
    torch.manual_seed(1)
    return SmallNet().eval()


@pytest.fixture
def x():
    return torch.randn(3, 2, 7, 9, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", oracles)
def test_a_method_is_its_papers_formula(method, net, x):
    made = gradcam(net, x, layer="body", target=torch.tensor([[2, 0], [1, 1], [0, 2]]), method=method)
    _assert_near(made.maps[0], _expected(method, net, x, [[2, 0], [1, 1], [0, 2]]))
    assert torch.equal(made.output, net(x).detach())


@pytest.mark.parametrize("method", oracles)
def test_a_channel_without_contrast_follows_the_formula_too(method, net, x):
    with torch.no_grad():
        net.body[2].weight[1:3] = 0
        net.body[2].bias[1:3] = torch.tensor([0.0, 0.7])
    made = gradcam(net, x, layer="body", target=1, method=method).maps[0]
    _assert_near(made, [row[0] for row in _expected(method, net, x, [[1]] * 3)])


@pytest.mark.parametrize("method", oracles)
def test_every_kind_of_target_asks_for_the_same_map(method, net, x):
    pred = net(x).argmax(1)
    expected = gradcam(net, x, layer="body", target=pred, method=method)
    weights = nn.functional.one_hot(pred, 3).float()
    for target in (None, pred.tolist(), lambda out: (out * weights).sum(1), contrast(pred)):
        made = gradcam(net, x, layer="body", target=target, method=method)
        assert made.maps[0].shape == (3, 3, 4)
        if not hasattr(target, "against"):
            assert torch.allclose(made.maps[0], expected.maps[0], atol=1e-6)
            assert torch.allclose(made.negative_share[0], expected.negative_share[0], atol=1e-5)
    one = gradcam(net, x, layer="body", target=int(pred[0]), method=method).maps[0]
    assert torch.allclose(one[0], expected.maps[0][0], atol=1e-6)


@pytest.mark.parametrize("method", oracles)
def test_a_batch_gives_the_maps_of_its_images_one_by_one_at_several_layers(method, net, x):
    layers = ["body.0", "body"]
    together = gradcam(net, x, layer=layers, target=torch.tensor([0, 1, 2]), method=method)
    assert together.layers == layers
    for i in range(3):
        alone = gradcam(net, x[i : i + 1], layer=layers, target=i, method=method)
        for a, b in zip(together.maps, alone.maps, strict=True):
            assert torch.allclose(a[i], b[0], atol=1e-6)


@pytest.mark.parametrize("method", oracles)
def test_no_gradient_is_needed(method, net, x):
    expected = gradcam(net, x, target=1, method=method).maps[0]
    net.requires_grad_(False)
    for mode in (contextlib.nullcontext, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(gradcam(net, x, target=1, method=method).maps[0], expected)
    frozen = [(p.requires_grad, p.grad) for p in net.parameters()]
    assert frozen == [(False, None)] * len(frozen)


@pytest.mark.parametrize("method", oracles)
@pytest.mark.parametrize("dims", [1, 3])
def test_it_works_in_one_and_three_dimensions(method, dims):
    conv, pool = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[dims]
    net = nn.Sequential(conv(2, 4, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    made = gradcam(net, torch.randn(2, 2, *[6] * dims), layer="1", target=0, method=method).maps[0]
    assert made.shape == (2, *[4] * dims) and made.isfinite().all()


def test_a_score_below_zero_does_not_turn_ablation_cam_around(net, x):
    # channel 0 alone speaks for the class, and the score is negative
    with torch.no_grad():
        net.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 1))
        net.head[2].weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0]]))
        net.head[2].bias.fill_(-10)
    A = net.body(x).detach()
    made = gradcam(net, x, layer="body", target=lambda out: out[:, 0], method="ablationcam").maps[0]
    drop = A[:, 0].mean((1, 2)) / net(x).detach()[:, 0].abs()
    assert torch.allclose(made, (drop[:, None, None] * A[:, 0]).relu(), atol=1e-6)
    assert made.max() > 0


def test_a_score_of_zero_gives_an_empty_ablation_cam(net, x):
    assert gradcam(net, x, layer="body", target=lambda out: out.sum(1) * 0, method="ablationcam").maps[0].eq(0).all()


def test_the_region_of_a_segmentation_stays_that_of_the_image_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    made = gradcam(net, x, layer="1", target=1, method="ablationcam").maps[0]
    A, clean = net[:2](x).detach(), net(x).detach()
    where = (clean.argmax(1) == 1)[:, None]
    assert 0 < where.sum() < where.numel()
    base = (clean[:, 1:2] * where).sum((1, 2, 3))
    weights = []
    for k in range(4):
        without = A.clone()
        without[:, k] = 0
        y = (net[2](without).detach()[:, 1:2] * where).sum((1, 2, 3))
        weights.append((base - y) / base.abs())
    expected = (torch.stack(weights, 1)[:, :, None, None] * A).sum(1).relu()
    assert torch.allclose(made, expected, atol=1e-5)


# Only the part after the layer


def _network(name):
    torch.manual_seed(0)
    # vgg's own initialisation takes seconds
    arguments = {"init_weights": False} if name.startswith("vgg") else {}
    net = getattr(zoo, name)(weights=None, num_classes=6, **arguments).eval()
    with torch.no_grad():
        for m in net.modules():
            # heads that start at zero would agree with anything
            if isinstance(m, nn.Linear) and m.out_features == 6:
                m.weight.normal_()
    return net


def _replay(net, layer, x):
    return Replay(net, inputs_of(x), Spot(layer, net.get_submodule(layer)))


def _both(net, layer, x, index=1, variants=4):
    replay = _replay(net, layer, x)
    kept = replay.activations[index]
    changed = kept * torch.rand(variants, *kept.shape)
    with torch.no_grad():
        # in-place neighbours overwrite what they are given
        return replay, replay(changed.clone(), index), replay._whole(changed.clone(), index)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("resnet18", "layer3.0.bn1"),
        ("resnet18", "layer4.1.bn2"),
        ("resnet18", "layer4.0.downsample"),
        ("vgg11_bn", "features.26"),
        ("densenet121", "features.norm5"),
        ("densenet121", "features.denseblock4.denselayer3.conv1"),
        ("mobilenet_v3_small", "features.12"),
        ("mobilenet_v3_small", "features.8.block.1"),
        ("convnext_tiny", "features.7.1"),
        ("swin_t", "features.7.1.norm1"),
        ("swin_t", "features.5.3.mlp"),
    ],
)
def test_the_part_after_a_layer_gives_what_the_whole_network_gives(name, layer):
    net = _network(name)
    replay, part, whole = _both(net, layer, torch.randn(2, 3, 64, 64))
    assert replay.partial
    assert (part - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert (whole[0] - whole[1]).abs().max() > 1e-4 * whole.abs().max(), "the changed activations take part"


class Shared(nn.Module):
    "Modules called twice, an addition in place without a module, and a first operation in place on the image."

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.late, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x.mul_(2)
        y = self.act(self.stem(x))
        y += self.twice(y)
        z = self.late(y)
        z += self.act(self.twice(z))
        return self.fc(relu(z, inplace=True).mean((2, 3)))


@pytest.mark.parametrize(("layer", "partial"), [("stem", True), ("late", True), ("twice", False), ("act", False)])
def test_modules_called_twice_and_operations_in_place_are_no_obstacle(layer, partial):
    net = Shared().eval()
    replay, made, whole = _both(net, layer, torch.randn(2, 3, 8, 8))
    assert replay.partial is partial
    assert torch.allclose(made, whole, atol=1e-6) and not torch.allclose(whole[0], whole[1])


def test_of_a_layer_that_runs_twice_the_last_output_is_replaced():
    net, x = Shared().eval(), torch.randn(1, 3, 8, 8)
    outputs = []
    with net.twice.register_forward_hook(lambda m, i, o: outputs.append(o.detach().clone())):
        net(x.clone())
    replay = _replay(net, "twice", x)
    assert torch.equal(replay.activations, outputs[1]) and not torch.equal(*outputs)
    made = gradcam(net, x, layer="twice", target=0, method="ablationcam").maps[0]
    base, weights = net(x.clone())[0, 0], []
    for k in range(4):
        runs = []

        def ablate(module, args, output, k=k, runs=runs):
            runs.append(1)
            if len(runs) == 2:
                output = output.clone()
                output[:, k] = 0
            return output

        with net.twice.register_forward_hook(ablate):
            weights.append((base - net(x.clone())[0, 0]) / base.abs())
    expected = (torch.stack(weights)[:, None, None] * outputs[1][0]).sum(0).relu()
    assert torch.allclose(made[0], expected.detach(), atol=1e-5)


class Secret(nn.Module):
    "The head reads what a part of the body noted down, past the modules' outputs."

    def __init__(self):
        super().__init__()
        self.inner, self.body, self.fc = (
            nn.Conv2d(3, 4, 3),
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
            nn.Linear(8, 3),
        )
        self.body[0].register_forward_hook(lambda m, i, o: vars(self).update(noted=o))
        self.late = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        late = self.late(self.body(x))
        return self.fc(torch.cat([late, self.noted], 1).mean((2, 3)))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_network_with_a_secret_runs_as_a_whole_with_the_same_result(n):
    net, x = Secret().eval(), torch.randn(n, 3, 8, 8)
    made = gradcam(net, x, layer="late", target=1, method="ablationcam").maps[0]
    for i in range(n):
        late, noted = net.late(net.body(x[i : i + 1])), net.body[0](x[i : i + 1])
        base, weights = net(x[i : i + 1])[0, 1], []
        for k in range(4):
            without = late.clone()
            without[:, k] = 0
            weights.append((base - net.fc(torch.cat([without, noted], 1).mean((2, 3)))[0, 1]) / base.abs())
        expected = (torch.stack(weights)[:, None, None] * late[0]).sum(0).relu()
        assert torch.allclose(made[i], expected.detach(), atol=1e-5)


class Reads(nn.Module):
    "The part after the layer reads the image and a part before the layer, too."

    def __init__(self):
        super().__init__()
        self.before, self.layer, self.behind = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(11, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        y = self.before(x)
        z = self.layer(y.relu())
        return self.fc(self.behind(torch.cat([x, y, z.tanh()], 1)).relu().mean((2, 3)))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_replay_of_any_image_with_changed_activations_gives_what_the_whole_network_gives(index):
    torch.manual_seed(0)
    net, x = Reads().eval(), torch.randn(3, 3, 8, 8) * torch.tensor([1.0, 5, 20])[:, None, None, None]
    replay, part, whole = _both(net, "layer", x, index, variants=5)
    assert replay.partial and torch.allclose(part, whole, rtol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-4 * whole.abs().max()


def test_a_fast_path_that_skips_modules_does_not_hide_the_layer():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, 4)
            block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.blocks, self.fc = nn.TransformerEncoder(block, 2), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))

    net, x = Tokens().eval(), torch.randn(2, 3, 16, 16)
    for layer in ("blocks.layers.0", "blocks.layers.1.norm1", "blocks.layers.1.linear2"):
        made = gradcam(net, x, layer=layer, target=1, method="ablationcam")
        A = gradcam(net, x, layer=layer, target=1, method=lambda A, G: A.sum(1)).maps[0]
        assert made.maps[0].shape == A.shape == (2, 4, 4)
        assert not made.negative_share[0].isnan().any(), "a layer that is skipped would have no weights"


@pytest.fixture
def passes():
    "Rows of each pass of each module, by the module's `label`: its own, a stand-in's, and those of copies."
    found = defaultdict(list)

    def count(module, args, output):
        if hasattr(module, "label"):
            found[module.label].append(len(output))

    handle = register_module_forward_hook(count)
    yield found
    handle.remove()


class Early(nn.Conv2d):
    computed: ClassVar[list] = []

    def forward(self, x):
        self.computed.append(len(x))
        return super().forward(x)


class Gated(nn.Module):
    "40 channels, of which `alive` are not zero."

    def __init__(self, alive):
        super().__init__()
        self.early, self.conv, self.act = Early(3, 3, 3), nn.Conv2d(3, 40, 3), nn.ReLU()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 4))
        self.early.label, self.head[2].label = "early", "last"
        with torch.no_grad():
            self.conv.bias[:alive], self.conv.bias[alive:] = 5, -100

    def forward(self, x):
        return self.head(self.act(self.conv(self.early(x))))


@pytest.mark.parametrize("alive", [40, 7, 0])
def test_modules_before_the_layer_run_once_and_dead_channels_need_no_pass(alive, passes):
    net, x = Gated(alive).eval(), torch.randn(2, 3, 8, 8)
    Early.computed.clear()
    gradcam(net, x, layer="act", target=1, method="ablationcam")
    assert Early.computed == [2]
    # one pass for the output, one that checks the replay, and one row per channel and image that is not zero
    checked = 3 * (alive > 0)
    assert sum(passes["last"]) == 2 + checked + 2 * alive
    assert len(passes["last"]) == 1 + (alive > 0) + 2 * math.ceil(alive / 32)


@pytest.mark.parametrize("alive", [40, 7, 0])
def test_channels_without_contrast_share_one_pass_of_score_cam_which_pays_for_no_replay(alive, passes):
    net, x = Gated(alive).eval(), torch.randn(2, 3, 8, 8)
    made = gradcam(net, x, layer="act", target=1, method="scorecam")
    masked = 2 * (alive + (alive < 40))
    assert sum(passes["early"]) == 2 + masked
    assert (made.maps[0].max() > 0) == (alive > 0)


# Coarse numbers


@pytest.fixture(scope="module")
def wide():
    "A trained network in small: many channels, each of which changes a large score by little."
    torch.manual_seed(0)
    net = zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5).eval()
    with torch.no_grad():
        net.fc.bias.fill_(20)
    return net, torch.randn(2, 3, 48, 64)


@pytest.mark.slow
@pytest.mark.parametrize("method", gradient_free)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [1, lambda output: output[:, 1]], ids=["class", "callable"])
def test_a_network_in_half_precision_has_the_map_of_its_weights(wide, method, dtype, target):
    net, x = copy.deepcopy(wide[0]).to(dtype), wide[1].to(dtype)
    expected = gradcam(copy.deepcopy(net).float(), x.float(), layer="layer3", target=target, method=method).maps[0]
    weights = [(p, p.dtype, p._version) for p in net.parameters()]
    made = gradcam(net, x, layer="layer3", target=target, method=method)
    assert made.maps[0].dtype == torch.float32 and _distance(made.maps[0], expected) < 1e-4
    assert torch.equal(made.output, net(x).detach()) and made.output.dtype == dtype
    assert [(p, p.dtype, p._version) for p in net.parameters()] == weights


@pytest.mark.slow
@pytest.mark.parametrize("method", gradient_free)
def test_autocast_and_channels_last_give_the_map_of_float32(wide, method):
    net, x = wide
    expected = gradcam(net, x, layer="layer3", target=1, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        made = gradcam(net, x, layer="layer3", target=1, method=method)
        assert torch.equal(made.output, net(x).detach()) and torch.is_autocast_enabled("cpu")
    assert not torch.equal(made.output.float(), expected.output)
    assert _distance(made.maps[0], expected.maps[0]) < 1e-5
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    made = gradcam(other, x.to(memory_format=torch.channels_last), layer="layer3", target=1, method=method)
    assert _distance(made.maps[0], expected.maps[0]) < 1e-3


@pytest.mark.parametrize("method", gradient_free)
def test_a_network_that_insists_on_its_type_runs_in_it(method):
    class Insists(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)).to(torch.bfloat16))

    net, x = Insists().eval().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    made = gradcam(net, x, layer="conv", target=1, method=method)
    assert made.maps[0].dtype == torch.float32 and made.maps[0].isfinite().all() and made.maps[0].shape == (2, 6, 6)


# Nothing changed


def _state(net):
    own = [(name, sorted(vars(m)), vars(m).get("forward"), m.training) for name, m in net.named_modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    return own, hooks, [(p.requires_grad, p.grad) for p in net.parameters()], torch.get_rng_state().tolist()


@pytest.mark.parametrize("method", [*gradient_free, "gradcam+noise", "ablationcam+aug+eigen"])
def test_nothing_is_left_in_the_model(method, tiny_net):
    tiny_net.train()
    patched = tiny_net[4].forward
    tiny_net[4].forward = lambda x: patched(x)
    weights = copy.deepcopy(tiny_net.state_dict())
    before = _state(tiny_net)
    gradcam(tiny_net, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), layer="4", method=method)
    assert _state(tiny_net) == before
    assert all(torch.equal(v, weights[k]) for k, v in tiny_net.state_dict().items())


# Score-CAM changes images alone, so it pays for no replay's check: it has three passes here, Ablation-CAM four.
@pytest.mark.parametrize(
    ("method", "fails_at"),
    [*((m, k) for m in gradient_free for k in (1, 2, 3)), ("ablationcam", 4)],
)
def test_nothing_is_left_in_the_model_after_an_error_either(method, fails_at, tiny_net):
    runs, forward = [], tiny_net[7].forward

    def failing(x):
        runs.append(1)
        if len(runs) >= fails_at:
            raise KeyError("in the head")
        return forward(x)

    tiny_net[7].forward = failing
    before = _state(tiny_net)
    with pytest.raises(KeyError, match="in the head"):
        gradcam(tiny_net, torch.ones(2, 3, 8, 8), layer="2", target=1, method=method)
    assert _state(tiny_net) == before


def test_a_replay_leaves_no_stand_in_in_the_network_it_runs(tiny_net):
    replay = _replay(tiny_net, "2", torch.ones(1, 3, 8, 8))
    assert replay.partial
    own = tiny_net[0].forward
    tiny_net[0].forward = own
    with pytest.raises(RuntimeError):
        replay(torch.ones(2, 5, 4, 4), 0)
    assert "forward" not in vars(tiny_net[1]) and "forward" not in vars(tiny_net[2])
    assert vars(tiny_net[0])["forward"] is own


# Errors


def test_a_layer_that_does_not_run_is_named(net, x):
    net.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match=r"Layer 'unused' \(Conv2d\) gave no tensor"):
        gradcam(net, x, layer="unused", method="scorecam")


@pytest.mark.parametrize("method", oracles)
def test_a_layer_without_space_is_named(method, net, x):
    with pytest.raises(ValueError, match=r"'head\.2' has shape \(3, 24\)"):
        gradcam(net, x, layer="head.2", method=method)


def test_a_reshape_that_moves_values_is_followed_and_one_that_computes_is_refused(net, x):
    expected = gradcam(net, x, layer="body", target=1, method="ablationcam").maps[0]
    flipped = gradcam(net, x, layer="body", target=1, method="ablationcam", reshape=lambda t: t.flip(1, 3)).maps[0]
    assert torch.allclose(flipped, expected.flip(2), atol=1e-6)
    with pytest.raises(ValueError, match="computes new values"):
        gradcam(net, x, layer="body", target=1, method="ablationcam", reshape=lambda t: t * 1.5)


# The peers

peer = pytest.importorskip("pytorch_grad_cam")


def _peers_weights(cls, net, layer, x, target):
    "pytorch-grad-cam's weights, of the network's copy."
    net = copy.deepcopy(net)
    module = net.get_submodule(layer)
    A = []
    handle = module.register_forward_hook(lambda m, i, o: A.append(o.detach().clone()))
    net(x)
    handle.remove()
    cam = cls(net, [module])
    targets = [lambda out: out[target]] * len(x)
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        return A[0], torch.as_tensor(cam.get_cam_weights(x, module, targets, A[0].numpy(), None)).float()


def _raw(A, weights):
    return (weights[:, :, None, None] * A).sum(1)


def _ours(net, layer, x, target, method):
    "Before the ReLU, which may leave nothing of a random network's map."
    how = replace(methods[method], relu=False)
    return gradcam(net, x, layer=layer, target=target, method=how).maps[0]


def _distance(a, b):
    assert a.shape == b.shape and b.abs().max() > 0
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture
def small_and_large():
    "A network whose first layer is as large as the image, and the last a quarter of it."
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).eval()


@pytest.mark.slow
def test_ablation_cam_is_pytorch_grad_cams_where_the_score_is_positive_and_the_layer_has_zeros():
    net, x = _network("resnet18"), torch.randn(1, 3, 64, 64)
    target = int(net(x)[0].argmax())
    A, weights = _peers_weights(peer.AblationCAM, net, "layer4", x, target)
    assert net(x)[0, target] > 0 and A.min() == 0
    assert _distance(_ours(net, "layer4", x, target, "ablationcam"), _raw(A, weights)) < 1e-4


def test_pytorch_grad_cams_ablation_is_turned_around_for_a_score_below_zero(small_and_large):
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        small_and_large[6].bias[1] -= 10
    A, weights = _peers_weights(peer.AblationCAM, small_and_large, "3", x, 1)
    assert A.min() == 0 and small_and_large(x)[:, 1].max() < 0
    assert _distance(_ours(small_and_large, "3", x, 1, "ablationcam"), -_raw(A, weights)) < 1e-4


def test_pytorch_grad_cams_ablation_goes_far_below_zero_where_no_activation_is_zero(small_and_large):
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        small_and_large[6].bias[1] += 10
    A, weights = _peers_weights(peer.AblationCAM, small_and_large, "0", x, 1)
    # a channel at -1e7 in place of 0: behind the ReLU the same as zero
    assert A.min() < 0
    assert _distance(_ours(small_and_large, "0", x, 1, "ablationcam"), _raw(A, weights)) < 1e-4
    linear = nn.Sequential(*small_and_large[2:3], *small_and_large[4:])
    A, weights = _peers_weights(peer.AblationCAM, linear, "0", torch.randn(2, 6, 12, 12), 1)
    # without one the score falls by millions
    assert weights.abs().max() > 1e4


def test_score_cam_is_pytorch_grad_cams_where_nothing_is_upsampled(small_and_large):
    x = torch.randn(2, 3, 12, 12)
    A, weights = _peers_weights(peer.ScoreCAM, small_and_large, "1", x, 2)
    assert _distance(_ours(small_and_large, "1", x, 2, "scorecam"), _raw(A, weights)) < 1e-5


def test_pytorch_grad_cams_score_cam_upsamples_from_corner_to_corner(small_and_large, monkeypatch):
    x = torch.randn(2, 3, 12, 12)
    A, weights = _peers_weights(peer.ScoreCAM, small_and_large, "3", x, 2)
    assert _distance(_ours(small_and_large, "3", x, 2, "scorecam"), _raw(A, weights)) > 1e-4

    def corner_to_corner(x, size):
        return nn.functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)

    monkeypatch.setattr("fastai_gradcam.methods.resized", corner_to_corner)
    assert _distance(_ours(small_and_large, "3", x, 2, "scorecam"), _raw(A, weights)) < 1e-5


# In a learner


@pytest.mark.slow
def test_a_learner_and_the_callback_take_them_with_options(make_learner, image_folder):
    from fastai_gradcam import GradCAMCallback

    learn = make_learner()
    item = next(image_folder.glob("valid/*/0.png"))
    for method in ("ablationcam", "layercam+aug", "smoothgradcam++"):
        cam = learn.gradcam(item, method=method)
        assert cam.map.isfinite().all() and cam.map.ndim == 2
    callback = GradCAMCallback(n=1, method="ablationcam+eigen", layer=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=callback)
    assert [f["status"] for f in callback.run.frames] == ["ok", "ok"]
    assert callback.run.info["settings"]["method"] == "ablationcam+eigen"


def test_a_progress_bar_shows_when_it_takes_long(net, x, monkeypatch, capsys):
    gradcam(net, x, target=1, method="scorecam")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("fastai_gradcam._engine.weights._SECONDS_BEFORE_A_BAR", 0)
    gradcam(net, x, layer="body", target=1, method="scorecam")
    assert "100.00% [15/15" in capsys.readouterr().out
