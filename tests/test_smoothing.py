"""Noise, views, principal components, contrasts and the fusion of layers: against loops and hand-worked numbers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastai_gradcam._engine.views import noisy_copies, views
from fastai_gradcam.cam import CAMs, gradcam
from fastai_gradcam.methods import augmented, eigen, fuse, methods, register, resolve_method, smoothed
from fastai_gradcam.targets import contrast, regions, segment


class SmallNet(nn.Module):
    "Curved everywhere, so that noise changes its gradients; `body` has 4 × 5 cells for 8 × 9 pixels."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Tanh())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 5, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet().eval()


@pytest.fixture
def x():
    return torch.randn(2, 2, 8, 9, generator=torch.Generator().manual_seed(1))


def _activations(net, x):
    return net.body(x).detach()


def _gradient(net, x, c):
    A = _activations(net, x).requires_grad_()
    return torch.autograd.grad(net.head(A)[:, c].sum(), A)[0]


def _near(a, b, tolerance=1e-5):
    b = torch.as_tensor(b if isinstance(b, torch.Tensor) else np.array(b)).to(a.dtype)
    assert a.shape == b.shape and b.abs().max() > 0
    assert (a - b).abs().max() <= tolerance * b.abs().max()


# Noise


def paper_smooth_gradcam_plus_plus(A, gs, ys, numerator=1):
    """Omeiza et al.'s formula to the letter: A `(C, h, w)`, and for each copy the gradient `g` and the score `y`.

    D^p is the mean over the copies of the p-th derivative of exp(y), exp(y)·g^p. `numerator`: the p of D^p there.
    """
    C, h, w = A.shape
    weights = []
    for k in range(C):
        total = sum(A[k, a, b] for a in range(h) for b in range(w))
        weight = 0.0
        for i in range(h):
            for j in range(w):
                D = {
                    p: sum(np.exp(y) * g[k, i, j] ** p for g, y in zip(gs, ys, strict=True)) / len(gs)
                    for p in (1, 2, 3)
                }
                denominator = 2 * D[2] + total * D[3]
                weight += D[numerator] / denominator * max(D[1], 0) if denominator != 0 else 0
        weights.append(weight)
    L = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            L[i, j] = max(sum(weights[k] * A[k, i, j] for k in range(C)), 0)
    return L


def _copies(net, x, noise, n, c):
    "In float64: the activations `(N, C, h, w)`, and each copy's gradients."
    double = copy.deepcopy(net).double()
    noisy = [one.double() for one in noisy_copies(x, noise, n)]
    gs = [_gradient(double, one, c).numpy() for one in noisy]
    return _activations(double, x.double()).numpy(), gs


@pytest.mark.parametrize(("method", "noise", "n"), [("smoothgradcam++", 0.15, 8), (None, 0.3, 3), (None, 0.5, 1)])
def test_smooth_gradcam_plus_plus_is_the_papers_with_the_second_derivative_above_and_copies_that_count_the_same(
    method, noise, n, net, x
):
    made = gradcam(net, x, layer="body", target=1, method=method or smoothed("gradcam++", noise, n)).maps[0]
    A, gs = _copies(net, x, noise, n, 1)
    _near(made, [paper_smooth_gradcam_plus_plus(A[i], [g[i] for g in gs], [0] * n, numerator=2) for i in range(2)])


def test_the_papers_smooth_gradcam_plus_plus_forgets_how_large_a_gradient_is():
    A = torch.rand(1, 2, 3, 4, dtype=torch.float64)
    Gs = torch.rand(3, 1, 2, 3, 4, dtype=torch.float64)
    Gs[:, :, 1] *= 1e-6
    alone = torch.zeros(2, 3, 4, dtype=torch.float64)
    by_paper, ours = [], []
    for k in range(2):
        alone[:], alone[k] = 0, A[0, k]
        gs = [g[0].numpy() for g in Gs]
        by_paper.append(paper_smooth_gradcam_plus_plus(alone.numpy(), gs, [0] * 3).sum())
        ours.append(float(methods["smoothgradcam++"].signed(alone[None], *Gs).sum()))
    # of the paper's map the channel that hardly matters has most, of ours next to nothing
    assert by_paper[1] > by_paper[0] and 0 < ours[1] < 1e-5 * ours[0]


def test_the_papers_smooth_gradcam_plus_plus_of_one_copy_is_not_gradcam_plus_plus_and_ours_is(net, x):
    A, g = _activations(net, x), _gradient(net, x, 1)
    plus_plus = methods["gradcam++"](A, g)
    _near(methods["smoothgradcam++"].signed(A, g, g, g).relu(), plus_plus)
    by_paper = paper_smooth_gradcam_plus_plus(A[0].double().numpy(), [g[0].double().numpy()], [0])
    ratio = by_paper / by_paper.max() - plus_plus[0].numpy() / float(plus_plus[0].max())
    assert np.abs(ratio).max() > 0.05
    above = paper_smooth_gradcam_plus_plus(A[0].double().numpy(), [g[0].double().numpy()], [0], numerator=2)
    assert np.abs(above - plus_plus[0].numpy()).max() < 1e-5 * above.max()


def test_by_the_papers_exponential_the_copy_with_the_highest_score_is_heard_alone():
    A, Gs = torch.rand(1, 3, 3, 4), torch.rand(4, 1, 3, 3, 4)
    Gs[1, :, 0], Gs[1, :, 1] = Gs[1, :, 0] * 5, 0
    gs, scores = [g[0].double().numpy() for g in Gs], [3.0, 12.0, 5.0, 1.0]
    by_paper, of_best, mean = (
        paper_smooth_gradcam_plus_plus(A[0].double().numpy(), some, ys, numerator=2)
        for some, ys in ((gs, scores), (gs[1:2], [0]), (gs, [0] * 4))
    )
    assert np.abs(by_paper / by_paper.max() - of_best / of_best.max()).max() < 0.01
    assert np.abs(mean / mean.max() - of_best / of_best.max()).max() > 0.1
    _near(methods["smoothgradcam++"].signed(A, *Gs).relu()[0], mean)


def test_tiny_gradients_do_not_break_smooth_gradcam_plus_plus():
    A, Gs = torch.rand(1, 3, 4, 4), torch.rand(2, 1, 3, 4, 4)
    made = methods["smoothgradcam++"].signed(A, *(Gs * 1e-25))
    # where ΣA·D³ vanishes beside D², a is 1/2
    _near(made / 1e-25, (Gs.mean(0).sum((2, 3), keepdim=True) / 2 * A).sum(1), 1e-4)


@pytest.mark.parametrize("name", ["gradcam", "hirescam", "layercam", "xgradcam"])
def test_noise_averages_the_gradients_and_leaves_the_activations_clean(name, net, x):
    G = torch.stack([_gradient(net, noisy, 2) for noisy in noisy_copies(x, 0.15, 8)]).mean(0)
    made = gradcam(net, x, layer="body", target=2, method=f"{name}+noise").maps[0]
    _near(made, methods[name](_activations(net, x), G))
    assert not torch.allclose(made, gradcam(net, x, layer="body", target=2, method=name).maps[0], rtol=1e-2)


@pytest.mark.parametrize("name", ["scorecam", "ablationcam"])
def test_noise_averages_the_weights_of_a_method_without_gradients(name, net, x):
    seen = []

    def kept(A, weights):
        seen.append(weights)
        return weights * A

    method = replace(methods[name], parts=kept)
    for noisy in noisy_copies(x, 0.2, 3):
        gradcam(net, noisy, layer="body", target=0, method=method)
    made = gradcam(net, x, layer="body", target=0, method=smoothed(name, 0.2, 3)).maps[0]
    _near(made, (torch.stack(seen).mean(0) * _activations(net, x)).sum(1).relu())


def test_the_noise_is_a_share_of_each_images_range_and_the_same_for_each_image():
    x = torch.rand(2, 3, 64, 64)
    x[1] *= 10
    first, second = noisy_copies(x, 0.2, 2)
    noise = first - x
    for i in range(2):
        assert noise[i].std() == pytest.approx(0.2 * float(x[i].max() - x[i].min()), rel=0.03)
    _near(noise[1] / (x[1].max() - x[1].min()), noise[0] / (x[0].max() - x[0].min()), 1e-4)
    assert not torch.allclose(second, first)
    assert next(noisy_copies(x.half(), 0.2, 1)).dtype == torch.float16


@pytest.mark.parametrize("method", ["smoothgradcam++", "scorecam+noise", "layercam+noise+aug"])
def test_noise_is_the_same_every_time_and_draws_from_nobodys_generator(method, net, x):
    before = torch.get_rng_state()
    one = gradcam(net, x, layer="body", method=method).maps[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(gradcam(net, x, layer="body", method=method).maps[0], one)
    next(noisy_copies(x, 0.1, 1))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    list(noisy_copies(x, 0.1, 2))
    assert torch.equal(torch.get_rng_state(), state)


# Views


def test_augmented_averages_the_maps_of_six_views_turned_back(net, x):
    for name in ("gradcam", "layercam", "ablationcam", "eigencam"):
        total = 0
        for factor in (0.9, 1, 1.1):
            total = total + _signed(net, x * factor, 1, name)
            total = total + _signed(net, x.flip(3) * factor, 1, name).flip(2)
        made = gradcam(net, x, layer="body", target=1, method=f"{name}+aug")
        _near(made.maps[0], (total / 6).relu())
        assert torch.equal(made.output, net(x).detach())
        share = (-total).relu().sum((1, 2)) / total.abs().sum((1, 2))
        assert torch.allclose(made.negative_share[0], share, atol=1e-5)


def _signed(net, x, target, method):
    return gradcam(net, x, layer="body", target=target, method=replace(resolve_method(method), relu=False)).maps[0]


def test_the_first_view_is_the_image_itself():
    x = torch.randn(1, 1, 2, 3)
    all_views = list(views(x))
    assert len(all_views) == 6 and torch.equal(all_views[0][0], x)
    assert all(torch.equal(back(view).sign(), x.sign()) for view, back in all_views)


@pytest.mark.parametrize("method", ["gradcam+aug", "gradcam+noise", "ablationcam+aug"])
def test_changed_copies_are_asked_about_the_class_of_the_image_as_it_is(method):
    # any other brightness, and any noise, makes it class 1
    class Touchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            moved = (x.mean((1, 2, 3)) - 1).abs() > 1e-4
            y = (self.conv(x) ** 2).mean((2, 3)) * torch.tensor([1.0, 3])
            return y + torch.where(moved[:, None], torch.tensor([0.0, 50]), torch.tensor([50.0, 0]))

    net, x = Touchy().eval(), torch.ones(1, 1, 4, 4) + torch.tensor([[-0.1, 0.1, 0.1, -0.1]])
    assert net(x).argmax() == 0 and net(x * 1.1).argmax() == 1
    made = gradcam(net, x, layer="conv", method=method)
    assert made.target.tolist() == [0]
    assert torch.equal(made.maps[0], gradcam(net, x, layer="conv", target=0, method=method).maps[0])


def test_a_mirror_symmetric_network_has_the_mirrored_map_at_equal_brightness(tiny_net):
    with torch.no_grad():
        for m in (tiny_net[0], tiny_net[2]):
            m.weight.add_(m.weight.flip(3).clone()).div_(2)
    x = torch.randn(1, 3, 9, 9)
    one = gradcam(tiny_net, x, layer="2", target=0, method="hirescam+aug").maps[0]
    other = gradcam(tiny_net, x.flip(3), layer="2", target=0, method="hirescam+aug").maps[0]
    _near(one, other.flip(2).numpy())


def test_several_classes_and_layers_go_through_all_options(net, x):
    layers, classes = ["body.1", "body"], torch.tensor([[0, 2], [1, 0]])
    for method in ("gradcam+aug", "smoothgradcam++", "scorecam+eigen", augmented(eigen(smoothed("xgradcam", n=2)))):
        made = gradcam(net, x, layer=layers, target=classes, method=method)
        assert [tuple(m.shape) for m in made.maps] == [(2, 2, 6, 7), (2, 2, 4, 5)]
        assert [tuple(s.shape) for s in made.negative_share] == [(2, 2)] * 2
        alone = gradcam(net, x[1:], layer="body", target=0, method=method).maps[0]
        _near(made.maps[1][1, 1], alone[0].numpy(), 1e-4)


# Principal components


def test_eigen_takes_the_first_component_of_the_channels_contributions(net, x):
    for name in ("gradcam", "xgradcam", "layercam", "gradcam++", "ablationcam"):
        parts = []

        def kept(A, G, of=methods[name].parts, parts=parts):
            parts.append(of(A, G))
            return parts[-1]

        gradcam(net, x, layer="body", target=1, method=replace(methods[name], parts=kept))
        made = gradcam(net, x, layer="body", target=1, method=f"{name}+eigen").maps[0]
        _near(made, [_power_iteration(p.double().numpy()) for p in parts[-1]], 1e-4)


def _power_iteration(parts):
    X = parts.reshape(len(parts), -1)
    v = np.arange(1.0, len(X) + 1)
    for _ in range(3000):
        v = X @ (X.T @ v)
        v /= np.linalg.norm(v)
    projection = v @ X
    return np.maximum(projection * (1 if projection.sum() >= 0 else -1), 0).reshape(parts.shape[1:])


def test_eigen_of_hirescam_is_eigengradcam(net, x):
    one, other = (gradcam(net, x, layer="body", method=m).maps[0] for m in (eigen("hirescam"), "eigengradcam"))
    assert torch.equal(one, other)


def test_eigen_of_ones_own_method_takes_contributions_and_no_sums(net, x, monkeypatch):
    made = gradcam(net, x, layer="body", target=1, method=eigen(lambda A, G: G * A)).maps[0]
    _near(made.relu(), gradcam(net, x, layer="body", target=1, method="eigengradcam").maps[0].numpy())
    with pytest.raises(ValueError, match=r"'<lambda>\+eigen' needs each channel's contribution.*got \(2, 4, 5\)"):
        gradcam(net, x, layer="body", method=eigen(lambda A, G: A.sum(1)))
    monkeypatch.setattr("fastai_gradcam.methods.methods", dict(methods))
    register("summed")(lambda A, G: A.sum(1))
    assert gradcam(net, x, layer="body", method="summed").maps[0].shape == (2, 4, 5)
    with pytest.raises(ValueError, match=r"'summed\+eigen' needs each channel's contribution"):
        gradcam(net, x, layer="body", method="summed+eigen")


# Names


def test_options_have_names_that_say_them_and_resolve():
    for name in ("gradcam+noise", "gradcam+++aug", "scorecam+noise+aug+eigen", "smoothgradcam+++eigen"):
        method = resolve_method(name)
        assert method.name == method.__name__ == name
        assert resolve_method(method) is method
    assert resolve_method("gradcam+noise+aug") == augmented(smoothed("gradcam"))
    assert smoothed("layercam", 0.3, 20).name == "layercam+noise(0.3, 20)"
    assert smoothed("gradcam++").noise == methods["smoothgradcam++"].noise == (0.15, 8)


@pytest.mark.parametrize(
    ("typo", "says"),
    [
        ("gradcam+agu", r"no method option '\+agu'. Did you mean '\+aug'"),
        ("gradcamm+aug", "no method 'gradcamm'. Did you mean 'gradcam'"),
        ("gradcam+noise+egen", r"no method"),
    ],
)
def test_a_misspelt_option_is_quoted_with_the_nearest(typo, says):
    with pytest.raises(ValueError, match=says):
        resolve_method(typo)


_no_noise = [{"noise": v} for v in (0, -1, "a", None, True, float("nan"), float("inf"))]
_no_copies = [{"n": v} for v in (0, 2.5, "3", True, None)]


@pytest.mark.parametrize("bad", [*_no_noise, *_no_copies], ids=str)
def test_impossible_noise_is_quoted(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        smoothed("gradcam", **bad)


# Contrasts


def test_a_contrast_is_the_difference_of_two_scores():
    output = torch.tensor([[1.0, 5, 2], [7, 0, 4]])
    assert contrast(1, 2)(output).tolist() == [3, -4]
    assert contrast(torch.tensor([1, 0]), [0, 2])(output).tolist() == [4, 3]
    assert contrast(1)(output).tolist() == [5 - 1.5, 0 - 5.5]
    assert contrast([1, 0])(output).tolist() == [3.5, 5]
    # a single score has two sides
    assert contrast(1, 0)(torch.tensor([[3.0], [-1]])).tolist() == [6, -2]


def test_the_map_of_a_contrast_is_the_difference_of_the_maps_where_the_method_is_linear(net, x):
    for name in ("gradcam", "hirescam"):
        one, other = _signed(net, x, 2, name), _signed(net, x, 0, name)
        _near(_signed(net, x, contrast(2, 0), name), (one - other).numpy())
    made = gradcam(net, x, target=contrast(torch.tensor([2, 1]), torch.tensor([0, 2])), method="ablationcam")
    for i, (a, b) in enumerate([(2, 0), (1, 2)]):
        alone = gradcam(net, x[i : i + 1], layer=made.layers, target=contrast(a, b), method="ablationcam")
        assert torch.allclose(made.maps[0][i], alone.maps[0][0], atol=1e-6)


def test_a_bad_contrast_is_an_error():
    with pytest.raises(TypeError, match="the class to explain"):
        contrast(None, 1)
    with pytest.raises(ValueError, match="target 9 is out of range"):
        contrast(0, 9)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"one per image, got classes of shape \(2, 2\)"):
        contrast(torch.zeros(2, 2, dtype=torch.long))(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="'Trout'"):
        contrast("Trout", "Salmon")(torch.zeros(2, 3))
    assert contrast(1, 2).__name__ == "contrast(1, 2)"


# Fusion


def test_the_fusion_of_two_maps_by_hand():
    early = torch.tensor([[[1.0, 2, 3, 4]] * 2])
    late = torch.tensor([[[8.0, 4]]])
    # late / 8 = 1 ½, in between at the centres of four cells: 1, 7/8, 5/8, ½
    expected = [[[1, 2 * 7 / 8, 3 * 5 / 8, 2]] * 2]
    assert fuse([early, late]).tolist() == fuse([late, early]).tolist() == expected
    assert fuse([early]).tolist() == early.tolist()
    assert fuse([early, late * 100]).tolist() == expected, "the late map has no units"
    assert fuse([early * 2, late])[0, 0, 0] == 2


def test_of_three_layers_each_weighs_the_one_before():
    maps = [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 2, 2)]
    expected = fuse([maps[0], fuse(maps[1:])])
    assert torch.equal(fuse(maps), expected) and expected.shape == (2, 3, 8, 8)
    one = fuse([m[1:, 2] for m in maps])
    assert torch.allclose(one[0], expected[1, 2])


def test_an_empty_map_makes_an_empty_fusion():
    maps = [torch.rand(2, 4, 4), torch.rand(2, 2, 2)]
    maps[1][0] = 0
    made = fuse(maps)
    assert made[0].eq(0).all() and made[1].max() > 0
    assert fuse([torch.rand(2, 4, 4), -torch.rand(2, 2, 2)]).eq(0).all()


def test_cams_of_several_layers_fuse_in_any_number_of_dimensions(net, x):
    made = gradcam(net, x, layer=["body.1", "body"], target=torch.tensor([[0, 2]] * 2), method="layercam")
    assert fuse(made).shape == (2, 2, 6, 7)
    volumes = [torch.rand(2, 4, 4, 4), torch.rand(2, 2, 2, 2)]
    fused = fuse(CAMs(volumes, ["a", "b"], None, torch.tensor([0, 1])))
    assert fused.shape == (2, 4, 4, 4)
    # with a late map that is the same everywhere, the early one is left
    even = CAMs([volumes[0], torch.ones(2, 2, 2, 2)], ["a", "b"], None, None)
    assert torch.allclose(fuse(even), volumes[0])


def test_maps_that_do_not_belong_together_do_not_fuse():
    with pytest.raises(ValueError, match="at least one layer"):
        fuse([])
    with pytest.raises(ValueError, match=r"same images and classes.*\(2, 4, 4\), \(3, 2, 2\)"):
        fuse([torch.rand(2, 4, 4), torch.rand(3, 2, 2)])


@pytest.mark.slow
def test_the_cams_of_a_learner_fuse_where_they_are_of_one_image_and_class(make_learner, image_folder):
    import fastai_gradcam.learner  # noqa: F401  (adds learn.gradcam)

    learn, files = make_learner(), sorted(image_folder.glob("valid/*/*.png"))
    made = learn.gradcam(files[0], target="red", layer=[5, 6, 7], method="layercam")
    fused = fuse(made)
    assert fused.shape == (8, 8) and fused.max() > 0
    assert torch.equal(fused, fuse([c.map[None] for c in made])[0])
    assert torch.equal(fused, fuse([c.map for c in made])), "also as maps without a batch"
    for several in (learn.gradcam(files[:2], target="red"), learn.gradcam(files[0], target=["red", "blue"])):
        with pytest.raises(ValueError, match="of one image and one class"):
            fuse(several)


def test_volumes_as_a_list_are_told_from_classes_and_what_is_no_map_is_named():
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 4\), \(2, 2, 2, 2\).*for signals and volumes give the CAMs"):
        fuse([torch.rand(2, 4, 4, 4), torch.rand(2, 2, 2, 2)])
    with pytest.raises(TypeError, match="got ndarray, Tensor"):
        fuse([np.zeros((2, 4, 4)), torch.rand(2, 2, 2)])


# Places in an output with space


def _segmenter():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))
    return net.eval(), torch.randn(3, 2, 8, 12)


def _mirror_of(net, x, masks, name, factor):
    "The signed map of the mirror image under the mirrored masks, turned back; all by hand."
    target = segment(1, masks.flip(2))
    how = replace(resolve_method(name), relu=False)
    return gradcam(net, x.flip(3) * factor, layer="1", target=target, method=how).maps[0].flip(2)


@pytest.mark.parametrize("name", ["gradcam", "hirescam", "ablationcam"])
@pytest.mark.parametrize("own", [False, True], ids=["segment", "a callable"])
def test_the_mask_of_a_segment_is_mirrored_with_the_image(name, own):
    net, x = _segmenter()
    masks = torch.zeros(3, 8, 12)
    for i in range(3):
        masks[i, 2:5, i : i + 3] = 1
    total = 0
    for factor in (0.9, 1, 1.1):
        how = replace(resolve_method(name), relu=False)
        total = total + gradcam(net, x * factor, layer="1", target=segment(1, masks), method=how).maps[0]
        total = total + _mirror_of(net, x, masks, name, factor)
    target = (lambda o: (o[:, 1] * masks).sum((1, 2))) if own else segment(1, masks)
    how = replace(resolve_method(f"{name}+aug"), relu=False)
    made = gradcam(net, x, layer="1", target=target, method=how).maps[0]
    _near(made, total / 6)
    if name == "hirescam":
        assert made[masks == 0].eq(0).all(), "nothing outside of the mask"


def test_a_mask_over_a_volume_or_a_coarser_output_is_mirrored_and_a_detectors_boxes_are_not():
    class Coarse(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2)

        def forward(self, x):
            y = self.body(x).tanh()
            return {"out": self.head(y), "boxes": y.mean((2, 3))[..., None] * torch.arange(4)}

    net, x = Coarse().eval(), torch.randn(1, 2, 8, 12)
    mask = torch.zeros(4, 6)
    mask[:, :2] = 1
    made = gradcam(net, x, layer="body", target=segment(1, mask), method="hirescam+aug").maps[0]
    assert made[:, :, 4:].eq(0).all() and made[:, :, :4].max() > 0
    seen = []
    gradcam(net, x, layer="body", target=lambda o: seen.append(o["boxes"]) or o["boxes"][:, 0, 1], method="gradcam+aug")
    assert len(seen) == 6 and all(b[0, :, 3].equal(b[0, :, 1] * 3) for b in seen)
    volume = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 2, 1)).eval()
    mask = torch.zeros(2, 4, 4, 6)
    mask[..., 0] = 1
    made = gradcam(volume, torch.randn(2, 1, 4, 4, 6), layer="1", target=segment([0, 1], mask), method="hirescam+aug")
    assert made.maps[0][mask == 0].eq(0).all() and made.maps[0].max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["gradcam+noise", "hirescam+aug", "scorecam", "ablationcam", "ablationcam+noise+aug"]
)
@pytest.mark.parametrize("target", [1, None, [0, 1, 2]], ids=str)
def test_a_class_of_a_segmentation_and_its_segment_are_one_question_of_changed_copies_too(target, method):
    net, x = _segmenter()
    how = replace(resolve_method(method), relu=False)
    as_class = gradcam(net, x, layer="1", target=target, method=how).maps[0]
    _near(gradcam(net, x, layer="1", target=segment(target), method=how).maps[0], as_class)
    # by hand: the regions of the image as it is
    won = net(x).argmax(1)
    largest = torch.stack([won.eq(c).sum((1, 2)) for c in range(3)], 1).argmax(1)
    each = largest if target is None else torch.as_tensor(target).expand(3)
    masks = (won == each[:, None, None]).float()
    assert masks.sum((1, 2)).min() > 0
    by_hand = gradcam(net, x, layer="1", target=lambda o: (o[torch.arange(3), each] * masks).sum((1, 2)), method=how)
    _near(by_hand.maps[0], as_class)


@pytest.mark.parametrize("method", ["gradcam+noise", "hirescam+aug", "ablationcam"])
def test_a_contrast_on_a_segmentation_keeps_the_regions_of_the_image_as_it_is(method):
    net, x = _segmenter()
    how = replace(resolve_method(method), relu=False)
    where = regions(net(x))

    def by_hand(o):
        table = (o * where).sum((2, 3))
        return table[:, 1] - table[:, 2]

    made = gradcam(net, x, layer="1", target=contrast(1, 2), method=how).maps[0]
    _near(made, gradcam(net, x, layer="1", target=by_hand, method=how).maps[0])


def test_a_callable_of_ones_own_may_settle_what_it_decides():
    class Largest:
        "The class with the largest sum, decided by the image as it is."

        def __init__(self, classes=None):
            self.classes = classes

        def __call__(self, output):
            classes = output.argmax(1) if self.classes is None else self.classes
            return output.gather(1, classes[:, None])[:, 0]

        def settled(self, output):
            assert not output.requires_grad
            return Largest(output.argmax(1))

    torch.manual_seed(0)
    net, x = SmallNet().eval(), torch.randn(6, 2, 8, 9)
    noisy = torch.stack([net(copy_).argmax(1) for copy_ in noisy_copies(x, 1.0, 8)])
    assert (noisy != net(x).argmax(1)).any(), "some copy is taken for another class"
    for how in (smoothed("gradcam", 1.0), smoothed("ablationcam", 1.0), "gradcam+aug", "scorecam"):
        made = gradcam(net, x, layer="body", target=Largest(), method=how).maps[0]
        _near(made, gradcam(net, x, layer="body", method=how).maps[0])
