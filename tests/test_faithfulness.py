"""Each metric against a slow literal copy of its paper, networks whose answer is known, and what has no answer."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import nn

from fastai_gradcam import GradCAMError, gradcam
from fastai_gradcam.faithfulness import (
    average_drop,
    baseline,
    baselines,
    deletion,
    energy_pointing,
    impute,
    increase,
    insertion,
    interval,
    metrics,
    pointing_hit,
    random_logit,
    randomisation,
    road,
    win,
)

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])


class Corner(nn.Module):
    "Class 1 is as probable as the brightness of one pixel, in pixel space with `mean` and `std` undone."

    def __init__(self, y=2, x=5, sharpness=20.0):
        super().__init__()
        self.place, self.sharpness, self.seen = (y, x), sharpness, []

    def forward(self, x):
        score = self.sharpness * (x[:, 0, self.place[0], self.place[1]] - 0.5)
        return torch.stack([torch.zeros_like(score), score], 1)


def net_with_space(classes=3):
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)),
    )


def data(n=3, size=12):
    "Images in the model's space, distinct values as maps, classes."
    x = (torch.rand(n, 3, size, size) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    maps = torch.stack([torch.randperm(size * size).view(size, size).float() for _ in range(n)])
    return x, maps, torch.arange(n) % 3


def probability(model, image, target):
    with torch.no_grad():
        return float(model(image[None]).softmax(1)[0, target])


CALLS = {
    "road": {"shares": [0.3, 0.6]},
    "deletion": {"steps": 5},
    "insertion": {"steps": 5},
    "average_drop": {},
    "increase": {},
    "energy_pointing": {},
    "pointing_hit": {},
    "randomisation": {"layer": "2", "stages": 2},
    "random_logit": {"layer": "2"},
}


def call(name, model, x, maps, target, **more):
    if metrics[name].masks and "masks" not in more:
        masks = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
        masks[:, 3:7, 3:9] = True
        more["masks"] = masks
    return metrics[name].function(model, x, maps, target, **{**CALLS[name], **more})


def native(model, x, target):
    return gradcam(model, x, layer="2", target=target).maps[0]


# --- ROAD


def literal_road(model, x, maps, target, share, keep):
    "MoRF removes the first ⌊p·n⌋ pixels, LeRF the others; imputed in pixel space; no two values of a map are equal."
    values = []
    for image, heat, t in zip(x, maps, target, strict=True):
        order = np.argsort(-heat.numpy().ravel())
        count = int(round(share * len(order), 6))
        gone = order[count:] if keep else order[:count]
        missing = np.zeros(len(order), dtype=bool)
        missing[gone] = True
        pixels = image * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
        filled = impute(pixels[None], torch.from_numpy(missing).view(1, *heat.shape), noise=0)[0]
        values.append(probability(model, (filled - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1), t))
    return np.array(values)


@pytest.mark.parametrize("order", ["morf", "lerf", "combined"])
def test_road_is_the_papers(order):
    model, (x, maps, target), shares = net_with_space().eval(), data(), (0.1, 0.29, 0.7)
    scores = road(model, x, maps, target, order=order, shares=shares, mean=MEAN, std=STD, noise=0)
    morf, lerf = (np.array([literal_road(model, x, maps, target, p, keep) for p in shares]) for keep in (False, True))
    wanted = {"morf": morf.mean(0), "lerf": lerf.mean(0), "combined": (lerf - morf).mean(0) / 2}[order]
    assert np.allclose(scores.numpy(), wanted, atol=1e-5)
    if order != "lerf":
        assert np.allclose(scores.figure["morf_probability"], morf.mean(1), atol=1e-5)
    assert ("lerf_accuracy" in scores.figure) == (order != "morf")


def test_road_takes_exact_counts_and_its_accuracy_is_that_of_the_prediction():
    model, x = Corner().eval(), torch.zeros(2, 3, 10, 10)
    x[:, :, 2, 5] = 1
    maps = torch.zeros(2, 10, 10)
    maps[0, 2, 5] = 1  # the one pixel that counts, among 99 ties
    maps[1] = 1 - maps[0]
    scores = road(model, x, maps, torch.tensor([1, 1]), shares=[0.01, 0.99], noise=0)
    # The second map is hot everywhere but at that pixel.
    assert scores.figure["morf_accuracy"] == scores.figure["lerf_accuracy"] == [0.5, 0.5]
    assert scores[0] > 0.49 and scores[1] < -0.49


def test_a_removed_share_is_exact_where_a_map_is_mostly_zero():
    "pytorch-grad-cam compares with a percentile: of a map with many zeros it removes all."
    from pytorch_grad_cam.metrics.perturbation_confidence import RemoveMostRelevantFirst

    maps = torch.zeros(1, 7, 7)
    maps[0, 2:5, 2:5] = torch.rand(3, 3) + 0.1
    up = F.interpolate(maps[:, None], size=28, mode="bilinear")[0, 0]
    gone = []
    RemoveMostRelevantFirst(20, lambda x, kept: gone.append(1 - kept.mean().item()) or x)(torch.rand(3, 28, 28), up)
    assert gone == [1.0]  # 80 % were asked for
    counted = []

    class Counts(Corner):
        def forward(self, x):
            counted.extend((x != 0.25).any(1).flatten(1).sum(1).tolist())
            return super().forward(x)

    x = torch.full((1, 3, 28, 28), 0.25)
    road(Counts(), x, maps, torch.tensor([1]), order="morf", shares=[0.8, 0.1], noise=0.5)
    assert counted == [int(0.8 * 28 * 28), int(0.1 * 28 * 28)]
    # 0.29 · 100 is 28.999… in floating point.
    road(Counts(), x[..., :10, :10], maps, torch.tensor([1]), order="morf", shares=[0.29], noise=0.5)
    assert counted[-1] == 29


@pytest.mark.slow
def test_ties_are_broken_at_random_by_the_seed_and_not_by_place():
    model, x = net_with_space(), torch.rand(1, 3, 16, 16)
    maps = torch.zeros(1, 4, 4)
    first = road(model, x, maps, torch.tensor([0]), noise=0)
    assert torch.equal(road(model, x, maps, torch.tensor([0]), noise=0), first)
    assert not torch.equal(road(model, x, maps, torch.tensor([0]), noise=0, seed=1), first)
    assert torch.equal(road(model, x, torch.ones(1, 4, 4), torch.tensor([0]), noise=0), first)


# --- deletion and insertion


def literal_rise(model, image, heat, target, step, delete):
    "RISE's evaluation.py, with the order of distinct values."
    kernel = np.zeros((11, 11))
    kernel[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(kernel, 5)).float()
    blurred = F.conv2d(image[:, None], kernel[None, None], padding=5)[:, 0]
    now, then = (image.clone(), torch.zeros_like(image)) if delete else (blurred, image)
    order = np.flip(np.argsort(heat.numpy().ravel()))
    steps = (len(order) + step - 1) // step
    scores = np.empty(steps + 1)
    for i in range(steps + 1):
        scores[i] = probability(model, now, target)
        place = order[step * i : step * (i + 1)].copy()
        now.view(3, -1)[:, place] = then.reshape(3, -1)[:, place]
    return (scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


@pytest.mark.parametrize("steps", [7, 144, 1000], ids=["uneven", "one pixel", "more than pixels"])
@pytest.mark.parametrize("metric", [deletion, insertion])
def test_deletion_and_insertion_are_rises(metric, steps):
    model, (x, maps, target) = net_with_space().eval(), data()
    scores = metric(model, x, maps, target, steps=steps)
    step = int(np.ceil(144 / steps))
    wanted = [literal_rise(model, *one, step, metric is deletion) for one in zip(x, maps, target, strict=True)]
    assert np.allclose(scores.numpy(), wanted, atol=1e-5)
    assert scores.figure == pytest.approx(np.mean(wanted), abs=1e-5)


def test_deletion_finds_the_pixel_that_counts():
    x, maps = torch.zeros(2, 3, 10, 10), torch.zeros(2, 10, 10)
    x[:, :, 2, 5] = 1
    maps[0, 2, 5] = maps[1, 9, 9] = 1
    gone, back = (metric(Corner(), x, maps, torch.tensor([1, 1]), steps=100) for metric in (deletion, insertion))
    assert gone[0] < 0.02 and back[0] > 0.98
    assert gone[1] > gone[0] and back[1] < back[0]


def test_deletion_agrees_with_torchcam_where_no_values_are_equal():
    from torchcam.metrics import DeletionInsertionMetric

    class Given:
        def __init__(self, model, maps):
            self.model, self.maps = model, maps

        def __call__(self, *args, **kwargs):
            return [self.maps]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return torch.no_grad()

    model, (x, maps, target) = net_with_space().eval(), data()
    peer = DeletionInsertionMetric(Given(model, maps), lambda logits: logits.softmax(1), steps=12)
    peer.update(x, target.tolist())
    assert deletion(model, x, maps, target, steps=12).figure == pytest.approx(peer.summary()["deletion_auc"], abs=1e-5)


# --- average drop, increase, win


def literal_drop(model, x, maps, target, pixel_space):
    drops, rises = [], []
    for image, heat, t in zip(x, maps, target, strict=True):
        up = F.interpolate(heat[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        up = up / up.max()
        mean, std = (MEAN.view(3, 1, 1), STD.view(3, 1, 1)) if pixel_space else (0, 1)
        before = probability(model, image, t)
        after = probability(model, ((image * std + mean) * up - mean) / std, t)
        drops.append(max(0, before - after) / before)
        rises.append(float(before < after))
    return np.array(drops), np.array(rises)


@pytest.mark.parametrize("pixel_space", [True, False])
def test_average_drop_and_increase_are_grad_cam_plus_plus_own(pixel_space):
    model, (x, _, target), maps = net_with_space().eval(), data(12), torch.rand(12, 4, 4)
    target = torch.arange(12) % 3
    drops, rises = literal_drop(model, x, maps, target, pixel_space)
    how = {"mean": MEAN, "std": STD} if pixel_space else {}
    got, up = average_drop(model, x, maps, target, **how), increase(model, x, maps, target, **how)
    assert np.allclose(got.numpy(), drops, atol=1e-5) and 0 < rises.mean() < 1
    assert got.figure == pytest.approx(100 * drops.mean(), abs=1e-3)
    assert np.array_equal(up.numpy(), rises) and up.figure == pytest.approx(100 * rises.mean())


def test_the_drop_of_pytorch_grad_cam_is_not_divided_by_the_probability():
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    model, (x, maps, target) = net_with_space().eval(), data(6)
    maps = maps / maps.flatten(1).amax(1).view(-1, 1, 1)
    theirs = DropInConfidence()(x, maps.numpy(), [ClassifierOutputSoftmaxTarget(int(t)) for t in target], model)
    before = torch.stack([model(x).softmax(1)[i, t] for i, t in enumerate(target)]).detach()
    ours = average_drop(model, x, maps, target)
    assert np.allclose(theirs, (ours * before).numpy(), atol=1e-5)
    assert (ours > 0).any() and not np.allclose(theirs, ours.numpy(), atol=1e-2)


def test_score_cams_protocol_keeps_half_of_the_pixels():
    kept = []

    class Counts(Corner):
        def forward(self, x):
            kept.append((x != 0).any(1).flatten(1).sum(1).tolist())
            return super().forward(x)

    average_drop(Counts(), torch.ones(2, 3, 9, 9), torch.zeros(2, 3, 3), torch.tensor([1, 0]), keep=0.5)
    assert kept == [[81, 81], [40, 40]]
    with pytest.raises(GradCAMError, match="keep"):
        average_drop(Corner(), torch.ones(1, 3, 9, 9), torch.zeros(1, 3, 3), torch.tensor([1]), keep=2)


def test_the_two_sides_of_a_win_add_up():
    model, (x, maps, target) = net_with_space(), data(6)
    other = maps.flip(0)
    other[0] = maps[0]
    a, b = win(model, x, maps, target, other), win(model, x, other, target, maps)
    assert torch.equal(a + b, torch.ones(6)) and a[0] == 0.5 and a.figure + b.figure == pytest.approx(100)
    drops = average_drop(model, x, maps, target), average_drop(model, x, other, target)
    assert torch.equal(a == 1, drops[0] < drops[1])


# --- pointing


def test_energy_is_the_share_inside_and_its_enrichment():
    mask, maps = torch.zeros(1, 8, 8, dtype=torch.bool), torch.rand(1, 8, 8)
    mask[0, 2:6, 1:4] = True
    wanted = float(maps[mask].sum() / maps.sum())
    x = torch.rand(1, 3, 8, 8)
    assert float(energy_pointing(None, x, maps, None, mask)) == pytest.approx(wanted, rel=1e-5)
    assert float(energy_pointing(None, x, maps, None, mask, per_area=True)) == pytest.approx(
        wanted / (12 / 64), rel=1e-5
    )
    ones = energy_pointing(None, x, torch.ones(1, 2, 2), None, mask, per_area=True)
    assert float(ones) == pytest.approx(1)


def test_the_peak_hits_misses_or_comes_near():
    mask, maps = torch.zeros(3, 9, 9, dtype=torch.bool), torch.zeros(3, 9, 9)
    mask[:, 3:6, 3:6] = True
    maps[0, 4, 4] = maps[1, 3, 7] = maps[2, 7, 7] = 1
    x = torch.rand(3, 3, 9, 9)
    assert pointing_hit(None, x, maps, None, mask).tolist() == [1, 0, 0]
    assert pointing_hit(None, x, maps, None, mask, tolerance=2).tolist() == [1, 1, 0]
    assert pointing_hit(None, x, maps, None, mask, tolerance=3).tolist() == [1, 1, 1]
    maps[0, 0, 0] = 1  # a tie of a hit and a miss
    scores = pointing_hit(None, x, maps, None, mask)
    assert scores.tolist() == [0.5, 0, 0] and scores.figure == pytest.approx(0.5 / 3)


def test_without_an_object_there_is_neither_hit_nor_miss():
    "Quantus counts an empty mask as a hit."
    x, maps, mask = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[1] = True
    for metric in (pointing_hit, energy_pointing):
        scores = metric(None, x, maps, None, mask)
        assert scores[0].isnan() and scores[1] == 1 and scores.figure == 1


def test_quantus_agrees_on_a_peak_and_differs_on_an_empty_mask_and_on_colour():
    "Its pointing game counts an empty mask as a hit, and its ROAD indexes a mask of one channel by those of three."
    quantus = pytest.importorskip("quantus", exc_type=ImportError)
    model, (x, _, target) = net_with_space().eval(), data(3)
    maps, masks = torch.rand(3, 12, 12), torch.zeros(3, 12, 12, dtype=torch.bool)
    maps[0, 4, 4] = maps[1, 9, 9] = 2
    masks[:2, 3:6, 3:6] = True
    given = {"x_batch": x.numpy(), "y_batch": target.numpy(), "a_batch": maps[:, None].numpy(), "device": "cpu"}
    quiet = {"disable_warnings": True, "display_progressbar": False}
    theirs = quantus.PointingGame(**quiet)(model=model, s_batch=masks[:, None].numpy(), **given)
    ours = pointing_hit(model, x, maps, target, masks)
    assert [bool(v) for v in theirs] == [True, False, True]
    assert ours[:2].tolist() == [1, 0] and ours[2].isnan()
    with pytest.raises(IndexError, match="out of bounds"):
        quantus.ROAD(percentages=[50], **quiet)(model=model, **given)
    assert road(model, x, maps, target, shares=[0.5]).isfinite().all()


# --- sanity checks


def test_spearman_is_scipys_with_ties():
    from scipy.stats import spearmanr

    from fastai_gradcam._faithfulness.sanity import spearman

    a, b = torch.randint(5, (4, 49)).float(), torch.rand(4, 49)
    wanted = [spearmanr(one, other).statistic for one, other in zip(a.numpy(), b.numpy(), strict=True)]
    assert np.allclose(spearman(a, b).numpy(), wanted, atol=1e-6)


def test_complexity_is_the_entropy_of_a_histogram():
    from scipy.stats import entropy

    from fastai_gradcam._faithfulness.sanity import histogram_entropy

    maps = torch.rand(4, 49) ** 3
    wanted = [entropy(np.histogram(m, bins=100)[0]) for m in maps.numpy()]
    assert np.allclose(histogram_entropy(maps).numpy(), wanted, atol=1e-5)
    assert histogram_entropy(torch.ones(1, 9)).tolist() == [0]


def test_a_map_that_ignores_the_weights_and_the_class_fails_both_checks():
    model, (x, _, target) = net_with_space(), data()

    def deaf(model, x, target):
        return x.mean(1)

    made = deaf(model, x, target)
    scores = randomisation(model, x, made, target, explain=deaf)
    # The network has three modules with weights.
    assert scores.abs().max() == 0 and scores.figure["similarity"] == pytest.approx([1] * 4)
    assert scores.figure["share"] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert random_logit(model, x, made, target, explain=deaf).tolist() == pytest.approx([1] * 3)


def test_randomisation_goes_from_the_input_upwards_and_spares_the_model():
    model, (x, _, target), seen = net_with_space(), data(), []
    before = copy.deepcopy(model.state_dict())

    def listening(net, x, target):
        same = [torch.equal(p, before[name]) for name, p in net.named_parameters()]
        seen.append(same)
        return gradcam(net, x, layer="2", target=target).maps[0]

    maps = native(model, x, target)
    scores = randomisation(model, x, maps, target, explain=listening, stages=3)
    assert [s[0] for s in seen] == [False, False, False] and [s[-1] for s in seen] == [True, True, False]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert set(scores.figure) == {"emprt", "share", "similarity", "shuffled"} and len(scores.figure["share"]) == 4
    again = randomisation(model, x, maps, target, layer="2", stages=3)
    assert torch.allclose(scores, again, equal_nan=True)


def test_the_other_class_of_random_logit_is_never_the_same():
    model, (x, _, target), asked = net_with_space(), data(3), []

    def listening(net, x, target):
        asked.append(target.clone())
        return gradcam(net, x, layer="2", target=target).maps[0]

    maps = native(model, x, target)
    for seed in range(6):
        random_logit(model, x, maps, target, explain=listening, seed=seed)
    others = torch.stack(asked)
    assert not (others == target).any() and others.min() >= 0 and others.max() <= 2 and len(others.unique()) == 3


# --- what has no answer, what may be given, what stays as it was


@pytest.mark.parametrize("name", CALLS)
def test_a_map_with_nan_has_no_answer_and_the_others_keep_theirs(name):
    model, (x, _, target) = net_with_space(), data()
    maps = native(model, x, target)
    whole = call(name, model, x, maps, target)
    for bad in (float("nan"), float("inf")):
        broken = maps.clone()
        broken[1, 2, 2] = bad
        scores = call(name, model, x, broken, target)
        assert scores.shape == (3,) and scores[1].isnan()
        assert torch.equal(scores[[0, 2]].nan_to_num(-9), whole[[0, 2]].nan_to_num(-9))


@pytest.mark.parametrize("name", CALLS)
def test_an_empty_map_and_one_image_have_a_defined_answer(name):
    model, (x, _, target) = net_with_space(), data()
    empty = call(name, model, x[:1], torch.zeros(1, 6, 6), target[:1])
    undefined = name in ("energy_pointing", "pointing_hit", "randomisation", "random_logit")
    assert empty.shape == (1,) and bool(empty.isnan()) == undefined
    if name == "average_drop":
        black = model.eval()(torch.zeros(1, 3, 12, 12)).softmax(1)[0, target[0]]
        whole = model(x[:1]).softmax(1)[0, target[0]]
        assert float(empty) == pytest.approx(float(((whole - black).clamp(min=0) / whole).detach()), abs=1e-5)


def test_a_class_of_probability_one_drops_and_cannot_increase():
    x, maps = torch.ones(1, 3, 8, 8), torch.zeros(1, 8, 8)
    sure = Corner(sharpness=1e4)
    assert float(average_drop(sure, x, maps, torch.tensor([1]))) == 1
    assert float(average_drop(sure, x, torch.ones(1, 8, 8), torch.tensor([1]))) == 0
    assert float(increase(sure, x, maps, torch.tensor([1]))) == 0
    assert float(increase(sure, x, torch.ones(1, 8, 8), torch.tensor([1]))) == 0
    # Class 0 has probability 0: there is nothing to lose.
    assert average_drop(sure, x, maps, torch.tensor([0])).isnan() and increase(sure, x, maps, torch.tensor([0])) == 1
    for name in ("road", "deletion", "insertion"):
        assert 0 <= abs(float(call(name, sure, x, maps, torch.tensor([1])))) <= 1


@pytest.mark.parametrize("name", CALLS)
def test_batches_make_no_difference(name):
    model, (x, _, target) = net_with_space(), data(5)
    maps, target = native(model, x, torch.arange(5) % 3), torch.arange(5) % 3
    if metrics[name].masks:
        return
    one, two = (call(name, model, x, maps, target, batch=batch) for batch in (64, 2))
    assert torch.allclose(one, two, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", CALLS)
def test_a_set_in_parts_has_the_values_of_the_whole_when_the_seed_counts_images(name):
    model, (x, _, _) = net_with_space(), data(5)
    target = torch.arange(5) % 3
    # Half of the cells are equal, so that the order of ties counts.
    maps = (
        native(model, x, target).clamp(min=0.01) if name in ("randomisation", "random_logit") else torch.ones(5, 4, 4)
    )
    whole = call(name, model, x, maps, target)
    parts = [slice(0, 2), slice(2, 5)]
    # All parts of `randomisation` need the same random network.
    seed = (lambda p: {}) if metrics[name].masks or name == "randomisation" else (lambda p: {"seed": p.start})
    found = torch.cat([call(name, model, x[p], maps[p], target[p], **seed(p)) for p in parts])
    assert torch.allclose(found, whole, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", CALLS)
def test_the_model_the_generators_and_the_modes_stay_as_they_were(name):
    model, (x, _, target) = net_with_space(), data()
    model.train()
    model[1].eval()
    maps = native(model, x, target)
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    inputs = x.clone(), maps.clone()
    with torch.inference_mode():
        scores = call(name, model, x, maps, target)
    assert not scores.requires_grad and torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == modes and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert torch.equal(x, inputs[0]) and torch.equal(maps, inputs[1])


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_quoted(name):
    model, (x, _, target) = net_with_space(), data()
    maps = torch.rand(3, 6, 6)
    with pytest.raises(GradCAMError, match="maps must be"):
        call(name, model, x, maps[:2], target)
    with pytest.raises(GradCAMError, match="maps must be"):
        call(name, model, x, maps[:, None], target)
    if not metrics[name].masks:
        for wrong in (torch.tensor([0, 1]), torch.rand(3), torch.tensor([0, 1, 3]), torch.tensor([0, 1, -1])):
            with pytest.raises(GradCAMError, match="target"):
                call(name, model, x, maps, wrong)


@pytest.mark.parametrize("name", CALLS)
def test_channels_may_come_last_in_memory(name):
    model, (x, _, target) = net_with_space(), data()
    maps = native(model, x, target)
    plain = call(name, model, x, maps, target)
    last = call(
        name, model, x.to(memory_format=torch.channels_last), maps.transpose(1, 2).contiguous().transpose(1, 2), target
    )
    assert torch.allclose(last, plain, atol=1e-5, equal_nan=True)


def test_none_is_the_predicted_class_and_a_number_is_for_all():
    model, (x, maps, _) = net_with_space(), data()
    predicted = model.eval()(x).argmax(1)
    assert torch.equal(deletion(model, x, maps, None, steps=4), deletion(model, x, maps, predicted, steps=4))
    assert torch.equal(deletion(model, x, maps, 1, steps=4), deletion(model, x, maps, torch.ones(3).long(), steps=4))


def test_one_score_is_a_probability_by_sigmoid():
    class One(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))[:, None]

    x = torch.rand(2, 3, 6, 6)
    drop = average_drop(One(), x, torch.zeros(2, 6, 6), torch.tensor([1, 1]))
    before = x.mean((1, 2, 3)).sigmoid()
    assert torch.allclose(drop, (before - 0.5) / before, atol=1e-5)
    own = average_drop(One(), x, torch.zeros(2, 6, 6), torch.tensor([0, 0]), probability=lambda output: output)
    assert torch.allclose(own, torch.ones(2))


def test_a_network_that_ends_in_a_softmax_scores_as_without_it():
    model, (x, maps, target) = net_with_space(), data()
    ended = nn.Sequential(model, nn.Softmax(1))
    assert torch.allclose(deletion(ended, x, maps, target), deletion(model, x, maps, target), atol=1e-6)


def test_signals_and_volumes_have_curves_and_drops_but_no_road():
    class Any(nn.Module):
        def forward(self, x):
            return x.flatten(2).mean(2)

    for space in ((16,), (4, 6, 8)):
        x, maps = torch.rand(2, 3, *space), torch.rand(2, *[max(1, s // 2) for s in space])
        for metric in (deletion, insertion, average_drop, increase):
            assert metric(Any(), x, maps, None).isfinite().all()
        for name in baselines:
            assert baseline(name, x, maps).shape == maps.shape
        with pytest.raises(GradCAMError, match="road imputes images"):
            road(Any(), x, maps, None)


def test_scores_are_tensors_with_the_papers_figure():
    model, (x, maps, target) = net_with_space(), data()
    scores = deletion(model, x, maps, target, steps=4)
    assert isinstance(scores, torch.Tensor) and scores.dtype == torch.float32 and scores.shape == (3,)
    assert type(scores + 1) is torch.Tensor and type(scores.mean()) is torch.Tensor


# --- baselines and intervals


def test_baselines_have_the_maps_shape_and_their_meaning():
    x, maps = torch.zeros(2, 3, 32, 32), torch.rand(2, 8, 8)
    x[0, :, :, 16:] = 1  # an edge in the middle of the first image
    made = {name: baseline(name, x, maps) for name in baselines}
    assert set(made) == {"random", "centre", "edges", "another", "ones"}
    assert all(m.shape == maps.shape for m in made.values())
    assert torch.equal(made["another"], maps[[1, 0]]) and made["ones"].eq(1).all()
    assert made["edges"][0].amax(0).argmax() in (3, 4) and made["edges"][1].eq(0).all()
    assert torch.equal(made["centre"], made["centre"].flip(1)) and made["centre"][0].argmax() in (27, 28, 35, 36)
    assert torch.equal(baseline("random", x, maps), made["random"])
    assert not torch.equal(baseline("random", x, maps, seed=5), made["random"])
    assert baseline("another", x[:1], maps[:1]).isnan().all()
    with pytest.raises(GradCAMError, match="center"):
        baseline("center", x, maps)


def test_edges_are_sobels():
    from scipy.ndimage import sobel

    x = torch.rand(1, 3, 12, 12)
    grey = x.mean(1)[0].numpy()
    size = np.hypot(sobel(grey, 0, mode="nearest"), sobel(grey, 1, mode="nearest"))
    assert np.allclose(baseline("edges", x, torch.zeros(1, 12, 12))[0].numpy(), size, atol=1e-5)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(300):
        found = interval(torch.from_numpy(rng.normal(0.3, 1, 60)), draws=400)
        hits.append(found.low <= 0.3 <= found.high)
    assert 0.90 <= np.mean(hits) <= 0.98


def test_an_interval_is_paired_and_leaves_out_what_has_no_value():
    a = torch.tensor([1.0, 2, float("nan"), 4])
    difference = interval(a, a - 0.5)
    assert difference == (0.5, 0.5, 0.5, 3)
    assert interval(torch.tensor([2.0])).images == 1 and np.isnan(interval(torch.tensor([2.0])).low)
    assert np.isnan(interval(torch.tensor([float("nan")])).mean)
    with pytest.raises(GradCAMError, match="same images"):
        interval(a, a[:2])
