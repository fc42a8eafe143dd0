"""Each method against a slow, literal reading of its paper's formula, and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastai_gradcam.cam import gradcam
from fastai_gradcam.methods import Method, methods, register, resolve_method

# Oracles: A and g are float64 arrays (C, h, w) of one image, K channels; the loops are the formulas' sums.


def _cells(A):
    return [(i, j) for i in range(A.shape[1]) for j in range(A.shape[2])]


def _relu(v):
    return v if v > 0 else 0.0


def _sum_of_weighted_channels(w, A):
    L = np.zeros(A.shape[1:])
    for i, j in _cells(A):
        L[i, j] = _relu(sum(w[k] * A[k, i, j] for k in range(len(A))))
    return L


def slow_gradcam(A, g):
    Z = A.shape[1] * A.shape[2]
    w = [sum(g[k, i, j] for i, j in _cells(A)) / Z for k in range(len(A))]
    return _sum_of_weighted_channels(w, A)


def slow_gradcam_plus_plus(A, g):
    w = []
    for k in range(len(A)):
        total = sum(A[k, a, b] for a, b in _cells(A))
        w_k = 0.0
        for i, j in _cells(A):
            gradient = g[k, i, j]
            if gradient != 0:
                alpha = gradient**2 / (2 * gradient**2 + total * gradient**3)
                w_k += alpha * _relu(gradient)
        w.append(w_k)
    return _sum_of_weighted_channels(w, A)


def slow_xgradcam(A, g):
    w = []
    for k in range(len(A)):
        total = sum(A[k, a, b] for a, b in _cells(A))
        w.append(sum(g[k, i, j] * A[k, i, j] for i, j in _cells(A)) / total if total != 0 else 0.0)
    return _sum_of_weighted_channels(w, A)


def _cell_by_cell(A, term, relu_of_sum):
    L = np.zeros(A.shape[1:])
    for i, j in _cells(A):
        total = sum(term(k, i, j) for k in range(len(A)))
        L[i, j] = _relu(total) if relu_of_sum else total
    return L


def slow_hirescam(A, g):
    return _cell_by_cell(A, lambda k, i, j: g[k, i, j] * A[k, i, j], True)


def slow_layercam(A, g):
    return _cell_by_cell(A, lambda k, i, j: _relu(g[k, i, j]) * A[k, i, j], True)


def slow_gradcam_elementwise(A, g):
    return _cell_by_cell(A, lambda k, i, j: _relu(g[k, i, j] * A[k, i, j]), False)


def slow_eigencam(A, g):
    "The first right singular vector of A as a (Z × C) matrix by power iteration, and A projected on it."
    C = len(A)
    gram = [[sum(A[k, i, j] * A[m, i, j] for i, j in _cells(A)) for m in range(C)] for k in range(C)]
    v = [1.0 / (1 + k) for k in range(C)]
    for _ in range(2000):
        v = [sum(gram[k][m] * v[m] for m in range(C)) for k in range(C)]
        length = math.sqrt(sum(c * c for c in v))
        v = [c / length for c in v]
    projection = np.zeros(A.shape[1:])
    for i, j in _cells(A):
        projection[i, j] = sum(v[k] * A[k, i, j] for k in range(C))
    if projection.sum() < 0:
        projection = -projection
    return np.maximum(projection, 0)


def slow_eigengradcam(A, g):
    return slow_eigencam(g * A, g)


oracles = {
    "gradcam": slow_gradcam,
    "gradcam++": slow_gradcam_plus_plus,
    "xgradcam": slow_xgradcam,
    "hirescam": slow_hirescam,
    "layercam": slow_layercam,
    "gradcam_elementwise": slow_gradcam_elementwise,
    "eigencam": slow_eigencam,
    "eigengradcam": slow_eigengradcam,
}


class SmallNet(nn.Module):
    "Two convolutions and a head whose gradient differs from cell to cell, without any in-place operation."

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 4 * 5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(self.first(x).relu())).flatten(1))


def _activations_and_gradients(net, x, layer, classes):
    "In float64, by autograd's own `retain_grad` in a forward pass with gradients throughout."
    kept = []
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o))
    output = net.double()(x.double())
    handle.remove()
    kept[0].retain_grad()
    output.gather(1, classes[:, None]).sum().backward()
    A, g = kept[0].detach().numpy(), kept[0].grad.numpy()
    net.zero_grad()
    net.float()
    return A, g


@pytest.mark.parametrize("layer", ["first", "second"])
@pytest.mark.parametrize("name", oracles)
def test_a_method_is_its_papers_formula(name, layer):
    net, x, classes = SmallNet(), torch.randn(2, 2, 8, 9), torch.tensor([2, 0])
    maps = gradcam(net, x, layer=layer, target=classes, method=name).maps[0]
    A, g = _activations_and_gradients(net, x, getattr(net, layer), classes)
    for made, A_n, g_n in zip(maps, A, g, strict=True):
        expected = oracles[name](A_n, g_n)
        assert expected.max() > 0
        assert np.abs(made.numpy() - expected).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("name", oracles)
def test_a_method_is_its_papers_formula_for_negative_activations_and_zero_gradients(name):
    A, g = torch.randn(3, 5, 4, 6), torch.randn(3, 5, 4, 6)
    g[:, 1], g[0, :, 2] = 0, 0
    for n, made in enumerate(methods[name](A, g)):
        expected = oracles[name](A[n].double().numpy(), g[n].double().numpy())
        assert np.abs(made.numpy() - expected).max() <= 1e-5 * max(expected.max(), 1)


def test_every_registered_method_has_an_oracle():
    # those of the methods without gradients and of smoothing have files of their own
    mine = {
        n for n, m in methods.items() if m.parts.__module__ == "fastai_gradcam.methods" and not (m.weigh or m.noise)
    }
    assert mine == set(oracles)


class CaptumsToy(nn.Module):
    "captum's network of one convolution with two channels, made for being worked out by hand."

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 2, 3), nn.ReLU()
        self.fc1, self.relu2 = nn.Linear(8, 4), nn.ReLU()
        with torch.no_grad():
            self.conv1.weight.fill_(1)
            self.conv1.bias.copy_(torch.tensor([-50.0, -75.0]))
            self.fc1.weight.copy_(torch.tensor([1.0] * 5 + [-1.0] * 3).expand(4, 8))
            self.fc1.bias.zero_()

    def forward(self, x):
        return self.relu2(self.fc1(self.relu1(self.conv1(x)).flatten(1)))


# The 3 × 3 sums of arange(16) are 45 54 / 81 90. conv1 gives
#     A0 = -5 4 / 31 40    and    A1 = -30 -21 / 6 15,
# relu1 gives
#     A0 =  0 4 / 31 40    and    A1 =   0   0 / 6 15.
# Every class is 54 = 4 + 31 + 40 - 6 - 15 > 0, so relu2 is open, and the gradient at relu1 is fc1's row:
#     g0 = 1 1 / 1 1       and    g1 = 1 -1 / -1 -1.
# At conv1 it is that where relu1 is open:
#     g0 = 0 1 / 1 1       and    g1 = 0  0 / -1 -1.
_by_hand = {
    # w = 3/4, -1/2: -3.75 + 15, 3 + 10.5, 23.25 - 3, 30 - 7.5
    ("conv1", "gradcam"): [[11.25, 13.5], [20.25, 22.5]],
    # w = 1, -1/2: 0, 4, 31 - 3, 40 - 7.5
    ("relu1", "gradcam"): [[0, 4], [28, 32.5]],
    # ΣA = 75, 21. Channel 0: a = 1/(2 + 75) four times. Channel 1: 1/(2 + 21) once, the rest behind the ReLU.
    ("relu1", "gradcam++"): [[0, 4 / 77 * 4], [4 / 77 * 31 + 6 / 23, 4 / 77 * 40 + 15 / 23]],
    # w = 75/75, -21/21
    ("relu1", "xgradcam"): [[0, 4], [25, 25]],
    # 0 + 0, 4 - 0, 31 - 6, 40 - 15
    ("relu1", "hirescam"): [[0, 4], [25, 25]],
    # at conv1 the first row of channel 1 has no gradient, nor has the -5: 0, 4, 31 - 6, 40 - 15
    ("conv1", "hirescam"): [[0, 4], [25, 25]],
    # only channel 0 has positive gradients where it is active
    ("relu1", "layercam"): [[0, 4], [31, 40]],
    ("relu1", "gradcam_elementwise"): [[0, 4], [31, 40]],
}


@pytest.mark.parametrize(("layer", "name"), _by_hand)
def test_the_map_of_captums_toy_is_the_one_worked_out_by_hand(layer, name):
    made = gradcam(CaptumsToy(), torch.arange(16.0).view(1, 1, 4, 4), layer=layer, target=0, method=name)
    assert torch.allclose(made.maps[0][0], torch.tensor(_by_hand[layer, name]).float(), rtol=1e-6)


def test_captums_toy_has_no_negative_mass_but_before_the_relu():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # layercam at conv1: 0·(-5), 1·4, 31, 40; nothing is negative
    assert gradcam(CaptumsToy(), x, layer="conv1", method="layercam").negative_share[0].item() == 0
    # hirescam on the negated score: 0, -4, -25, -25: all of it is
    negated = gradcam(CaptumsToy(), x, layer="conv1", method="hirescam", target=lambda out: -out[:, 0])
    assert negated.negative_share[0].item() == 1 and negated.maps[0].sum() == 0


@pytest.mark.parametrize("name", [name for name in oracles if name != "eigencam"])
def test_without_gradient_the_map_is_zero(name):
    assert methods[name](torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).eq(0).all()


@pytest.mark.parametrize("name", oracles)
def test_without_activation_the_map_is_zero(name):
    assert methods[name](torch.zeros(2, 3, 4, 4), torch.randn(2, 3, 4, 4)).eq(0).all()


@pytest.mark.parametrize("name", oracles)
def test_channels_whose_activations_cancel_give_no_nan(name):
    A = torch.tensor([1.0, -1.0, 2.0, -2.0]).view(1, 1, 2, 2).repeat(2, 3, 1, 1)
    assert methods[name](A, torch.randn(2, 3, 2, 2)).isfinite().all()


def test_a_vanishing_denominator_of_gradcam_plus_plus_counts_as_zero():
    # ΣA = 2 and g = -1 make 2 + ΣA·g zero; g = 1 in the other cell: a = 1/(2 + 2), w = 1/4
    A, g = torch.tensor([[[[0.5, 1.5]]]]), torch.tensor([[[[-1.0, 1.0]]]])
    assert torch.allclose(methods["gradcam++"](A, g), A[:, 0] / 4)


@pytest.mark.parametrize("size", [1e-20, 1e-30])
def test_tiny_gradients_do_not_break_gradcam_plus_plus(size):
    # where ΣA·g vanishes beside 2, a is 1/2 and the map is linear in g; g² and g³ would underflow
    A, g = torch.rand(1, 3, 4, 4, dtype=torch.float64).float(), torch.rand(1, 3, 4, 4)
    expected = (g.sum((2, 3), keepdim=True) / 2 * A).sum(1)
    made = methods["gradcam++"](A, g * size)
    assert torch.allclose(made / size, expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", oracles)
def test_activations_of_a_network_that_diverged_do_not_raise(name, bad):
    A = torch.randn(2, 3, 4, 4)
    A[0, 1, 2, 3] = bad
    made = methods[name](A, torch.randn(2, 3, 4, 4))
    assert made.shape == (2, 4, 4)
    assert made[1].isfinite().all(), "the other image of the batch is not touched"


@pytest.mark.parametrize("name", oracles)
def test_an_input_of_nan_does_not_raise(name):
    x = torch.randn(2, 2, 8, 9)
    x[0] = float("nan")
    assert gradcam(SmallNet(), x, layer="first", target=0, method=name).maps[0].shape == (2, 6, 7)


@pytest.mark.parametrize("space", [(7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", oracles)
def test_a_method_works_in_any_number_of_dimensions(name, space):
    A, g = torch.randn(2, 3, *space), torch.randn(2, 3, *space)
    flat = methods[name](A.reshape(2, 3, 1, -1), g.reshape(2, 3, 1, -1))
    assert torch.allclose(methods[name](A, g), flat.reshape(2, *space), atol=1e-5)


@pytest.mark.parametrize("name", oracles)
def test_a_map_is_never_negative(name):
    assert methods[name](torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)).min() >= 0


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam"])
def test_the_sign_of_a_principal_component_is_the_one_with_more_mass(name):
    A, g = torch.rand(6, 3, 5, 5), torch.rand(6, 3, 5, 5)
    signed = methods[name].signed(A, g)
    assert signed.flatten(1).sum(1).min() > 0
    assert torch.allclose(signed, methods[name].signed(-A, g), atol=1e-5)


def test_negative_share_is_what_the_relu_cut_off():
    A, g = torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[1.0, -1.0]]]])
    net = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(net.weight)
    made = gradcam(nn.Sequential(net), A, layer="0", method="hirescam", target=lambda out: (out * g).sum((1, 2, 3)))
    assert made.maps[0].tolist() == [[[3, 0]]]
    assert made.negative_share[0].item() == pytest.approx(1 / 4)


def test_a_map_without_mass_has_no_negative_share(tiny_net):
    made = gradcam(tiny_net, torch.randn(2, 3, 8, 8), layer="2", target=lambda out: out.sum(1) * 0)
    assert made.maps[0].eq(0).all() and made.negative_share[0].isnan().all()


def test_a_registered_method_is_found_by_its_name(tiny_net, monkeypatch):
    monkeypatch.setattr("fastai_gradcam.methods.methods", dict(methods))

    @register("activation")
    def activation(A, G):
        return A.sum(1)

    x = torch.randn(2, 3, 8, 8)
    made = gradcam(tiny_net, x, layer="2", method="activation").maps[0]
    assert torch.allclose(made, tiny_net[2](tiny_net[0](x).relu()).sum(1).relu(), atol=1e-5)
    assert "activation" not in methods


def test_a_callable_method_gets_activations_and_gradients_and_its_map_is_taken_as_it_is(tiny_net):
    seen = {}

    def signed(A, G):
        seen.update(A=A, G=G)
        return -(A * G).sum(1)

    x = torch.randn(2, 3, 8, 8)
    made = gradcam(tiny_net, x, layer="2", target=1, method=signed).maps[0]
    assert seen["A"].shape == seen["G"].shape == (2, 6, 4, 4)
    assert not seen["A"].requires_grad and not seen["G"].requires_grad
    assert made.min() < 0
    assert torch.equal(made, -(seen["A"] * seen["G"]).sum(1))


def test_a_method_object_is_taken_as_it_is():
    assert resolve_method(methods["layercam"]) is methods["layercam"]
    assert isinstance(resolve_method(lambda A, G: A.sum(1)), Method)


@pytest.mark.parametrize(
    ("typo", "nearest"), [("grad-cam", "gradcam"), ("GradCAM++", "gradcam++"), ("XGradCam", "xgradcam")]
)
def test_a_misspelt_method_is_quoted_with_the_nearest_one(typo, nearest):
    with pytest.raises(ValueError, match="There is no method") as error:
        resolve_method(typo)
    assert repr(typo) in str(error.value) and f"Did you mean {nearest!r}?" in str(error.value)
    assert all(name in str(error.value) for name in oracles)


def test_a_method_that_is_neither_name_nor_callable_is_a_type_error():
    with pytest.raises(TypeError, match=r"callable .*, got 7"):
        resolve_method(7)


@pytest.mark.parametrize(
    ("method", "got"),
    [(lambda A, G: A, r"\(2, 6, 4, 4\)"), (lambda A, G: A.sum(), r"\(\)"), (lambda A, G: None, "NoneType")],
)
def test_a_method_that_returns_the_wrong_shape_is_named_with_the_right_one(tiny_net, method, got):
    says = r"'<lambda>' must return maps of shape \(2, 4, 4\).*'2', got "
    with pytest.raises(ValueError, match=says + got):
        gradcam(tiny_net, torch.randn(2, 3, 8, 8), layer="2", method=method)
