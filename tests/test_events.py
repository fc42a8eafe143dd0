"""Frames come from training and from nothing else, and the callback gets on with everybody."""

import inspect
import os
from pathlib import Path

import pytest
from fastai.callback.core import CancelEpochException, CancelFitException, CancelTrainException, CancelValidException
from fastai.callback.preds import FetchPredsCallback
from fastai.vision.all import (
    Callback,
    ClassificationInterpretation,
    CSVLogger,
    EarlyStoppingCallback,
    Learner,
    MixedPrecision,
    MixUp,
    ProgressCallback,
    SaveModelCallback,
    ShowGraphCallback,
    load_learner,
)
from training import HOOKS, Quiet, assert_whole, differences, left_by, one_thread, places, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback, Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


# --- which calls make frames -----------------------------------------------------------------------------------

FIRST = (0, -1)
TRAINS = {
    "fit": (lambda learn: learn.fit(2), [FIRST, (0, 0), (0, 1)]),
    "fit_one_cycle": (lambda learn: learn.fit_one_cycle(2), [FIRST, (0, 0), (0, 1)]),
    "fit_flat_cos": (lambda learn: learn.fit_flat_cos(2), [FIRST, (0, 0), (0, 1)]),
    "fit_sgdr": (lambda learn: learn.fit_sgdr(2, 1), [FIRST, (0, 0), (0, 1), (0, 2)]),
    "fine_tune": (lambda learn: learn.fine_tune(2), [FIRST, (0, 0), (1, 0), (1, 1)]),
    "fine_tune, two frozen": (lambda learn: learn.fine_tune(1, freeze_epochs=2), [FIRST, (0, 0), (0, 1), (1, 0)]),
    "fit from a later epoch": (lambda learn: learn.fit(3, start_epoch=1), [FIRST, (0, 1), (0, 2)]),
    "two fits": (lambda learn: (learn.fit(1), learn.fit(2)), [FIRST, (0, 0), (1, 0), (1, 1)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", TRAINS)
def test_each_epoch_of_training_has_a_frame(call, learner):
    learn = learner(GradCAMCallback(n=2))
    run, wanted = TRAINS[call]
    run(learn)
    assert places(learn.grad_cam.run) == wanted
    assert learn.grad_cam.run.status == "finished"
    assert_whole(learn.grad_cam.run.path)


def predict(learn):
    learn.predict(learn.dls.valid_ds.items[0])


def summarise(learn):
    learn.summary()


def interpret(learn):
    ClassificationInterpretation.from_learner(learn).confusion_matrix()


def find_lr(learn):
    with learn.no_logging():
        learn.lr_find(num_it=12, show_plot=False)


LOOKS = {
    "lr_find": find_lr,
    "validate": lambda learn: learn.validate(),
    "get_preds": lambda learn: learn.get_preds(),
    "get_preds with losses": lambda learn: learn.get_preds(with_loss=True),
    "predict": predict,
    "show_results": lambda learn: learn.show_results(),
    "tta": lambda learn: learn.tta(n=2),
    "ClassificationInterpretation": interpret,
    "summary": summarise,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", LOOKS)
def test_only_training_makes_frames(call, learner, tmp_path):
    learn = learner(GradCAMCallback(n=2))
    LOOKS[call](learn)
    assert learn.grad_cam.run is None
    assert not (tmp_path / "gradcam").exists()
    learn.fit(1)
    run = learn.grad_cam.run
    LOOKS[call](learn)
    assert places(run) == [FIRST, (0, 0)]
    learn.fit(1)
    assert places(run) == [FIRST, (0, 0), (1, 0)]
    assert run is learn.grad_cam.run


class InEachEpoch(Callback):
    "Calls `look(learn)` in the middle of each epoch."

    def __init__(self, look, event, order):
        self.look, self.order = look, order
        setattr(self, event, self.do)

    def do(self):
        if not self.busy:
            self.busy = True
            with self.learn.no_logging(), self.learn.no_mbar():
                self.look(self.learn)
            self.busy = False

    busy = False


@pytest.mark.slow
@pytest.mark.parametrize("event", ["after_train", "after_validate", "after_epoch"])
@pytest.mark.parametrize("call", ["validate", "get_preds"])
def test_looking_in_the_middle_of_an_epoch_ends_no_fit(call, event, learner):
    learn = learner(InEachEpoch(LOOKS[call], event, 20), GradCAMCallback(n=2, every=2))
    learn.fit(5)
    assert places(learn.grad_cam.run) == [FIRST, (0, 1), (0, 3), (0, 4)]
    assert_whole(learn.grad_cam.run.path)


@pytest.mark.slow
def test_a_look_that_raises_in_the_middle_of_an_epoch_ends_no_fit(learner):
    def look(learn):
        with pytest.raises(ZeroDivisionError):
            learn.get_preds(act=lambda x: 1 / 0)

    learn = learner(InEachEpoch(look, "after_train", 20), GradCAMCallback(n=2))
    learn.fit(2)
    assert places(learn.grad_cam.run) == [FIRST, (0, 0), (0, 1)]


def test_a_fit_in_the_middle_of_an_epoch_is_a_fit_of_its_own(learner):
    learn = learner(InEachEpoch(lambda learn: learn.fit(1), "after_train", 20), GradCAMCallback(n=2))
    learn.fit(1)
    run = learn.grad_cam.run
    assert (1, 0) in places(run)
    assert run.status == "finished"
    assert_whole(run.path)


@pytest.mark.slow
def test_predictions_fetched_during_training_cost_no_frame(learner):
    learn = learner(FetchPredsCallback(), GradCAMCallback(n=2))
    learn.fit(3)
    assert places(learn.grad_cam.run) == [FIRST, (0, 0), (0, 1), (0, 2)]


# --- every=k, stopping, cancelling -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "epochs", "wanted"),
    [(1, 3, [0, 1, 2]), (2, 4, [1, 3]), (2, 5, [1, 3, 4]), (3, 5, [2, 4]), (7, 2, [1]), (3, 1, [0])],
)
def test_every_k_keeps_the_last_epoch_of_each_fit(every, epochs, wanted, learner):
    learn = learner(GradCAMCallback(n=2, every=every))
    learn.fit(epochs)
    learn.fit(1)
    assert places(learn.grad_cam.run) == [FIRST, *[(0, e) for e in wanted], (1, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "wanted"), [(1, [0, 1, 2, 3]), (3, [2, 3]), (9, [3])])
@pytest.mark.parametrize("first", [True, False])
def test_the_last_epoch_before_early_stopping_has_its_frame(every, wanted, first, learner):
    # The loss cannot get better by more than 100: training stops as soon as patience ends.
    cbs = [EarlyStoppingCallback(min_delta=100, patience=3), GradCAMCallback(n=2, every=every)]
    learn = learner(*(cbs if first else cbs[::-1]))
    learn.fit(9)
    run = learn.grad_cam.run
    assert len(learn.recorder.values) == 4
    assert places(run) == [FIRST, *[(0, e) for e in wanted]]
    assert run.frames[-1]["metrics"]["valid_loss"] == learn.recorder.values[-1][1]
    assert run.status == "finished"


class Cancel(Callback):
    "Raises `error` at `event` of epoch `epoch`."

    def __init__(self, error, event, epoch=1):
        self.error, self.at = error, epoch
        setattr(self, event, self.do)

    def do(self):
        if self.learn.epoch == self.at and self.learn.training == (self.error is not CancelValidException):
            raise self.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "event", "wanted"),
    [
        (CancelFitException, "after_batch", [(0, 0)]),
        (CancelTrainException, "after_batch", [(0, 0), (0, 1), (0, 2)]),
        (CancelValidException, "after_batch", [(0, 0), (0, 1), (0, 2)]),
        (CancelEpochException, "after_batch", [(0, 0), (0, 1), (0, 2)]),
    ],
)
def test_a_cancelled_fit_followed_by_another_goes_on_in_the_same_run(error, event, wanted, learner):
    cancel = Cancel(error, event)
    learn = learner(cancel, GradCAMCallback(n=2))
    learn.fit(3)
    run = learn.grad_cam.run
    kept = (run.path / "frames/frame-001.png").read_bytes()
    assert places(run) == [FIRST, *wanted]
    learn.remove_cb(cancel)
    learn.fit(1)
    assert learn.grad_cam.run is run
    assert places(run) == [FIRST, *wanted, (1, 0)]
    assert (run.path / "frames/frame-001.png").read_bytes() == kept
    assert_whole(run.path)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_fit_followed_by_another_goes_on_in_the_same_run(error, learner):
    stop = Cancel(error, "before_validate")
    stop.do = None
    stop.before_validate = lambda: (_ for _ in ()).throw(error("stop")) if learn.epoch == 1 else None
    learn = learner(stop, GradCAMCallback(n=2))
    with pytest.raises(error):
        learn.fit(3)
    run = Run(learn.grad_cam.run.path)
    # Read past the callback: what is on the disk is complete when `fit` returns, also by an exception.
    assert run.info["status"] == "interrupted"
    assert places(run) == [FIRST, (0, 0)]
    assert_whole(run.path)
    learn.remove_cb(stop)
    learn.fit(1)
    assert places(run) == [FIRST, (0, 0), (1, 0)]
    assert run.info["status"] == "finished"


@pytest.mark.slow
def test_a_skipped_last_epoch_leaves_the_last_that_trained_its_frame(learner):
    skip = Cancel(CancelEpochException, "before_epoch", 3)
    skip.before_epoch = lambda: (_ for _ in ()).throw(CancelEpochException) if learn.epoch == 3 else None
    learn = learner(skip, GradCAMCallback(n=2, every=2))
    learn.fit(4)
    assert places(learn.grad_cam.run) == [FIRST, (0, 1), (0, 2)]


def test_frame_0_has_its_losses_under_mixup(learner):
    learn = learner(MixUp(), GradCAMCallback(n=3))
    learn.fit(1)
    history = learn.grad_cam.run.history
    assert history.loss.notna().all()
    assert set(history.frame) == {0, 1}


# --- living together -------------------------------------------------------------------------------------------


def company():
    return [SaveModelCallback(), CSVLogger(), ShowGraphCallback(), MixedPrecision(), GradCAMCallback(n=2)]


@pytest.fixture(scope="module")
def left_by_the_others(image_folder, tmp_path_factory):
    """`left_by_the_others()`: what the same training leaves behind without the callback; trained once, in the first
    test.
    """
    known = []

    def left():
        if not known:
            with Quiet():
                learn = tiny_learner(image_folder, tmp_path_factory.mktemp("plain"), cbs=[ProgressCallback()])
            learn.add_cbs(cb for cb in company() if not isinstance(cb, GradCAMCallback))
            learn.fit(2)
            known.append(left_by(learn))
        return known[0]

    return left


# The callback in every place.
ORDERS = [(*range(k), 4, *range(k, 4)) for k in range(5)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ORDERS, ids=lambda o: "".join(map(str, o)))
def test_callbacks_live_together_in_any_order_of_adding(order, learner, tmp_path, left_by_the_others):
    cbs = company()
    learn = learner(ProgressCallback())
    learn.add_cbs(cbs[k] for k in order)
    learn.fit(2)
    left = left_by(learn)
    assert places(learn.grad_cam.run) == [FIRST, (0, 0), (0, 1)]
    assert {f["status"] for f in learn.grad_cam.run.frames} == {"ok"}
    assert differences(left_by_the_others(), left) == []
    assert (tmp_path / "models/model.pth").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("how", ["the instance", "the class"])
def test_remove_cb_ends_the_watching(how, learner):
    cb = GradCAMCallback(n=2)
    learn = learner(cb)
    learn.fit(1)
    learn.remove_cb(cb if how == "the instance" else GradCAMCallback)
    learn.fit(1)
    assert not hasattr(learn, "grad_cam")
    assert places(cb.run) == [FIRST, (0, 0)]


@pytest.mark.slow
def test_added_cbs_watches_inside_of_the_block_only(learner):
    learn, cb = learner(), GradCAMCallback(n=2)
    with learn.added_cbs(cb):
        learn.fit(1)
    learn.fit(1)
    with learn.added_cbs([cb]):
        learn.fit(1)
    assert places(cb.run) == [FIRST, (0, 0), (1, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fine_tune", "fit_one_cycle", "fit, by position"])
def test_cbs_of_a_fit_watches_that_fit(how, learner):
    learn, cb = learner(), GradCAMCallback(n=2)
    if how == "fine_tune":
        learn.fine_tune(1, cbs=cb)
    elif how == "fit_one_cycle":
        learn.fit_one_cycle(1, cbs=[cb])
    else:
        learn.fit(1, 1e-3, None, cb)
    learn.fit(1)
    assert places(cb.run) == ([FIRST, (0, 0), (1, 0)] if how == "fine_tune" else [FIRST, (0, 0)])
    assert cb.run.info["status"] == "finished"
    assert cb not in learn.cbs
    assert cb.learn is None


def test_cbs_of_a_fit_that_raises_are_complete_too(learner):
    learn, cb = learner(), GradCAMCallback(n=2)
    with pytest.raises(ZeroDivisionError):
        learn.fit(2, cbs=[cb, InEachEpoch(lambda learn: 1 / 0, "after_epoch", 80)])
    assert Run(cb.run.path).info["status"] == "interrupted"
    assert_whole(cb.run.path)


def test_a_callback_switched_off_makes_no_frames_in_the_next_fit(learner):
    learn = learner(GradCAMCallback(n=2))
    learn.grad_cam.run = False
    learn.fit(1)
    assert learn.grad_cam.run is None


@pytest.mark.slow
def test_one_callback_on_two_learners_in_turn_begins_a_run_for_each(learner):
    cb, one, other = GradCAMCallback(n=2), learner(), learner()
    one.fit(1, cbs=cb)
    first = cb.run
    other.fit(1, cbs=cb)
    assert cb.run.path != first.path
    assert places(first) == places(cb.run) == [FIRST, (0, 0)]


def test_the_wrapped_fit_keeps_its_face():
    assert list(inspect.signature(Learner.fit).parameters) == "self n_epoch lr wd cbs reset_opt start_epoch".split()
    assert Learner.fit.__name__ == "fit"
    assert Learner.fit.__module__ == "fastai.learner"


@pytest.mark.slow
def test_a_callback_in_the_middle_of_another_learners_fit_stays_armed(learner):
    inner = learner()
    learn = learner(InEachEpoch(lambda _: inner.fit(1), "after_train", 20), GradCAMCallback(n=2))
    learn.fit(2)
    assert places(learn.grad_cam.run) == [FIRST, (0, 0), (0, 1)]


# --- export ----------------------------------------------------------------------------------------------------


def everything_of(learn):
    return [m for m in learn.model.modules() for hooks in HOOKS if getattr(m, hooks)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_exported_learner_carries_settings_only(learner, tmp_path):
    plain, learn = learner(), learner(GradCAMCallback(n=3, masks=lambda item: (0, 0, 9, 9), layer=[0, 2]))
    plain.fine_tune(1)
    learn.fine_tune(1)
    plain.export(tmp_path / "plain.pkl")
    learn.export(tmp_path / "watched.pkl")
    assert os.path.getsize(tmp_path / "watched.pkl") - os.path.getsize(tmp_path / "plain.pkl") < 4096
    descriptors = open_files()
    loaded = load_learner(tmp_path / "watched.pkl")
    assert open_files() == descriptors
    assert everything_of(loaded) == []
    cb = loaded.grad_cam
    assert cb.run is None
    assert cb.panel is None
    assert cb.settings["layer"] == [0, 2]
    # The learner that was exported goes on as before.
    learn.fit(1)
    assert places(learn.grad_cam.run)[-1] == (2, 0)
    one = learn.predict(learn.dls.valid_ds.items[0])
    other = loaded.predict(learn.dls.valid_ds.items[0])
    assert one[0] == other[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_loaded_learner_trains_and_watches_again(learner, image_folder, tmp_path):
    learn = learner(GradCAMCallback(n=2, every=2, masks=lambda item: (0, 0, 9, 9)))
    learn.fit(1)
    learn.export()
    loaded = load_learner(tmp_path / "export.pkl", cpu=False)
    loaded.dls = learn.dls
    loaded.path = tmp_path / "elsewhere"
    with pytest.warns(UserWarning, match="masks did not travel"):
        loaded.fit(3)
    assert loaded.grad_cam.learn is loaded
    assert places(loaded.grad_cam.run) == [FIRST, (0, 1), (0, 2)]
    assert places(learn.grad_cam.run) == [FIRST, (0, 0)]


def open_files():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0
