"""Networks of several inputs, and layers that run once for each of them."""

import pytest
import torch
from torch import nn

from fastai_gradcam import GradCAMError, gradcam

all_methods = ["gradcam", "gradcam++", "layercam+aug", "gradcam+noise", "scorecam", "ablationcam"]


def _encoder():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 3, 2), nn.ReLU())


class Siamese(nn.Module):
    "One encoder for all of its images."

    def __init__(self, count=2):
        super().__init__()
        self.encoder, self.head = _encoder(), nn.Linear(6 * count, 3)

    def forward(self, *images):
        return self.head(torch.cat([self.encoder(i).mean((2, 3)) for i in images], 1))


class Apart(nn.Module):
    "An encoder for each of two images, which may be of different sizes."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = _encoder(), _encoder(), nn.Linear(12, 3)

    def forward(self, left, right):
        return self.head(torch.cat([self.a(left).mean((2, 3)), self.b(right).mean((2, 3))], 1))


class WithTable(nn.Module):
    "An image beside a row of numbers and a row of categories."

    def __init__(self):
        super().__init__()
        self.encoder, self.embed, self.head = _encoder(), nn.Embedding(5, 4), nn.Linear(6 + 2 + 4, 3)

    def forward(self, row, category, image):
        assert category.dtype == torch.long
        return self.head(torch.cat([self.encoder(image).mean((2, 3)), row, self.embed(category)], 1))


def _by_hand(net, x, encoders, target, which):
    "Grad-CAM by its definition, of the `which`-th output of the encoders in the order in which they run."
    outputs = []
    handles = [e.register_forward_hook(lambda m, a, out: outputs.append(out)) for e in encoders]
    score = net(*x)[:, target].sum()
    for handle in handles:
        handle.remove()
    (g,) = torch.autograd.grad(score, outputs[which])
    return (g.mean((2, 3), keepdim=True) * outputs[which]).sum(1).relu().detach()


@pytest.mark.parametrize("count", [2, 3])
def test_a_layer_that_runs_once_per_input_gives_each_its_own_map(count):
    net, x = Siamese(count).eval(), tuple(torch.randn(2, 3, 24, 32) for _ in range(count))
    for i in range(count):
        expected = _by_hand(net, x, [net.encoder], 1, i)
        for layer in ("encoder", net.encoder, None):
            made = gradcam(net, x, layer=layer, target=1, input=i)
            assert made.maps[0].shape == expected.shape and made.layers[0].startswith("encoder")
            if layer is not None:
                assert torch.allclose(made.maps[0], expected, atol=1e-6)


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("method", all_methods)
def test_every_method_explains_the_input_asked_for(method, i):
    torch.manual_seed(0)
    net, x = Siamese().eval(), (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16))
    made = gradcam(net, x, target=1, method=method, input=i).maps[0]
    # the same of a network of one image, the other one being a part of it

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.aside = net, nn.ModuleList()

        def forward(self, image, other):
            return self.net(*((image, other) if i == 0 else (other, image)))

    assert made.isfinite().all()
    swapped = gradcam(Alone().eval(), (x[i], x[1 - i]), target=1, method=method, layer="net.encoder.2", input=0)
    direct = gradcam(net, x, target=1, method=method, layer="encoder.2", input=i)
    if method.startswith(("gradcam", "layercam")) and i == 0:
        assert torch.allclose(swapped.maps[0], direct.maps[0], atol=1e-6)
    assert direct.maps[0].shape == (2, 3, 3)


@pytest.mark.parametrize("key", ["left", "right"])
def test_inputs_may_be_given_by_name(key):
    net, x = Apart().eval(), {"left": torch.randn(2, 3, 24, 24), "right": torch.randn(2, 3, 48, 32)}
    made = gradcam(net, x, target=2, input=key)
    name = "ab"[["left", "right"].index(key)]
    assert made.layers[0].startswith(name), "the branch of the input that is asked for"
    expected = _by_hand(net, tuple(x.values()), [net.a, net.b], 2, ["left", "right"].index(key))
    assert torch.allclose(gradcam(net, x, target=2, input=key, layer=name).maps[0], expected, atol=1e-6)
    assert gradcam(net, x, target=2).layers[0].startswith("a"), "without input= the first image"


@pytest.mark.parametrize("method", ["gradcam", "gradcam+noise", "scorecam", "ablationcam", "hirescam+aug"])
def test_inputs_that_are_no_images_are_passed_along(method):
    net = WithTable().eval()
    x = torch.randn(3, 2), torch.tensor([0, 4, 2]), torch.randn(3, 3, 16, 16)
    made = gradcam(net, x, target=1, method=method, input=2)
    assert made.layers == ["encoder"] and made.maps[0].shape == (3, 3, 3)
    for i in range(3):
        alone = gradcam(net, tuple(t[i : i + 1] for t in x), target=1, method=method, input=2)
        assert torch.allclose(alone.maps[0][0], made.maps[0][i], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("method", ["gradcam", "gradcam+noise", "hirescam+aug", "scorecam"])
def test_integers_stay_integers(method, dtype):
    class Bytes(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = _encoder(), nn.Linear(6, 3)

        def forward(self, x):
            assert x.dtype == dtype
            return self.head(self.encoder(x.float() / 255).mean((2, 3)))

    x = torch.randint(0, 255, (2, 3, 16, 16)).to(dtype)
    assert gradcam(Bytes().eval(), x, layer="encoder", target=1, method=method).maps[0].shape == (2, 3, 3)


def test_an_input_that_does_not_exist_or_is_no_image_is_named():
    net, x = Siamese(), (torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16))
    for wrong in (2, "left", None):
        with pytest.raises(GradCAMError, match=rf"There is no input {wrong!r}: the model is given 0, 1"):
            gradcam(net, x, input=wrong)
    with pytest.raises(GradCAMError, match=r"input 1 of x must be a batch .* got shape \(2, 5\)"):
        gradcam(net, (x[0], torch.ones(2, 5)), input=1)
    with pytest.raises(TypeError, match=r"input 0 of x must be a tensor .*got str"):
        gradcam(net, ("a", x[0]))
    with pytest.raises(GradCAMError, match="the model is given none"):
        gradcam(net, ())
