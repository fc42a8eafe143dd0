"""The same maps as captum, pytorch-grad-cam and torchcam where they follow the formula, and where they do not, how."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from torch import nn

from fastai_gradcam._engine.views import noisy_copies
from fastai_gradcam.cam import gradcam
from fastai_gradcam.methods import eigen, methods, resolve_method

captum = pytest.importorskip("captum.attr")
peer = pytest.importorskip("pytorch_grad_cam")
torchcam = pytest.importorskip("torchcam.methods")


def _network(name):
    torch.manual_seed(0)
    # vgg's own initialisation takes seconds
    arguments = {"init_weights": False} if name.startswith("vgg") else {}
    return getattr(zoo, name)(weights=None, num_classes=6, **arguments).eval()


def _distance(a, b):
    "Largest difference relative to the largest value of `b`, which must have one."
    assert a.shape == b.shape and b.max() > 0
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("resnet34", 64, ["layer4.2", "layer2", "layer3.0.bn1"]),
        ("vgg16", 64, ["features", "features.28", "features.14"]),
        ("squeezenet1_1", 96, ["classifier.1", "features.12", "features.5"]),
        ("densenet121", 64, ["features.norm5", "features.denseblock3"]),
        ("mobilenet_v3_small", 96, ["features.12", "features.8"]),
    ],
)
def test_gradcam_is_captums_layer_gradcam(name, size, layers):
    net, x, target = _network(name), torch.randn(2, 3, size, size), torch.tensor([4, 1])
    assert gradcam(net, x).layers == layers[:1], "the first is the default layer"
    made = gradcam(net, x, layer=layers, target=target)
    signed = gradcam(net, x, layer=layers, target=target, method=_before_the_relu)
    for layer, ours, before in zip(layers, made.maps, signed.maps, strict=True):
        theirs = captum.LayerGradCam(net, net.get_submodule(layer))
        relu = theirs.attribute(x, target, relu_attributions=True)[:, 0].detach()
        raw = theirs.attribute(x, target)[:, 0].detach()
        assert (ours - relu).abs().max() <= 1e-6 * relu.max()
        # a random network's map may be empty; what the ReLU cut off is never
        assert raw.abs().max() > 0 and (before - raw).abs().max() <= 1e-6 * raw.abs().max()


def _before_the_relu(A, G):
    return (G.mean((2, 3), keepdim=True) * A).sum(1)


def _out_of_place(net):
    net = copy.deepcopy(net)
    for m in net.modules():
        if hasattr(m, "inplace"):
            m.inplace = False
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg16", ["features.28", "features.26", "features.0"]),
        ("resnet34", ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1", "layer4.2.bn1", "layer4.2.bn2"]),
        ("squeezenet1_1", ["features.0", "features.3.squeeze", "features.12.expand3x3"]),
    ],
)
def test_a_layer_before_an_in_place_operation_gives_the_map_of_a_network_without(name, layers):
    net, x = _network(name), torch.randn(1, 3, 64, 64)
    made = gradcam(net, x, layer=layers, target=2, method=_before_the_relu)
    reference = _out_of_place(net)
    for layer, ours in zip(layers, made.maps, strict=True):
        captums = captum.LayerGradCam(reference, reference.get_submodule(layer)).attribute(x, 2)[:, 0].detach()
        assert (ours - captums).abs().max() <= 1e-6 * captums.abs().max() and captums.abs().max() > 0


@pytest.fixture(scope="module")
def resnet():
    return _network("resnet18")


@pytest.fixture(scope="module")
def vgg():
    return _network("vgg11")


def _peers_raw_map(cls, net, layer, x, target):
    "pytorch-grad-cam's map before it is scaled and upsampled, of the network's copy, whose state it changes."
    net = copy.deepcopy(net)
    cam = cls(net, [net.get_submodule(layer)])
    outputs = cam.activations_and_grads(x)
    outputs[:, target].sum().backward()
    (A,), (G,) = cam.activations_and_grads.activations, cam.activations_and_grads.gradients
    raw = cam.get_cam_image(x, None, None, A.numpy(), G.numpy(), False)
    return torch.from_numpy(np.maximum(raw, 0)).float()


@pytest.mark.parametrize(
    ("method", "cls"),
    [
        ("gradcam", "GradCAM"),
        ("xgradcam", "XGradCAM"),
        ("hirescam", "HiResCAM"),
        ("layercam", "LayerCAM"),
        ("gradcam_elementwise", "GradCAMElementWise"),
    ],
)
@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_the_method_is_pytorch_grad_cams(resnet, method, cls, layer):
    x = torch.randn(2, 3, 64, 64)
    for target in range(6):
        ours = gradcam(resnet, x, layer=layer, target=target, method=method).maps[0]
        theirs = _peers_raw_map(getattr(peer, cls), resnet, layer, x, target)
        if theirs.max() > 0:
            assert _distance(ours, theirs) < 1e-4
            return
    pytest.fail("no class has a map")


def _with_logits_times(factor, net):
    net = copy.deepcopy(net)
    with torch.no_grad():
        net.fc.weight.mul_(factor)
    return net


def test_pytorch_grad_cams_plus_plus_agrees_where_gradients_are_large(resnet):
    net, x = _with_logits_times(1e5, resnet), torch.randn(2, 3, 64, 64)
    ours = gradcam(net, x, layer="layer4", target=1, method="gradcam++").maps[0]
    assert _distance(ours, _peers_raw_map(peer.GradCAMPlusPlus, net, "layer4", x, 1)) < 1e-3


def test_pytorch_grad_cams_plus_plus_adds_a_constant_to_a_denominator_of_squared_gradients(resnet):
    net, x = _with_logits_times(0.01, resnet), torch.randn(2, 3, 64, 64)
    theirs = _peers_raw_map(peer.GradCAMPlusPlus, net, "layer2", x, 1)

    def with_their_constant(A, G):
        total = A.sum((2, 3), keepdim=True)
        a = torch.where(G != 0, G**2 / (2 * G**2 + total * G**3 + 1e-6), 0)
        return ((a * G.relu()).sum((2, 3), keepdim=True) * A).sum(1).relu()

    # G² is far below 1e-6 here: the constant decides, and the map is another
    assert _distance(gradcam(net, x, layer="layer2", target=1, method=with_their_constant).maps[0], theirs) < 1e-4
    ours = gradcam(net, x, layer="layer2", target=1, method="gradcam++").maps[0]
    assert _distance(theirs / theirs.max(), ours / ours.max()) > 0.01
    assert ours.max() > 10 * theirs.max()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "cls"), [("eigencam", "EigenCAM"), ("eigengradcam", "EigenGradCAM")])
def test_pytorch_grad_cams_principal_component_is_of_centred_activations_with_any_sign(resnet, method, cls):
    x = torch.randn(2, 3, 64, 64)
    seen = {}

    def component_of_centred(A, G):
        X = A if method == "eigencam" else G * A
        seen.update(map=methods["eigencam"].signed(X - X.mean((2, 3), keepdim=True), G))
        return seen["map"].relu()

    ours = gradcam(resnet, x, layer="layer3", target=1, method=method).maps[0]
    gradcam(resnet, x, layer="layer3", target=1, method=component_of_centred)
    theirs = _peers_raw_map(getattr(peer, cls), resnet, "layer3", x, 1)
    for centred, map_ in zip(seen["map"], theirs, strict=True):
        # a centred component sums to zero, so nothing tells its sign; ours is of the activations as they are
        assert min(float((s * centred).relu().sub(map_).abs().max()) for s in (1, -1)) < 1e-4 * float(map_.max())
        assert abs(float(centred.sum())) < 1e-3 * float(centred.abs().sum())
    assert _distance(ours / ours.max(), theirs / theirs.max()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("cls", ["pytorch-grad-cam", "torchcam"])
def test_the_peers_explain_the_relus_output_where_the_convolution_before_it_was_asked_for(vgg, cls):
    x, layer, behind = torch.randn(2, 3, 64, 64), "features.18", "features.19"
    assert isinstance(vgg.get_submodule(layer), nn.Conv2d) and vgg.get_submodule(behind).inplace

    def theirs(net):
        if cls == "torchcam":
            return _torchcams_map(torchcam.GradCAM, net, layer, x, target)
        return _peers_raw_map(peer.GradCAM, net, layer, x, target)

    for target in range(6):
        conv = gradcam(vgg, x, layer=layer, target=target).maps[0]
        if conv.amax((1, 2)).min() > 0:
            break
    assert _distance(theirs(_out_of_place(vgg)), conv) < 1e-5, "without the in-place ReLU they agree"
    assert _distance(theirs(vgg), conv) > 0.1


def _torchcams_map(cls, net, layer, x, target):
    net = copy.deepcopy(net)
    with cls(net, layer) as extractor:
        (made,) = extractor([target] * len(x), net(x.clone().requires_grad_()), normalized=False)
    return made.detach()


@pytest.mark.parametrize(
    ("method", "cls"), [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("xgradcam", "XGradCAM")]
)
@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_the_method_is_torchcams(resnet, method, cls, layer):
    x = torch.randn(2, 3, 64, 64)
    for target in range(6):
        ours = gradcam(resnet, x, layer=layer, target=target, method=method).maps[0]
        if ours.max() > 0:
            assert _distance(_torchcams_map(getattr(torchcam, cls), resnet, layer, x, target), ours) < 1e-4
            return
    pytest.fail("no class has a map")


def test_torchcams_plus_plus_leaves_its_denominators_out(resnet):
    x = torch.randn(2, 3, 64, 64)
    theirs = _torchcams_map(torchcam.GradCAMpp, resnet, "layer2", x, 1)

    def without_denominators(A, G):
        return ((G**2 * G.relu()).sum((2, 3), keepdim=True) * A).sum(1).relu()

    assert _distance(gradcam(resnet, x, layer="layer2", target=1, method=without_denominators).maps[0], theirs) < 1e-4
    ours = gradcam(resnet, x, layer="layer2", target=1, method="gradcam++").maps[0]
    assert _distance(theirs / theirs.max(), ours / ours.max()) > 0.01


def _torchcams_smooth_map(net, layer, x, target, noise, n):
    "torchcam's Smooth Grad-CAM++ over the noisy copies that ours looks at."
    net, copies = copy.deepcopy(net), iter(list(noisy_copies(x, noise, n)))
    with torchcam.SmoothGradCAMpp(net, layer, num_samples=n) as extractor:
        extractor._distrib = SimpleNamespace(sample=lambda size: next(copies) - x)
        (made,) = extractor([target] * len(x), net(x.clone().requires_grad_()), normalized=False)
    return made.detach()


@pytest.mark.slow
def test_torchcams_smooth_plus_plus_shows_the_last_copy_and_sums_the_activations_under_their_gradients(resnet):
    x, noise, n = torch.randn(2, 3, 64, 64), 0.1, 3
    # what is added to its denominator is small beside large gradients
    net = _with_logits_times(1e3, resnet)
    of_last = {}
    gradcam(
        net, list(noisy_copies(x, noise, n))[-1], layer="layer3", method=lambda A, G: of_last.update(A=A) or A.sum(1)
    )

    def by_torchcam(A, Gs):
        # D² above, as in ours
        D2, D3 = (Gs**2).mean(0), (Gs**3).mean(0)
        a = D2 / (2 * D2 + (D3 * A).sum((2, 3), keepdim=True) + 1e-8)
        return (a * Gs[-1].relu()).sum((2, 3), keepdim=True) * of_last["A"]

    def ours(**how):
        method = replace(methods["smoothgradcam++"], noise=(noise, n), **how)
        return gradcam(net, x, layer="layer3", target=1, method=method).maps[0]

    theirs = _torchcams_smooth_map(net, "layer3", x, 1, noise, n).relu()
    assert _distance(ours(averaged=by_torchcam), theirs) < 1e-3
    assert _distance(theirs / theirs.max(), ours() / ours().max()) > 0.05


@pytest.fixture(scope="module")
def small():
    "A network whose layer 1 is as large as the image, and layer 3 a quarter of it."
    torch.manual_seed(3)
    body = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=4), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()
    with torch.no_grad():
        net[6].weight.mul_(20)
    return net


def _torchcams_score_map(net, layer, x, target):
    net = copy.deepcopy(net)
    with torchcam.ScoreCAM(net, layer) as extractor:
        with torch.no_grad():
            net(x)
        (made,) = extractor([target] * len(x), normalized=False)
    return made


def test_score_cam_is_torchcams_where_nothing_is_upsampled(small):
    x = torch.randn(2, 3, 12, 12)
    ours = gradcam(small, x, layer="1", target=2, method="scorecam").maps[0]
    assert _distance(ours, _torchcams_score_map(small, "1", x, 2)) < 1e-5


def test_torchcams_score_cam_scales_the_channel_before_it_is_upsampled(small):
    x = torch.randn(2, 3, 12, 12)
    theirs = _torchcams_score_map(small, "3", x, 2)

    def scaled_first(A, probe):
        flat = A.flatten(1)
        low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
        masks = (A - low) / (high - low + 1e-8)
        up = nn.functional.interpolate(masks[None], size=(12, 12), mode="bilinear")[0]
        return probe.inputs(lambda part: probe.x * up[part][:, None], torch.arange(len(A))).softmax(1)

    how = replace(methods["scorecam"], weigh=scaled_first)
    assert _distance(gradcam(small, x, layer="3", target=2, method=how).maps[0], theirs) < 1e-5
    assert _distance(gradcam(small, x, layer="3", target=2, method="scorecam").maps[0], theirs) > 1e-3


def _scaled(maps):
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


@pytest.mark.parametrize(
    ("method", "cls"), [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("hirescam", "HiResCAM")]
)
def test_pytorch_grad_cams_aug_smooth_averages_the_same_views_each_scaled_by_itself(small, method, cls):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    x, total = torch.randn(2, 3, 12, 12), 0
    net = copy.deepcopy(small)
    for factor in (0.9, 1, 1.1):
        for turn in (lambda t: t, lambda t: t.flip(-1)):
            # their map has gone through scaling twice, once of each layer and once of their mean
            total = total + turn(_scaled(gradcam(small, turn(x) * factor, layer="1", target=2, method=method).maps[0]))
    cam = getattr(peer, cls)(net, [net[1]])
    theirs = torch.from_numpy(cam(x, [ClassifierOutputTarget(2)] * 2, aug_smooth=True))
    assert _distance(total / 6, theirs) < 1e-5
    ours = gradcam(small, x, layer="1", target=2, method=f"{method}+aug").maps[0]
    # ours are in units of the score, so views with a strong map count more, and the ReLU comes last
    assert _distance(_scaled(ours), _scaled(theirs)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "cls"), [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM"), ("layercam", "LayerCAM")]
)
def test_pytorch_grad_cams_eigen_smooth_is_of_centred_contributions_with_any_sign(resnet, method, cls):
    x = torch.randn(2, 3, 64, 64)
    net = copy.deepcopy(resnet)
    cam = getattr(peer, cls)(net, [net.layer3])
    cam.activations_and_grads(x)[:, 1].sum().backward()
    (A,), (G,) = cam.activations_and_grads.activations, cam.activations_and_grads.gradients
    theirs = torch.from_numpy(cam.get_cam_image(x, None, None, A.numpy(), G.numpy(), True))
    parts = methods[method].parts

    def centred(A, G):
        made = parts(A, G)
        return made - made.mean((2, 3), keepdim=True)

    def signed(of):
        how = replace(eigen(resolve_method(method)), parts=of, relu=False)
        return gradcam(resnet, x, layer="layer3", target=1, method=how).maps[0]

    for ours, whole, map_ in zip(signed(centred), signed(parts), theirs, strict=True):
        size = float(map_.abs().max())
        assert min(float((s * ours - map_).abs().max()) for s in (1, -1)) < 1e-3 * size
        assert abs(float(map_.sum())) < 1e-3 * float(map_.abs().sum()), "nothing tells its sign"
        assert min(float((s * whole - map_).abs().max()) for s in (1, -1)) > 0.05 * size


def test_the_peak_of_each_animal_lies_on_it(pretrained_squeezenet, shared_data):
    from PIL import Image
    from torchvision.transforms.functional import normalize, to_tensor

    image = Image.open(shared_data / "photos" / "dog_and_cat.png").convert("RGB").resize((224, 224))
    x = normalize(to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
    # bull mastiff and tiger cat, with (left, top, right, bottom) of each in the photo
    animals = {243: (75, 10, 170, 125), 282: (45, 122, 205, 222)}
    for layer in (None, "features.12"):
        maps = gradcam(pretrained_squeezenet, x, layer=layer, target=torch.tensor([list(animals)])).maps[0][0]
        for made, (left, top, right, bottom) in zip(maps, animals.values(), strict=True):
            row, column = divmod(int(made.argmax()), made.shape[1])
            assert top < (row + 0.5) / made.shape[0] * 224 < bottom
            assert left < (column + 0.5) / made.shape[1] * 224 < right
