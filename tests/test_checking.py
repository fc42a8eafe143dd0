"""`check=` of the callback and of `Watch`: whether the panel's maps are any good, while the network trains."""

import copy

import pytest
import torch
from test_judge_fastai import learner
from test_watch import data, net, train, watching  # noqa: F401
from torch import nn
from training import assert_whole, differences, left_by, one_thread  # noqa: F401

from fastai_gradcam import GradCAMCallback, GradCAMError, Run, Watch
from fastai_gradcam.faithfulness import check

pytestmark = pytest.mark.usefixtures("one_thread")
LINES = {"road", "road_centre", "road_random"}


def callback(path, **settings):
    return GradCAMCallback(n=3, path=path, name="run", show=False, judge=None, **settings)


def checked_frames(run):
    return [f["frame"] for f in run.frames if LINES <= set(f["metrics"])]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    "A training that was checked, the same one without a callback, and its run."
    path = tmp_path_factory.mktemp("checked")
    plain, learn = learner(path), learner(path)
    plain.fit(3, 1e-5)
    learn.fit(3, 1e-5, cbs=callback(path, check=2))
    return learn, left_by(plain), left_by(learn), Run(path / "run")


@pytest.mark.slow
def test_a_checked_training_is_the_same_to_the_last_bit(checked):
    _, plain, left, run = checked
    assert differences(plain, left) == [] and run.status == "finished"


@pytest.mark.slow
def test_every_so_many_epochs_and_before_the_first_the_frame_has_the_maps_scores(checked):
    run = checked[-1]
    assert checked_frames(run) == [0, 2] and list(run.frames[2]["metrics"])[:2] == ["train_loss", "valid_loss"]
    table = run.checks
    assert table.groupby("frame").baseline.agg(list).to_dict() == {0: ["centre", "random"], 2: ["centre", "random"]}
    assert set(table.verdict) == {"undecided"} and set(table.images) == {3} and set(table.metric) == {"road"}
    metrics = run.frames[2]["metrics"]
    last = table[table.frame == 2].set_index("baseline")
    assert metrics["road"] == pytest.approx(last.score["centre"])
    assert metrics["road_random"] == pytest.approx(last.baseline_score["random"])


def test_the_score_is_that_of_the_panel_in_the_models_own_input(checked):
    learn, _, _, run = checked
    # The steps of this training are so small that the network is still the one of frame 2.
    x = learn.grad_cam.panel.x
    own = check(learn.model, x, metrics=["road"], layers=run.layers[-1:], baselines=["centre"]).score[0]
    assert run.frames[2]["metrics"]["road"] == pytest.approx(own, abs=1e-3)


def test_the_report_shows_its_course(checked, open_page):
    page = open_page(checked[-1].report())
    chart = page.locator("figure.chart", has_text="Faithfulness")
    assert chart.count() == 1 and LINES <= set(chart.inner_text().split())
    assert "ROAD" in page.content()


@pytest.mark.slow
def test_a_watch_checks_too_and_leaves_the_training_as_it_is(net, data, tmp_path):  # noqa: F811
    other = copy.deepcopy(net)
    torch.manual_seed(5)
    plain = train(other, data)
    torch.manual_seed(5)
    with watching(net, data, tmp_path, check=1, mean=[0.5], std=[0.25], name="one") as watch:
        left = train(net, data, watch)
    assert differences(plain, left) == []
    assert checked_frames(assert_whole(watch.run.path)) == [0, 1, 2]
    with watching(net, data, tmp_path, check=1, name="one", resume=True) as watch:
        watch(2)
    assert sorted(set(watch.run.checks.frame)) == [0, 1, 2, 3], "a run that goes on keeps what was checked"


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_check_that_fails_costs_a_warning_and_no_frame(tmp_path, monkeypatch, on_error):
    from fastai_gradcam._watch import checking

    def fails(*args, **kwargs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(checking, "check", fails)
    learn = learner(tmp_path)
    if on_error == "raise":
        with pytest.raises(RuntimeError, match="out of luck"):
            learn.fit(1, 1e-5, cbs=callback(tmp_path, check=1, on_error="raise"))
        return
    with pytest.warns(UserWarning, match="checking the maps of frame 1 failed, training goes on: .*out of luck"):
        learn.fit(1, 1e-5, cbs=callback(tmp_path, check=1))
    run = Run(tmp_path / "run")
    assert [f["status"] for f in run.frames] == ["ok", "ok"] and checked_frames(run) == [] and run.checks.empty


@pytest.mark.slow
def test_a_run_that_was_not_checked_has_an_empty_table_and_no_scores(net, data, tmp_path):  # noqa: F811
    with watching(net, data, tmp_path) as watch:
        watch(0)
    assert watch.run.checks.empty and "baseline" in watch.run.checks and checked_frames(watch.run) == []
    assert not (watch.run.path / "checks.csv").exists()


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2", 3])
def test_a_number_of_epochs_that_does_not_fit_is_quoted(wrong):
    with pytest.raises(GradCAMError, match=rf"multiple of every=2 .* got {wrong!r}"):
        GradCAMCallback(check=wrong, every=2)


def test_what_cannot_be_checked_is_said_before_training(net, tmp_path):  # noqa: F811
    deep = nn.Sequential(nn.Conv3d(3, 6, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3))
    several = {"y": torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])}
    for model, x, how in ((deep, torch.rand(2, 3, 8, 8, 8), {}), (net, torch.rand(2, 3, 16, 16), several)):
        with pytest.raises(GradCAMError, match="check= is for a model of one image"):
            Watch(model, x, path=tmp_path, target="pred", check=1, **how)
    assert not list(tmp_path.iterdir())
