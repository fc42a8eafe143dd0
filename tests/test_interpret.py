"""`learn.show_gradcam` and `interp.plot_top_gradcams`: real images of a data set, with what is true of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.vision.all import ClassificationInterpretation
from training import Quiet, differences, state_around

from fastai_gradcam.learner import CAMList


@pytest.fixture
def learn(learner):
    return learner()


def test_show_gradcam_shows_validation_images_with_their_labels(learn):
    cams = learn.show_gradcam(max_n=4, shuffle=False)
    assert isinstance(cams, CAMList) and len(cams) == 4
    assert [c.actual for c in cams] == [f.parent.name for f in learn.dls.valid_ds.items[:4]]
    item = learn.dls.valid_ds.items[2]
    alone = learn.gradcam(item)
    assert torch.allclose(cams[2].map, alone.map, atol=1e-6)
    assert (cams[2].pred, cams[2].image) == (alone.pred, alone.image)
    assert cams._repr_jpeg_().startswith(b"\xff\xd8")


def test_training_images_are_shown_as_validation_sees_them(learn):
    cams = learn.show_gradcam(ds_idx=0, max_n=2, shuffle=False)
    assert [c.actual for c in cams] == [f.parent.name for f in learn.dls.train_ds.items[:2]]
    assert np.array_equal(cams[0].image, learn.gradcam(learn.dls.train_ds.items[0]).image)


def test_other_images_come_each_time_and_nothing_of_the_learner_changes(learn):
    before = state_around(learn.model)
    seen = {tuple(c.image.tobytes()[:64] for c in learn.show_gradcam(max_n=2)) for _ in range(6)}
    assert len(seen) > 1
    assert not differences(before, state_around(learn.model))


def test_a_cell_says_the_label_and_whether_the_prediction_is_right(learn):
    for cam in learn.show_gradcam(max_n=4, shuffle=False, target=learn.dls.vocab[0]):
        cell = cam._cell()
        assert cell.title == cam.actual and cell.subtitle.startswith(cam.pred)
        assert cell.verdict == (cam.pred == cam.actual)
        assert ("map of" in cell.note) == (cam.pred != learn.dls.vocab[0])


def test_the_worst_predictions_have_the_map_of_what_was_predicted_and_of_what_is_true(learn):
    with Quiet():
        interp = ClassificationInterpretation.from_learner(learn)
    _, worst = interp.top_losses(3)
    cams = interp.plot_top_gradcams(3)
    items = [learn.dls.valid_ds.items[i] for i in worst.tolist()]
    expected = []
    for item in items:
        labels = list(dict.fromkeys([learn.gradcam(item).pred, item.parent.name]))
        expected += [(item.parent.name, label) for label in labels]
    assert [(c.actual, c.label) for c in cams] == expected
    assert len(interp.plot_top_gradcams(2, largest=False)) >= 2


def test_nine_of_the_highest_losses_fit_a_screen_and_say_their_losses(learn):
    with Quiet():
        interp = ClassificationInterpretation.from_learner(learn)
    losses, _ = interp.top_losses(3)
    cams = interp.plot_top_gradcams(3)
    assert list(dict.fromkeys(losses.tolist())) == list(dict.fromkeys(c.loss for c in cams))
    cell = cams[0]._cell(several=True)
    assert cell.title == f"{cams[0].actual} · loss {losses.tolist()[0]:.2f}"
    assert cell.note == f"map of {cams[0].label} ({cams[0].prob:.0%})"
    images = [cams[0].image.copy() for _ in range(9)]
    pairs = CAMList([replace(cam, image=image) for image in images for cam in cams[:2]])
    pairs.columns, pairs.tile = cams.columns, cams.tile
    assert len(pairs) == 18 and cams.columns == 4
    assert pairs.grid().height <= 1300 and pairs.grid().width >= 600


def test_more_images_than_there_are_gives_all(learn):
    assert len(learn.show_gradcam(max_n=1000, shuffle=False)) == len(learn.dls.valid_ds)


@pytest.mark.parametrize("ds_idx", [5, -3, 2, "valid"])
def test_a_data_set_that_does_not_exist_is_told_with_those_that_do(learn, ds_idx):
    with pytest.raises(ValueError, match=rf"no data set {ds_idx!r}.*are 0 \(training\), 1 \(validation\)\.$"):
        learn.show_gradcam(ds_idx=ds_idx)


@pytest.mark.parametrize("number", [0, -1, 2.5, None])
def test_a_number_of_images_below_one_is_refused(learn, number):
    with pytest.raises(ValueError, match=rf"max_n must be a number from 1 up, got {number}"):
        learn.show_gradcam(max_n=number)
    with Quiet():
        interp = ClassificationInterpretation.from_learner(learn)
    with pytest.raises(ValueError, match=rf"k must be a number from 1 up, got {number}"):
        interp.plot_top_gradcams(number)


@pytest.mark.slow
def test_rows_and_columns_are_as_in_show_results(learn):
    def size(**how):
        return learn.show_gradcam(max_n=4, shuffle=False, **how).grid().size

    wide, high, square = size(nrows=1), size(ncols=1), size()
    assert wide == size(ncols=4) and wide[0] > square[0] > high[0] and wide[1] < square[1] < high[1]
    with Quiet():
        interp = ClassificationInterpretation.from_learner(learn)
    assert interp.plot_top_gradcams(3, nrows=1).grid().width > interp.plot_top_gradcams(3, ncols=1).grid().width
    with pytest.raises(ValueError, match="ncols must be a number from 1 up, got 0"):
        interp.plot_top_gradcams(3, ncols=0)
