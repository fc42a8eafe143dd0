"""The engine's promises: what its maps obey, that it changes nothing, and how little it computes."""

import copy
import gc
import random
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.models import mobilenet_v3_small
from torchvision.models.resnet import BasicBlock, ResNet

from fastai_gradcam._engine.views import noisy_copies
from fastai_gradcam.cam import CAMs, gradcam

linear_methods = ["gradcam", "xgradcam", "hirescam", "layercam", "gradcam_elementwise"]
all_methods = [*linear_methods, "gradcam++", "eigencam", "eigengradcam"]
costly_methods = ["scorecam", "ablationcam", "smoothgradcam++"]
options = ["gradcam+noise", "layercam+aug", "xgradcam+eigen", "ablationcam+noise"]


@lru_cache
def shared_resnet():
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7).eval()


@pytest.fixture
def resnet():
    "Random weights, seven classes, evaluation mode. Shared: leave it as it is."
    return shared_resnet()


@pytest.fixture
def x():
    return torch.randn(3, 3, 64, 64)


def same(a, b, rtol=1e-5):
    return float((a - b).abs().max()) <= rtol * float(b.abs().max())


# Properties


@pytest.mark.parametrize("method", all_methods)
def test_a_batch_equals_its_images_one_by_one(resnet, x, method):
    classes = torch.tensor([4, 0, 6])
    together = gradcam(resnet, x, layer="layer3", target=classes, method=method)
    for n in range(3):
        alone = gradcam(resnet, x[n : n + 1], layer="layer3", target=int(classes[n]), method=method)
        assert same(together.maps[0][n], alone.maps[0][0], 1e-4)
        assert torch.allclose(together.negative_share[0][n], alone.negative_share[0][0], atol=1e-4)
        assert torch.allclose(together.output[n], alone.output[0], atol=1e-4)


def test_gradcam_equals_hirescam_up_to_scale_before_an_average_pool(resnet, x):
    cam = gradcam(resnet, x, layer="layer4", target=3, method="gradcam").maps[0]
    hires = gradcam(resnet, x, layer="layer4", target=3, method="hirescam").maps[0]
    # every cell's gradient is the channel's mean gradient, which is all that tells the two apart
    assert cam.max() > 0 and same(hires, cam)


@pytest.mark.parametrize("method", [*costly_methods, *options])
def test_a_batch_equals_its_images_one_by_one_for_costly_methods_too(tiny_net, method):
    x, classes = torch.randn(3, 3, 8, 8), torch.tensor([4, 0, 3])
    together = gradcam(tiny_net, x, layer="2", target=classes, method=method)
    for n in range(3):
        alone = gradcam(tiny_net, x[n : n + 1], layer="2", target=int(classes[n]), method=method)
        assert torch.allclose(together.maps[0][n], alone.maps[0][0], atol=1e-5 * float(together.maps[0].max()))
    assert together.maps[0].max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", [*linear_methods, "eigengradcam", "gradcam+noise", "layercam+aug", "xgradcam+eigen"])
def test_scaling_the_logit_scales_the_raw_map(resnet, x, method):
    once = gradcam(resnet, x, layer="layer3", target=lambda out: out[:, 2], method=method).maps[0]
    thrice = gradcam(resnet, x, layer="layer3", target=lambda out: 3 * out[:, 2], method=method).maps[0]
    assert once.max() > 0 and same(thrice, 3 * once)


@pytest.mark.parametrize("method", ["ablationcam", "eigencam"])
def test_a_method_that_divides_by_the_score_or_does_not_ask_for_it_has_the_same_map_for_a_scaled_logit(
    tiny_net, method
):
    x = torch.randn(2, 3, 8, 8)
    once, thrice = (
        gradcam(tiny_net, x, layer="2", target=lambda out, s=s: s * out[:, 2], method=method).maps[0] for s in (1, 3)
    )
    assert once.max() > 0 and same(thrice, once)


@pytest.mark.parametrize("method", ["gradcam++", "smoothgradcam++"])
def test_grad_cam_plus_plus_is_linear_in_small_logits_only(tiny_net, method):
    x = torch.randn(2, 3, 8, 8)
    made = {
        s: gradcam(tiny_net, x, layer="2", target=lambda out, s=s: s * out[:, 2], method=method).maps[0]
        for s in (1e-4, 3e-4, 1e3, 3e3)
    }
    assert made[1e-4].max() > 0 and same(made[3e-4], 3 * made[1e-4], 1e-3)
    assert not same(made[3e3], 3 * made[1e3], 0.1)


def test_score_cam_of_a_logit_that_hardly_moves_is_the_mean_of_the_channels(tiny_net):
    x, seen = torch.randn(2, 3, 8, 8), {}
    gradcam(tiny_net, x, layer="2", method=lambda A, G: seen.update(A=A) or A.sum(1))
    made = gradcam(tiny_net, x, layer="2", target=lambda out: 1e-6 * out[:, 2], method="scorecam").maps[0]
    assert made.max() > 0 and same(made, seen["A"].mean(1).relu(), 1e-4)
    sharp = gradcam(tiny_net, x, layer="2", target=lambda out: 1e6 * out[:, 2], method="scorecam").maps[0]
    assert any(same(sharp[0], A.relu(), 1e-4) for A in seen["A"][0]), "of one that moves much, its best channel's"


class FlipEquivariant(nn.Module):
    "Convolutions with kernels symmetric from left to right, strides that fit, and a head that averages."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, padding=1), nn.Tanh()
        )
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            for conv in (self.body[0], self.body[2]):
                conv.weight.copy_((conv.weight + conv.weight.flip(3)) / 2)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("method", [*all_methods, "scorecam", "ablationcam", "layercam+aug", "xgradcam+eigen"])
@pytest.mark.parametrize("layer", ["body.0", "body.2", "body"])
def test_flipping_the_image_flips_the_map_of_a_flip_equivariant_network(layer, method):
    net, x = FlipEquivariant(), torch.randn(2, 3, 8, 10)
    straight = gradcam(net, x, layer=layer, target=1, method=method).maps[0]
    flipped = gradcam(net, x.flip(3), layer=layer, target=1, method=method).maps[0]
    assert straight.max() > 0 and same(flipped, straight.flip(2), 1e-4)
    assert not same(straight, straight.flip(2), 0.1)


@pytest.mark.parametrize("method", ["smoothgradcam++", "gradcam+noise", "ablationcam+noise"])
def test_flipping_the_image_and_its_noise_flips_the_map(method, monkeypatch):
    net, x = FlipEquivariant(), torch.randn(2, 3, 8, 10)
    straight = gradcam(net, x, layer="body.2", target=1, method=method).maps[0]
    assert straight.max() > 0 and not same(
        gradcam(net, x.flip(3), layer="body.2", method=method).maps[0], straight, 0.01
    )

    def flipped(x, *how):
        return (noisy.flip(3) for noisy in noisy_copies(x.flip(3), *how))

    monkeypatch.setattr("fastai_gradcam.cam.noisy_copies", flipped)
    made = gradcam(net, x.flip(3), layer="body.2", target=1, method=method).maps[0]
    assert same(made, straight.flip(2), 1e-4)


@pytest.mark.parametrize("method", [*all_methods, *costly_methods, *options])
def test_permuting_the_channels_behind_the_layer_changes_nothing(tiny_net, method):
    x, order = torch.randn(2, 3, 8, 8), torch.tensor([3, 5, 0, 2, 4, 1])
    with torch.no_grad():
        conv, norm, fc = tiny_net[2], tiny_net[4], tiny_net[7]
        norm.running_mean.copy_(torch.randn(6))
        before = gradcam(tiny_net, x, layer=["0", "2", "3"], target=1, method=method).maps
        for t in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            t.copy_(t[order].clone())
        fc.weight.copy_(fc.weight[:, order].clone())
    after = gradcam(tiny_net, x, layer=["0", "2", "3"], target=1, method=method).maps
    assert before[0].max() > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("layer", [None, "layer2", "layer4.0.bn2"])
def test_a_frozen_network_gives_the_map_of_an_unfrozen_one(resnet, x, layer):
    unfrozen = gradcam(resnet, x, layer=layer)
    frozen = copy.deepcopy(resnet).requires_grad_(False)
    made = gradcam(frozen, x, layer=layer)
    assert made.layers == unfrozen.layers
    assert torch.equal(made.maps[0], unfrozen.maps[0]) and made.maps[0].max() > 0


def test_several_layers_at_once_equal_one_at_a_time(resnet, x):
    names = ["layer4", "layer1.0.bn1", "layer3.0.conv2", "layer2", "layer1.0.conv1"]
    together = gradcam(resnet, x, layer=names, target=5)
    assert together.layers == names and len(together) == 5
    for name, made in zip(names, together, strict=True):
        assert torch.equal(made, gradcam(resnet, x, layer=name, target=5).maps[0])


every_method = [*all_methods, *costly_methods, *options]


@pytest.mark.parametrize("method", every_method)
def test_a_frozen_network_gives_the_map_of_an_unfrozen_one_by_every_method(tiny_net, method):
    x = torch.randn(2, 3, 8, 8)
    unfrozen = gradcam(tiny_net, x, target=1, method=method)
    made = gradcam(copy.deepcopy(tiny_net).requires_grad_(False), x, target=1, method=method)
    assert made.layers == unfrozen.layers
    assert torch.equal(made.maps[0], unfrozen.maps[0]) and made.maps[0].max() > 0


@pytest.mark.parametrize("method", every_method)
def test_several_layers_at_once_equal_one_at_a_time_by_every_method(tiny_net, method):
    x, names, classes = torch.randn(2, 3, 8, 8), ["4", "0", "2"], torch.tensor([[1, 3], [0, 4]])
    together = gradcam(tiny_net, x, layer=names, target=classes, method=method)
    for name, made in zip(names, together, strict=True):
        alone = gradcam(tiny_net, x, layer=name, target=classes, method=method)
        assert torch.allclose(made, alone.maps[0], atol=1e-6) and made.max() > 0


def test_a_layer_asked_for_twice_is_given_twice(resnet, x):
    made = gradcam(resnet, x, layer=["layer3", resnet.layer3, "layer3"], target=1)
    assert made.layers == ["layer3"] * 3
    assert torch.equal(made.maps[0], made.maps[1]) and torch.equal(made.maps[0], made.maps[2])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("layer", [None, "layer2"])
def test_an_outer_grad_mode_changes_nothing(resnet, x, mode, layer):
    expected = gradcam(resnet, x, layer=layer, target=2)
    net = copy.deepcopy(resnet)  # one whose default layer has yet to be found
    with mode():
        made = gradcam(net, x.clone(), layer=layer, target=2)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert made.layers == expected.layers and torch.equal(made.maps[0], expected.maps[0])
    assert not made.maps[0].requires_grad and not made.output.requires_grad


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_several_classes_per_image_equal_single_calls(resnet, x, method):
    classes = torch.tensor([[0, 3, 3, 6], [1, 2, 5, 4], [6, 6, 0, 1]])
    made = gradcam(resnet, x, layer=["layer2", "layer4"], target=classes, method=method)
    assert torch.equal(made.target, classes)
    assert made.maps[0].shape == (3, 4, 8, 8) and made.negative_share[0].shape == (3, 4)
    for k in range(4):
        single = gradcam(resnet, x, layer=["layer2", "layer4"], target=classes[:, k], method=method)
        for several, one in zip(made.maps, single.maps, strict=True):
            assert same(several[:, k], one, 1e-6)
        assert torch.allclose(made.negative_share[1][:, k], single.negative_share[1], atol=1e-6, equal_nan=True)


def test_a_model_in_train_mode_gives_the_map_of_evaluation_mode_and_stays_in_train_mode(x):
    net = mobilenet_v3_small(weights=None, num_classes=4).eval()
    expected = gradcam(net, x, target=1)
    net.train()
    made = gradcam(net, x, target=1)
    assert torch.equal(made.maps[0], expected.maps[0]) and torch.equal(made.output, expected.output)
    assert all(m.training for m in net.modules())


def test_the_flags_of_a_model_partly_in_train_mode_are_kept_one_by_one(x):
    net = copy.deepcopy(shared_resnet()).train()
    net.layer1.eval()
    net.layer3[0].bn1.eval()
    flags = [m.training for m in net.modules()]
    assert len(set(flags)) == 2
    gradcam(net, x)
    gradcam(net, x, layer="layer3.0.bn1")
    assert [m.training for m in net.modules()] == flags


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_the_flag_of_a_scripted_part_is_kept(tiny_net):
    net = tiny_net.append(torch.jit.script(nn.Dropout(0.5))).train()
    assert "training" not in vars(net[-1]), "it is kept outside of python"
    gradcam(net, torch.randn(2, 3, 8, 8), layer="2")
    assert all(m.training for m in net.modules())


def test_an_overridden_train_method_is_not_called(tiny_net):
    class Stubborn(nn.Sequential):
        def train(self, mode=True):
            raise AssertionError("train() was called")

    gradcam(Stubborn(*tiny_net), torch.randn(1, 3, 8, 8))


# The result


def test_the_result_says_what_was_explained(resnet, x):
    made = gradcam(resnet, x)
    assert isinstance(made, CAMs) and made.layers == ["layer4.0"]
    assert made.maps[0].shape == (3, 2, 2) and made.maps[0].dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(made.output, resnet(x))
    assert torch.equal(made.target, made.output.argmax(1))
    assert len(made) == 1 and [m.shape for m in made] == [(3, 2, 2)]


@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_an_image_need_not_be_square(resnet, size):
    assert gradcam(resnet, torch.randn(1, 3, *size)).maps[0].shape == (1, size[0] // 32, size[1] // 32)


def test_an_image_batch_of_a_tensor_subclass_gives_plain_tensors(resnet, x):
    from fastai.vision.all import TensorImage

    made = gradcam(resnet, TensorImage(x), layer="layer1.0.bn1", target=1)
    assert type(made.maps[0]) is torch.Tensor and type(made.output) is torch.Tensor
    assert torch.equal(made.maps[0], gradcam(resnet, x, layer="layer1.0.bn1", target=1).maps[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_give_float32_maps(tiny_net, dtype):
    x = torch.randn(2, 3, 8, 8)
    expected = gradcam(tiny_net, x, layer="2", target=1).maps[0]
    made = gradcam(copy.deepcopy(tiny_net).to(dtype), x.to(dtype), layer="2", target=1).maps[0]
    assert made.dtype == torch.float32
    assert same(made, expected, 1e-5 if dtype == torch.float64 else 0.1)


def test_autocast_gives_float32_maps_and_stays_on(tiny_net):
    x = torch.randn(2, 3, 8, 8)
    expected = gradcam(tiny_net, x, layer="2", target=1).maps[0]
    with torch.autocast("cpu", torch.bfloat16):
        made = gradcam(tiny_net, x, layer="2", target=1).maps[0]
        assert torch.is_autocast_enabled("cpu")
    assert made.dtype == torch.float32 and same(made, expected, 0.1)


def test_channels_last_memory_gives_the_same_map(resnet, x):
    expected = gradcam(resnet, x, target=1).maps[0]
    net = copy.deepcopy(resnet).to(memory_format=torch.channels_last)
    assert same(gradcam(net, x.to(memory_format=torch.channels_last), target=1).maps[0], expected, 1e-4)


@pytest.mark.slow
def test_a_wrapped_model_is_unwrapped(resnet, x):
    expected = gradcam(resnet, x, target=1)
    made = gradcam(nn.DataParallel(resnet), x, target=1)
    assert made.layers == expected.layers and torch.equal(made.maps[0], expected.maps[0])
    compiled = torch.compile(resnet)
    made = gradcam(compiled, x, layer=compiled.layer3, target=1)
    assert made.layers == ["layer3"]


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("space", [(32,), (16, 16), (6, 8, 10)])
def test_signals_images_and_volumes_of_any_number_of_channels(space, channels):
    d = len(space)
    conv, pool = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1], (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
    pool = (*pool, nn.AdaptiveAvgPool3d)[d - 1]
    net = nn.Sequential(conv(channels, 4, 3, 2, 1), nn.ReLU(inplace=True), pool(1), nn.Flatten(), nn.Linear(4, 2))
    made = gradcam(net, torch.randn(2, channels, *space), target=lambda out: out.square().sum(1))
    assert made.layers == ["0"]
    assert made.maps[0].shape == (2, *(s // 2 for s in space))


def test_a_network_whose_body_runs_under_no_grad_is_explained(tiny_net):
    class Headstrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = tiny_net[:5], tiny_net[5:]

        def forward(self, x):
            with torch.no_grad():
                x = self.body(x)
            return self.head(x)

    x = torch.randn(2, 3, 8, 8)
    expected = gradcam(tiny_net, x, layer=["3", "4"], target=1).maps
    made = gradcam(Headstrong(), x, layer=["body.3", "body.4"], target=1).maps
    assert all(torch.equal(m, e) for m, e in zip(made, expected, strict=True))


def test_a_network_without_in_place_operations_gives_the_same_maps(resnet, x):
    names = ["conv1", "bn1", "relu", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.downsample.1"]
    net = copy.deepcopy(resnet)
    for m in net.modules():
        if isinstance(m, nn.ReLU):
            m.inplace = False
    made = gradcam(resnet, x, layer=names, target=1).maps
    expected = gradcam(net, x, layer=names, target=1).maps
    assert all(torch.equal(m, e) for m, e in zip(made, expected, strict=True))


# Nothing is changed


class Restless(nn.Module):
    "Disturbs all that a forward pass can disturb."

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("moved", torch.zeros(2))
        self.calls, self.seen, self.fail = 0, None, False

    def forward(self, x):
        self.passes += 1
        self.moved = self.moved + 1
        self.calls += 1
        torch.rand(1), random.random(), np.random.rand()
        self.seen = features = self.norm(self.conv(x)).relu_()
        if self.fail:
            raise ArithmeticError("in the forward pass")
        return self.fc(self.drop(features.mean((2, 3))))


def _state(net):
    cudnn = torch.backends.cudnn
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()),
        "training": [m.training for m in net.modules()],
        "hooks": [
            (name, list(value))
            for m in net.modules()
            for name, value in vars(m).items()
            if name.endswith("_hooks") and isinstance(value, dict)
        ],
        "parameters": [
            (name, id(p), p._version, p.requires_grad, id(p.grad), None if p.grad is None else p.grad.tolist())
            for name, p in net.named_parameters()
        ],
        "grad versions": [p.grad._version for p in net.parameters() if p.grad is not None],
        "buffers": [(name, id(b), b.tolist()) for name, b in net.named_buffers()],
        "attributes": (getattr(net, "calls", 0), getattr(net, "seen", None)),
    }


def _broken_target(output):
    raise LookupError("in the target")


def _broken_method(A, G):
    raise BufferError("in the method")


@pytest.fixture
def restless():
    "In train mode with one module in evaluation mode, partly frozen, with a gradient on one parameter."
    net = Restless()
    net.norm.eval()
    net.conv.weight_orig.requires_grad_(False)
    net.fc.weight.grad = torch.randn(3, 4)
    return net


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"target": 1}, None),
        ({"target": torch.tensor([[0, 1], [1, 2]]), "layer": ["conv", "norm"]}, None),
        ({"layer": "conv", "method": "eigengradcam"}, None),
        ({"layer": "bad"}, ValueError),
        ({"layer": "fc"}, ValueError),
        ({"target": 9}, ValueError),
        ({"target": 9, "layer": "conv"}, ValueError),
        ({"target": _broken_target}, LookupError),
        ({"target": _broken_target, "layer": "conv"}, LookupError),
        ({"target": lambda out: torch.rand(2), "layer": "conv"}, ValueError),
        ({"method": _broken_method}, BufferError),
        ({"reshape": lambda t: t.sum(0)}, ValueError),
        ({"fail": True}, ArithmeticError),
        ({"fail": True, "layer": "conv"}, ArithmeticError),
    ],
)
@pytest.mark.parametrize("outer", [torch.enable_grad, torch.no_grad])
def test_nothing_is_changed_also_when_it_raises(restless, arguments, error, outer):
    arguments = dict(arguments)
    restless.fail = arguments.pop("fail", False)
    before = None
    with outer():
        before = _state(restless)
        if error is None:
            gradcam(restless, torch.randn(2, 3, 8, 8, generator=torch.Generator()), **arguments)
        else:
            with pytest.raises(error):
                gradcam(restless, torch.randn(2, 3, 8, 8, generator=torch.Generator()), **arguments)
        after = _state(restless)
    for what in before:
        assert after[what] == before[what], f"{what} changed"


def test_the_input_is_not_changed():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        frozen = x.detach().clone()
        gradcam(net, frozen)
        gradcam(net, frozen, layer="1")
    assert torch.equal(frozen, before), "an in-place first layer worked on the caller's tensor"
    gradcam(net, x, layer="1")
    assert x.grad is None and torch.equal(x.detach(), before)


def test_a_model_can_be_copied_and_saved_after_a_call_as_before(restless, tmp_path):
    restless.eval()
    copy.deepcopy(restless)
    gradcam(restless, torch.randn(2, 3, 8, 8))
    copy.deepcopy(restless)
    torch.save(restless, tmp_path / "net.pth")


def test_a_graph_of_the_callers_can_still_be_propagated_back(restless):
    restless.train()
    x = torch.randn(4, 3, 8, 8)
    loss = restless(x).square().sum()
    gradcam(restless, x)
    loss.backward()
    assert restless.fc.bias.grad is not None


@pytest.mark.slow
def test_training_with_a_look_in_every_step_gives_the_same_weights(x):
    def train(look):
        torch.manual_seed(1)
        net = mobilenet_v3_small(weights=None, num_classes=4)
        optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        for step in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x + torch.randn_like(x)), torch.tensor([0, 1, 2])).backward()
            if look:
                gradcam(net, x, layer=[None, "features.3"][step % 2], method="gradcam++")
            optimiser.step()
        return net.state_dict()

    alone, watched = train(False), train(True)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


# Its computations


class _Counter:
    "Counts forward passes of the root and the backward calls of torch.autograd."

    def __init__(self, net, monkeypatch):
        self.forward = self.backward = 0
        forward, grad = type(net).forward, torch.autograd.grad

        def count_forward(net, *args, **kwargs):
            self.forward += 1
            return forward(net, *args, **kwargs)

        def count_grad(*args, **kwargs):
            self.backward += 1
            return grad(*args, **kwargs)

        monkeypatch.setattr(type(net), "forward", count_forward)
        monkeypatch.setattr(torch.autograd, "grad", count_grad)
        monkeypatch.setattr(torch.Tensor, "backward", None)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("layer", ["layer4", ["layer1", "layer3"]])
def test_one_forward_pass_and_one_backward_pass_per_class(x, monkeypatch, layer, classes):
    net = copy.deepcopy(shared_resnet())
    count = _Counter(net, monkeypatch)
    gradcam(net, x, layer=layer, target=torch.zeros(3, classes, dtype=torch.long))
    assert (count.forward, count.backward) == (1, classes)


def test_the_default_layer_is_searched_for_once(x, monkeypatch):
    net = copy.deepcopy(shared_resnet())
    count = _Counter(net, monkeypatch)
    first = gradcam(net, x)
    assert (count.forward, count.backward) == (2, 2)
    count.forward = count.backward = 0
    for batch, target in ((x, None), (x[:1], 3), (torch.cat([x, x]), None)):
        assert gradcam(net, batch, target=target).layers == first.layers
    assert (count.forward, count.backward) == (3, 3)


def test_the_default_layer_of_a_callable_target_is_searched_for_once(x, monkeypatch):
    net = copy.deepcopy(shared_resnet())
    count = _Counter(net, monkeypatch)

    def target(output):
        return output[:, 0]

    gradcam(net, x, target=target)
    gradcam(net, x, target=target)
    assert (count.forward, count.backward) == (3, 3)


def test_the_module_before_the_layer_takes_no_part_in_the_backward_pass(resnet, x):
    in_graph = []

    def note(module, args, output):
        if isinstance(module, (nn.Sequential, nn.Conv2d)):
            in_graph.append((type(module).__name__, tuple(output.shape[1:]), output.requires_grad))

    handle = register_module_forward_hook(note)
    gradcam(resnet, x, layer="layer3", target=1)
    handle.remove()
    stages = [(shape, grad) for kind, shape, grad in in_graph if kind == "Sequential" and shape[1:] != (2, 2)]
    assert [grad for shape, grad in stages if shape[0] < 256] and not any(
        grad for shape, grad in stages if shape[0] < 256
    )
    assert [grad for kind, shape, grad in in_graph if kind == "Sequential" and shape == (512, 2, 2)][-1]


def _live_tensors():
    gc.collect()
    return sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, "layer3"])
@pytest.mark.parametrize("target", [None, lambda output: output[:, 1]])
def test_no_tensor_outlives_the_result(resnet, x, layer, target):
    gradcam(resnet, x, layer=layer, target=target)
    before = _live_tensors()
    for _ in range(3):
        made = gradcam(resnet, x, layer=layer, target=target)
        assert made.maps[0].grad_fn is None and made.output.grad_fn is None
    del made
    assert _live_tensors() == before


@pytest.mark.slow
def test_no_tensor_outlives_an_error(resnet, x):
    def attempt():
        with pytest.raises(ValueError, match="no gradient"):
            gradcam(resnet, x, layer="layer3", target=lambda out: torch.zeros(3))

    attempt()
    before = _live_tensors()
    attempt()
    assert _live_tensors() == before


@pytest.mark.slow
def test_a_model_that_was_looked_at_is_let_go():
    import weakref

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def target(output):
        return output[:, 0]

    gradcam(net, torch.randn(1, 3, 8, 8))
    gradcam(net, torch.randn(1, 3, 8, 8), target=target)
    gone = weakref.ref(net), weakref.ref(target)
    del net, target
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


# Bad input


def test_an_input_that_is_no_tensor_is_named(resnet):
    with pytest.raises(TypeError, match=r"x must be a tensor \(N, C, \*space\), .*got ndarray"):
        gradcam(resnet, np.zeros((1, 3, 64, 64)))


@pytest.mark.parametrize("shape", [(3,), (64, 64), (0, 3, 64, 64)])
def test_an_input_that_is_no_batch_is_quoted_by_its_shape(resnet, shape):
    with pytest.raises(ValueError, match="x must be a batch") as error:
        gradcam(resnet, torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("layer", ["fc", "avgpool"])
def test_a_layer_whose_output_has_no_space_is_named_with_its_shape(resnet, x, layer):
    with pytest.raises(ValueError, match=rf"layer '{layer}' has shape \(3, .*no space.*earlier layer.*reshape="):
        gradcam(resnet, x, layer=layer)


def test_a_layer_that_the_score_does_not_depend_on_is_named(x):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.a(x).mean((2, 3)), self.b(x).mean((2, 3))

    net = TwoHeads()
    for target in (0, lambda out: out[0][:, 0]):
        with pytest.raises(ValueError, match=r"The score does not depend on layer 'b': no gradient"):
            gradcam(net, x, layer="b", target=target)
        with pytest.raises(ValueError, match=r"The score does not depend on layer 'b': no gradient"):
            gradcam(net, x, layer=["a", "b"], target=target)
    assert gradcam(net, x, layer="b", target=lambda out: out[1][:, 0]).maps[0].shape == (3, 62, 62)


def test_each_heads_score_gets_a_default_layer_of_its_own():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.a(x).mean((2, 3)), self.b(x).mean((2, 3))

    net, x = TwoHeads(), torch.randn(2, 3, 8, 8)
    assert gradcam(net, x, target=lambda out: out[0].sum(1)).layers == ["a"]
    assert gradcam(net, x, target=lambda out: out[1].sum(1)).layers == ["b"]
    assert gradcam(net, x).layers == ["a"]


def test_a_layer_that_did_not_run_is_named(tiny_net):
    tiny_net.spare = nn.Conv2d(3, 3, 3)
    tiny_net.forward = lambda x: nn.Sequential(*list(tiny_net)[:8])(x)
    with pytest.raises(ValueError, match=r"Layer 'spare' \(Conv2d\) gave no tensor in the forward pass"):
        gradcam(tiny_net, torch.randn(1, 3, 8, 8), layer="spare")


@pytest.mark.parametrize(
    ("reshape", "got"),
    [
        (lambda t: t.flatten(0, 1), r"\(18, 4, 4\)"),
        (lambda t: t.flatten(1), r"\(3, 96\)"),
        (lambda t: t.tolist(), "list"),
    ],
)
def test_a_reshape_that_loses_the_batch_or_the_space_is_quoted(tiny_net, reshape, got):
    says = rf"reshape must return \(N, C, \*space\) with N = 3, got {got} from .*\(3, 6, 4, 4\)"
    with pytest.raises(ValueError, match=says):
        gradcam(tiny_net, torch.randn(3, 3, 8, 8), layer="2", reshape=reshape)


def test_a_reshape_says_where_space_is(tiny_net):
    x = torch.randn(2, 3, 8, 8)
    expected = gradcam(tiny_net, x, layer="2", target=1).maps[0]
    turned = gradcam(tiny_net, x, layer="2", target=1, reshape=lambda t: t.transpose(2, 3)).maps[0]
    assert torch.allclose(turned, expected.transpose(1, 2), atol=1e-6)


def test_a_model_that_is_no_module_and_a_reshape_that_is_no_callable_are_named(tiny_net, x):
    with pytest.raises(TypeError, match=r"model must be an nn.Module, .*or a function with layer= .*got function"):
        gradcam(lambda x: x, x)
    with pytest.raises(TypeError, match=r"reshape must be a callable .*got 'nchw'"):
        gradcam(tiny_net, x, layer="2", reshape="nchw")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float64, torch.bfloat16])
def test_a_method_may_return_any_type_of_numbers_and_the_map_is_float32(tiny_net, x, dtype):
    made = gradcam(tiny_net, x, layer="2", method=lambda A, G: (A.sum(1) > 0).to(dtype))
    assert made.maps[0].dtype == torch.float32 and set(made.maps[0].unique().tolist()) == {0, 1}
    assert made.negative_share[0].eq(0).all()
