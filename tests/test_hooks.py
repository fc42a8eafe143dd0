"""`Hook` and `HookBwd`: the tutorial's code unchanged, on every module, in-place neighbours or not."""

import copy
import types

import pytest
import torch
from fastai.callback.hook import Hook as FastaiHook
from fastai.vision.all import ImageDataLoaders, Resize, TensorImage, resnet34, vision_learner
from torch import nn
from torchvision.models.resnet import BasicBlock

from fastai_gradcam._engine.look import Restart
from fastai_gradcam._net.layers import Spot
from fastai_gradcam._net.nested import replaced, tensors
from fastai_gradcam.cam import gradcam
from fastai_gradcam.hooks import Hook, HookBwd


@pytest.fixture(scope="module")
def learn(image_folder, tmp_path_factory):
    torch.manual_seed(0)
    dls = ImageDataLoaders.from_folder(image_folder, valid="valid", item_tfms=Resize(64), bs=2, num_workers=0)
    return vision_learner(dls, resnet34, pretrained=False, path=tmp_path_factory.mktemp("learner"))


@pytest.fixture
def frozen(learn):
    "The learner's body frozen as `freeze` does it, BatchNorm included."
    before = [p.requires_grad for p in learn.model.parameters()]
    learn.train_bn = False
    learn.freeze()
    assert not any(p.requires_grad for p in learn.model[0].parameters())
    yield learn
    for p, flag in zip(learn.model.parameters(), before, strict=True):
        p.requires_grad_(flag)


def _hooks(model):
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)


def _signed(A, G):
    return (G.mean((2, 3), keepdim=True) * A).sum(1)


def _close(a, b):
    return float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def _run_the_tutorials_code_unchanged(learn, x, cls):
    cam_maps = []
    # fastbook, chapter 18, as README and DESIGN show it
    for layer in range(len(learn.model[0])):
        with HookBwd(learn.model[0][layer]) as hookg:
            with Hook(learn.model[0][layer]) as hook:
                output = learn.model.eval()(x)
                act = hook.stored
            output[0, cls].backward()
            grad = hookg.stored
        w = grad[0].mean(dim=[1, 2], keepdim=True)
        cam_map = (w * act[0]).sum(0)
        cam_maps.append(cam_map)
    return cam_maps


@pytest.mark.slow
@pytest.mark.parametrize("cls", [0, 2])
def test_the_tutorials_code_gives_gradcams_map_at_every_layer(learn, cls):
    x = learn.dls.test_dl(learn.dls.valid_ds.items[:1]).one_batch()[0]
    assert isinstance(x, TensorImage), "what the tutorial's DataLoader gives, not a plain tensor"
    cam_maps = _run_the_tutorials_code_unchanged(learn, x, cls)
    learn.model.zero_grad()
    assert len(cam_maps) == 8
    made = gradcam(learn.model, x, layer=list(learn.model[0]), target=cls)
    # an untrained network's map may well be empty; what the ReLU cut off is equal, too
    signed = gradcam(learn.model, x, layer=list(learn.model[0]), target=cls, method=_signed)
    assert made.layers == [f"0.{layer}" for layer in range(8)]
    for layer, cam_map in enumerate(cam_maps):
        cam_map = cam_map.as_subclass(torch.Tensor)
        assert cam_map.abs().max() > 0
        assert _close(made.maps[layer][0], cam_map.relu()) and _close(signed.maps[layer][0], cam_map)
    assert _hooks(learn.model) == 0


@pytest.mark.slow
def test_the_tutorials_code_works_in_a_frozen_body(frozen):
    x = frozen.dls.test_dl(frozen.dls.valid_ds.items[:1]).one_batch()[0]
    made = gradcam(frozen.model, x, layer=list(frozen.model[0]), target=1, method=_signed)
    for cam_map, signed in zip(_run_the_tutorials_code_unchanged(frozen, x, 1), made.maps, strict=True):
        assert _close(cam_map.as_subclass(torch.Tensor), signed[0])
    assert all(p.grad is None for p in frozen.model[0].parameters())
    frozen.model.zero_grad()


def _out_of_place(model):
    "A copy of `model` that modifies no tensor in place: the reference that needs no care."
    model = copy.deepcopy(model)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))

    for m in model.modules():
        if hasattr(m, "inplace"):
            m.inplace = False
        if isinstance(m, BasicBlock):
            m.forward = types.MethodType(forward, m)
    return model.eval()


def _reference(model, x, cls):
    "Name to (output, gradient) of every module that ran, by `retain_grad` in a network that does nothing in place."
    kept, model = {}, _out_of_place(model)
    handles = [
        m.register_forward_hook(lambda m, i, o, name=name: kept.update({name: o})) for name, m in model.named_modules()
    ]
    output = model(x)
    for tensor in kept.values():
        # a ReLU shared by two places keeps the last, as the hooks do
        tensor.retain_grad()
    output[0, cls].backward()
    for handle in handles:
        handle.remove()
    return {name: (t.detach(), t.grad) for name, t in kept.items()}


@pytest.mark.slow
def test_hooks_on_all_modules_at_once_store_what_a_network_without_in_place_operations_has(learn):
    model, x = learn.model.eval(), torch.randn(2, 3, 64, 64)
    expected = _reference(model, x, 1)
    names = dict(model.named_modules())
    assert len(names) >= 114 and sum(1 for m in names.values() if getattr(m, "inplace", False)) >= 17
    forward, backward = {}, {}
    for name, module in names.items():
        backward[name] = HookBwd(module)
        forward[name] = Hook(module)
    model(x)[0, 1].backward()
    model.zero_grad()
    for hook in (*forward.values(), *backward.values()):
        hook.remove()
    assert set(expected) == set(names)
    for name, (act, grad) in expected.items():
        assert torch.equal(forward[name].stored, act), f"the activation of {name} was overwritten"
        assert _close(backward[name].stored, grad), f"the gradient of {name} is another's"
    assert _hooks(model) == 0


@pytest.mark.slow
def test_hooks_together_on_one_module_work_on_every_kind_of_module_of_a_frozen_body(frozen):
    model, x = frozen.model.eval(), torch.randn(2, 3, 32, 32)
    expected = _reference(model, x.clone().requires_grad_(), 1)
    for name, module in model.named_modules():
        if name.startswith(("0.4.1", "0.4.2", "0.5.1", "0.5.2", "0.5.3", "0.6")):
            continue  # blocks built like the others
        with HookBwd(module) as hookg, Hook(module) as hook:
            model(x)[0, 1].backward()
        act, grad = expected[name]
        assert torch.equal(hook.stored, act), f"the activation of {name} was overwritten"
        assert _close(hookg.stored, grad), f"the gradient of {name} is another's"
    model.zero_grad()


def test_what_is_stored_is_detached_and_out_of_reach_of_the_next_module(tiny_net):
    seen = []
    tiny_net[2].register_forward_hook(lambda m, i, o: seen.append(o))
    with Hook(tiny_net[2]) as hook:
        tiny_net(torch.randn(1, 3, 8, 8))
    assert not hook.stored.requires_grad
    # the network's ReLU has worked on the tensor in place, not on the copy
    assert seen[0].min() >= 0 > hook.stored.min()


def test_the_gradient_stored_is_detached_and_a_copy(tiny_net):
    x = torch.randn(1, 3, 8, 8)
    with HookBwd(tiny_net[2]) as hookg:
        output = tiny_net(x)[0, 0]
    (weight_grad,) = torch.autograd.grad(output, tiny_net[2].weight, create_graph=True)
    assert weight_grad.requires_grad and not hookg.stored.requires_grad


def test_a_module_that_runs_twice_stores_its_last_output_and_the_gradient_of_that(tiny_net):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return (self.act(3 * self.act(x)) * torch.tensor([5.0, 7.0])).sum()

    net = Twice()
    with HookBwd(net.act) as hookg, Hook(net.act) as hook:
        net(torch.tensor([1.0, 2.0], requires_grad=True)).backward()
    assert hook.stored.tolist() == [3, 6] and hookg.stored.tolist() == [5, 7]


def test_hooks_store_nothing_before_the_network_has_run_and_after_the_block(tiny_net):
    with HookBwd(tiny_net[2]) as hookg, Hook(tiny_net[2]) as hook:
        assert hook.stored is None and hookg.stored is None
        output = tiny_net(torch.randn(1, 3, 8, 8))
    kept = hook.stored
    output[0, 0].backward()
    assert hookg.stored is not None, "the block may end before the backward pass"
    tiny_net(torch.randn(1, 3, 8, 8))
    assert hook.stored is kept
    assert _hooks(tiny_net) == 0


@pytest.mark.parametrize("hook", [Hook, HookBwd])
def test_hooks_are_removed_when_the_block_raises(tiny_net, hook):
    with pytest.raises(ZeroDivisionError), hook(tiny_net[2]):
        assert _hooks(tiny_net) == 1
        raise ZeroDivisionError
    assert _hooks(tiny_net) == 0


def test_the_gradient_of_a_score_without_the_module_stays_none(tiny_net):
    with HookBwd(tiny_net[2]) as hookg:
        tiny_net(torch.randn(1, 3, 8, 8))
        tiny_net[7].weight.sum().backward()
    assert hookg.stored is None


def test_a_forward_pass_without_gradients_is_left_alone(tiny_net):
    with torch.no_grad(), HookBwd(tiny_net[2]) as hookg:
        output = tiny_net(torch.randn(1, 3, 8, 8))
    assert not output.requires_grad and hookg.stored is None


def test_hook_stores_the_nested_outputs_of_a_module():
    class Pair(nn.Module):
        def forward(self, x):
            return x, {"double": (2 * x, None)}

    pair = Pair()
    with Hook(pair) as hook:
        x, _ = pair(torch.ones(2))
        x.zero_()
    assert hook.stored[0].tolist() == [1, 1]
    assert hook.stored[1]["double"][0].tolist() == [2, 2] and hook.stored[1]["double"][1] is None


def test_star_imports_leave_fastais_hook_signature_working(tiny_net):
    names = {}
    exec("from fastai.vision.all import *\nfrom fastai_gradcam import *", names)
    assert names["Hook"] is Hook and issubclass(Hook, FastaiHook)
    x = torch.randn(2, 3, 8, 8)
    with names["Hook"](tiny_net[2], lambda m, i, o: (m, i, o.mean(), "mine")) as hook:
        tiny_net(x)
    module, inputs, mean, mine = hook.stored
    assert module is tiny_net[2] and inputs[0].shape == (2, 4, 8, 8) and mine == "mine"
    assert not mean.requires_grad, "detach=True is fastai's default"
    with names["Hook"](tiny_net[7], lambda m, gi, go: go[0], is_forward=False, cpu=True) as hook:
        tiny_net(x).sum().backward()
    assert hook.stored.tolist() == torch.ones(2, 5).tolist()
    # fastai's own helpers make their hooks of the class that was imported last, or of theirs
    with names["hook_outputs"]([tiny_net[0], tiny_net[2]]) as hooks:
        tiny_net(x)
    assert [tuple(h.shape) for h in hooks.stored] == [(2, 4, 8, 8), (2, 6, 4, 4)]


def test_hook_without_a_function_says_where_gradients_are_stored(tiny_net):
    with pytest.raises(ValueError, match="HookBwd"):
        Hook(tiny_net[2], is_forward=False)
    assert _hooks(tiny_net) == 0


def test_restart_begins_the_graph_at_the_module(tiny_net):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), Restart([Spot("2", tiny_net[2])]) as restart:
        output = tiny_net(x)
    assert restart.outputs[0].is_leaf and restart.outputs[0].requires_grad
    assert restart.outputs[0].min() < 0, "the in-place ReLU after it worked on a clone"
    assert output.requires_grad and _hooks(tiny_net) == 0


def test_restart_keeps_none_for_a_module_that_did_not_run(tiny_net):
    stray = nn.Identity()
    with torch.no_grad(), Restart([Spot("2", tiny_net[2]), Spot("stray", stray)]) as restart:
        tiny_net(torch.randn(2, 3, 8, 8))
    assert restart.outputs[1] is None


def test_the_tensors_of_an_output_are_found_in_order_and_can_be_replaced_one_by_one():
    from collections import OrderedDict, defaultdict, namedtuple

    Pair = namedtuple("Pair", "index value")
    t, u, new = torch.randn(2), torch.randn(3), torch.ones(2)
    nested = OrderedDict(a=None, b=(3, t), c=[u])
    for output in (t, (t, 1), [torch.arange(2), t], Pair(torch.arange(2), t), nested, defaultdict(list, x=t)):
        again = replaced(output, 0, new)
        assert tensors(output)[0] is t and tensors(again)[0] is new and type(again) is type(output)
    second = replaced(nested, 1, new)
    assert second["b"] == (3, t) and second["c"][0] is new and nested["c"][0] is u
    assert tensors({"a": torch.arange(3)}) == tensors("text") == []
    assert len(tensors({"a": torch.arange(3)}, floating=False)) == 1
