"""`GradCAMGuide`: its gradient, masks that follow their images exactly, what it leaves alone, and what it refuses."""

import pickle
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    Callback,
    CutMix,
    DataLoaders,
    GradientAccumulation,
    GradientClip,
    ImageDataLoaders,
    ItemTransform,
    Learner,
    MixUp,
    PILImage,
    RandomErasing,
    RandomResizedCrop,
    RandTransform,
    Resize,
    TensorImage,
    TrainEvalCallback,
    aug_transforms,
    load_learner,
)
from PIL import Image
from torch import nn
from training import Quiet, differences, left_by, one_thread  # noqa: F401

from fastai_gradcam import GradCAMCallback, GradCAMError
from fastai_gradcam._engine.outside import attention_outside
from fastai_gradcam._fastai.guided import MaskedLoader
from fastai_gradcam._net.layers import Spot
from fastai_gradcam._watch.faults import Faults
from fastai_gradcam.cam import gradcam
from fastai_gradcam.guide import CoverPlace, GradCAMGuide, SwapColours

pytestmark = pytest.mark.usefixtures("one_thread")


def quarter(item):
    "A box in the upper left of each image, and none for every other one."
    return (0, 0, 32, 32) if item.stem in "02" else None


# --- the number, and its gradient


def toy(dropout=0.0):
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh())
    head = [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 3)]
    return nn.Sequential(body, *head).double()


def scene(n=3):
    torch.manual_seed(2)
    x, y = torch.randn(n, 2, 8, 8, dtype=torch.float64), torch.arange(n) % 3
    masks = torch.zeros(n, 8, 8, dtype=torch.bool)
    masks[:, 2:7, :5] = True
    return x, y, masks


def share(model, x, y, masks, second_order=True):
    return attention_outside(model, x, y, masks, Spot("0", model[0]), second_order)


def test_the_share_is_that_of_the_map_which_the_library_shows():
    model, (x, y, masks) = toy().eval(), scene()
    maps = gradcam(model, x, layer="0", target=y).maps[0]
    expected = 1 - (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    assert torch.allclose(share(model, x, y, masks), expected, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences(monkeypatch):
    # Maps are float32 for mixed precision; differences need what float64 has.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model, scenery = toy(), scene()
    total = share(model, *scenery).sum()
    parameters = list(model.parameters())
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    step = 1e-6
    for p, g in zip(parameters, grads, strict=True):
        for k in range(0, p.numel(), 5):
            flat = p.data.view(-1)
            at = float(flat[k])
            sides = []
            for sign in (1, -1):
                flat[k] = at + sign * step
                sides.append(float(share(model, *scenery).sum().detach()))
            flat[k] = at
            slope = (sides[0] - sides[1]) / (2 * step)
            assert float(0 if g is None else g.view(-1)[k]) == pytest.approx(slope, abs=2e-6, rel=1e-4)


def test_first_order_holds_the_channel_weights_constant():
    model, scenery = toy(), scene()
    assert torch.equal(share(model, *scenery), share(model, *scenery, second_order=False))
    grads = [
        torch.autograd.grad(
            share(model, *scenery, order).sum(), [model[0][0].weight, model[3].weight], allow_unused=True
        )
        for order in (True, False)
    ]
    assert grads[0][1].abs().max() > 0 and grads[1][1] is None  # the head learns by the second order alone
    assert grads[1][0].abs().max() > 0 and not torch.allclose(grads[0][0], grads[1][0])


def test_a_frozen_body_an_empty_map_and_a_head_with_batch_norm():
    model, (x, y, masks) = toy(dropout=0.5), scene()
    model[0].requires_grad_(False)
    share(model, x, y, masks).sum().backward()
    assert model[3].weight.grad.abs().max() > 0 and model[0][0].weight.grad is None
    with torch.no_grad():
        model[6].weight.zero_()
    assert share(model, x, y, masks).isnan().all()
    # In training mode, the sum over a batch of one class would be constant behind BatchNorm.
    model = nn.Sequential(*toy()[:3], nn.BatchNorm1d(12), nn.Linear(12, 3)).double().train()
    assert share(model, x, torch.zeros(3).long(), masks).isfinite().all() and model.training and model[3].training
    assert int(model[3].num_batches_tracked) == 0


def test_the_body_is_as_it_trains_and_what_follows_as_it_is_used():
    "Running statistics that lag behind would give other features; they are neither read nor gathered."
    model, (x, y, masks) = toy(dropout=0.5).train(), scene()
    model[0][1].running_var.fill_(100)
    before, seed = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    found = share(model, x, y, masks)
    assert torch.equal(torch.get_rng_state(), seed)  # dropout behind the layer is off
    A = model[0](x).detach()
    model.load_state_dict(before)
    model[0], kept = nn.Identity(), model[0]
    maps = gradcam(model, A, layer="0", target=y).maps[0]
    model[0] = kept
    assert torch.allclose(found, 1 - (maps * masks).sum((1, 2)) / maps.sum((1, 2)), atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training and getattr(m, "track_running_stats", True) for m in model.modules())


def test_statistics_that_are_not_gathered_are_still_read_where_a_norm_evaluates():
    "InstanceNorm takes the image's own statistics where it tracks none."
    model, (x, y, masks) = toy().train(), scene()
    model[0][1] = nn.InstanceNorm2d(3, track_running_stats=True).double()
    model[0][1].eval()  # frozen
    model.insert(1, nn.InstanceNorm2d(3, track_running_stats=True).double())
    for norm in (model[0][1], model[1]):
        norm.running_var.fill_(4)
    maps = gradcam(model, x, layer="0", target=y).maps[0]
    assert torch.allclose(share(model, x, y, masks), 1 - (maps * masks).sum((1, 2)) / maps.sum((1, 2)), atol=1e-6)


# --- masks go with their images


@pytest.fixture(scope="module")
def marked_folder(tmp_path_factory):
    "Black images with one white square, which is all that a mask is true on."
    path, rng = tmp_path_factory.mktemp("marked"), np.random.default_rng(0)
    boxes = {}
    for split, count in (("train", 6), ("valid", 2)):
        for label in ("a", "b"):
            (path / split / label).mkdir(parents=True)
            for i in range(count):
                pixels, (y, x) = np.zeros((60, 80, 3), np.uint8), rng.integers(5, 30, 2)
                pixels[y : y + 25, x : x + 25] = 255
                Image.fromarray(pixels).save(path / split / label / f"{split[0]}{label}{i}.png")
                boxes[f"{split[0]}{label}{i}.png"] = tuple(int(v) for v in (x, y, x + 25, y + 25))
    return path, boxes


def loader_of(marked_folder, item_tfms, batch_tfms, bs=12):
    path, boxes = marked_folder
    dls = ImageDataLoaders.from_folder(
        path, valid="valid", item_tfms=item_tfms, batch_tfms=batch_tfms, bs=bs, num_workers=0, device="cpu"
    )
    return MaskedLoader(dls.train, lambda item: boxes[item.name], path, "raise", Faults("test")), dls


TRANSFORMS = {
    "resized, with all of aug_transforms": (Resize(48), {"size": 40, "max_warp": 0.3}),
    "turned by eights": (Resize(48), {"flip_vert": True, "max_rotate": 45, "max_zoom": 1.5}),
    "cropped at random": (RandomResizedCrop(48, min_scale=0.3), {"max_warp": 0, "max_rotate": 0}),
    "cropped on the device": (Resize(60), {"size": 40, "min_scale": 0.4}),
    "padded with black": (Resize(48, "pad", pad_mode="zeros"), {"pad_mode": "zeros"}),
    "squished, and lit": (Resize(48, "squish"), {"max_lighting": 0.4}),
}


@pytest.mark.parametrize("tfms", TRANSFORMS)
def test_a_marked_pixel_stays_under_its_mask(tfms, marked_folder):
    item_tfms, augmented = TRANSFORMS[tfms]
    loader, _ = loader_of(marked_folder, item_tfms, aug_transforms(**{"max_lighting": 0, **augmented}))
    loader.trial()
    loader.attach()
    # Interpolation makes the rim of a square and of the picture grey.
    wider, narrower = nn.MaxPool2d(5, 1, 2), nn.Sequential(nn.ConstantPad2d(2, 1.0), nn.MaxPool2d(5, 1))
    for _ in range(3):
        for batch in loader.dl:
            masks, has = loader.seen
            assert len(batch) == 2 and masks.shape == batch[0].shape[:1] + batch[0].shape[2:]
            white = batch[0].as_subclass(torch.Tensor).mean(1)
            white = (white > (white.amax((1, 2), True) + white.amin((1, 2), True)) / 2).float()
            inner, outer = 1 - narrower(1 - masks.float()), wider(masks.float())
            assert (white >= inner).all() and (white <= outer).all()
            assert torch.equal(has, masks.flatten(1).any(1))
    loader.detach()
    assert len(next(iter(loader.dl))) == 2 and "create_item" not in vars(loader.dl)


def test_an_image_without_a_mask_and_one_whose_object_is_cut_off_are_left_out(marked_folder):
    path, boxes = marked_folder
    loader, dls = loader_of(marked_folder, Resize(48), None)
    fs = dls.valid.after_batch.fs
    loader = MaskedLoader(dls.train, {"ta0.png": boxes["ta0.png"], "ta1.png": (0, 0, 2, 60)}, path, "skip", Faults("t"))
    loader.attach()
    next(iter(dls.train))
    assert int(loader.seen[1].sum()) <= 2 and sorted(loader.names[i] for i in loader.values) == [
        "train/a/ta0.png", "train/a/ta1.png",
    ]  # fmt: skip
    assert len(next(iter(dls.valid))) == 2 and dls.valid.after_batch.fs is fs
    loader.detach()


class OnlyImages(RandTransform):
    "A flip that its author wrote for images alone."

    def encodes(self, x: TensorImage):
        return x.flip(-1)


class Pair(ItemTransform):
    def encodes(self, pair):
        image, label = pair
        return image, label


@pytest.mark.parametrize(
    "item_tfms, batch_tfms, words",
    [
        (Resize(48), [OnlyImages(p=0.5)], "moves images and not their masks"),
        ([Resize(48), Pair()], None, "do not take"),
    ],
)
def test_transforms_that_leave_masks_behind_are_refused(item_tfms, batch_tfms, words, marked_folder):
    with pytest.raises(GradCAMError, match=words):
        loader_of(marked_folder, item_tfms, batch_tfms)[0].trial()


def test_erasing_a_part_of_the_image_is_no_move(marked_folder):
    loader_of(marked_folder, Resize(48), [RandomErasing(p=1.0)])[0].trial()


def test_a_mask_that_fails_in_training_is_left_out_with_a_warning(marked_folder):
    path, _ = marked_folder
    loader, dls = loader_of(marked_folder, Resize(48), None)
    loader = MaskedLoader(
        dls.train, {"ta0.png": (0, 0, 9, 9), "tb3.png": (0, 0, 900, 9)}, path, "skip", Faults("GradCAMGuide")
    )
    loader.attach()
    with pytest.warns(UserWarning, match=r"GradCAMGuide: the mask of 'train/b/tb3.png' failed, training goes on"):
        list(dls.train)
    loader.detach()


# --- the training


def fitted(learner, *cbs, fit=lambda learn: learn.fit(1, 1e-2), **settings):
    learn = learner(*cbs, **settings)
    with Quiet():
        fit(learn)
    return learn


@pytest.mark.slow
def test_a_weight_of_zero_is_no_guide_to_the_last_bit(learner):
    augmented = {"batch_tfms": aug_transforms(), "item_tfms": RandomResizedCrop(32, min_scale=0.5)}
    plain = left_by(fitted(learner, **augmented))
    assert differences(plain, left_by(fitted(learner, GradCAMGuide(quarter, 0), **augmented))) == []
    # So small a weight is lost in the loss: nothing else about the training is another.
    assert differences(plain, left_by(fitted(learner, GradCAMGuide(quarter, 1e-300), **augmented))) == []
    assert differences(plain, left_by(fitted(learner, GradCAMGuide(quarter), **augmented)))


def test_it_says_what_it_does_and_is_off_again_when_it_is_removed(learner, capsys):
    guide = GradCAMGuide(quarter)
    learn = fitted(learner, guide)
    assert "changes this training: 6 of 12 training images have a mask" in capsys.readouterr().out
    assert 1 <= len(guide.shares) <= 3 and all(0 <= s <= 1 for s in guide.shares)
    learn.remove_cb(GradCAMGuide)
    given = len(guide.shares)
    with Quiet():
        learn.fit(1)
    assert len(guide.shares) == given and not hasattr(learn, "grad_cam_guide")
    assert len(next(iter(learn.dls.train))) == 2


def test_the_attention_moves_into_the_masks():
    model, scenery = toy(), scene(6)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    shares = []
    for _ in range(40):
        loss = share(model, *scenery).nanmean()
        shares.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shares[-1] < shares[0] - 0.2


class Bfloat16(Callback):
    "Mixed precision as fastai's callback has it, on the CPU."

    order = 10

    def before_batch(self):
        self.autocast = torch.autocast("cpu", torch.bfloat16)
        self.autocast.__enter__()

    def after_pred(self):
        self.learn.pred = self.pred.float()

    def after_loss(self):
        self.autocast.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "others, fit",
    [
        ([], lambda learn: learn.fine_tune(1)),
        ([Bfloat16], lambda learn: learn.fit(1)),
        ([], lambda learn: learn.to_fp16().fit(1)),
        ([lambda: GradientAccumulation(8), GradientClip], lambda learn: learn.fit(1)),
        ([], lambda learn: learn.lr_find(num_it=3, show_plot=False)),
        ([lambda: GradCAMCallback(n=2, show=False, judge=None)], lambda learn: learn.fit(1)),
    ],
    ids=["fine_tune", "bfloat16", "to_fp16", "accumulation and clipping", "lr_find", "beside GradCAMCallback"],
)
def test_it_works_with(others, fit, learner):
    guide = GradCAMGuide(quarter, on_missing="skip")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="GradCAM")
        learn = fitted(learner, guide, *[other() for other in others], fit=fit)
    assert guide.shares and all(p.isfinite().all() for p in learn.model.parameters())
    assert len(next(iter(learn.dls.train))) == 2


def test_the_accumulated_loss_has_the_term_in_proportion(learner):
    seen = []

    class Reads(Callback):
        order = 9

        def after_loss(self):
            seen.append((float(self.learn.loss), float(self.learn.loss_grad)))
            raise KeyboardInterrupt

    guide = GradCAMGuide(lambda item: (0, 0, 32, 32), 2.0)
    with pytest.raises(KeyboardInterrupt):
        fitted(learner, guide, GradientAccumulation(8), Reads())
    ((loss, graded),) = seen
    assert graded == pytest.approx((loss + 2 * guide.shares[0]) * 4 / 8, rel=1e-5)
    assert "create_item" not in vars(guide.learn.dls.train)  # an exception leaves nothing behind


def test_an_exported_learner_is_free_of_it(learner, image_folder, tmp_path):
    learn = fitted(learner, GradCAMGuide(lambda item: quarter(item)))
    assert b"GradCAMGuide" not in pickle.dumps(learn.grad_cam_guide)
    learn.export(tmp_path / "out.pkl")
    with Quiet():
        loaded = load_learner(tmp_path / "out.pkl")
        loaded.predict(image_folder / "valid" / "red" / "0.png")
    assert not any(isinstance(cb, GradCAMGuide) for cb in loaded.cbs)
    assert b"fastai_gradcam" not in (tmp_path / "out.pkl").read_bytes()
    assert isinstance(deepcopy(learn).grad_cam_guide, GradCAMGuide)


# --- what is refused


@pytest.mark.parametrize(
    "cbs, words",
    [
        ([MixUp], "MixUp: an image made of two has no one true class"),
        ([CutMix], "CutMix: an image made of two"),
    ],
)
def test_mixed_images_are_refused_before_anything_is_changed(cbs, words, learner):
    learn = learner(GradCAMGuide(quarter), *[cb() for cb in cbs])
    loss = learn.loss_func
    with pytest.raises(GradCAMError, match=words), Quiet():
        learn.fit(1)
    assert learn.loss_func is loss


@pytest.mark.parametrize(
    "given, words",
    [
        (lambda: GradCAMGuide(quarter, weight=-1), "weight must be a number from 0 up"),
        (lambda: GradCAMGuide(quarter, on_missing="ignore"), "no on_missing 'ignore'"),
        (lambda: GradCAMGuide(quarter, on_missing="raise"), "6 of 12 training images have no mask"),
        (lambda: GradCAMGuide(lambda item: None), "no mask for any training image"),
        (lambda: GradCAMGuide({"elsewhere.png": (0, 0, 4, 4)}), "no mask for any training image"),
        (lambda: GradCAMGuide(None), "masks=None leaves nothing"),
        (lambda: GradCAMGuide(lambda item: (0, 0, 900, 4)), "does not lie in an image of 64×64"),
        (lambda: GradCAMGuide([(0, 0, 4, 4)] * 5), "masks has 5 entries"),
        (lambda: GradCAMGuide(quarter, layer="no such"), "There is no layer 'no such'"),
        (lambda: GradCAMGuide(quarter, layer=[0, 1]), "one layer to guide"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(given, words, learner):
    with pytest.raises(GradCAMError, match=words), Quiet():
        learner(given()).fit(1)


def test_several_labels_and_compiled_models_are_refused(learner):
    with Quiet():
        learn = learner(GradCAMGuide(quarter))
        learn.create_opt()
        learn.model._orig_mod = learn.model[0]
        with pytest.raises(GradCAMError, match="compiled model"):
            learn.fit(1)
        learn = learner(GradCAMGuide(quarter))
        learn.create_opt()
        learn.model = nn.DataParallel(learn.model)
        with pytest.raises(GradCAMError, match="one device"):
            learn.fit(1)
        items = [(torch.rand(3, 32, 32), torch.tensor([1.0, 0.0])) for _ in range(4)]
        dls = DataLoaders.from_dsets(items, items, bs=2, device="cpu")
        learn = Learner(dls, toy(), BCEWithLogitsLossFlat(), cbs=[TrainEvalCallback, GradCAMGuide([None] * 4)])
        with pytest.raises(GradCAMError, match="one class per image"):
            learn.fit(1)


# --- covering a place


def test_a_place_is_covered_with_another_part_of_the_picture_in_training_only():
    pixels = np.arange(90 * 60 * 3, dtype=np.uint32).reshape(60, 90, 3) % 251
    picture = PILImage.create(pixels.astype(np.uint8))
    cover = CoverPlace("bottom right corner", share=0.5)
    covered = np.asarray(cover(picture, split_idx=0))
    was = np.asarray(picture)
    assert (covered[:30] == was[:30]).all() and (covered[30:, :45] == was[30:, :45]).all()
    assert any((covered[30:, 45:] == part).all() for part in (was[:30, :45], was[:30, 45:], was[30:, :45]))
    assert (np.asarray(cover(picture, split_idx=1)) == was).all()
    label = torch.tensor(1)
    assert cover((picture, label), split_idx=0)[1] is label
    with pytest.raises(GradCAMError, match=r"no place 'upper left'.*top left corner"):
        CoverPlace("upper left")
    with pytest.raises(GradCAMError, match="share must be"):
        CoverPlace("top left corner", 0.7)


# --- exchanging colours


def test_pictures_have_the_colours_of_others_in_training_only():
    torch.manual_seed(4)
    casts = torch.linspace(0.3, 0.7, 24).view(8, 3, 1, 1)
    x = TensorImage(casts + 0.1 * (torch.rand(8, 3, 6, 6) - 0.5))
    swapped = SwapColours()(x.clone(), split_idx=0)
    std, mean = torch.std_mean(torch.as_tensor(x), (2, 3))
    new_std, new_mean = torch.std_mean(torch.as_tensor(swapped), (2, 3))
    taken = torch.cdist(new_mean, mean).argmin(1)  # from which picture each has its colours
    assert sorted(taken.tolist()) == list(range(8)) != taken.tolist()
    assert torch.allclose(new_mean, mean[taken], atol=1e-5) and torch.allclose(new_std, std[taken], atol=1e-5)
    for k in range(8):  # the picture is its own
        assert np.corrcoef(x[k].flatten(1)[0], swapped[k].flatten(1)[0])[0, 1] > 0.999
    assert torch.equal(SwapColours()(x, split_idx=1), x)
    flat = TensorImage(torch.full((2, 3, 4, 4), 0.5))
    assert torch.equal(SwapColours()(flat, split_idx=0), flat)
