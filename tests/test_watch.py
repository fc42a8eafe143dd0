"""`Watch` in a plain PyTorch loop: the same frames, promises and faults as the callback has."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from training import assert_whole, differences, flat, one_thread, places, random_states, statuses  # noqa: F401

from fastai_gradcam import GradCAMError, Run, Watch, gradcam

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB = ["red", "green", "blue"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(6, 3))


@pytest.fixture
def data():
    rng = torch.Generator().manual_seed(1)
    x, y = torch.rand(12, 3, 16, 16, generator=rng), torch.arange(12) % 3
    for i, k in enumerate(y):
        x[i, k, 4:12, 4:12] += 2
    return x, y


def train(net, data, watch=None, epochs=2):
    "A plain loop; everything that it leaves behind."
    x, y = data
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for epoch in range(epochs):
        net.train()
        for i in torch.randperm(12).split(4):
            loss = nn.functional.cross_entropy(net(x[i]), y[i])
            loss.backward()
            opt.step()
            opt.zero_grad()
        if watch is not None:
            watch(epoch, {"train_loss": loss})
    return flat("weights", net.state_dict()) | flat("optimiser", opt.state_dict()) | random_states()


def watching(net, data, tmp_path, n=4, **settings):
    x, y = data
    return Watch(net, x[:n], **{"labels": y[:n], "vocab": VOCAB, "path": tmp_path, **settings})


@pytest.mark.slow
def test_a_frame_before_training_and_after_each_epoch(net, data, tmp_path):
    with watching(net, data, tmp_path, loss_func=nn.functional.cross_entropy) as watch:
        train(net, data, watch)
    run = assert_whole(watch.run.path)
    assert places(run) == [(0, -1), (0, 0), (0, 1)] and run.status == "finished"
    assert list(run.frames[1]["metrics"]) == ["train_loss"] and run.vocab == VOCAB
    last = run.history.query("frame == 2")
    with torch.no_grad():
        logits = net.eval()(data[0][:4])
    assert np.allclose(last.loss, nn.functional.cross_entropy(logits, data[1][:4], reduction="none"), atol=1e-5)
    assert np.allclose(last.pred_prob, logits.softmax(1).max(1).values, atol=1e-5)
    assert list(last.label) == list(last.target) == ["red", "green", "blue", "red"]
    expected = gradcam(net, data[0][:4], layer=run.layers, target=data[1][:4])
    assert np.allclose(run.maps(2)[run.layers[0]], expected.maps[0], atol=1e-6)
    for file in ("report.html", "evolution.png", "evolution.gif"):
        assert (run.path / file).exists()


def test_the_training_is_the_same_to_the_last_bit(net, data, tmp_path):
    state = {k: v.clone() for k, v in net.state_dict().items()}

    def left(make):
        net.load_state_dict(state)
        torch.manual_seed(5)
        watch = make()
        return train(net, data, watch)

    alone = left(lambda: None)
    assert differences(alone, left(lambda: None)) == []
    assert differences(alone, left(lambda: watching(net, data, tmp_path))) == []

    def careless():
        return lambda epoch, metrics: net.train()(data[0])

    assert differences(alone, left(careless)) != []


@pytest.mark.slow
def test_under_no_grad_and_in_training_mode_the_model_is_left_as_it_was(net, data, tmp_path):
    net.train()
    with torch.no_grad():
        watch = watching(net, data, tmp_path)
        watch(0)
        assert not torch.is_grad_enabled()
    watch.close()
    assert all(m.training for m in net.modules())
    assert statuses(watch.run) == ["ok", "ok"]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "wanted"), [(1, [-1, 0, 1, 2]), (2, [-1, 1, 2]), (5, [-1, 2])])
def test_every_k_keeps_the_last_epoch(every, wanted, net, data, tmp_path):
    with watching(net, data, tmp_path, every=every) as watch:
        for epoch in range(3):
            watch(epoch)
    assert [f["epoch"] for f in watch.run.frames] == wanted


@pytest.mark.slow
def test_parts_of_a_training_have_numbers_of_their_own(net, data, tmp_path):
    with watching(net, data, tmp_path) as watch:
        watch(0)
        watch(0, fit=1)
    assert places(watch.run) == [(0, -1), (0, 0), (1, 0)]


@pytest.mark.slow
def test_a_part_whose_last_call_had_no_frame_gets_none_of_other_weights(net, data, tmp_path):
    with watching(net, data, tmp_path, every=4) as watch:
        for part in range(2):
            for step in range(6):
                train(net, data, epochs=1)
                watch(step, fit=part)
    assert places(watch.run) == [(0, -1), (0, 3), (1, 3), (1, 5)]


@pytest.mark.slow
def test_what_a_call_is_given_wrongly_is_a_warning(net, data, tmp_path, recwarn):
    with watching(net, data, tmp_path) as watch:
        watch(0, 0.25)
        watch(0.5, {"loss": 1})
        watch(torch.tensor(1), {"loss": "high"})
    said = [str(w.message) for w in recwarn if "Watch" in str(w.message)]
    assert len(said) == 2 and "float" in said[0] and "0.5" in said[1]
    assert places(watch.run) == [(0, -1), (0, 1)] and watch.run.frames[1]["metrics"] == {"loss": None}


def test_a_model_that_is_called_in_another_way(net, data, tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, sample, twice):
            return {"logits": self.net(sample["pixels"]) * (1 + twice)}

    how = {"forward": lambda model, x: model({"pixels": x}, twice=True), "loss_func": nn.functional.cross_entropy}
    x, y = data
    with watching(Named(), data, tmp_path, **how) as watch:
        pass
    cams = gradcam(net, x[:4], layer=watch.run.layers[0].removeprefix("net."), target=y[:4])
    assert np.allclose(watch.run.maps(0)[watch.run.layers[0]], 2 * cams.maps[0], atol=1e-5)
    # A loss of scores gets the scores out of a mapping.
    assert np.allclose(watch.run.history.loss, -np.log(watch.run.history.prob), atol=1e-4)


def test_a_sharded_model_is_refused(net, data, tmp_path):
    net[4].weight.ds_id = 0  # as DeepSpeed marks a parameter whose parts lie in several processes
    with pytest.raises(GradCAMError, match="sharded over processes"):
        watching(net, data, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_exception_interrupts_the_run(net, data, tmp_path):
    with pytest.raises(KeyboardInterrupt), watching(net, data, tmp_path) as watch:
        watch(0)
        raise KeyboardInterrupt
    assert Run(watch.run.path).info["status"] == "interrupted"
    with pytest.raises(GradCAMError, match="closed"):
        watch(1)


@pytest.mark.slow
def test_a_run_is_resumed_by_its_name(net, data, tmp_path):
    for resume in (False, True):
        with watching(net, data, tmp_path, name="night", resume=resume) as watch:
            watch(0)
    assert places(watch.run) == [(0, -1), (0, 0), (1, 0)]
    other = nn.Sequential(*net)
    with pytest.raises(GradCAMError, match="There is a run 'night'"):
        watching(other, data, tmp_path, name="night")


@pytest.mark.slow
def test_a_failing_logger_and_a_failing_frame_are_warnings(net, data, tmp_path):
    def broken(run, frame):
        raise ConnectionError("no route to host")

    with pytest.warns(UserWarning, match="^Watch: logger broken at frame 0 failed, training goes on") as said:
        watch = watching(net, data, tmp_path, loggers=broken)
    assert said[0].filename == __file__
    with pytest.warns(UserWarning, match="^Watch: frame 1 failed"):
        net[4] = nn.Linear(5, 3)
        watch(0)
    watch.close()
    assert statuses(watch.run) == ["ok", "failed"]


@pytest.mark.slow
def test_warnings_turned_into_errors_end_no_training(net, data, tmp_path, recwarn):
    import warnings

    watch = watching(net, data, tmp_path)
    net[4] = nn.Linear(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch(0)
    watch.close()
    assert statuses(watch.run) == ["ok", "failed"]


@pytest.mark.slow
def test_on_error_raise_raises(net, data, tmp_path):
    watch = watching(net, data, tmp_path, on_error="raise")
    net[4] = nn.Linear(5, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        watch(0)
    watch.close("interrupted")


def test_pictures_are_the_inputs_with_mean_and_std_undone_or_those_given(net, data, tmp_path):
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    plain = torch.rand(2, 3, 16, 16)
    x = (plain - mean[:, None, None]) / std[:, None, None]
    run = Watch(net, x, labels=[0, 1], mean=mean, std=std, path=tmp_path).run
    # As a JPEG of the best quality keeps it.
    assert np.abs(np.asarray(run.image(1), float) - plain[1].permute(1, 2, 0).numpy() * 255).mean() < 12
    given = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    run = Watch(net, x, images=given, labels=[0, 1], path=tmp_path).run
    assert run.image(0).size == (40, 30)


@pytest.mark.slow
def test_labels_are_names_or_indices(net, data, tmp_path):
    for labels in (["green", "blue"], [1, 2], torch.tensor([1, 2]), np.array([1, 2])):
        watch = Watch(net, data[0][:2], labels=labels, vocab=VOCAB, path=tmp_path)
        watch.flush()
        run = watch.run
        assert [p["label"] for p in run.panel] == ["green", "blue"]
        assert list(run.history.target) == ["green", "blue"]
    run = Watch(net, data[0][:2], labels=[1, None], vocab=VOCAB, target="pred", path=tmp_path).run
    assert [p["label"] for p in run.panel] == ["green", None]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": ["rad", "green"]}, "Did you mean 'red'"),
        ({"labels": [0, 3]}, "index 3"),
        ({"labels": [0]}, "labels has 1 entries for 2 images"),
        ({"labels": None}, "target='true'"),
        ({"target": "purple"}, "purple"),
        ({"layer": "9"}, "'9'"),
        ({"every": 0}, "every"),
        ({"x": torch.zeros(0, 3, 8, 8)}, "at least one image"),
        ({"x": "photo.jpg"}, "x must be"),
        ({"masks": [np.ones((4, 4)), None]}, "mask"),
        ({"model": "resnet"}, "nn.Module"),
        ({"judge": "always"}, "judge"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_is_refused_at_once(settings, words, net, data, tmp_path):
    given = {"model": net, "x": data[0][:2], "labels": [0, 1], "vocab": VOCAB, "path": tmp_path, **settings}
    with pytest.raises(ValueError, match=words):
        Watch(**given)
    assert not list(tmp_path.iterdir())


def test_other_processes_of_a_distributed_training_do_nothing(net, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with watching(net, data, tmp_path) as watch:
        watch(0)
    assert watch.run is None and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_watch_knows_no_fastai():
    code = "import sys; from fastai_gradcam import Watch; assert not [m for m in sys.modules if m.split('.')[0] in "
    code += "('fastai', 'fastcore')]"
    subprocess.run([sys.executable, "-c", code], check=True)
