"""Models explained and models refused: functions, TorchScript, exported and quantised networks, compiled parts."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastai_gradcam import GradCAMError, HookBwd, gradcam

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def _called(net):
    return {
        "partial": functools.partial(net),
        "closure": lambda x: net(x),
        "bound method": net.forward,
        "default": lambda x, net=net: net(x),
        "partial of a function": functools.partial(lambda net, x: net(x) * 1, net),
    }


@pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
@pytest.mark.parametrize("form", _called(nn.Identity()))
def test_a_function_is_explained_at_a_layer_that_it_calls(tiny_net, x, form, method):
    function = _called(tiny_net)[form]
    expected = gradcam(tiny_net, x, layer=["2", "4"], target=1, method=method)
    made = gradcam(function, x, layer=[tiny_net[2], tiny_net[4]], target=1, method=method)
    assert all(torch.equal(a, b) for a, b in zip(made.maps, expected.maps, strict=True))
    one = gradcam(function, x, layer=tiny_net[2], target=1, method=method)
    assert torch.equal(one.maps[0], expected.maps[0])


_net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _by_a_global_name(x):
    return _net(x)


def test_a_function_that_calls_a_global_module_is_refused_before_it_runs(x):
    before = _net[1].running_mean.clone()
    with pytest.raises(GradCAMError, match=r"reaches the module '_net' by a global name.*functools\.partial"):
        gradcam(_by_a_global_name, x, layer=_net[0])
    assert torch.equal(_net[1].running_mean, before)


@pytest.mark.parametrize("layer", [None, "2", ["2"], 3])
def test_a_function_without_a_module_for_a_layer_is_refused(tiny_net, x, layer):
    with pytest.raises(TypeError, match=r"an nn.Module, .* or a function with layer= a module that it calls"):
        gradcam(functools.partial(tiny_net), x, layer=layer)


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(2, 3, 8, 8))])
@pytest.mark.parametrize("layer", [None, "2"])
def test_torchscript_is_refused_in_words(tiny_net, x, make, layer):
    with pytest.raises(GradCAMError, match=r"TorchScript module runs outside of Python.* give the nn\.Module"):
        gradcam(make(tiny_net.eval()), x, layer=layer)


@pytest.mark.slow
def test_an_exported_program_is_refused_and_unflattened_it_is_explained(tiny_net, x):
    program = torch.export.export(tiny_net.eval(), (x,))
    with pytest.raises(GradCAMError, match=r"exported program has .* no layers .*unflatten"):
        gradcam(program.module(), x)
    made = gradcam(torch.export.unflatten(program), x, target=1)
    assert torch.allclose(made.maps[0], gradcam(tiny_net, x, target=1, layer=made.layers).maps[0], atol=1e-6)


def test_a_graph_traced_by_fx_is_explained_as_its_network_is(tiny_net, x):
    expected = gradcam(tiny_net, x, target=1)
    made = gradcam(torch.fx.symbolic_trace(tiny_net.eval()), x, target=1)
    assert made.layers == expected.layers and torch.equal(made.maps[0], expected.maps[0])


def test_a_network_quantised_at_its_end_says_why_and_what_works(tiny_net, x):
    quantised = torch.ao.quantization.quantize_dynamic(tiny_net.eval(), {nn.Linear})
    for layer in (None, "2"):
        with pytest.raises(GradCAMError, match=r'quantised, and no gradient passes .*method="scorecam"'):
            gradcam(quantised, x, target=1, layer=layer)
    made = gradcam(quantised, x, target=1, layer="2", method="scorecam").maps[0]
    expected = gradcam(tiny_net, x, target=1, layer="2", method="scorecam").maps[0]
    assert torch.allclose(made, expected, atol=0.05 * float(expected.max()))


# --- hooks on modules of any output


class Twice(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(x * 2)


@dataclass
class Answer:
    count: int
    features: torch.Tensor


_outputs = {
    "dataclass": (lambda y: Answer(3, y), lambda out: out.features),
    "tuple": (lambda y: (y, y.mean()), lambda out: out[0]),
    "list": (lambda y: [y, None], lambda out: out[0]),
    "dict": (lambda y: {"features": y, "n": 3}, lambda out: out["features"]),
    "nested": (lambda y: (3, [y]), lambda out: out[1][0]),
    "tensor": (lambda y: y, lambda out: out),
}


@pytest.mark.parametrize("form", _outputs)
def test_hookbwd_stores_the_gradient_of_the_first_tensor_of_any_output(form):
    wrap, read = _outputs[form]
    module, x = Twice(wrap), torch.randn(2, 3)
    with HookBwd(module) as hook:
        (read(module(x)) * torch.tensor([1.0, 2, 3])).sum().backward()
    assert torch.equal(hook.stored, torch.tensor([[1.0, 2, 3]] * 2))


@pytest.mark.parametrize("kind", ["lstm", "attention"])
def test_hookbwd_takes_the_modules_of_torch_that_return_tuples(kind):
    x = torch.randn(2, 5, 8)
    module = nn.LSTM(8, 8, batch_first=True) if kind == "lstm" else nn.MultiheadAttention(8, 2, batch_first=True)
    with HookBwd(module) as hook:
        output = (module(x) if kind == "lstm" else module(x, x, x))[0]
        output[:, -1].sum().backward()
    assert hook.stored.shape == (2, 5, 8) and hook.stored[:, -1].eq(1).all() and hook.stored[:, :-1].eq(0).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_hookbwd_inside_of_a_checkpoint_stores_the_gradient_once(reentrant):
    from torch.utils.checkpoint import checkpoint

    body, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(2, 4, requires_grad=True)
    with HookBwd(body[0]) as plain:
        body(x).square().sum().backward()
    with HookBwd(body[0]) as hook:
        checkpoint(body, x, use_reentrant=reentrant).square().sum().backward()
    assert reentrant or torch.allclose(hook.stored, plain.stored)


def test_hookbwd_on_a_compiled_module():
    torch._dynamo.reset()
    module, x = torch.compile(nn.Linear(4, 4), backend="eager"), torch.randn(2, 4)
    with HookBwd(module) as hook:
        (3 * module(x)).sum().backward()
    assert hook.stored.eq(3).all()
