"""`check` and `learn.gradcam_check` on networks of which it is known where they look, and on such as look nowhere."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import fastai_gradcam.learner  # noqa: F401  (learn.gradcam_check)
from fastai_gradcam import GradCAMError
from fastai_gradcam.faithfulness import check

COLUMNS = """method layer metric images score low high baseline baseline_score difference difference_low difference_high
verdict""".split()


class Spots(nn.Module):
    "Class 1 is probable where there is bright red anywhere; `look` has the places."

    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4))
        with torch.no_grad():
            for p in self.look.parameters():
                p.zero_()
            self.look[0].weight[0, 0] = 1
            self.look[0].bias.fill_(-5.0)

    def forward(self, x):
        score = 3 * self.look(x).flatten(1).sum(1) - 3
        return torch.stack([torch.zeros_like(score), score], 1)


def spots(n, size=32):
    "A bright red spot of 6 pixels somewhere on dim noise, and a blue one elsewhere that the network does not see."
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.rand(n, 3, size, size, generator=generator)
    for image in x:
        for channel in (2, 0):
            i, j = torch.randint(size - 6, (2,), generator=generator)
            image[channel, i : i + 6, j : j + 6] = 1
    return x


def cold(A, G):
    "Hot where the network does not look."
    return -(G * A).sum(1)


@pytest.fixture(scope="module")
def table():
    return check(Spots(), spots(40), methods=["gradcam", cold], layers=["look"], metrics=["road", "average_drop"])


@pytest.mark.slow
def test_a_map_of_what_the_network_uses_is_better_than_each_baseline_and_its_opposite_is_not(table):
    assert list(table.columns) == COLUMNS and len(table) == 2 * 2 * 5
    road = table[table.metric == "road"].set_index(["method", "baseline"])
    assert set(road.loc["gradcam"].verdict) == {"better"} and set(road.loc["cold"].verdict) == {"no better"}
    assert (road.low < road.score).all() and (road.score < road.high).all()
    assert np.allclose(road.difference, road.score - road.baseline_score, atol=1e-6)


@pytest.mark.slow
def test_differences_are_positive_where_the_map_is_better_whatever_the_metrics_direction(table):
    drop = table[table.metric == "average_drop"].set_index(["method", "baseline"])
    assert drop.loc[("gradcam", "centre"), "score"] < drop.loc[("gradcam", "centre"), "baseline_score"]
    assert drop.loc[("gradcam", "centre"), "difference"] > 0.1
    # A map of ones takes nothing away.
    assert drop.loc[("gradcam", "ones"), "baseline_score"] == 0 and drop.loc[("gradcam", "ones"), "verdict"] != "better"


def test_the_sentence_says_which_is_better_than_what_and_which_is_best(table):
    said = table.attrs["verdict"]
    assert said.startswith(
        "By road on 40 images: at layer 'look' gradcam is better than all baselines; the nearest is "
    )
    assert "at layer 'look' cold is no better than " in said and "a centre blob" in said
    assert "The best is gradcam at layer 'look', ahead of cold" in said and "which is more than chance" in said


@pytest.mark.slow
def test_few_images_are_too_few():
    made = check(Spots(), spots(8), layers=["look"], metrics=["road"])
    assert set(made.verdict) == {"undecided"} and made.attrs["verdict"].startswith("8 images are too few")
    one = check(Spots(), spots(1), layers=["look"], metrics=["road"]).set_index("baseline")
    assert np.isnan(one.loc["another", "baseline_score"]) and np.isfinite(one.loc["centre", "score"])


def test_masks_add_where_the_map_lies():
    x = spots(40)
    made = check(Spots(), x, layers=["look"], metrics=["energy_pointing", "pointing_hit"], masks=x[:, 0] == 1)
    assert set(made[made.baseline == "centre"].verdict) == {"better"} and made.score.min() > 0.3


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"metrics": ["roar"]}, "There is no metric 'roar'. Did you mean 'road'"),
        ({"metrics": ["randomisation"]}, "There is no metric 'randomisation'"),
        ({"metrics": ["pointing_hit"]}, "needs masks"),
        ({"baselines": ["center"]}, "There is no baseline 'center'. Did you mean 'centre'"),
        ({"baselines": []}, "at least one baseline"),
        ({"metrics": []}, "at least one metric"),
        ({"methods": []}, "at least one method"),
        ({"methods": ["grad"]}, "There is no method 'grad'"),
        ({"layers": ["lok"]}, "'lok'"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_quoted_with_what_does(how, says):
    with pytest.raises(GradCAMError, match=says):
        check(Spots(), spots(2), **how)


@pytest.mark.slow
def test_networks_that_have_learned_nothing_get_no_certificate():
    x, better = spots(30, size=16), []
    for seed in range(8):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip
        better += list(check(net, x, metrics=["road"], baselines=["centre"]).verdict == "better")
    assert len(better) == 8 and not any(better)


# --- the learner


@pytest.mark.slow
def test_a_learners_maps_are_checked_on_its_validation_images(make_learner):
    learn = make_learner()
    before = copy.deepcopy(learn.model.state_dict())
    generators = torch.get_rng_state(), random.getstate()
    made = learn.gradcam_check(layer=[-1, 6], metrics="average_drop", n=4)
    assert list(made.columns) == COLUMNS and len(made) == 2 * 5 and set(made.images) == {4}
    assert set(made.layer) == {"0.7", "0.6"} and "too few" in made.attrs["verdict"]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), learn.model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert learn.model.training == make_learner().model.training
    assert made.equals(learn.gradcam_check(layer=[-1, 6], metrics="average_drop", n=4))


@pytest.mark.slow
def test_a_learners_images_may_be_chosen_and_are_imputed_in_pixel_space(make_learner, monkeypatch):
    from fastai_gradcam._faithfulness import road as module

    learn, seen = make_learner(), []
    original = module.impute
    monkeypatch.setattr(module, "impute", lambda x, *rest: seen.append(x) or original(x, *rest))
    made = learn.gradcam_check(items=[0, 3], metrics="road")
    assert set(made.images) == {2}
    assert len(seen) and all(x.shape == (2, 3, 64, 64) and -1e-3 < x.min() and x.max() < 1.001 for x in seen)


def test_only_classifiers_are_checked(make_learner, monkeypatch):
    from fastai_gradcam._fastai import check as module
    from fastai_gradcam._watch.tasks import REGRESSION, Head, Task

    monkeypatch.setattr(module, "task_of", lambda dls, loss: Task([Head(REGRESSION)], loss))
    with pytest.raises(TypeError, match="this learner's task is 'regression'"):
        make_learner().gradcam_check()
