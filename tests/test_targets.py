"""Which score is explained: classes in every form, callables, outputs of every form, and what is said of bad ones."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastai_gradcam.cam import gradcam
from fastai_gradcam.methods import resolve_method
from fastai_gradcam.targets import as_question, class_targets, contrast, main_output, segment


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


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("layer", [None, "2"])
def test_a_single_logit_has_two_sides(tiny_net, x, flat, layer):
    net = nn.Sequential(*tiny_net, nn.Linear(5, 1), *[nn.Flatten(0)] * flat)
    signed = {
        side: gradcam(net, x, layer=layer, target=side, method=lambda A, G: (A * G.mean((2, 3), True)).sum(1))
        for side in (0, 1)
    }
    assert torch.equal(signed[1].maps[0], -signed[0].maps[0]) and signed[1].maps[0].abs().max() > 0
    score = gradcam(net, x, layer=layer, target=lambda o: o, method=lambda A, G: (A * G.mean((2, 3), True)).sum(1))
    assert torch.equal(signed[1].maps[0], score.maps[0])
    both = gradcam(net, x, layer="2", target=[[0, 1]] * 4)
    assert both.maps[0].shape[1] == 2


def test_the_predicted_side_of_a_single_logit_is_that_of_its_sign(tiny_net, x):
    net = nn.Sequential(*tiny_net, nn.Linear(5, 1))
    with torch.no_grad():
        net[-1].bias.sub_(net(x).mean())
        expected = (net(x)[:, 0] > 0).long()
    assert gradcam(net, x).target.tolist() == expected.tolist() and 0 < expected.sum() < 4


@pytest.mark.parametrize("target", [2, -1])
def test_a_single_logit_has_no_third_side(tiny_net, x, target):
    net = nn.Sequential(*tiny_net, nn.Linear(5, 1))
    with pytest.raises(ValueError, match=f"target {target} is out of range: the model has classes 0 to 1"):
        gradcam(net, x, layer="2", target=target)


# Segmentation


@pytest.fixture
def segmenter():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


def _regional(net, x, region):
    "The class is `region`'s index of the one that is summed, by hand."
    return gradcam(net, x, layer="1", target=lambda o: (o * region).sum((1, 2, 3)), method="hirescam").maps[0]


def test_a_class_of_a_segmentation_is_summed_over_the_region_where_it_is_predicted(segmenter, x):
    won = segmenter(x).argmax(1)
    present = [c for c in range(3) if won.eq(c).flatten(1).any(1).all()]
    assert len(present) > 1
    for c in present:
        region = torch.zeros(4, 3, 8, 8)
        region[:, c] = (won == c).float()
        made = gradcam(segmenter, x, layer="1", target=c, method="hirescam")
        assert (
            torch.allclose(made.maps[0], _regional(segmenter, x, region), atol=1e-6) and made.target.tolist() == [c] * 4
        )
        assert made.maps[0][won != c].eq(0).all() and made.maps[0].max() > 0


def test_a_class_predicted_nowhere_is_summed_over_the_whole_image(segmenter, x):
    with torch.no_grad():
        segmenter[2].bias[1] = -100
    region = torch.zeros(4, 3, 8, 8)
    region[:, 1] = 1
    made = gradcam(segmenter, x, layer="1", target=1, method="hirescam")
    assert torch.allclose(made.maps[0], _regional(segmenter, x, region), atol=1e-6) and made.maps[0].max() > 0


def test_without_a_target_a_segmentations_largest_region_is_explained(segmenter, x):
    won = segmenter(x).argmax(1)
    largest = torch.stack([won.eq(c).sum((1, 2)) for c in range(3)], 1).argmax(1)
    made = gradcam(segmenter, x)
    assert made.layers == ["0"] and made.target.tolist() == largest.tolist()
    assert torch.equal(made.maps[0], gradcam(segmenter, x, target=segment()).maps[0])


def test_segment_takes_a_mask_for_all_images_or_for_each(segmenter, x):
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    for i in range(4):
        masks[i, i : i + 3] = True
    made = gradcam(segmenter, x, layer="1", target=segment(1, masks), method="hirescam").maps[0]
    assert made[~masks].eq(0).all() and made.max() > 0
    alone = gradcam(segmenter, x, layer="1", target=segment(1, masks[2].numpy()), method="hirescam").maps[0]
    assert torch.allclose(alone[2], made[2]) and alone[:, ~masks[2]].eq(0).all()
    each = gradcam(segmenter, x, layer="1", target=segment([0, 1, 2, 1], masks), method="hirescam").maps[0]
    assert torch.allclose(each[3], made[3]) and torch.allclose(each[1], made[1])


@pytest.mark.parametrize("shape", [(6, 8), (3, 8, 8), (8, 8, 1)])
def test_a_mask_of_another_size_is_told_the_outputs(segmenter, x, shape):
    with pytest.raises(
        ValueError, match=r"mask has shape .* output for 4 images has the size \(8, 8\).*\(4, 8, 8\)"
    ) as error:
        gradcam(segmenter, x, target=segment(1, torch.ones(shape)))
    assert str(shape) in str(error.value)


def test_segment_on_an_output_without_space_says_so(tiny_net, x):
    with pytest.raises(ValueError, match=r"segment\(\) explains an output \(N, classes, \*space\), got \(4, 5\)"):
        gradcam(tiny_net, x, target=segment(1))
    with pytest.raises(ValueError, match="target 7 is out of range"):
        gradcam(nn.Conv2d(3, 3, 1), x, target=segment(7))


def test_a_mask_may_be_an_image_or_a_list(segmenter, x):
    from PIL import Image

    half = torch.zeros(8, 8)
    half[:4] = 1
    expected = gradcam(segmenter, x, layer="1", target=segment(1, half), method="hirescam").maps[0]
    image = Image.fromarray((half.numpy() * 255).astype(np.uint8))
    for mask in (image, image.convert("1"), [half] * 4, [image] * 4, half.tolist(), half.numpy()):
        made = gradcam(segmenter, x, layer="1", target=segment(1, mask), method="hirescam").maps[0]
        assert torch.equal(made, expected) and made.max() > 0


@pytest.mark.parametrize("mask", ["mask.png", object(), [[1], [1, 2]], ["a.png", "b.png"]])
def test_a_mask_of_another_kind_is_quoted(mask):
    with pytest.raises(TypeError, match=r"mask must be a tensor, an array or an image of the output's size"):
        segment(1, mask)


def test_a_mask_without_a_cell_and_a_class_against_itself_are_told_so():
    with pytest.raises(ValueError, match="mask is empty: there is no cell to sum"):
        segment(1, torch.zeros(8, 8))
    for of, against in ((1, 1), ("a", "a"), (torch.tensor([0, 2]), [0, 2]), (np.int64(3), 3)):
        with pytest.raises(ValueError, match="compares a class with itself"):
            contrast(of, against)
    assert contrast([0, 1], [1, 1]).__name__ == "contrast([0, 1], [1, 1])"


# Signals


@pytest.fixture
def signal_segmenter():
    return nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 3, 1))


def test_the_default_layer_of_a_segmentation_of_signals_is_before_the_scores(signal_segmenter):
    x = torch.randn(3, 2, 12)
    made = gradcam(signal_segmenter, x)
    won = signal_segmenter(x).argmax(1)
    assert made.layers == ["0"] and made.target.tolist() == [int(row.bincount().argmax()) for row in won]


@pytest.mark.parametrize("method", ["hirescam", "ablationcam", "gradcam+noise", "hirescam+aug"])
def test_a_segmentation_of_signals_is_that_of_images_one_cell_high(signal_segmenter, method):
    x = torch.randn(3, 2, 12)
    flat = nn.Sequential(nn.Conv2d(2, 4, (1, 3), padding=(0, 1)), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        for a, b in ((0, 0), (2, 2)):
            flat[a].weight.copy_(signal_segmenter[b].weight.unsqueeze(2))
            flat[a].bias.copy_(signal_segmenter[b].bias)
    mask = torch.rand(3, 12)
    pairs = [(t, t) for t in (None, 1, [0, 1, 2], [[0, 1]] * 3, contrast(0, 2), segment(2), segment())]
    for target, same in [
        *pairs,
        (segment(1, mask), segment(1, mask[:, None])),
        (segment(1, mask[0]), segment(1, mask[:1])),
    ]:
        signed = replace(resolve_method(method), relu=False)
        made = gradcam(signal_segmenter, x, layer="1", target=target, method=signed)
        expected = gradcam(flat, x.unsqueeze(2), layer="1", target=same, method=signed)
        assert torch.allclose(made.maps[0], expected.maps[0].squeeze(-2), atol=1e-5) and made.maps[0].abs().max() > 0
        assert (made.target is None) == (expected.target is None)
        assert made.target is None or torch.equal(made.target, expected.target)
    assert made.output.shape == (3, 3, 12)


def test_an_output_of_one_cell_is_a_classifiers(tiny_net, x):
    net = nn.Sequential(*tiny_net[:6], nn.Conv2d(6, 5, 1))
    assert gradcam(net, x, target=3).maps[0].shape == (4, 4, 4)
    assert torch.equal(gradcam(net, x).target, net(x).flatten(1).argmax(1))


Pair = namedtuple("Pair", "logits aux")


@dataclass(frozen=True)
class Answer:
    features: torch.Tensor
    logits: torch.Tensor
    count: int = 1


_forms = {
    "dataclass": lambda y: Answer(y[:, :2], y),
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
@pytest.mark.parametrize("target", [[1], [1, 2], [0] * 3, [0] * 5, [[0, 1]] * 2, [[[1]]] * 4])
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


@pytest.mark.parametrize("shape", [(4, 5, 8), (), (4, 0)])
def test_an_output_without_classes_asks_for_a_callable(shape):
    with pytest.raises(ValueError, match="no class to explain; pass target= a callable") as error:
        class_targets(None, torch.zeros(shape))
    assert str(shape) in str(error.value)


class Boxes(nn.Module):
    "A detector's output: for each image, boxes with four numbers."

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 20)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3))).unflatten(1, (5, 4))


def test_an_output_with_no_classes_and_no_callable_says_so_through_gradcam():
    for layer in (None, "conv"):
        with pytest.raises(
            ValueError, match=r"output has shape \(2, 5, 4\), not \(images, classes\).*target= a callable"
        ):
            gradcam(Boxes(), torch.randn(2, 3, 8, 8), layer=layer)
        made = gradcam(Boxes(), torch.randn(2, 3, 8, 8), layer=layer, target=lambda boxes: boxes[:, 0, 0])
        assert made.layers == ["conv"]


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
    each, classes = as_question([[2, 0], [1, 1]], 2).scores(output)
    assert [s.tolist() for s in each] == [[2, 4], [0, 4]] and classes.tolist() == [[2, 0], [1, 1]]


# Networks that end in an activation


def _without_and_with(net, end):
    return net, nn.Sequential(*net, end)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1), nn.Softmax(-1)], ids=str)
@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "hirescam+aug", "layercam+noise"])
def test_what_stands_before_the_networks_own_activation_is_explained_and_said(tiny_net, x, end, method):
    plain, ends = _without_and_with(tiny_net, end)
    for target in (1, None, [[0, 3]] * 4, contrast(2)):
        expected = gradcam(plain, x, layer="2", target=target, method=method)
        made = gradcam(ends, x, layer="2", target=target, method=method)
        assert torch.allclose(made.maps[0], expected.maps[0], atol=1e-6)
        assert made.target is None or torch.equal(made.target, expected.target)
        assert torch.equal(made.output, ends.eval()(x).detach()), "the output is the network's own"
        assert type(end).__name__ in made.notes[0] and not expected.notes


def test_a_sigmoid_that_is_sure_of_itself_is_explained_all_the_same(tiny_net, x):
    with torch.no_grad():
        tiny_net[7].bias.add_(200)
    made = gradcam(nn.Sequential(*tiny_net, nn.Sigmoid()), x, layer="2", target=1, method=lambda A, G: G.abs().sum(1))
    assert made.maps[0].amax((1, 2)).min() > 0


@pytest.mark.parametrize("flat", [False, True])
def test_the_predicted_side_of_a_network_of_one_sigmoid_is_that_of_its_logit(tiny_net, x, flat):
    net = nn.Sequential(*tiny_net, nn.Linear(5, 1), nn.Sigmoid(), *[nn.Flatten(0)] * flat).eval()
    with torch.no_grad():
        net[8].bias.sub_(net[:9](x).median())
        expected = (net[:9](x)[:, 0] > 0).long()
    assert gradcam(net, x).target.tolist() == expected.tolist() and 0 < expected.sum() < 4


def test_an_activation_in_the_middle_and_a_callable_target_are_left_as_they_are(tiny_net, x):
    gate = nn.Sequential(*tiny_net[:3], nn.Sigmoid(), *tiny_net[4:])
    assert gradcam(gate, x, target=1).notes == []
    ends = nn.Sequential(*tiny_net, nn.Softmax(1)).eval()
    made = gradcam(ends, x, layer="2", target=lambda output: output[:, 1])
    logits = gradcam(ends, x, layer="2", target=1)
    assert not made.notes and not torch.allclose(made.maps[0], logits.maps[0])


# Outputs of several entries


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y.repeat(1, 2), y),
        lambda y: [y, y.repeat(1, 2)],
        lambda y: {"features": y.repeat(1, 2), "scores": y},
        lambda y: Pair(y, y.repeat(1, 2))[::-1],
        lambda y: (y[:, :2], (y, None)),
        lambda y: {"a": y[:, 0], "b": y[:, 0, None, None]},
    ],
)
@pytest.mark.parametrize("layer", [None, "net.2"])
def test_several_entries_that_may_be_the_scores_are_refused_with_what_to_pass(tiny_net, x, wrap, layer):
    with pytest.raises(ValueError, match=r"several tensors that may be its scores, \(.*target=, a callable"):
        gradcam(Says(tiny_net, wrap), x, layer=layer, target=1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y[:, :, None, None].expand(-1, -1, 3, 3), y),
        lambda y: {"map": y[:, :, None, None].expand(-1, -1, 3, 3), "scores": y},
        lambda y: (torch.tensor(3.0), y),
        lambda y: {"features": y.repeat(1, 2), "logits": y},
        lambda y: (torch.arange(4), y),
    ],
)
def test_the_one_entry_that_can_be_the_scores_is_found_wherever_it_stands(tiny_net, x, wrap):
    made = gradcam(Says(tiny_net, wrap), x, layer="net.2", target=1)
    assert torch.equal(made.maps[0], gradcam(tiny_net, x, layer="2", target=1).maps[0])


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "gradcam+noise"])
@pytest.mark.parametrize(
    "target",
    [
        lambda: torch.tensor([0, 1]),
        lambda: torch.tensor([[0, 1], [1, 0]]),
        lambda: contrast(torch.tensor([0, 1])),
        lambda: contrast(torch.tensor([0, 1]), torch.tensor([1, 0])),
    ],
)
def test_a_target_made_in_inference_mode_is_a_target(tiny_net, target, method):
    x = torch.randn(2, 3, 8, 8)
    expected = gradcam(tiny_net, x, target=target(), method=method, layer="2")
    with torch.inference_mode():
        of_inference = target()
        within = gradcam(tiny_net, x.clone(), target=of_inference, method=method, layer="2")
    made = gradcam(tiny_net, x, target=of_inference, method=method, layer="2")
    assert torch.equal(made.maps[0], expected.maps[0]) and torch.equal(within.maps[0], expected.maps[0])


def test_a_mask_made_in_inference_mode_is_a_mask():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(1, 3, 8, 8)
    expected = gradcam(net, x, target=segment(1, torch.ones(8, 8)), layer="0")
    with torch.inference_mode():
        target = segment(1, torch.ones(8, 8))
    assert torch.equal(gradcam(net, x, target=target, layer="0").maps[0], expected.maps[0])
