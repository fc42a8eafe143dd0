"""Whatever loop trains: watching changes not one bit, and the maps are the same."""

import numpy as np
import pytest
import torch
from loops import BATCH, LOOPS, Images, heard, plain, run_of
from torch import nn
from torch.nn.functional import cross_entropy
from training import assert_whole, differences, one_thread, places, statuses  # noqa: F401

from fastai_gradcam import Watch

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

# The callback's own kinds are in test_unchanged.py.
OTHERS = [who for who in LOOPS if who != "fastai"]
KINDS = {
    "dropout": {},
    "autocast": {"autocast": True},
    "accumulation over the end of an epoch": {"accumulate": 2},
    "compiled": {"compiled": True},
    "a state of one's own": {"own_state": True},
    "all at once": {"autocast": True, "accumulate": 2, "own_state": True, "epochs": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("who", OTHERS)
def test_the_training_is_the_same_to_the_last_bit(who, kind, tmp_path):
    how, train = KINDS[kind], LOOPS[who]
    alone, _ = train(tmp_path / "alone", **how)
    (left, watching), said = heard(lambda: train(tmp_path / "watched", {}, **how))
    assert said == []
    assert differences(alone, left) == []
    epochs = how.get("epochs", 2)
    run = assert_whole(run_of(watching).path)
    assert places(run) == [(0, epoch) for epoch in range(-1, epochs)] and run.status == "finished"
    assert all(any("loss" in name for name in f["metrics"]) for f in run.frames[1:])


@pytest.mark.slow
@pytest.mark.parametrize("who", LOOPS)
def test_a_careless_look_is_found_out(who, tmp_path):
    alone, _ = LOOPS[who](tmp_path / "alone")
    left, _ = LOOPS[who](tmp_path / "careless", careless=True)
    found = differences(alone, left)
    for kind in ("weights", "metrics", "optimiser", "torch"):
        assert any(name.startswith(kind) for name in found), kind


@pytest.mark.slow
def test_every_loop_gives_the_same_maps_to_the_last_bit(tmp_path):
    runs = {}
    for who, train in LOOPS.items():
        watch = {} if who == "plain" else {"items": [0, 1, 2, 3]}
        _, watching = train(tmp_path / who, watch, shuffle=False, dropout=0)
        runs[who] = run_of(watching)
    expected = runs.pop("plain")
    for run in runs.values():
        for frame in range(3):
            (maps,), (others,) = expected.maps(frame).values(), run.maps(frame).values()
            assert maps.any() and np.array_equal(maps, others)
        columns = ["prob", "entropy", "evidence", "correct"]
        assert run.history[columns].equals(expected.history[columns])


@pytest.mark.slow
def test_every_so_many_steps(tmp_path):
    "A frame each third step; epochs are the parts of the run."
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    data = Images(1)
    x, y = data.x, torch.tensor(data.targets)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with Watch(net, x[:3], labels=y[:3], path=tmp_path, every=3) as watch:
        for epoch in range(2):
            for step, part in enumerate(torch.arange(12).split(BATCH // 2)):
                loss = cross_entropy(net(x[part]), y[part])
                loss.backward()
                opt.step()
                opt.zero_grad()
                watch(step, {"loss": loss}, fit=epoch)
    assert places(watch.run) == [(0, -1), (0, 2), (0, 5), (1, 2), (1, 5)]
    assert statuses(watch.run) == ["ok"] * 5


@pytest.mark.slow
def test_every_k_epochs_in_each_loop(tmp_path):
    for who, train in LOOPS.items():
        _, watching = train(tmp_path / who, {"every": 2, "n": 2}, epochs=3)
        assert places(run_of(watching)) == [(0, -1), (0, 1), (0, 2)], who


@pytest.mark.slow
def test_a_compiled_model_is_watched_under_its_own_names(tmp_path):
    _, watching = plain(tmp_path, {"n": 2}, compiled=True)
    assert run_of(watching).layers == ["body"]
