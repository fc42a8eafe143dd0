"""Models that work out of the box: how the default layer is found in each kind, and that its map is captum's."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastai_gradcam import gradcam

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def models():
    "benchmarks/models.py, which makes the table of the documentation."
    pytest.importorskip("captum")
    pytest.importorskip("timm")
    spec = importlib.util.spec_from_file_location("benchmark_models", ROOT / "benchmarks" / "models.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Those that are made in a moment; all others are in the table, and torchvision's in test_layers.py.
_quick = [
    "torchvision mc3_18",
    "timm resnet10t",
    "timm efficientnet_b0",
    "timm convnext_atto",
    "timm vit_tiny_patch16_224",
    "timm deit_tiny_distilled_patch16_224",
    "timm swin_tiny_patch4_window7_224",
    "timm mobilevit_xxs",
    "timm mobilevitv2_050",
    "timm coatnet_pico_rw_224",
    "timm nfnet_l0",
    "timm xcit_nano_12_p16_224",
    "timm cait_xxs24_224",
    "timm coat_lite_tiny",
    "timm crossvit_tiny_240",
    "fastai xresnet18",
    "fastai vision_learner(resnet18)",
    "fastai unet_learner(resnet18)",
    "nn.Sequential",
    "a class of one's own",
    "one channel",
    "seven channels",
    "a signal (N, C, length)",
    "a volume (N, C, depth, h, w)",
    "a strip, strides (2, 1)",
    "one logit",
    "resnet18 in DataParallel",
    "resnet18 in torch.compile",
    "resnet18 compiled in place",
    "resnet18 in channels_last",
    "resnet18 in bfloat16",
    "resnet18 in half",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", _quick)
def test_the_default_layer_is_the_expected_one_and_its_maps_are_captums(models, name):
    row = next(r for r in models.rows() if r.name == name)
    row.learner = None
    found = models.look(row)
    assert (found.layer, found.map) == (row.layer, row.space)
    assert found.good and not found.empty and found.captum <= row.near


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_small_map_that_attention_mixes_is_not_doubted_for_what_attention_computes_on_the_way(seed, models):
    row = next(r for r in models.rows() if r.name == "timm mobilevitv2_050")
    torch.manual_seed(seed)
    assert gradcam(row.make().eval(), torch.randn(2, *row.shape)).layers == [row.layer]


def test_a_layer_or_a_layout_that_is_not_the_expected_one_is_a_failure(models, monkeypatch):
    def square(**other):
        expected = {"layer": "3", "space": (8, 8), **other}
        return models.Row("square", lambda: models._sequential(3), (3, 32, 32), **expected)

    assert models.look(square()).good
    assert not models.look(square(layer="1", space=(16, 16))).good
    # the right layer, read along the wrong dimension: eight channels beside 8 × 8 cells
    from fastai_gradcam._engine import look
    from fastai_gradcam._search.space import Reading

    monkeypatch.setattr(look, "space_of", lambda *args: Reading(last=True))
    found = models.look(square())
    assert (found.layer, found.map) == ("3", (8, 8)) and not found.good and found.captum > 0.1


def test_the_documented_table_has_every_model_and_no_failure(models):
    text = (ROOT / "docs" / "models.md").read_text()
    table = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    for row in models.rows():
        line = table[row.name].rstrip()
        assert line.endswith("| yes | yes | yes |"), row.name
        assert f"| `{row.layer}` |" in line and f"| {models._times(row.space)} |" in line
        assert ("| no:" in line) is False


_forms = {
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "compiled in place": lambda net: net.compile(backend="eager") or net,
    "a part compiled": lambda net: setattr(net, "layer4", torch.compile(net.layer4, backend="eager")) or net,
    "a part compiled in place": lambda net: net.layer4.compile(backend="eager") or net,
    "DataParallel": nn.DataParallel,
    "compiled in DataParallel": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", [None, "layer3"])
@pytest.mark.parametrize("how", _forms)
def test_a_wrapped_or_compiled_network_gives_the_maps_of_the_plain_one(how, layer):
    from torchvision.models.resnet import BasicBlock, ResNet

    torch._dynamo.reset()
    torch.manual_seed(0)
    net, x = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    expected = gradcam(net, x, layer=layer, target=1)
    other = _forms[how](ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).eval())
    plain = dict(zip(_plain(other), other.state_dict(), strict=True))
    other.load_state_dict({plain[name]: value for name, value in net.state_dict().items()})
    with torch.no_grad():
        other(x)
    made = gradcam(other, x, layer=layer, target=1)
    assert [name.replace("_orig_mod.", "") for name in made.layers] == expected.layers
    assert torch.equal(made.maps[0], expected.maps[0]) and made.maps[0].max() > 0


def _plain(net):
    return [name.replace("_orig_mod.", "").removeprefix("module.") for name in net.state_dict()]


def test_a_failing_model_is_a_row_that_says_so_and_an_exit_code(models, monkeypatch, capsys):
    broken = models.Row("broken", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)), (3, 8, 8), "0", (8, 8))
    monkeypatch.setattr(models, "rows", lambda: iter([broken]))
    assert models.main(["--only", "broken"]) == 1
    assert "| GradCAMError: No layer of this Sequential has an output with space" in capsys.readouterr().out


@pytest.mark.slow
def test_a_batch_of_any_size_gives_the_same_maps(models):
    row = next(r for r in models.rows() if r.name == "timm vit_tiny_patch16_224")
    torch.manual_seed(0)
    net, x = row.make().eval(), torch.randn(3, *row.shape)
    whole = gradcam(net, x, target=1).maps[0]
    for i in range(3):
        one = gradcam(net, x[i : i + 1], target=1).maps[0][0]
        assert torch.allclose(one, whole[i], rtol=1e-3, atol=1e-5 * float(whole.max()))


class _Separate(nn.Module):
    "Attention with a linear layer each for queries, keys and values, of which the class token alone asks."

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x):
        x = self.norm(x)
        asked = nn.functional.scaled_dot_product_attention(self.q(x[:, :1]), self.k(x), self.v(x))
        return self.proj(asked)


class _ClassAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 1, 12))
        self.attention, self.head = _Separate(), nn.Linear(12, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


def test_neither_keys_nor_values_are_explained_but_what_both_are_read_from():
    made = gradcam(_ClassAttention().eval(), torch.randn(2, 3, 32, 48))
    assert made.layers == ["attention.norm"] and made.maps[0].shape == (2, 4, 6)


class _Segmenter(nn.Module):
    "Two maps of scores, added up and enlarged."

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, 2, 1)
        self.near, self.far = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 3, 1, 1)

    def forward(self, x):
        y = self.body(x).relu()
        return {"out": nn.functional.interpolate(self.near(y) + self.far(y), size=x.shape[2:])}


def test_the_scores_of_a_segmentation_are_no_layer():
    made = gradcam(_Segmenter(), torch.randn(2, 3, 16, 24))
    assert made.layers == ["body"] and made.maps[0].shape == (2, 8, 12)


def test_several_layers_come_from_one_forward_and_one_backward_pass():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    x, forward, backward = torch.randn(2, 3, 12, 16), [], []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            backward.append(1)
            return g

    class Count(nn.Module):
        def forward(self, x):
            forward.append(1)
            return Counted.apply(x)

    net.add_module("count", Count())
    made = gradcam(net, x, layer=["0", "2", "3"], target=1)
    assert forward == [1] and backward == [1]
    for name, maps in zip(made.layers, made.maps, strict=True):
        assert torch.equal(maps, gradcam(net, x, layer=name, target=1).maps[0])


@pytest.mark.parametrize("layer", ["2", None])
def test_a_reshape_that_loses_the_batch_is_quoted(layer, tiny_net):
    x = torch.randn(2, 3, 8, 8)
    for reshape in (lambda t: t[:1], lambda t: t.flatten(0, 1), lambda t: t.flatten(1)):
        with pytest.raises(ValueError, match=r"reshape must return \(N, C, \*space\) with N = 2, got \("):
            gradcam(tiny_net, x, layer=layer, reshape=reshape)
