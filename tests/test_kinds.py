"""Lists, items and labels of the kinds that a fastai user has at hand."""

import warnings

import pytest
from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, L, Learner, Resize, get_image_files
from PIL import Image
from training import Quiet, tiny, watch

from fastai_gradcam.learner import CAMList


@pytest.fixture
def learn(learner):
    return learner()


def test_a_list_of_fastais_own_kind_is_a_list_of_items(learn, image_folder):
    files = get_image_files(image_folder / "valid").sorted()[:2]
    assert isinstance(files, L)
    cams = learn.gradcam(files)
    assert isinstance(cams, CAMList) and [c.pred for c in cams] == [learn.gradcam(f).pred for f in files]


@pytest.mark.slow
def test_the_vocabulary_and_an_L_of_labels_are_several_classes(learn):
    item = learn.dls.valid_ds.items[0]
    assert [c.label for c in learn.gradcam(item, target=learn.dls.vocab)] == list(learn.dls.vocab)
    assert [c.label for c in learn.gradcam(item, target=L(*learn.dls.vocab[:2]))] == list(learn.dls.vocab[:2])
    run = watch(learn, n=2, target=learn.dls.vocab)
    assert list(run.history["target"].unique()) == list(learn.dls.vocab)


def test_a_callable_target_keeps_the_prediction(learn):
    item = learn.dls.valid_ds.items[0]
    cam, plain = learn.gradcam(item, target=lambda output: output[:, 1]), learn.gradcam(item)
    assert (cam.pred, cam.pred_prob, cam.target) == (plain.pred, plain.pred_prob, None)


@pytest.mark.slow
def test_an_image_of_no_known_class_is_watched_for_its_prediction(learn, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    stranger = tmp_path / "elsewhere" / "stranger.png"
    Image.effect_noise((40, 40), 60).convert("RGB").save(stranger)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = watch(learn, items=[stranger], target="pred")
    assert run.panel[0]["label"] is None
    assert (run.history["target"] == run.history["pred"]).all()


@pytest.mark.parametrize("wrong", [None, 1.5, True])
def test_items_of_no_kind_are_named(learn, wrong):
    item = learn.dls.valid_ds.items[0]
    with pytest.raises(TypeError, match=rf"items\[1\] is {wrong!r}"):
        watch(learn, items=[item, wrong])


def test_pictures_of_a_run_among_the_images_are_refused_before_training(image_folder, tmp_path):
    import shutil

    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    own = folder / "train" / "gradcam" / "run" / "panel"
    own.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(own / "000.jpg")
    (own.parent / "run.json").write_text("{}")
    dls = ImageDataLoaders.from_folder(folder, valid_pct=0.3, seed=1, item_tfms=Resize(32), bs=4, num_workers=0)
    with Quiet():
        learn = Learner(dls, tiny(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    with pytest.raises(ValueError, match="holds pictures that a run of this callback saved"):
        watch(learn, n=2)


def test_a_missing_layer_is_answered_with_the_outermost_ones(learn):
    with pytest.raises(ValueError, match=r"Layers: 0, 1, 0\.0, 0\.1, 0\.2"):
        learn.gradcam(learn.dls.valid_ds.items[0], layer="layer4")
