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


# The torchvision networks are in test_layers.py.
_quick = {
    "timm resnet10t": "layer4.0",
    "timm efficientnet_b0": "bn2",
    "timm convnext_atto": "stages.3.blocks.1",
    "timm vit_tiny_patch16_224": "blocks.11.norm1",
    "timm deit_tiny_distilled_patch16_224": "blocks.11.norm1",
    "timm swin_tiny_patch4_window7_224": "norm",
    "timm mobilevit_xxs": "final_conv.bn",
    "timm coatnet_pico_rw_224": "norm",
    "timm nfnet_l0": "final_conv",
    "timm xcit_nano_12_p16_224": "cls_attn_blocks.1.norm1",
    "timm cait_xxs24_224": "blocks_token_only.1.norm1",
    "fastai xresnet18": "7.1",
    "fastai vision_learner(resnet18)": "0.7.1",
    "fastai unet_learner(resnet18)": "layers.11",
    "nn.Sequential": "3",
    "a class of one's own": "deep",
    "one channel": "3",
    "seven channels": "3",
    "a signal (N, C, length)": "2",
    "a volume (N, C, depth, h, w)": "2",
    "one logit": "3",
    "resnet18 in DataParallel": "layer4.1",
    "resnet18 in torch.compile": "layer4.1",
    "resnet18 in channels_last": "layer4.1",
    "resnet18 in bfloat16": "layer4.1",
    "resnet18 in half": "layer4.1",
}


@pytest.mark.parametrize("name", _quick)
def test_the_default_layer_is_found_and_its_map_is_captums(models, name):
    row = next(r for r in models.rows() if r.name == name)
    found = models.look(row)
    assert found.layer == _quick[name]
    assert not found.empty and found.captum <= row.near


def test_the_documented_table_has_every_model_and_no_failure(models):
    text = (ROOT / "docs" / "models.md").read_text()
    table = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    for row in models.rows():
        assert table[row.name].rstrip().endswith("| yes | yes |"), row.name
    for name, layer in _quick.items():
        assert f"`{layer}`" in table[name]


def test_a_failing_model_is_a_row_that_says_so_and_an_exit_code(models, monkeypatch, capsys):
    broken = models.Row("broken", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)), (3, 8, 8))
    monkeypatch.setattr(models, "rows", lambda: iter([broken]))
    assert models.main(["--only", "broken"]) == 1
    assert "| ValueError: No layer of this Sequential has an output with space" in capsys.readouterr().out


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

    net.add_module("count", nn.Identity())
    net[-1].forward = lambda x: Counted.apply(x)
    net.register_forward_hook(lambda *a: forward.append(1))
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
