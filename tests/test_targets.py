"""Which score is explained: classes in every form, callables, outputs of every form, and what is said of bad ones."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastai_gradcam.cam import gradcam
from fastai_gradcam.targets import class_targets, main_output, scores


class Says(nn.Module):
    "A small network whose five logits are handed on in the form that `wrap` gives them."

    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(x))


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, 8)


def test_without_a_target_each_images_predicted_class_is_explained(tiny_net, x):
    with torch.no_grad():
        tiny_net[7].weight.mul_(50)
        predicted = tiny_net(x).argmax(1)
    made = gradcam(tiny_net, x, layer="2")
    assert torch.equal(made.target, predicted)
    assert torch.equal(made.maps[0], gradcam(tiny_net, x, layer="2", target=predicted).maps[0])


@pytest.mark.parametrize(
    "target",
    [2, np.int64(2), torch.tensor(2), [2, 2, 2, 2], (2,) * 4, np.array([2] * 4), torch.tensor([2] * 4).int()],
    ids=lambda t: type(t).__name__,
)
@pytest.mark.parametrize("layer", [None, "2"])
def test_a_class_may_be_given_in_any_form(tiny_net, x, target, layer):
    expected = gradcam(tiny_net, x, layer=layer, target=lambda output: output[:, 2])
    made = gradcam(tiny_net, x, layer=layer, target=target)
    assert made.target.tolist() == [2] * 4 and made.target.dtype == torch.long
    assert torch.equal(made.maps[0], expected.maps[0]) and expected.target is None


@pytest.mark.parametrize("layer", [None, "2"])
def test_several_classes_per_image_may_be_given_as_lists(tiny_net, x, layer):
    made = gradcam(tiny_net, x, layer=layer, target=[[0, 1, 4]] * 4)
    assert made.maps[0].shape == (4, 3, 4, 4) and made.target.tolist() == [[0, 1, 4]] * 4


def test_one_class_in_a_list_of_its_own_keeps_its_dimension(tiny_net, x):
    assert gradcam(tiny_net, x, layer="2", target=torch.zeros(4, 1).long()).maps[0].shape == (4, 1, 4, 4)


def test_logits_are_explained_not_probabilities(tiny_net, x):
    with torch.no_grad():
        tiny_net[7].bias[1] = 200
    assert torch.softmax(tiny_net(x), 1)[:, 1].eq(1).all(), "a softmax that is sure of itself has no gradient"
    made = gradcam(tiny_net, x, layer="2", target=1, method=lambda A, G: G.abs().sum(1))
    assert made.maps[0].min() >= 0 and made.maps[0].amax((1, 2)).min() > 0


@pytest.mark.parametrize("layer", [None, "2"])
def test_a_callable_sees_the_output_of_the_whole_batch(tiny_net, x, layer):
    weights = torch.randn(4, 5)
    made = gradcam(tiny_net, x, layer=layer, target=lambda output: (output * weights).sum(1))
    assert made.maps[0].shape == (4, 4, 4)


def test_a_callables_score_may_have_a_dimension_of_its_own(tiny_net, x):
    column = gradcam(tiny_net, x, layer="2", target=lambda output: output[:, 1:2])
    assert torch.equal(column.maps[0], gradcam(tiny_net, x, layer="2", target=1).maps[0])


def test_both_sides_of_a_single_logit(tiny_net, x):
    net = nn.Sequential(*tiny_net, nn.Linear(5, 1))
    signed = {
        side: gradcam(net, x, layer="2", target=lambda o, side=side: side * o, method=lambda A, G: (A * G).sum(1))
        for side in (1, -1)
    }
    assert torch.allclose(signed[1].maps[0], -signed[-1].maps[0]) and signed[1].maps[0].abs().max() > 0


def test_a_class_summed_over_a_region_of_a_segmentation():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    region = torch.zeros(2, 8, 8)
    region[0, :3], region[1, :, 5:] = 1, 1
    made = gradcam(
        net, torch.randn(2, 3, 8, 8), layer="1", target=lambda o: (o[:, 1] * region).sum((1, 2)), method="hirescam"
    )
    assert made.maps[0][0, 3:].eq(0).all() and made.maps[0][1, :, :5].eq(0).all() and made.maps[0].max() > 0


Pair = namedtuple("Pair", "logits aux")
_forms = {
    "tuple": lambda y: (y, None),
    "list": lambda y: [y, 2 * y],
    "namedtuple": lambda y: Pair(y, 2 * y),
    "nested": lambda y: ((y, 1), 2),
    "logits": lambda y: {"loss": 0, "logits": y},
    "out": lambda y: OrderedDict(aux=2 * y, out=y),
    "first": lambda y: {"scores": y, "other": 3},
}


@pytest.mark.parametrize("form", _forms)
def test_the_scores_are_found_in_an_output_of_any_form(tiny_net, x, form):
    made = gradcam(Says(tiny_net, _forms[form]), x, layer="net.2", target=1)
    assert torch.equal(made.maps[0], gradcam(tiny_net, x, layer="2", target=1).maps[0])
    assert main_output(made.output).shape == (4, 5) and not main_output(made.output).requires_grad
    assert type(made.output) is type(_forms[form](x))


@pytest.mark.parametrize("wrap", [lambda y: SimpleNamespace(y=y), lambda y: [{"boxes": y[0]}, {"boxes": y[1]}]])
@pytest.mark.parametrize("layer", [None, "net.2"])
def test_a_callable_may_read_an_output_that_holds_no_scores_tensor(tiny_net, x, wrap, layer):
    def target(output):
        y = output.y if hasattr(output, "y") else torch.stack([image["boxes"] for image in output])
        return y[:, 3]

    made = gradcam(Says(tiny_net, wrap), x[:2], layer=layer, target=target)
    assert torch.equal(made.maps[0], gradcam(tiny_net, x[:2], layer=layer and "2", target=3).maps[0])


def test_fastais_subclass_in_an_output_becomes_a_plain_tensor():
    from fastai.vision.all import TensorCategory

    assert type(main_output((TensorCategory(torch.ones(2, 3)), 1))) is torch.Tensor


# Bad input


@pytest.mark.parametrize("layer", [None, "2"])
@pytest.mark.parametrize(("target", "named"), [(5, "5"), (-1, "-1"), ([0, 1, 7, 2], "7"), ([[0, -3]] * 4, "-3")])
def test_a_class_out_of_range_is_quoted_with_the_range(tiny_net, x, target, named, layer):
    with pytest.raises(ValueError, match=rf"target {named} is out of range: the model has classes 0 to 4\."):
        gradcam(tiny_net, x, layer=layer, target=target)


@pytest.mark.parametrize("layer", [None, "2"])
@pytest.mark.parametrize("target", [[1], [1, 2], [0] * 3, [0] * 5, [[0, 1]] * 2, [[[1]]] * 4], ids=str)
def test_a_number_of_targets_that_is_not_the_batchs_is_quoted_with_it(tiny_net, x, target, layer):
    with pytest.raises(ValueError, match=r"for a batch of 4 images: .*one per image \(4,\).*\(4, K\)") as error:
        gradcam(tiny_net, x, layer=layer, target=target)
    assert f"target has shape {np.shape(target)}" in str(error.value)


@pytest.mark.parametrize("layer", [None, "2"])
@pytest.mark.parametrize(
    "target", ["cat", "cats", 1.5, True, [0.0, 1.0, 2.0, 3.0], ["a", "b", "c", "d"], [[1], [2, 3], 1, 1]]
)
def test_a_target_of_another_kind_is_quoted_with_those_that_do(tiny_net, x, target, layer):
    with pytest.raises(TypeError, match=r"target must be None, a class index, .* or a callable") as error:
        gradcam(tiny_net, x, layer=layer, target=target)
    assert repr(target) in str(error.value)


def test_no_class_at_all_is_an_error(tiny_net, x):
    with pytest.raises(ValueError, match="target is empty"):
        gradcam(tiny_net, x, layer="2", target=torch.zeros(4, 0).long())


@pytest.mark.parametrize("shape", [(4, 5, 8, 8), (4,)])
def test_an_output_without_classes_asks_for_a_callable(shape):
    with pytest.raises(ValueError, match="no class to explain; pass target= a callable") as error:
        class_targets(None, torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_a_segmentation_without_a_callable_says_so_through_gradcam():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    for layer in (None, "0"):
        with pytest.raises(ValueError, match=r"output has shape \(2, 2, 6, 6\), not \(images, classes\)"):
            gradcam(net, torch.randn(2, 3, 8, 8), layer=layer)


def test_an_output_that_is_no_tensor_is_named(tiny_net, x):
    with pytest.raises(TypeError, match=r"output is a SimpleNamespace, not a tensor; pass target= a callable"):
        gradcam(Says(tiny_net, lambda y: SimpleNamespace(y=y)), x, layer="net.2")
    for empty in ((), {}):
        with pytest.raises(TypeError, match=f"output is a {type(empty).__name__}"):
            main_output(empty)


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (lambda output: output.sum(), r"\(\)"),
        (lambda output: output, r"\(4, 5\)"),
        (lambda output: output[:2, 0], r"\(2,\)"),
        (lambda output: output[:, 0].tolist(), "list"),
    ],
)
@pytest.mark.parametrize("layer", [None, "2"])
def test_a_callable_that_does_not_give_one_score_per_image_is_told_so(tiny_net, x, target, got, layer):
    with pytest.raises(ValueError, match=rf"one score per image, shape \(4,\), got {got}"):
        gradcam(tiny_net, x, layer=layer, target=target)


def test_scores_are_the_logits_of_the_classes_in_order():
    output = torch.arange(6.0).view(2, 3)
    each, classes = scores(output, [[2, 0], [1, 1]], 2)
    assert [s.tolist() for s in each] == [[2, 4], [0, 4]] and classes.tolist() == [[2, 0], [1, 1]]
