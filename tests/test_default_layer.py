"""Networks that must not fool the default layer: branches, switched-off units, layouts that shapes leave open."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastai_gradcam import GradCAMError, gradcam
from fastai_gradcam._net.inputs import inputs_of
from fastai_gradcam._net.layers import Spot
from fastai_gradcam._search.default import space_of
from fastai_gradcam._search.space import Reading, spatial


def _seen():
    "A method that keeps the shape of the activations it was given."
    shapes = []

    def method(A, G):
        shapes.append(tuple(A.shape))
        return A.sum(1)

    return shapes, method


def _corner(net, x, layer, **kwargs):
    "Where a layer's map changes when the image's top right corner does, as shares of its height and width."
    changed = x.clone()
    changed[..., : x.shape[-2] // 8, -(x.shape[-1] // 8) :] += 3
    before, after = (
        gradcam(net, y, layer=layer, method=lambda A, G: A.square().sum(1), **kwargs).maps[0][0] for y in (x, changed)
    )
    peak = int((after - before).abs().argmax())
    return tuple(i / (s - 1) for i, s in zip(divmod(peak, before.shape[1]), before.shape, strict=True))


# Whose score


class Branches(nn.Module):
    "A branch for each class; class 0 knows where it is by its bias."

    def __init__(self, trunk=False):
        super().__init__()
        self.trunk = nn.Conv2d(3, 3, 3) if trunk else nn.Identity()
        self.a, self.b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

    def forward(self, x):
        x = self.trunk(x)
        return torch.stack([self.a(x).relu().mean((1, 2, 3)) + 5, self.b(x).relu().mean((1, 2, 3))], 1)


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "hirescam+aug"])
@pytest.mark.parametrize("order", [(1, 0, None, 1), (None, 0, 1), (0, 1)])
def test_each_class_is_explained_where_it_takes_part(order, method):
    net, x = Branches(), torch.randn(2, 3, 8, 8)
    for target in order:
        made = gradcam(net, x, target=target, method=method)
        assert made.layers == ["b" if target == 1 else "a"] and made.maps[0].amax((1, 2)).min() > 0


def test_branches_that_only_the_head_brings_together_are_explained_where_they_part():
    net, x = Branches(trunk=True), torch.randn(2, 3, 8, 8)
    made = gradcam(net, x, target=[[0, 1], [0, 1]])
    assert made.layers == ["trunk"] and made.maps[0].shape == (2, 2, 6, 6)
    assert gradcam(net, x, target=1).layers == ["trunk"]


def test_a_class_with_a_layer_of_its_own_is_searched_for_once(monkeypatch):
    net, x, calls = Branches(), torch.randn(2, 3, 8, 8), []
    gradcam(net, x, target=0)
    forward = Branches.forward
    monkeypatch.setattr(Branches, "forward", lambda self, x: calls.append(1) or forward(self, x))
    gradcam(net, x, target=0)
    # the look at the layer of the other class, and the one at its own
    assert len(calls) == 2


def test_a_softmax_at_the_end_does_not_hide_the_layer():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1))
    assert gradcam(net, torch.randn(2, 3, 8, 8)).layers == ["0"]


class Viewed(nn.Module):
    "Its first part hands on a part of what it computed, which is added to in place."

    def __init__(self):
        super().__init__()
        self.first, self.last, self.fc = _Part(), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        y = self.first(x)
        y += x.mean(1, keepdim=True)
        return self.fc(self.last(y).relu().mean((2, 3)))


class _Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(x)[:, :4]


def test_a_view_that_is_added_to_in_place_is_no_branch():
    assert gradcam(Viewed(), torch.randn(2, 3, 8, 8)).layers == ["last"]


# Changes after the search


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        nn.init.constant_(self.b.bias, -1)

    def forward(self, x):
        x = self.a(x)
        return self.f((x + self.b(x).relu()).mean((2, 3)))


def test_a_layer_that_is_off_on_the_first_images_is_found_on_later_ones():
    net, bright = Skip(), 6 * torch.randn(2, 3, 8, 8)
    assert gradcam(net, torch.zeros(2, 3, 8, 8)).layers == ["a"]
    assert gradcam(net, bright).layers == gradcam(copy.deepcopy(net), bright).layers == ["b"]


def test_a_layer_put_behind_the_one_found_is_found_in_its_turn():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), head), torch.randn(2, 3, 8, 8)
    assert gradcam(net, x).layers == ["0"]
    net[1] = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *head)
    assert gradcam(net, x).layers == ["1.0"]


# Strides that differ between dimensions


def _text(stride=(2, 1)):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride, 1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


@pytest.mark.parametrize("layer", [None, "4"])
def test_strides_may_differ_between_height_and_width(layer):
    net, x = _text(), torch.randn(2, 1, 32, 64)
    made = gradcam(net, x, layer=layer, target=1)
    assert made.layers == ["4"] and made.maps[0].shape == (2, 4, 64)
    assert _corner(net, x, layer) == pytest.approx((0, 1), abs=0.34)


@pytest.mark.parametrize("layer", [None, "4"])
def test_strides_may_differ_between_time_and_space(layer):
    conv = lambda *a: nn.Conv3d(*a, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    net = nn.Sequential(
        conv(1, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.Conv3d(6, 6, 3, (1, 2, 2), 1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    made = gradcam(net, torch.randn(2, 1, 8, 64, 64), layer=layer, target=1)
    assert made.layers == ["4"] and made.maps[0].shape == (2, 8, 8, 8)


class VolumeTokens(nn.Module):
    def __init__(self, patch=(1, 8, 8), extra=1):
        super().__init__()
        self.embed, self.tokens = nn.Conv3d(1, 12, patch, patch), nn.Parameter(torch.randn(1, extra, 12))
        self.block, self.fc = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)
        return self.fc(self.block(x).mean(1))


@pytest.mark.parametrize(("patch", "grid"), [((1, 8, 8), (8, 4, 6)), ((2, 8, 8), (4, 4, 6)), ((8, 8, 8), (1, 4, 6))])
def test_tokens_of_a_volume_are_a_grid_of_three_dimensions(patch, grid):
    net, x = VolumeTokens(patch).eval(), torch.randn(1, 1, 8, 32, 48)
    made = gradcam(net, x)
    assert made.layers[0].startswith("block") and made.maps[0].shape == (1, *grid)
    where = gradcam(net, x, layer="block", method=lambda A, G: A[:, 0]).maps[0]
    expected = net.block(_tokens_of(net, x))[:, 1:, 0].reshape(1, *grid)
    assert torch.allclose(where, expected.detach(), atol=1e-5)


def _tokens_of(net, x):
    return torch.cat([net.tokens.expand(len(x), -1, -1), net.embed(x).flatten(2).transpose(1, 2)], 1)


# Layouts that shapes leave open


@pytest.mark.parametrize("layer", [None, "2"])
def test_padding_in_one_dimension_does_not_turn_channels_into_space(layer):
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, (1, 0)), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, (1, 0)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    shapes, method = _seen()
    assert gradcam(net, torch.randn(2, 3, 64, 64), layer=layer, method=method).layers == ["2"]
    assert shapes == [(2, 16, 16, 15)]


class ChannelsLast(nn.Module):
    "Eight channels, last, beside a space of 8 × 8."

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.fc = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.norm(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_as_many_channels_as_cells_are_told_apart_by_what_answers_to_the_image():
    net, x = ChannelsLast(), torch.randn(2, 3, 64, 64)
    made = gradcam(net, x, method=lambda A, G: A[:, 0])
    assert made.layers == ["norm"]
    expected = net.norm(net.embed(x).permute(0, 2, 3, 1))[..., 0]
    assert torch.equal(made.maps[0], expected.detach())
    # found out once: it is read alike when it is named
    assert torch.equal(gradcam(net, x, layer="norm", method=lambda A, G: A[:, 0]).maps[0], expected.detach())


class Mixed(nn.Module):
    "`(N, C, cells)`: a mixing of channels over flattened cells."

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.fc = nn.Conv2d(3, 64, 4, 4), nn.Conv1d(64, 64, 1), nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(self.mix(self.embed(x).flatten(2)).relu().mean(2))


@pytest.mark.parametrize("layer", [None, "mix"])
@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_channels_before_flattened_cells_are_no_tokens(size, layer):
    net, x = Mixed(), torch.randn(2, 3, *size)
    made = gradcam(net, x, layer=layer, method=lambda A, G: A[:, 5])
    expected = net.mix(net.embed(x).flatten(2))[:, 5].unflatten(1, (size[0] // 4, size[1] // 4))
    assert made.layers == ["mix"] and torch.equal(made.maps[0], expected.detach())


class Last(nn.Module):
    "The class token comes last."

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 1, 12))
        self.block = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=True)
        self.fc = nn.Linear(12, 3)

    def tokens(self, x):
        return torch.cat([self.embed(x).flatten(2).transpose(1, 2), self.token.expand(len(x), -1, -1)], 1)

    def forward(self, x):
        return self.fc(self.block(self.tokens(x))[:, -1])


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_a_class_token_that_comes_last_is_dropped(size):
    net, x = Last().eval(), torch.randn(1, 3, *size)
    grid = size[0] // 8, size[1] // 8
    assert gradcam(net, x).layers == ["block.norm1"]
    for layer, method in ((None, "gradcam"), ("block.norm1", "gradcam")):
        assert gradcam(net, x, layer=layer, method=method).maps[0].shape == (1, *grid)
    made = gradcam(net, x, layer="block", method=lambda A, G: A[:, 0]).maps[0]
    expected = net.block(net.tokens(x))[:, :-1, 0].reshape(1, *grid)
    assert torch.allclose(made, expected.detach(), atol=1e-6)


class Asking(nn.Module):
    "Sixteen learned queries ask the image; what they bring has no place in it."

    def __init__(self):
        super().__init__()
        self.embed, self.queries = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 16, 12))
        self.ask = nn.MultiheadAttention(12, 2, batch_first=True)
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.fc(self.norm(self.ask(self.queries.expand(len(x), -1, -1), x, x)[0]).mean(1))


@pytest.mark.parametrize("seed", range(6))
def test_what_learned_queries_bring_has_no_space(seed):
    torch.manual_seed(seed)
    made = gradcam(Asking().eval(), torch.randn(2, 3, 64, 64))
    assert made.layers == ["embed"] and made.maps[0].shape == (2, 8, 8)


class Heads(nn.Module):
    "Attention that normalises keys per head: `(N, heads, tokens, channels)`."

    def __init__(self, heads=2, dim=16):
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, dim, 8, 8), nn.Parameter(torch.randn(1, 1, dim))
        self.norm, self.kv, self.fc = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, 3)
        self.of_keys, self.heads = nn.LayerNorm(dim // heads), heads

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)
        k, v = self.kv(self.norm(x)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = x[:, :1].unflatten(2, (self.heads, -1)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(q, self.of_keys(k), v)
        return self.fc(y.transpose(1, 2).flatten(1))


@pytest.mark.parametrize(("size", "dim"), [((64, 64), 16), ((64, 64), 128), ((40, 64), 16)])
def test_neither_keys_per_head_nor_keys_and_values_in_one_are_images(size, dim):
    made = gradcam(Heads(dim=dim).eval(), torch.randn(2, 3, *size))
    assert made.layers == ["norm"] and made.maps[0].shape == (2, size[0] // 8, size[1] // 8)


class TwoWidths(nn.Module):
    "Queries and keys out of one linear layer, values out of another."

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 12, 8, 8), nn.LayerNorm(12)
        self.qk, self.v, self.fc = nn.Linear(12, 24), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        (q, k), v = self.qk(x).chunk(2, -1), self.v(x)
        return self.fc(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


def test_values_beside_wider_queries_and_keys_are_no_layer():
    assert gradcam(TwoWidths(), torch.randn(2, 3, 32, 48)).layers == ["norm"]


def test_a_network_that_takes_one_image_only_is_read_by_its_shapes():
    class One(ChannelsLast):
        def forward(self, x):
            assert len(x) == 1
            return super().forward(x)

    made = gradcam(One(), torch.randn(1, 3, 64, 96))
    assert made.layers == ["norm"] and made.maps[0].shape == (1, 8, 12)


def test_an_image_that_nothing_answers_to_is_read_by_its_shapes():
    net = ChannelsLast()
    nn.init.zeros_(net.embed.weight)
    x = torch.randn(1, 3, 64, 96)
    output = net.norm(net.embed(x).permute(0, 2, 3, 1))
    assert (
        space_of(net, Spot("norm", net.norm), output, inputs_of(x), None)
        == spatial(output, x.shape)
        == Reading(last=True)
    )


class Averaging(nn.Module):
    "Attention that has learned nothing: every cell is the mean of all."

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.fc = nn.Conv2d(3, 12, 8, 8), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.fc(self.norm(0 * x + x.mean(1, keepdim=True)).mean(1))


def test_cells_that_all_answer_alike_are_read_by_their_shape():
    made = gradcam(Averaging(), torch.randn(2, 3, 32, 48))
    assert made.layers == ["norm"] and made.maps[0].shape == (2, 4, 6)


@pytest.mark.parametrize("fill", [torch.zeros, torch.ones])
def test_an_image_of_one_colour_is_tried_out_too(fill):
    made = gradcam(ChannelsLast(), fill(1, 3, 64, 64), method=lambda A, G: A[:, 0])
    assert made.layers == ["norm"]


def test_trying_out_costs_one_pass_once_and_leaves_nothing_behind(monkeypatch):
    net, x, calls = ChannelsLast(), torch.randn(2, 3, 64, 64), []
    forward = ChannelsLast.forward
    monkeypatch.setattr(
        ChannelsLast, "forward", lambda self, x: calls.append((len(x), torch.is_grad_enabled())) or forward(self, x)
    )
    state, before = torch.get_rng_state(), x.clone()
    gradcam(net, x)
    # Two images to search by; one and its four changed corners to try out; two to explain.
    assert [n for n, _ in calls] == [2, 5, 2] and not calls[1][1]
    gradcam(net, x)
    gradcam(net, x, layer="norm")
    assert len(calls) == 5
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, before)
    assert all(len(m._forward_hooks) == 0 for m in net.modules())


# Segmentation


def _segmenter(*channels):
    layers = [nn.Conv2d(3, channels[0], 3, padding=1)]
    for i, o in pairwise(channels[:-1]):
        layers += [nn.ReLU(), nn.Conv2d(i, o, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(channels[-2], channels[-1], 1))


@pytest.mark.parametrize(
    ("channels", "layer"), [((4, 8, 8, 8), "4"), ((8, 8, 8), "2"), ((4, 8, 3), "2"), ((8, 3, 3), "2"), ((3, 3), "0")]
)
def test_features_with_as_many_channels_as_classes_are_no_scores(channels, layer):
    assert gradcam(_segmenter(*channels), torch.randn(2, 3, 8, 8)).layers == [layer]


def test_scores_that_are_normalised_at_the_end_are_scores_still():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    assert gradcam(net, torch.randn(2, 3, 8, 8)).layers == ["0"]


# A reshape, whole numbers, checkpoints


class TokensFirst(nn.Module):
    "`(tokens, N, C)`, as `nn.Transformer` has it."

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.fc = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.mix(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0))


def test_a_reshape_decides_which_layers_are_candidates():
    net, x = TokensFirst(), torch.randn(2, 3, 8, 12)

    def reshape(t):
        return t.permute(1, 2, 0).unflatten(2, (2, 3))

    assert gradcam(net, x).layers == ["embed"]
    made = gradcam(net, x, reshape=reshape)
    assert made.layers == ["mix"]
    assert torch.equal(made.maps[0], gradcam(net, x, layer="mix", reshape=reshape).maps[0])
    assert gradcam(net, x).layers == ["embed"]


def test_a_reshape_that_fits_no_layer_is_told_with_what_it_said():
    with pytest.raises(ValueError, match=r"reshape= fits the output of no layer: .*permute"):
        gradcam(TokensFirst(), torch.randn(2, 3, 8, 12), reshape=lambda t: t.permute(0, 1, 2, 3, 4))


class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.conv(x.float() / 255).relu().mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
def test_images_of_whole_numbers_are_explained(frozen):
    net = Bytes().requires_grad_(not frozen)
    made = gradcam(net, torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8))
    assert made.layers == ["conv"] and made.maps[0].shape == (2, 6, 6)
    assert all(p.requires_grad != frozen and p.grad is None for p in net.parameters())


def test_whole_numbers_are_tried_out_too():
    class Net(ChannelsLast):
        def forward(self, x):
            return super().forward(x.float())

    net, x = Net(), torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    expected = net.norm(net.embed(x.float()).permute(0, 2, 3, 1))[..., 0]
    assert torch.equal(gradcam(net, x, method=lambda A, G: A[:, 0]).maps[0], expected.detach())


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(6, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", [None, "stem", "body.0", "body.2", "body"])
def test_checkpoints_change_nothing(layer, reentrant):
    net, x = Checkpointed(reentrant), torch.randn(2, 3, 12, 12)
    plain = Checkpointed(None)
    plain.load_state_dict(net.state_dict())
    made, expected = (gradcam(n, x, layer=layer, target=1) for n in (net, plain))
    assert made.layers == expected.layers and torch.equal(made.maps[0], expected.maps[0])
    # they are checkpoints again afterwards
    net(x.requires_grad_()).sum().backward()
    assert net.stem.weight.grad is not None and math.isfinite(float(x.grad.sum()))


# Lists of stages, bags and sequences, branches that never were one


class Stages(nn.Module):
    "Returns its stages in the form that `form` gives them; `image`: with the image first."

    def __init__(self, form, image=False):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 8, 3, 2, 1), nn.ReLU()) for c in (3, 8, 8))
        self.form, self.image = form, image

    def forward(self, x):
        found = [x] if self.image else []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return self.form(found)


class OfStages(nn.Module):
    def __init__(self, encoder, last):
        super().__init__()
        self.encoder, self.fc, self.last = encoder, nn.Linear(8, 3), last

    def forward(self, x):
        return self.fc(self.last(self.encoder(x)).mean((2, 3)))


_stage_forms = {
    "list": (lambda s: s, lambda found: found[-1]),
    "tuple": (tuple, lambda found: found[-1]),
    "dict": (lambda s: dict(enumerate(s)), lambda found: found[max(found)]),
    "reversed": (lambda s: s[::-1], lambda found: found[0]),
    "nested": (lambda s: (s[0], {"rest": s[1:]}), lambda found: found[1]["rest"][-1]),
}


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("form", _stage_forms)
def test_an_encoder_that_returns_its_stages_is_explained_at_the_one_that_is_read(form, image):
    wrap, last = _stage_forms[form]
    net, x = OfStages(Stages(wrap, image), last).eval(), torch.randn(2, 3, 32, 48)
    made = gradcam(net, x, target=1)
    assert made.layers == ["encoder.stages.2"] and made.maps[0].shape == (2, 4, 6)
    A = last(net.encoder(x))
    (g,) = torch.autograd.grad(net.fc(A.mean((2, 3)))[:, 1].sum(), A)
    expected = (g.mean((2, 3), keepdim=True) * A).sum(1).relu()
    assert torch.allclose(made.maps[0], expected.detach(), atol=1e-6)


class Bag(nn.Module):
    "Tiles or frames `(N, T, C, h, w)`, each brought to a vector, then put together by `join`."

    def __init__(self, join):
        super().__init__()
        self.encoder, self.join, self.fc = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), join, nn.Linear(8, 3)

    def forward(self, x):
        each = self.encoder(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2])
        return self.fc(self.join(each))


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.att = nn.Linear(8, 1)

    def forward(self, each):
        return (self.att(each).softmax(1) * each).sum(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(8, 8, batch_first=True), nn.LayerNorm(8)

    def forward(self, each):
        return self.norm(self.lstm(each)[0])[:, -1]


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, each):
        return self.block(torch.cat([self.token.expand(len(each), -1, -1), each], 1))[:, 0]


@pytest.mark.parametrize("count", [4, 5, 9, 16])
@pytest.mark.parametrize("join", [Weighted, Recurrent, Attentive])
def test_vectors_of_tiles_and_frames_are_not_read_as_a_grid(join, count):
    with pytest.raises(ValueError, match="No layer of this Bag has an output with space"):
        gradcam(Bag(join()).eval(), torch.randn(2, count, 3, 32, 32), target=1)


class Joined(nn.Module):
    "Two networks of one image, put together by `join`."

    def __init__(self, join):
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()) for _ in range(2))
        self.fa, self.fb, self.join = nn.Linear(8, 3), nn.Linear(8, 3), join

    def forward(self, x):
        return self.join(self.fa(self.a(x).mean((2, 3))), self.fb(self.b(x).mean((2, 3))))


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: a + b,
        lambda a, b: a + 1e-3 * b,
        lambda a, b: 1e-3 * a + b,
        torch.maximum,
        lambda a, b: torch.stack([a, b]).mean(0),
    ],
)
def test_an_ensemble_is_never_explained_by_one_branch_in_silence(join):
    net, x = Joined(join).eval(), torch.randn(2, 3, 16, 16)
    made = gradcam(net, x, target=1)
    assert "no layer holds all of it" in made.notes[0] and "layer=['a', 'b']" in made.notes[0]
    assert f"that of '{made.layers[0]}' alone" in made.notes[0]
    assert gradcam(net, x, target=1).notes == made.notes, "the second time, too"
    assert len(gradcam(net, x, layer=["a", "b"], target=1).maps) == 2


class Adapted(nn.Module):
    "A linear layer with a branch beside it that starts at zero, as LoRA has it."

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class SelfAttention(nn.Module):
    def __init__(self, adapted):
        super().__init__()
        adapt = lambda name, layer: Adapted(layer) if name in adapted else layer
        self.embed, self.norm = nn.Conv2d(3, 12, 8, 8), nn.LayerNorm(12)
        self.qkv, self.proj = adapt("qkv", nn.Linear(12, 36)), adapt("proj", nn.Linear(12, 12))
        self.fc1, self.fc2 = adapt("fc1", nn.Linear(12, 24)), adapt("fc2", nn.Linear(24, 12))
        self.token, self.fc = nn.Parameter(torch.randn(1, 1, 12)), nn.Linear(12, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(*self.qkv(self.norm(x)).chunk(3, -1)))
        return self.fc((x + self.fc2(self.fc1(x).relu()))[:, 0])


@pytest.mark.parametrize("adapted", [[], ["qkv"], ["proj"], ["qkv", "proj"], ["fc1", "fc2"], ["qkv", "proj", "fc1"]])
def test_with_adapters_the_layer_is_the_networks_own(adapted):
    made = gradcam(SelfAttention(adapted).eval(), torch.randn(2, 3, 32, 48), target=1)
    assert made.layers == ["norm"] and made.maps[0].shape == (2, 4, 6)


def _vit():
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)
    return transformers.ViTForImageClassification(config)


def _resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)


ADAPTERS = {
    "LoRA of all linear layers": (_vit, "LoraConfig", {"target_modules": "all-linear", "r": 2}),
    "LoRA of convolutions": (_resnet, "LoraConfig", {"target_modules": ["conv1", "conv2"], "r": 2}),
    "LoRA with a head of its own": (
        _vit,
        "LoraConfig",
        {"target_modules": "all-linear", "r": 2, "modules_to_save": ["classifier"]},
    ),
    "LoHa": (_resnet, "LoHaConfig", {"target_modules": ["conv1", "conv2"], "r": 2}),
    "LoKr": (_resnet, "LoKrConfig", {"target_modules": ["conv1", "conv2"], "r": 2}),
    "IA3": (_resnet, "IA3Config", {"target_modules": ["conv1", "conv2"], "feedforward_modules": []}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_with_pefts_own_adapters_layer_and_map_are_the_networks(kind):
    peft = pytest.importorskip("peft")
    make, config, settings = ADAPTERS[kind]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(2, 3, 32, 32)
    plain = gradcam(net, x, target=1)
    made = gradcam(peft.get_peft_model(net, getattr(peft, config)(**settings)).eval(), x, target=1)
    assert made.layers == [f"base_model.model.{plain.layers[0]}"] and made.notes == []
    assert torch.equal(made.maps[0], plain.maps[0]) and made.maps[0].any()


# --- heads that read several stages, rows of an image, images that the network makes square


class ReadsStages(nn.Module):
    "A head that reads the last `n` of three stages directly."

    def __init__(self, n):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(i, 8, 3, 2, 1) for i in (3, 8, 8))
        self.n, self.head = n, nn.Linear(8 * n, 3)

    def forward(self, x):
        seen = []
        for stage in self.stages:
            x = stage(x).relu()
            seen.append(x)
        return self.head(torch.cat([one.mean((2, 3)) for one in seen[-self.n :]], 1))


@pytest.mark.parametrize("n", [2, 3])
def test_a_head_that_reads_several_stages_is_explained_at_the_last_with_a_note(n):
    made = gradcam(ReadsStages(n), torch.randn(2, 3, 32, 32))
    assert made.layers == ["stages.2"]
    assert made.notes and "layer=['stages.1', 'stages.2'] gives a map of each" in made.notes[0]


def test_a_head_that_reads_the_last_stage_alone_has_no_note():
    assert gradcam(ReadsStages(1), torch.randn(2, 3, 32, 32)).notes == []


class Rows(nn.Module):
    "Reads an image row by row."

    def __init__(self, kind, size, mean):
        super().__init__()
        self.mean, self.rnn, self.head = mean, kind(size, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        rows, _ = self.rnn(x[:, 0])
        return self.head(rows.mean(1) if self.mean else rows[:, -1])


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("size", [16, 25, 28, 36, 64])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_rows_of_an_image_are_not_read_as_a_grid(kind, size, mean):
    torch.manual_seed(0)
    with pytest.raises(GradCAMError, match=r"those of 'rnn', say, respond to all alike or by rows.*reshape="):
        gradcam(Rows(kind, size, mean), torch.randn(2, 1, size, size))


class MakesSquare(nn.Module):
    "Patches of the image, which is made square first; `extra` tokens before them."

    def __init__(self, extra):
        super().__init__()
        self.proj, self.norm, self.extra = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), extra
        self.mix, self.head = nn.Identity(), nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.interpolate(x, (48, 48))
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.new_zeros(len(x), self.extra, 8), tokens], 1)
        return self.head(self.norm(tokens).mean(1))


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("size", [(59, 67), (67, 59), (50, 61)])
def test_a_grid_of_an_image_that_the_network_makes_square_is_square(size, extra):
    torch.manual_seed(0)
    made = gradcam(MakesSquare(extra), torch.randn(2, 3, *size))
    assert (made.layers, made.maps[0].shape) == (["norm"], (2, 12, 12))
