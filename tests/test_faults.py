"""Faults on purpose: no failure of the callback ends a training. Faults whoever watches: test_loops_faults.py."""

import errno
import json
import os
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import CancelFitException
from fastai.vision.all import Callback
from PIL import Image
from torch import nn
from training import assert_whole, differences, heard, left_by, one_thread, statuses, tiny_learner  # noqa: F401

import fastai_gradcam._run.writer
import fastai_gradcam._watch.begin
import fastai_gradcam._watch.core
import fastai_gradcam._watch.look
from fastai_gradcam import GradCAMCallback, GradCAMError, Run
from fastai_gradcam.atlas import Atlas

# test_callback and test_watch touch the same modules quickly.
pytestmark = pytest.mark.slow

EPOCHS = 3


@pytest.fixture(scope="module")
def left_without(image_folder, tmp_path_factory):
    "`left_without()`: what `EPOCHS` epochs leave behind without the callback; trained once, in the first test."
    known = []

    def left():
        if not known:
            learn = tiny_learner(image_folder, tmp_path_factory.mktemp("without"))
            learn.fit(EPOCHS, 1e-2)
            known.append(left_by(learn))
        return known[0]

    return left


def watched(learner, *others, epochs=EPOCHS, **settings):
    "A training with the callback: the learner, and the warnings that the callback gave."
    learn = learner(*others, GradCAMCallback(**{"n": 4, **settings}))
    return learn, heard(learn, lambda learn: learn.fit(epochs, 1e-2))


class At(Callback):
    "Calls `do(learn)` before the training of epoch `epoch`, that is between two frames."

    def __init__(self, epoch, do):
        self.at, self.do = epoch, do

    def before_epoch(self):
        if self.learn.epoch == self.at:
            self.do(self.learn)


class failing_once:
    "A score that raises `error` in the frame after epoch 1."

    def __init__(self, error):
        self.error, self.learn = error, None

    def __call__(self, output):
        if self.learn is not None and self.learn.epoch == 1:
            raise self.error
        return output[:, 0]


# --- a failure in a frame --------------------------------------------------------------------------------------


class Odd(Exception):
    "An exception without arguments, which fastai's own handling does not survive."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Odd(), "Odd"),
        (ValueError("a reason"), "ValueError: a reason"),
        (OSError(errno.EIO, "the disk"), "OSError"),
        (AssertionError(), "AssertionError"),
        (KeyError("layer"), "KeyError: 'layer'"),
        (StopIteration(), "StopIteration"),
        (ValueError("two\nlines"), "ValueError: two lines"),
    ],
    ids=repr,
)
def test_a_failure_in_a_frame_is_one_warning_and_a_failed_frame(error, reason, learner, left_without):
    score = failing_once(error)
    learn = learner(GradCAMCallback(n=4, target=score))
    score.learn = learn
    told = heard(learn, lambda learn: learn.fit(EPOCHS, 1e-2))
    assert len(told) == 1
    assert reason in told[0] and "frame 2" in told[0]
    run = assert_whole(learn.grad_cam.run.path)
    assert statuses(run) == ["ok", "ok", "failed", "ok"]
    assert reason in run.frames[2]["error"]
    assert run.status == "finished"
    with pytest.raises(ValueError, match="Frame 2 failed"):
        run.maps(2)
    assert differences(left_without(), left_by(learn)) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), CancelFitException()], ids=repr)
def test_somebodys_wish_passes_through(error, learner):
    score = failing_once(error)
    learn = learner(GradCAMCallback(n=4, target=score))
    score.learn = learn
    if isinstance(error, CancelFitException):
        learn.fit(EPOCHS)
        assert len(learn.recorder.values) == 2
    else:
        with pytest.raises(type(error)):
            learn.fit(EPOCHS)
    score.learn = None
    run = assert_whole(learn.grad_cam.run.path)
    assert statuses(run) == ["ok", "ok"]
    assert run.info["status"] == ("finished" if isinstance(error, CancelFitException) else "interrupted")
    learn.fit(1)
    assert [f["frame"] for f in assert_whole(run.path).frames] == [0, 1, 2]


@pytest.mark.parametrize("error", [Odd(), ValueError("a reason")], ids=repr)
def test_on_error_raise_raises_the_failure_itself(error, learner):
    score = failing_once(error)
    learn = learner(GradCAMCallback(n=4, target=score, on_error="raise"))
    score.learn = learn
    with pytest.raises(type(error)) as raised:
        learn.fit(EPOCHS)
    assert raised.value is error
    run = assert_whole(learn.grad_cam.run.path)
    assert statuses(run) == ["ok", "ok", "failed"]
    assert run.info["status"] == "interrupted"


def test_on_error_raise_at_frame_0_leaves_a_complete_run(learner, monkeypatch):
    def no_numbers(*args):
        raise ValueError("no numbers")

    monkeypatch.setattr(fastai_gradcam._watch.look, "measure", no_numbers)
    learn = learner(GradCAMCallback(n=4, on_error="raise"))
    with pytest.raises(ValueError, match="no numbers"):
        learn.fit(1)
    run = assert_whole(learn.grad_cam.run.path)
    assert (statuses(run), run.info["status"]) == (["failed"], "interrupted")
    monkeypatch.undo()
    learn.fit(1)
    assert statuses(run) == ["failed", "ok"]


# --- out of memory ---------------------------------------------------------------------------------------------


class OutOfMemory(nn.Module):
    "Passes its input on; raises `error` for batches of evaluation larger than `most`, once `armed`."

    def __init__(self, error, most):
        super().__init__()
        self.error, self.most, self.armed = error, most, False
        # Set on the class: a frame looks at a copy of the network.
        type(self).sizes = []

    def forward(self, x):
        if self.armed and not torch.is_grad_enabled():
            self.sizes.append(len(x))
            if len(x) > self.most:
                raise self.error
        return x


OOM = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 9 bytes."),
    "Windows": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "cuDNN": RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
    "python": MemoryError(),
}


class OnlyInFrames(Callback):
    "Arms the failure for frames, which come between the batches."

    def __init__(self, layer):
        self.layer = layer

    def set(self, armed):
        self.layer.armed = armed

    def before_batch(self):
        self.set(False)

    def after_validate(self):
        self.set(True)


def with_oom(learner, error, most):
    layer = OutOfMemory(error, most)
    learn = learner(OnlyInFrames(layer), GradCAMCallback(n=5, layer="0.2", judge=None))
    learn.model[0][0].insert(0, layer)
    return learn, layer


@pytest.mark.parametrize("kind", OOM)
def test_out_of_memory_is_tried_again_in_smaller_batches(kind, learner, left_without):
    learn, layer = with_oom(learner, OOM[kind], most=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(EPOCHS, 1e-2)
    assert layer.sizes == [5, 3, 2, 2, 1] * EPOCHS
    run = assert_whole(learn.grad_cam.run.path)
    assert statuses(run) == ["ok"] * (1 + EPOCHS)
    assert len(run.maps(2)["0.2"]) == 5
    assert bits(learn) == bits_of(left_without())


def test_maps_made_in_smaller_batches_are_the_same_maps(learner):
    runs = []
    for most in (2, 99):
        learn, _ = with_oom(learner, OOM["CUDA"], most)
        learn.fit(1, 1e-2)
        runs.append(learn.grad_cam.run)
    one, other = (run.maps(1)["0.2"] for run in runs)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_out_of_memory_with_a_single_image_is_a_failed_frame(learner, left_without):
    learn, layer = with_oom(learner, OOM["CUDA"], most=0)
    with pytest.warns(UserWarning, match="out of memory") as told:
        learn.fit(EPOCHS, 1e-2)
    assert layer.sizes == [5, 3, 2, 1] * EPOCHS
    assert len([w for w in told if "GradCAMCallback" in str(w.message)]) == EPOCHS
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok"] + ["failed"] * EPOCHS
    assert bits(learn) == bits_of(left_without())


def test_another_error_is_not_tried_again(learner):
    learn, layer = with_oom(learner, RuntimeError("shapes cannot be multiplied"), most=0)
    with pytest.warns(UserWarning, match="shapes cannot be multiplied"):
        learn.fit(1)
    assert layer.sizes == [5]


def bits(learn):
    "Weights by their place, as a layer put in front shifts their names."
    return bits_of(left_by(learn))


def bits_of(left):
    return [v.numpy().tobytes() for k, v in left.items() if k.startswith("weight")]


# --- the disk --------------------------------------------------------------------------------------------------


def test_a_disk_full_before_training_is_told_before_the_first_batch(learner, monkeypatch, tmp_path):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    learn = learner(GradCAMCallback(n=2, name="a"))
    with monkeypatch.context() as patch, pytest.raises(GradCAMError, match=r"No space.*give path="):
        patch.setattr(Path, "write_bytes", full)
        learn.fit(1)
    assert learn.opt.state_dict()["state"][0] == {} or not learn.recorder.losses
    # The name is free for the next try.
    learn.fit(1)
    assert statuses(assert_whole(tmp_path / "gradcam/a")) == ["ok", "ok"]


def test_a_vanished_folder_fails_frames_until_it_is_back(learner, left_without, tmp_path):
    def vanish(learn):
        learn.grad_cam.flush()
        (tmp_path / "gradcam").rename(tmp_path / "away")

    def back(learn):
        learn.grad_cam.flush()
        (tmp_path / "away").rename(tmp_path / "gradcam")

    learn, told = watched(learner, At(1, vanish), At(2, back))
    assert len(told) == 1 and "FileNotFoundError" in told[0] and "frame 2" in told[0]
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok", "ok", "failed", "ok"]
    assert differences(left_without(), left_by(learn)) == []


def test_a_folder_that_is_gone_for_good_ends_no_training(learner, left_without, tmp_path):
    learn, told = watched(learner, At(1, lambda learn: (learn.grad_cam.flush(), shutil.rmtree(tmp_path / "gradcam"))))
    assert told
    assert differences(left_without(), left_by(learn)) == []


def test_on_error_raise_raises_what_the_disk_says(learner, monkeypatch):
    write = Path.write_bytes

    def full(self, data):
        if "frame-001.npz" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    learn = learner(GradCAMCallback(n=2, on_error="raise"))
    with pytest.raises(RuntimeError, match="No space left on device"):
        learn.fit(EPOCHS)
    assert len(learn.recorder.values) == 1
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok", "failed"]


def test_a_failing_thread_is_a_warning(learner, left_without, monkeypatch):
    learn = learner(
        At(1, lambda learn: monkeypatch.setattr(learn.grad_cam._session.watcher.writer, "_submit", no_thread)),
        GradCAMCallback(n=2),
    )
    with pytest.warns(UserWarning, match="can't start new thread"):
        learn.fit(EPOCHS, 1e-2)
    assert differences(left_without(), left_by(learn)) == []


def no_thread(*args):
    raise RuntimeError("can't start new thread")


# --- images, model, loggers ------------------------------------------------------------------------------------


@pytest.fixture
def own_images(image_folder, tmp_path):
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def test_an_unreadable_image_in_the_panel_is_named_before_the_first_batch(own_images, tmp_path):
    batches = []
    learn = tiny_learner(
        own_images, tmp_path, cbs=[GradCAMCallback(), Callback(before_batch=lambda self: batches.append(1))]
    )
    (own_images / "valid/green/1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"valid/green/1\.png"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(1)
    assert batches == []
    assert not (tmp_path / "gradcam").exists()


def test_an_image_that_goes_bad_later_changes_nothing(own_images, tmp_path):
    learn = tiny_learner(own_images, tmp_path, cbs=GradCAMCallback(items=[0, 1]))
    files = [learn.dls.valid_ds.items[i] for i in (0, 1)]
    kept = [f.read_bytes() for f in files]

    class Spoil(Callback):
        order = GradCAMCallback.order - 1

        def after_epoch(self):
            for f in files:
                f.write_bytes(b"no image")

        def before_epoch(self):
            for f, data in zip(files, kept, strict=True):
                f.write_bytes(data)

    learn.add_cb(Spoil())
    learn.fit(2)
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok"] * 3


def test_a_model_that_loses_its_layer_fails_its_frames_only(learner):
    def reshape(learn):
        body = learn.model[0]
        learn.model[0] = nn.Sequential(nn.Sequential(*body))

    learn, told = watched(learner, At(1, reshape), layer=2)
    assert len(told) == 2 and all("0.2" in t for t in told)
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok", "ok", "failed", "failed"]


def test_a_model_whose_maps_change_size_goes_on(learner):
    def grow(learn):
        learn.model[0][2][0].stride = (1, 1)

    learn, told = watched(learner, At(1, grow))
    assert told == []
    run = assert_whole(learn.grad_cam.run.path)
    assert statuses(run) == ["ok"] * 4
    assert run.maps(1)["0.2"].shape[1:] != run.maps(2)["0.2"].shape[1:]
    history = run.history
    assert history[history.frame == 2].similarity_prev.isna().all()
    assert history[history.frame == 3].similarity_prev.notna().any()


def test_a_model_that_gives_other_outputs_fails_its_frames_only(learner):
    def spoil(learn):

        learn.grad_cam.panel.x = learn.grad_cam.panel.x[:, :1]

    learn, told = watched(learner, At(1, spoil))
    assert len(told) == 2
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok", "ok", "failed", "failed"]


def test_loggers_are_called_with_the_run_and_the_frame(learner, left_without):
    seen = []

    def logger(run, frame):
        seen.append(
            (frame["frame"], frame["fit"], frame["epoch"], dict(frame["metrics"]), run.grid(frame["frame"]).size)
        )
        torch.rand(3), random.random(), np.random.rand()

    learn, told = watched(learner, loggers=[logger])
    assert told == []
    assert [s[:3] for s in seen] == [(0, 0, -1), (1, 0, 0), (2, 0, 1), (3, 0, 2)]
    assert seen[3][3]["valid_loss"] == learn.recorder.values[2][1]
    assert differences(left_without(), left_by(learn)) == []


def test_a_logger_may_stop_the_training(learner):
    def stop(run, frame):
        if frame["epoch"] == 0:
            raise CancelFitException

    learn, told = watched(learner, loggers=stop)
    assert told == []
    assert len(learn.recorder.values) == 1
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok", "ok"]


def test_a_logger_that_raises_ends_a_training_that_asked_for_it(learner):
    def network(run, frame):
        raise ConnectionError("no route to host")

    learn = learner(GradCAMCallback(n=2, loggers=[network], on_error="raise"))
    with pytest.raises(ConnectionError):
        learn.fit(1)
    assert statuses(assert_whole(learn.grad_cam.run.path)) == ["ok"]


# --- wrong settings --------------------------------------------------------------------------------------------

WRONG = {
    "n": [0, -1, 2.5, "all"],
    "every": [0, 1.5, None],
    "method": ["gradcamm"],
    "on_error": ["ignore"],
    "name": ["", "a/b", ".."],
    "resume": [True],
    "loggers": [["wandb"], "wandb"],
}


@pytest.mark.parametrize(("setting", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_wrong_setting_is_refused_at_once(setting, value):
    with pytest.raises((ValueError, TypeError), match=setting):
        GradCAMCallback(**{setting: value})


def test_lazy_layers_are_refused_before_the_first_batch(learner):
    learn = learner(GradCAMCallback(n=2))
    learn.model[0].append(nn.LazyConv2d(12, 1))
    with pytest.raises(ValueError, match="lazy layers"):
        learn.fit(1)


# --- names and resuming ----------------------------------------------------------------------------------------


def test_a_name_that_exists_is_refused(learner, tmp_path):
    learner(GradCAMCallback(n=2, name="night")).fit(1)
    before = {p: p.read_bytes() for p in (tmp_path / "gradcam/night").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="There is a run 'night'"):
        learner(GradCAMCallback(n=2, name="night")).fit(1)
    assert {p: p.read_bytes() for p in before} == before


def test_the_same_learner_continues_its_run_from_another_callback(learner, tmp_path):
    learn = learner()
    for _ in range(2):
        learn.fine_tune(1, cbs=GradCAMCallback(n=2, name="night"))
    run = assert_whole(tmp_path / "gradcam/night")
    assert [(f["frame"], f["fit"], f["epoch"]) for f in run.frames] == [
        (0, 0, -1), (1, 0, 0), (2, 1, 0), (3, 2, 0), (4, 3, 0),
    ]  # fmt: skip


def test_two_callbacks_of_one_name_are_refused(learner):
    learn = learner(GradCAMCallback(n=2, name="night"), GradCAMCallback(n=2, name="night"))
    with pytest.raises(ValueError, match="a name= of its own"):
        learn.fit(1)


def test_resume_goes_on_at_the_next_frame(learner, tmp_path):
    learner(GradCAMCallback(n=2, name="night")).fit(2)
    path = tmp_path / "gradcam/night"
    before = {p: p.read_bytes() for p in path.rglob("frame-*")}
    learner(GradCAMCallback(n=2, name="night", resume=True)).fit(1)
    run = assert_whole(path)
    assert [(f["frame"], f["fit"], f["epoch"]) for f in run.frames] == [(0, 0, -1), (1, 0, 0), (2, 0, 1), (3, 1, 0)]
    assert {p: p.read_bytes() for p in before} == before
    assert run.history[run.history.frame == 3].similarity_prev.notna().any()


def test_the_rows_of_a_frame_that_was_not_finished_are_not_doubled(learner, tmp_path):
    learner(GradCAMCallback(n=2, name="night")).fit(2)
    path = tmp_path / "gradcam/night"
    info = json.loads((path / "run.json").read_text())
    # As if killed behind the rows of the last frame and before its entry.
    info["frames"].pop()
    (path / "run.json").write_text(json.dumps(info))
    assert set(Run(path).history.frame) == {0, 1}
    learner(GradCAMCallback(n=2, name="night", resume=True)).fit(1)
    run = assert_whole(path)
    assert [(f["frame"], f["fit"], f["epoch"]) for f in run.frames] == [(0, 0, -1), (1, 0, 0), (2, 1, 0)]
    assert set(run.history[run.history.frame == 2].fit) == {1}


def test_resume_of_a_name_that_is_new_begins_a_run(learner, tmp_path):
    learner(GradCAMCallback(n=2, name="night", resume=True)).fit(1)
    assert statuses(assert_whole(tmp_path / "gradcam/night")) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"n": 3}, "panel images"),
        ({"layer": 0}, "layers"),
        ({"target": ["red", "blue"]}, "target"),
        ({"method": "layercam"}, "method"),
    ],
)
def test_resuming_another_kind_of_run_is_refused(other, words, learner, tmp_path):
    learner(GradCAMCallback(n=2, name="night")).fit(1)
    before = (tmp_path / "gradcam/night/run.json").read_bytes()
    with pytest.raises(ValueError, match=f"cannot be resumed: it has {words}"):
        learner(GradCAMCallback(**{"n": 2, "name": "night", "resume": True, **other})).fit(1)
    assert (tmp_path / "gradcam/night/run.json").read_bytes() == before


def test_resuming_with_images_of_another_size_is_refused(learner):
    from fastai.vision.all import Resize

    learner(GradCAMCallback(n=2, name="night")).fit(1)
    with pytest.raises(ValueError, match="panel sizes"):
        learner(GradCAMCallback(n=2, name="night", resume=True), item_tfms=Resize(48)).fit(1)


def test_a_folder_that_is_no_run_is_left_alone(learner, tmp_path):
    (tmp_path / "gradcam/notes").mkdir(parents=True)
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds no run"):
            learner(GradCAMCallback(n=2, name="notes", resume=resume)).fit(1)
    assert list((tmp_path / "gradcam/notes").iterdir()) == []


def test_runs_that_start_in_the_same_second_have_their_own_folders(learner, tmp_path, monkeypatch):
    monkeypatch.setattr(fastai_gradcam._watch.begin.time, "strftime", lambda *a: "2026-01-01_00-00-00")
    taken = fastai_gradcam._watch.begin.timestamp(tmp_path / "gradcam")
    # The other process takes the name between the look and the making.
    names = iter([taken, taken, f"{taken}_2"])
    monkeypatch.setattr(fastai_gradcam._watch.begin, "timestamp", lambda folder: next(names))
    first, second = learner(GradCAMCallback(n=2)), learner(GradCAMCallback(n=2))
    first.fit(1)
    make = fastai_gradcam._run.writer.Writer.create.__func__
    learn = second
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self, **k: False if self.name == taken else exists(self, **k))
    learn.fit(1)
    monkeypatch.setattr(Path, "exists", exists)
    assert make is fastai_gradcam._run.writer.Writer.create.__func__
    assert {p.name for p in (tmp_path / "gradcam").iterdir()} == {taken, f"{taken}_2"}


def test_labels_and_names_that_are_no_utf8_are_written(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        for label in (b"caf\xe9", "blå".encode()):
            folder = Path(os.fsdecode(os.fsencode(tmp_path / "images" / split) + b"/" + label))
            try:
                folder.mkdir(parents=True)
            except OSError:
                pytest.skip("this file system takes UTF-8 names only")
            for i in range(4):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    asked = {"on_error": "raise", "atlas": True}
    for resume in (False, True):
        learn = tiny_learner(tmp_path / "images", tmp_path, cbs=GradCAMCallback(n=2, name="a", **asked, resume=resume))
        learn.fit(1)
    run = Run(learn.grad_cam.run.path)
    assert len(run.frames) == 3
    assert run.vocab == ["blå", r"caf\udce9"] and run.history["label"].isin(run.vocab).all()
    assert len(run.verdicts) == 0 or run.verdicts["label"].isin(run.vocab).all()
    atlas = Atlas(run.path / "atlas")
    assert set(atlas.table["label"]) == set(run.vocab) and atlas.report().exists()
    assert learn.gradcam_judge(n=8)["label"].isin(run.vocab).all()
    assert learn.gradcam(Path(learn.dls.valid_ds.items[0]), target=os.fsdecode(b"caf\xe9")).label == run.vocab[1]
