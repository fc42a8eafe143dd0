"""Which layer is explained by default, on the networks people use, and how layouts of all kinds map to space."""

from functools import lru_cache

import pytest
import torch
import torchvision.models as zoo
from torch import nn

from fastai_gradcam._net.inputs import inputs_of
from fastai_gradcam._net.layers import Spot, named_layers, unwrap
from fastai_gradcam._net.shadow import shadow
from fastai_gradcam._search.default import default_spot
from fastai_gradcam._search.space import spatial
from fastai_gradcam.cam import gradcam

# network, image size, the layer to be found, its channels and its space
_defaults = [
    ("resnet18", (64, 96), "layer4.1", 512, (2, 3)),
    ("resnext50_32x4d", (64, 64), "layer4.2", 2048, (2, 2)),
    ("vgg11", (64, 96), "features", 512, (2, 3)),
    ("vgg11_bn", (64, 64), "features", 512, (2, 2)),
    ("densenet121", (64, 96), "features.norm5", 1024, (2, 3)),
    ("squeezenet1_1", (96, 160), "classifier.1", 6, (5, 9)),
    ("alexnet", (96, 160), "features", 256, (2, 4)),
    ("googlenet", (64, 96), "inception5b", 1024, (2, 3)),
    ("inception_v3", (107, 139), "Mixed_7c", 2048, (2, 3)),
    ("mobilenet_v2", (64, 96), "features.18", 1280, (2, 3)),
    ("mobilenet_v3_small", (96, 160), "features.12", 576, (3, 5)),
    ("efficientnet_b0", (64, 96), "features.8", 1280, (2, 3)),
    ("regnet_y_400mf", (64, 96), "trunk_output.block4.block4-5", 440, (2, 3)),
    ("shufflenet_v2_x0_5", (64, 96), "conv5", 1024, (2, 3)),
    ("mnasnet0_5", (64, 96), "layers", 1280, (2, 3)),
    ("convnext_tiny", (64, 96), "features.7.2", 768, (2, 3)),
    ("swin_t", (64, 128), "norm", 768, (2, 4)),
    ("swin_v2_t", (96, 64), "norm", 768, (3, 2)),
    ("vit_b_16", (224, 224), "encoder.layers.encoder_layer_11.ln_1", 768, (14, 14)),
    ("maxvit_t", (224, 224), "blocks.3.layers.1.layers.grid_attention", 512, (7, 7)),
]


def _network(name):
    torch.manual_seed(0)
    arguments = {"num_classes": 6, "weights": None}
    if name in ("googlenet", "inception_v3", "vgg11", "vgg11_bn"):
        # their own initialisation takes seconds
        arguments.update(init_weights=False)
    net = getattr(zoo, name)(**arguments)
    if name == "vit_b_16":
        nn.init.normal_(net.heads.head.weight)
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "layer", "channels", "space"), _defaults, ids=[d[0] for d in _defaults])
def test_the_default_layer_is_the_last_with_space_that_takes_part(name, size, layer, channels, space):
    captum = pytest.importorskip("captum.attr")
    net, x = _network(name), torch.randn(1, 3, *size)
    seen = {}

    def signed(A, G):
        seen.update(A=A)
        return (G.mean((2, 3), keepdim=True) * A).sum(1)

    made = gradcam(net, x, method=signed)
    assert made.layers == [layer]
    assert made.maps[0].shape == (1, *space) and seen["A"].shape == (1, channels, *space)
    assert made.maps[0].abs().max() > 0

    # captum's own gradient at the layer, brought to (N, C, h, w) by hand where it is laid out in another way
    kept = {}
    module = dict(net.named_modules())[layer]
    handle = module.register_forward_hook(lambda m, i, o: kept.update(shape=o.shape))
    net(x)
    handle.remove()
    to_space = {
        (1, channels, *space): lambda t: t,
        (1, *space, channels): lambda t: t.permute(0, 3, 1, 2),
        (1, 1 + space[0] * space[1], channels): lambda t: t[:, 1:].transpose(1, 2).unflatten(2, space),
    }[tuple(kept["shape"])]
    _, gradients, activations = _captum_parts(captum, net, module, x, int(made.target[0]))
    A, G = to_space(activations), to_space(gradients)
    expected = (G.mean((2, 3), keepdim=True) * A).sum(1)
    assert (made.maps[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def _captum_parts(captum, net, module, x, target):
    from captum._utils.gradient import compute_layer_gradients_and_eval

    gradients, activations = compute_layer_gradients_and_eval(net, module, x, target)
    return captum, gradients[0].detach(), activations[0].detach()


@pytest.mark.slow
def test_training_networks_with_several_outputs_stay_in_training_mode():
    net = _network("googlenet").train()
    made = gradcam(net, torch.randn(2, 3, 64, 64), target=1)
    assert isinstance(made.output, torch.Tensor), "evaluation mode has one output"
    assert net.training and net.aux1.training


class Branches(nn.Module):
    "Its last convolution has space, runs last, and takes no part in the score."

    def __init__(self):
        super().__init__()
        self.body, self.aside = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        y = self.fc(self.body(x).mean((2, 3)))
        self.aside(x)
        return y


def test_a_layer_that_takes_no_part_in_the_score_is_not_the_default():
    assert gradcam(Branches(), torch.randn(2, 3, 8, 8)).layers == ["body"]


def test_a_module_without_parameters_is_not_the_default_where_another_is():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert gradcam(net, torch.randn(1, 3, 8, 8)).layers == ["0"]
    bare = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert gradcam(bare, torch.rand(1, 3, 8, 8)).layers == ["1"]


def test_where_one_tensor_is_handed_on_unchanged_the_innermost_module_is_named(tiny_net):
    wrapped = nn.Sequential(nn.Sequential(nn.Sequential(tiny_net[:5])), tiny_net[5:])
    assert gradcam(wrapped, torch.randn(1, 3, 8, 8)).layers == ["0.0.0.4"]


def test_a_head_that_starts_at_zero_is_no_obstacle(tiny_net):
    nn.init.zeros_(tiny_net[7].weight)
    before = torch.get_rng_state()
    made = gradcam(tiny_net, torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    assert made.layers == ["4"] and made.maps[0].eq(0).all()
    assert torch.equal(torch.get_rng_state(), before) and tiny_net[7].weight.eq(0).all()


def test_the_search_gives_name_module_and_entry(tiny_net):
    inputs = inputs_of(torch.randn(2, 3, 8, 8))
    net = shadow(tiny_net)
    assert default_spot(net, inputs, lambda output: output.sum()) == (Spot("4", net[4]), "")


def test_each_input_size_has_a_default_layer_of_its_own():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    assert gradcam(net, torch.randn(1, 3, 32, 32)).layers == ["1"]
    assert gradcam(net, torch.randn(1, 3, 8, 8)).layers == ["0"], "the second convolution leaves one cell"
    assert gradcam(net, torch.randn(1, 3, 32, 32)).layers == ["1"]


def test_a_layer_replaced_since_the_search_is_searched_for_again(tiny_net):
    x = torch.randn(1, 3, 8, 8)
    net = nn.ModuleDict({"body": tiny_net[:5], "head": tiny_net[5:]})
    net.forward = lambda x: net["head"](net["body"](x))
    assert gradcam(net, x).layers == ["body.4"]
    net["body"] = nn.Conv2d(3, 6, 3)
    assert gradcam(net, x).layers == ["body"]


def test_a_network_without_space_says_what_to_do():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    with pytest.raises(
        ValueError, match=r"No layer of this Sequential has .* space for an input \(2, 3, 8, 8\).*layer=.*reshape="
    ):
        gradcam(net, torch.randn(2, 3, 8, 8))


def test_a_score_without_any_gradient_says_what_to_do(tiny_net):
    with pytest.raises(
        ValueError, match=r"No gradient of the score arrives at any layer .* this Sequential; name the layer"
    ):
        gradcam(tiny_net, torch.randn(2, 3, 8, 8), target=lambda output: torch.ones(2))


def test_the_search_leaves_no_hook_behind_when_the_network_raises(tiny_net):
    with pytest.raises(RuntimeError):
        gradcam(tiny_net, torch.randn(2, 5, 8, 8))
    assert all(len(m._forward_hooks) == 0 for m in tiny_net.modules())


# Transformers with plain attention, so that the kind of tokens before the grid can be chosen


class Transformer(nn.Module):
    def __init__(self, extra, patch=8, pool="first"):
        super().__init__()
        self.embed = nn.Conv2d(3, 12, patch, patch)
        self.tokens = nn.Parameter(torch.randn(1, extra, 12))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True) for _ in range(2))
        self.norm, self.fc, self.pool = nn.LayerNorm(12), nn.Linear(12, 3), pool

    def forward(self, x):
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.fc(x[:, 0] if self.pool == "first" else x.mean(1))


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (8, 8)), ((48, 80), (6, 10)), ((80, 48), (10, 6))])
@pytest.mark.parametrize(("extra", "pool"), [(0, "mean"), (1, "first"), (2, "first"), (5, "first")])
def test_tokens_before_the_grid_are_dropped_whatever_its_aspect(size, grid, extra, pool):
    net, x = Transformer(extra, pool=pool).eval(), torch.randn(2, 3, *size)
    made = gradcam(net, x)
    # behind the last attention only the pooled tokens matter: all of them, or one that is no patch
    assert made.layers[0] == "norm" if pool == "mean" else made.layers[0].startswith("blocks.0")
    assert made.maps[0].shape == (2, *grid)
    # a layer whose tokens come straight from the patches shows which is which
    embedded = gradcam(net, x, layer=["embed", "blocks.0"], method=lambda A, G: A[:, 0]).maps
    assert embedded[0].shape == embedded[1].shape == (2, *grid)


class Attention(nn.Module):
    "One linear layer for queries, keys and values, as most libraries of transformers have it."

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        return self.proj(nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = (
            nn.LayerNorm(12),
            Attention(),
            nn.LayerNorm(12),
            nn.Linear(12, 12),
        )

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def test_queries_keys_and_values_are_no_place_to_explain():
    net = Transformer(1)
    net.blocks = nn.ModuleList([Block(), Block()])
    assert gradcam(net, torch.randn(1, 3, 48, 64)).layers == ["blocks.1.norm1"]


def test_a_grid_of_tokens_is_read_row_by_row_after_the_extra_tokens():
    to_space = spatial(torch.zeros(1, 2 + 6, 4), (1, 3, 32, 48))
    tokens = torch.arange(8.0).view(1, 8, 1).expand(1, 8, 4)
    assert to_space(tokens).shape == (1, 4, 2, 3)
    assert to_space(tokens)[0, 1].tolist() == [[2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (196, (224, 224), (14, 14)),
        (197, (224, 224), (14, 14)),
        (198, (224, 224), (14, 14)),
        (201, (224, 224), (14, 14)),
        (50, (224, 224), (7, 7)),
        (65, (64, 64), (8, 8)),
        (60, (96, 160), (6, 10)),
        (61, (96, 160), (6, 10)),
        (61, (160, 96), (10, 6)),
        (25, (64, 96), (4, 6)),
        (36, (80, 112), (5, 7)),
        (9, (32, 64), (2, 4)),
        (130, (128, 256), (8, 16)),
        # read with fewer extra tokens these would be 3 × 3, 4 × 2, 6 × 4
        (9, (32, 32), (2, 2)),
        (8, (48, 32), (3, 2)),
        (25, (40, 32), (5, 4)),
        # a stride that does not divide the size, in one direction or both
        (25, (90, 90), (5, 5)),
        (197, (224, 232), (14, 14)),
        (36, (90, 122), (5, 7)),
    ],
)
def test_the_grid_of_tokens_has_the_inputs_aspect(tokens, size, grid):
    to_space = spatial(torch.zeros(2, tokens, 8), (2, 3, *size))
    assert to_space(torch.zeros(2, tokens, 8)).shape == (2, 8, *grid)


@pytest.mark.parametrize(
    ("shape", "x_shape", "expected"),
    [
        # channels first and last, square and not
        ((2, 64, 7, 7), (2, 3, 224, 224), (2, 64, 7, 7)),
        ((2, 7, 7, 64), (2, 3, 224, 224), (2, 64, 7, 7)),
        ((2, 64, 3, 5), (2, 3, 96, 160), (2, 64, 3, 5)),
        ((2, 3, 5, 64), (2, 3, 96, 160), (2, 64, 3, 5)),
        ((2, 5, 3, 64), (2, 3, 160, 96), (2, 64, 5, 3)),
        # as many channels as cells
        ((2, 8, 8, 8), (2, 3, 64, 64), (2, 8, 8, 8)),
        # padding and rounding weigh most on the smallest maps
        ((2, 256, 2, 4), (2, 3, 96, 160), (2, 256, 2, 4)),
        # full resolution
        ((2, 4, 64, 96), (2, 3, 64, 96), (2, 4, 64, 96)),
        # signals and volumes
        ((2, 16, 50), (2, 1, 100), (2, 16, 50)),
        ((2, 50, 256), (2, 1, 100), (2, 256, 50)),
        ((2, 8, 4, 6, 6), (2, 1, 16, 24, 24), (2, 8, 4, 6, 6)),
        ((2, 4, 6, 6, 80), (2, 1, 16, 24, 24), (2, 80, 4, 6, 6)),
    ],
)
def test_layouts_are_told_apart_by_the_inputs_shape(shape, x_shape, expected):
    output = torch.randn(shape)
    made = spatial(output, x_shape)(output)
    assert made.shape == expected
    assert torch.equal(made, output if shape == expected else output.movedim(-1, 1))


@pytest.mark.parametrize(
    ("shape", "x_shape"),
    [
        ((2, 10), (2, 3, 64, 64)),
        ((2,), (2, 3, 64, 64)),
        ((), (2, 3, 64, 64)),
        # one cell is no space
        ((2, 512, 1, 1), (2, 3, 64, 64)),
        ((2, 1, 1, 512), (2, 3, 64, 64)),
        ((2, 1, 768), (2, 3, 64, 64)),
        ((2, 64, 1), (2, 1, 100)),
        # windows: the batch is another
        ((32, 49, 96), (2, 3, 224, 224)),
        ((8, 7, 7, 96), (2, 3, 224, 224)),
        # attention weights (N, heads, tokens, tokens), more cells than pixels
        ((2, 12, 197, 197), (2, 3, 64, 64)),
        # no grid has these tokens
        ((2, 23 * 64, 96), (2, 3, 32, 32)),
        # more dimensions than the input
        ((2, 3, 8, 8, 4), (2, 3, 64, 64)),
    ],
)
def test_an_output_without_space_has_none(shape, x_shape):
    assert spatial(torch.zeros(shape), x_shape) is None


def test_a_reshape_of_the_callers_overrides_what_would_be_read():
    def turned(t):
        return t.transpose(2, 3)

    output = torch.zeros(2, 4, 3, 5)
    assert spatial(output, (2, 3, 96, 160), turned) is turned
    for bad in (lambda t: t[:1], lambda t: t.flatten(1), lambda t: None):
        with pytest.raises(ValueError, match=r"reshape must return .* N = 2"):
            spatial(output, (2, 3, 96, 160), bad)


# Layers by name


def test_layers_are_given_as_names_modules_or_a_list_of_both(tiny_net):
    assert named_layers(tiny_net, "2") == [("2", tiny_net[2])]
    assert named_layers(tiny_net, tiny_net[4]) == [("4", tiny_net[4])]
    assert named_layers(tiny_net, ["2", tiny_net[0]]) == [("2", tiny_net[2]), ("0", tiny_net[0])]
    assert named_layers(tiny_net, ("2",)) == [("2", tiny_net[2])]


def test_a_module_under_two_names_is_found_by_either():
    conv = nn.Conv2d(3, 3, 3)
    net = nn.Sequential(conv, conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert named_layers(net, conv) == [("0", conv)]
    assert named_layers(net, "1") == [("1", conv)]


@pytest.mark.parametrize(
    ("typo", "nearest"), [("layer5", "layer4"), ("layer4.1.con2", "layer4.1.conv2"), ("Conv1", "conv1")]
)
def test_a_layer_that_does_not_exist_is_quoted_with_the_nearest(typo, nearest):
    with pytest.raises(ValueError, match="There is no layer") as error:
        named_layers(_resnet(), typo)
    assert repr(typo) in str(error.value) and f"Did you mean {nearest!r}?" in str(error.value)
    assert "Layers: conv1, bn1" in str(error.value) and "in all" in str(error.value)


@lru_cache
def _resnet():
    return zoo.resnet18(weights=None)


def test_a_module_of_another_model_is_named(tiny_net):
    with pytest.raises(ValueError, match="The layer Conv2d is not a module of this Sequential"):
        named_layers(tiny_net, nn.Conv2d(3, 3, 3))


@pytest.mark.parametrize("layer", [3, [], [3], ["2", None], {"2"}, ""])
def test_a_layer_of_another_kind_is_quoted(tiny_net, layer):
    with pytest.raises((TypeError, ValueError)) as error:
        named_layers(tiny_net, layer)
    given = layer[-1] if isinstance(layer, list) and layer else layer
    assert repr(given) in str(error.value)
    assert "a module, a dotted name, or a list of these" in str(error.value) or "There is no layer" in str(error.value)


@pytest.mark.slow
def test_unwrapping_finds_the_users_own_network(tiny_net):
    assert unwrap(tiny_net) is tiny_net
    assert unwrap(nn.DataParallel(tiny_net)) is tiny_net
    assert unwrap(torch.compile(tiny_net)) is tiny_net
    assert unwrap(nn.DataParallel(torch.compile(tiny_net))) is tiny_net
