"""The model says what the learner says: activations, entries of an output, several targets, labels of any type."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from blocks import body, data, head, label, learner_of, net, output_for
from fastai.vision.all import (
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CategoryBlock,
    ClassificationInterpretation,
    CrossEntropyLossFlat,
    DataLoader,
    DataLoaders,
    FocalLossFlat,
    ImageBlock,
    Interpretation,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
    MultiCategoryBlock,
    RegressionBlock,
)
from torch import nn
from torch.nn import functional as F
from training import one_thread, statuses, watch  # noqa: F401

from fastai_gradcam import GradCAMError, gradcam

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photo(image_folder):
    return image_folder / "valid" / "red" / "0.png"


@pytest.fixture(scope="module")
def colours(image_folder):
    return data(image_folder)


@pytest.fixture(scope="module")
def labels(image_folder):
    return data(image_folder, (ImageBlock, MultiCategoryBlock), lambda f: [label(f)])


@pytest.fixture(scope="module")
def two(image_folder):
    "Two categories: the colour, and whether the file's number is odd."
    blocks = (ImageBlock, CategoryBlock, CategoryBlock)
    return data(image_folder, blocks, [label, lambda f: "odd" if int(f.stem) % 2 else "even"], n_inp=1)


# --- activations

itself = {"logits": torch.softmax, "probabilities": lambda o, dim: o, "log": lambda o, dim: o.exp()}


@pytest.mark.parametrize(
    ("ends", "loss", "how"),
    [
        ((), CrossEntropyLossFlat(), "logits"),
        ((), nn.CrossEntropyLoss(), "logits"),
        ((), F.cross_entropy, "logits"),
        ((), lambda o, y: F.cross_entropy(o, y), "logits"),
        ((), partial(F.cross_entropy, label_smoothing=0.1), "logits"),
        ((), LabelSmoothingCrossEntropyFlat(), "logits"),
        ((), FocalLossFlat(), "logits"),
        ((), lambda o, y: 2 * F.cross_entropy(o, y, weight=torch.tensor([1.0, 2, 3])), "logits"),
        ((nn.Softmax(1),), lambda o, y: F.nll_loss(o.log(), y), "probabilities"),
        ((nn.Softmax(1),), CrossEntropyLossFlat(), "probabilities"),
        ((nn.Softmax(1),), lambda o, y: o.sum(), "probabilities"),
        ((nn.LogSoftmax(1),), nn.NLLLoss(), "log"),
        ((nn.LogSoftmax(1),), lambda o, y: F.nll_loss(o, y), "log"),
    ],
)
def test_the_probability_of_a_class_is_what_the_loss_or_the_networks_end_makes_it(
    ends, loss, how, colours, photo, tmp_path
):
    learn = learner_of(colours, net(3, *ends), tmp_path, loss)
    probs = itself[how](output_for(learn, photo), 1)[0]
    cam = learn.gradcam(photo, target="green")
    assert cam.prob == pytest.approx(float(probs[1]), abs=1e-5)
    assert cam.pred_prob == pytest.approx(float(probs.max()), abs=1e-5)
    assert cam.pred == colours.vocab[int(probs.argmax())]


@pytest.mark.parametrize(
    ("ends", "loss"),
    [
        ((), BCEWithLogitsLossFlat()),
        ((), lambda o, y: F.binary_cross_entropy_with_logits(o, y.float())),
        ((nn.Sigmoid(),), nn.BCELoss()),
        ((nn.Sigmoid(),), BCELossFlat()),
        ((nn.Sigmoid(),), F.binary_cross_entropy),
        ((nn.Sigmoid(),), lambda o, y: F.binary_cross_entropy(o, y)),
        ((nn.Sigmoid(),), BCEWithLogitsLossFlat()),
        ((nn.Sigmoid(),), lambda o, y: o.mean()),
    ],
)
def test_the_probability_of_a_label_is_squashed_once(ends, loss, labels, photo, tmp_path):
    learn = learner_of(labels, net(3, *ends), tmp_path, loss)
    output = output_for(learn, photo)
    probs = (output if ends else output.sigmoid())[0]
    cam = learn.gradcam(photo, target="green")
    assert cam.prob == pytest.approx(float(probs[1]), abs=1e-5)
    on = [labels.vocab[i] for i in probs.gt(0.5).nonzero().flatten().tolist()]
    assert cam.pred == (", ".join(on) or "(none)")


class LeastProbable(CrossEntropyLossFlat):
    "Decodes in a manner of its own, as a loss of costs or of ranks does."

    def decodes(self, x):
        return x.argmin(1)


class OfProbabilities(LeastProbable):
    "For a network that ends in a softmax."

    def activation(self, x):
        return x


@pytest.mark.parametrize(("ends", "loss"), [((), LeastProbable()), ((nn.Softmax(1),), OfProbabilities())])
def test_what_is_predicted_is_what_the_loss_decodes(ends, loss, colours, photo, tmp_path):
    learn = learner_of(colours, net(3, *ends), tmp_path, loss)
    with learn.no_bar():
        said, _, probs = learn.predict(photo)
    cam = learn.gradcam(photo)
    assert cam.pred == cam.label == said == colours.vocab[int(probs.argmin())]
    assert cam.prob == cam.pred_prob == pytest.approx(float(probs.min()), abs=1e-5)
    run = watch(learn, target="pred")
    assert (run.history.pred == run.history.target).all() and (run.history.pred_prob < 1 / 3).all()


@pytest.mark.parametrize("thresh", [0.02, 0.98])
def test_the_threshold_of_the_loss_parts_two_categories_and_labels(thresh, image_folder, labels, photo, tmp_path):
    halves = data(image_folder, (ImageBlock, CategoryBlock), lambda f: "odd" if int(f.stem) % 2 else "even")
    learn = learner_of(halves, net(1), tmp_path, BCEWithLogitsLossFlat(thresh=thresh))
    odd = float(output_for(learn, photo).sigmoid())
    cam, said = learn.gradcam(photo), "odd" if odd > thresh else "even"
    assert 0.02 < odd < 0.98 and cam.pred == cam.label == said
    assert cam.pred_prob == pytest.approx(odd if said == "odd" else 1 - odd, abs=1e-5)
    learn = learner_of(labels, net(3), tmp_path, BCEWithLogitsLossFlat(thresh=thresh))
    with learn.no_bar():
        said = list(learn.predict(photo)[0])
    assert learn.gradcam(photo, target="green").pred == (", ".join(said) or "(none)")


def decoding(decodes, base=BCEWithLogitsLossFlat):
    "A loss that decodes in a manner of its own."
    loss = base()
    loss.decodes = decodes
    return loss


DECODED = {
    "a threshold for each label": lambda p: p > torch.tensor([0.99, 0.01, 0.01]),
    "the two most probable": lambda p: torch.zeros_like(p).scatter(1, p.topk(2, 1).indices, 1).bool(),
    "the least probable": lambda p: p == p.min(1, keepdim=True).values,
    "whole numbers": lambda p: (p > 0.01).float(),
    "in place": lambda p: p.mul_(0).add_(torch.tensor([0, 1, 0])).bool(),
}


@pytest.mark.parametrize("how", DECODED)
def test_the_labels_that_are_explained_are_those_that_the_loss_decodes(how, labels, photo, tmp_path):
    learn = learner_of(labels, net(3), tmp_path, decoding(DECODED[how]))
    probs = output_for(learn, photo).sigmoid()[0]
    on = DECODED[how](probs[None].clone())[0].bool()
    said = [labels.vocab[i] for i in on.nonzero().flatten().tolist()]
    cams = learn.gradcam(photo)
    cams = [cams] if hasattr(cams, "label") else list(cams)
    assert {cam.label for cam in cams} == set(said) and {cam.pred for cam in cams} == {", ".join(said)}
    assert [cam.prob for cam in cams] == pytest.approx(sorted((float(p) for p in probs[on]), reverse=True), abs=1e-5)


def test_one_label_is_there_from_the_threshold_of_the_loss_on(image_folder, photo, tmp_path):
    one = data(image_folder, (ImageBlock, MultiCategoryBlock(vocab=["cat"])), lambda f: ["cat"][: int(f.stem) % 2])
    for thresh, said in ((0.02, "cat"), (0.98, "not cat")):
        learn = learner_of(one, net(1), tmp_path, BCEWithLogitsLossFlat(thresh=thresh))
        cam = learn.gradcam(photo)
        assert (cam.label, cam.pred) == (said, said)


@pytest.mark.slow
def test_a_number_that_nobody_knows_is_left_out(colours, photo, tmp_path):
    learn = learner_of(colours, net(), tmp_path, lambda o, y: o.mean())
    cam = learn.gradcam(photo, target="green")
    assert cam.prob is None and cam.pred_prob is None
    assert cam.pred == colours.vocab[int(output_for(learn, photo).argmax())]
    run = watch(learn)
    assert run.history.prob.isna().all() and run.history.pred_prob.isna().all() and run.history.loss.notna().all()


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)])
def test_what_stands_before_the_last_activation_is_explained(end, colours, photo, tmp_path):
    with_end = learner_of(colours, net(3, end), tmp_path, lambda o, y: o.sum())
    without = learner_of(colours, net(3), tmp_path, lambda o, y: o.sum())
    one, other = (learn.gradcam(photo, target="green", layer="0") for learn in (with_end, without))
    assert other.map.any() and torch.allclose(one.map, other.map, rtol=1e-4, atol=1e-6)


def test_a_sigmoid_that_is_no_module_is_undone(labels, photo, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return torch.sigmoid(self.net(x) / 10)

    learn = learner_of(labels, Net(), tmp_path, nn.BCELoss())
    cam = learn.gradcam(photo, target="green", layer="net.0")
    x = labels.test_dl([photo], num_workers=0).one_batch()[0].as_subclass(torch.Tensor)
    logits = gradcam(learn.model, x, layer="net.0", target=lambda o: torch.logit(o[:, 1]))
    assert torch.allclose(cam.map, logits.maps[0][0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("ends", [(), (nn.Sigmoid(),), (nn.Flatten(0),), (nn.Sigmoid(), nn.Flatten(0))])
def test_one_score_for_two_classes_is_told_by_its_side(ends, image_folder, photo, tmp_path):
    dls = data(image_folder, get_y=lambda f: "red" if label(f) == "red" else "other")
    sigmoid = any(isinstance(e, nn.Sigmoid) for e in ends)
    loss = BCELossFlat() if sigmoid else BCEWithLogitsLossFlat()
    learn = learner_of(dls, net(1, *ends), tmp_path, loss)
    for bias in (-30, 30):
        with torch.no_grad():
            learn.model[1][2].bias.fill_(bias)
        output = output_for(learn, photo).flatten()
        p = float(output if sigmoid else output.sigmoid())
        cam = learn.gradcam(photo)
        assert cam.pred == cam.label == ("red" if bias > 0 else "other")
        assert cam.prob == pytest.approx(p if bias > 0 else 1 - p, abs=1e-5)


# --- entries of an output


class Several(nn.Module):
    "Features, logits, and an auxiliary head, put together by `give`."

    def __init__(self, give):
        super().__init__()
        torch.manual_seed(2)
        self.b, self.h, self.aux, self.give = body(), head(), head(), give

    def forward(self, x):
        features = self.b(x)
        return self.give(features.mean((2, 3)), self.h(features), self.aux(features))


Named = __import__("collections").namedtuple("Named", "features logits")


@dataclass
class Answer:
    features: torch.Tensor
    logits: torch.Tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("give", "loss"),
    [
        (lambda f, o, a: (f, o), lambda p, y: F.cross_entropy(p[1], y)),
        (lambda f, o, a: [o, f], lambda p, y: F.cross_entropy(p[0], y)),
        (lambda f, o, a: {"features": f, "logits": o}, lambda p, y: F.cross_entropy(p["logits"], y)),
        (lambda f, o, a: {"features": f, "scores": o}, lambda p, y: F.cross_entropy(p["scores"], y)),
        (lambda f, o, a: Named(f, o), lambda p, y: F.cross_entropy(p.logits, y)),
        (lambda f, o, a: Answer(a, o), lambda p, y: F.cross_entropy(p.logits, y)),
        (lambda f, o, a: (a, o), lambda p, y: F.cross_entropy(p[1], y)),
        (lambda f, o, a: (o, a), lambda p, y: F.cross_entropy(p[0], y) + 0.3 * F.cross_entropy(p[1], y)),
        (lambda f, o, a: (a, f, o), lambda p, y: 0.3 * F.cross_entropy(p[0], y) + F.cross_entropy(p[2], y)),
    ],
)
def test_the_entry_with_the_classes_is_found(give, loss, colours, photo, tmp_path):
    learn = learner_of(colours, Several(give), tmp_path, loss)
    m, x = learn.model.eval(), colours.test_dl([photo], num_workers=0).one_batch()[0].as_subclass(torch.Tensor)
    A = m.b(x)
    logits = m.h(A)
    (g,) = torch.autograd.grad(logits[0, 1], A)
    wanted = torch.relu((g.mean((2, 3), keepdim=True) * A).sum(1))[0].detach()
    cam = learn.gradcam(photo, target="green", layer="b")
    assert cam.prob == pytest.approx(float(logits.softmax(1)[0, 1]), abs=1e-5)
    assert torch.allclose(cam.map, wanted, atol=1e-6)
    assert statuses(watch(learn, layer="b", n=2)) == ["ok", "ok"]


def test_an_entry_that_is_not_certain_is_refused_with_what_to_pass(colours, photo, tmp_path):
    loss = lambda p, y: F.cross_entropy(p[0], y) + F.cross_entropy(p[1], y)
    learn = learner_of(colours, Several(lambda f, o, a: (a, o)), tmp_path, loss)
    with pytest.raises(
        GradCAMError, match=r"which of these holds the 3 classes is not certain: pass target= a callable"
    ):
        learn.gradcam(photo, layer="b")
    assert learn.gradcam(photo, layer="b", target=lambda o: o[1][:, 0]).map.shape == (8, 8)


# --- several targets


def both(o, a, b):
    return F.cross_entropy(o[:, :3], a) + F.cross_entropy(o[:, 3:], b)


class Heads(nn.Module):
    def __init__(self, widths, order=slice(None)):
        super().__init__()
        torch.manual_seed(3)
        self.b, self.heads, self.order = body(), nn.ModuleList(head(w) for w in widths), order

    def forward(self, x):
        x = self.b(x)
        return tuple(h(x) for h in self.heads)[self.order]


SEVERAL = {
    "columns of one tensor": (lambda: net(5), both),
    "a tuple": (lambda: Heads((3, 2)), lambda o, a, b: F.cross_entropy(o[0], a) + F.cross_entropy(o[1], b)),
    "a tuple the other way round": (
        lambda: Heads((3, 2), slice(None, None, -1)),
        lambda o, a, b: F.cross_entropy(o[1], a) + F.cross_entropy(o[0], b),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEVERAL)
def test_each_label_belongs_to_its_target(kind, two, photo, tmp_path):
    make, loss = SEVERAL[kind]
    learn = learner_of(two, make(), tmp_path, loss)
    output = output_for(learn, photo)
    own = (
        [output[:, :3], output[:, 3:]] if kind == "columns of one tensor" else sorted(output, key=lambda t: -t.shape[1])
    )
    for name, column, i in (("green", 1, 0), ("even", 3, 1), ("odd", 4, 1)):
        cam = learn.gradcam(photo, target=name)
        assert (cam.target, cam.label) == (column, name)
        assert cam.prob == pytest.approx(float(own[i].softmax(1)[0, column - 3 * i]), abs=1e-5)
        assert cam.pred in ("odd", "even") if i else cam.pred in ("red", "green", "blue")
    run = watch(learn, n=4)
    assert run.vocab == ["blue", "green", "red", "even", "odd"]
    assert set(run.history.label) <= {"blue", "green", "red"} and list(run.history.target) == list(run.history.label)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["columns", "a tuple", "a dict with another beside them"])
def test_the_loss_says_which_of_two_heads_of_one_width_is_whose(kind, image_folder, photo, tmp_path):
    def give(o):
        parity, warm, other = o
        return {"columns": torch.cat([parity, warm], 1), "a tuple": (parity, warm)}.get(
            kind, {"parity": parity, "other": other, "warm": warm}
        )

    class Turned(Heads):
        def forward(self, x):
            return give(super().forward(x))

    def loss(o, warm, parity):
        a, b = (o[:, :2], o[:, 2:]) if kind == "columns" else o if kind == "a tuple" else (o["parity"], o["warm"])
        return F.cross_entropy(a, parity) + F.cross_entropy(b, warm)

    get_y = [lambda f: "warm" if label(f) == "red" else "cold", lambda f: "odd" if int(f.stem) % 2 else "even"]
    dls = data(image_folder, (ImageBlock, CategoryBlock, CategoryBlock), get_y, n_inp=1)
    learn = learner_of(dls, Turned((2, 2, 2)), tmp_path, loss)
    own = learn.model
    x = dls.test_dl([photo], num_workers=0).one_batch()[0].as_subclass(torch.Tensor)
    parity, warm, _ = Heads.forward(own.eval(), x)
    for asked, scores, column in (("odd", parity, 1), ("warm", warm, 1)):
        cam = learn.gradcam(photo, target=asked, layer="b")
        assert cam.prob == pytest.approx(float(scores.detach().softmax(1)[0, column]), abs=1e-5)
        head_alone = nn.Sequential(own.b, own.heads[0 if asked == "odd" else 1])
        assert torch.allclose(cam.map, gradcam(head_alone, x, layer="0", target=column).maps[0][0], atol=1e-6)
    assert set(watch(learn, n=3).history.pred) <= {"warm", "cold"}


@pytest.mark.slow
def test_a_dict_asks_for_the_answer_of_a_target(two, photo, tmp_path):
    learn = learner_of(two, net(5), tmp_path, both)
    assert learn.gradcam(photo, target={1: "odd"}).label == "odd"
    assert [c.label for c in learn.gradcam(photo, target={0: "red", 1: "even"})] == ["red", "even"]
    run = watch(learn, n=4, target={1: "true"})
    truth = ["odd" if int(p["name"][-5]) % 2 else "even" for p in run.panel]
    assert list(run.history.query("frame == 1").target) == truth == list(run.history.query("frame == 1").label)
    assert set(run.history.pred) <= {"odd", "even"}
    with pytest.raises(GradCAMError, match="has targets 0 to 1"):
        learn.gradcam(photo, target={2: "odd"})


@pytest.mark.slow
def test_a_category_and_a_number_beside_each_other(image_folder, photo, tmp_path):
    blocks = (ImageBlock, CategoryBlock, RegressionBlock)
    dls = data(image_folder, blocks, [label, lambda f: float(f.stem)], n_inp=1)

    def loss(o, a, b):
        return F.cross_entropy(o[:, :3], a) + F.mse_loss(o[:, 3], b)

    learn = learner_of(dls, net(4), tmp_path, loss)
    assert learn.gradcam(photo, target="red").label == "red"
    cam = learn.gradcam(photo, target="score")
    assert cam.label == "score" and cam.pred == f"{float(output_for(learn, photo)[0, 3]):.4g}"
    assert statuses(watch(learn, n=2)) == ["ok", "ok"]


def test_three_targets_and_a_name_of_two_of_them(image_folder, photo, tmp_path):
    parity = lambda f: "odd" if int(f.stem) % 2 else "even"
    dls = data(
        image_folder, (ImageBlock, CategoryBlock, CategoryBlock, CategoryBlock), [label, parity, parity], n_inp=1
    )
    learn = learner_of(dls, Heads((3, 2, 2)), tmp_path, lambda o, *ys: sum(map(F.cross_entropy, o, ys)))
    with pytest.raises(GradCAMError, match=r"'odd' is a class of several targets: say which by target=\{1: 'odd'\}"):
        learn.gradcam(photo, target="odd")
    assert learn.gradcam(photo, target={2: "odd"}).target == 6


@pytest.mark.slow
def test_a_reading_that_is_not_certain_is_refused_before_training(two, tmp_path):
    learn = learner_of(two, net(7), tmp_path, lambda o, a, b: both(o[:, :5], a, b))
    with pytest.raises(GradCAMError, match=r"2 targets \(3 classes and 2 classes\).*\(2, 7\).*target= a callable"):
        watch(learn)
    assert not learn.recorder.losses if hasattr(learn.recorder, "losses") else True


# --- labels of any type


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "asked", "index"),
    [
        ({"red": True, "green": False, "blue": False}, True, 1),
        ({"red": np.bool_(True), "green": np.bool_(False), "blue": np.bool_(False)}, True, 1),
        ({"red": 1, "green": 2, "blue": 3}, 1, 0),
        ({"red": 1, "green": 2, "blue": 3}, np.int64(3), 2),
        ({"red": np.int64(5), "green": np.int64(7), "blue": np.int64(9)}, 7, 1),
        ({"red": 1, "green": 2, "blue": 3}, "2", 1),
        ({"red": "10", "green": "20", "blue": "30"}, "20", 1),
        ({"red": "a", "green": "b", "blue": "c"}, 2, 2),
        ({"red": "a", "green": "b", "blue": "c"}, "2", 2),
        ({"red": 0.5, "green": 1.5, "blue": 2.5}, 1.5, 1),
    ],
)
def test_a_label_of_any_type_is_the_class_of_that_name(names, asked, index, image_folder, photo, tmp_path):
    dls = data(image_folder, get_y=lambda f: names[label(f)])
    learn = learner_of(dls, net(len(dls.vocab)), tmp_path)
    cam = learn.gradcam(photo, target=asked)
    assert (cam.target, cam.label) == (index, str(dls.vocab[index]))
    run = watch(learn, n=3)
    assert run.vocab == [str(v) for v in dls.vocab]
    assert list(run.history.target) == [str(names[Path(p["name"]).parent.name]) for p in run.panel] * 2


def test_a_number_that_is_no_label_says_that_numbers_are_labels(image_folder, photo, tmp_path):
    dls = data(image_folder, get_y=lambda f: {"red": 1, "green": 2, "blue": 3}[label(f)])
    learn = learner_of(dls, net(), tmp_path)
    with pytest.raises(
        GradCAMError, match=r"no class 0\. The classes of this vocabulary are numbers.*Classes: 1, 2, 3"
    ):
        learn.gradcam(photo, target=0)


# --- plain data


class Plain(torch.utils.data.Dataset):
    def __init__(self, y):
        self.y, self.rng = y, torch.Generator().manual_seed(0)
        self.x = torch.rand(6, 3, 16, 16, generator=self.rng)

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return self.x[i], *self.y(i)


PLAIN = {
    "an id beside the label": (lambda i: (i % 3, 100 + i), lambda o, y, _: F.cross_entropy(o, y), 3, "category"),
    "float classes": (lambda i: (float(i % 3),), lambda o, y: F.cross_entropy(o, y.long()), 3, "category"),
    "soft labels": (lambda i: (torch.eye(3)[i % 3] * 0.9 + 0.033,), nn.CrossEntropyLoss(), 3, "category"),
    "rows of labels": (lambda i: (torch.eye(3)[i % 3],), nn.BCEWithLogitsLoss(), 3, "labels"),
    "one label as a float": (
        lambda i: (float(i % 2),),
        lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y.float()),
        1,
        "category",
    ),
    "a number, by a lambda": (lambda i: (i / 3,), lambda o, y: F.mse_loss(o[:, 0], y.float()), 1, "regression"),
    "numbers, by a lambda": (lambda i: (torch.rand(2),), lambda o, y: (o - y).abs().mean(), 2, "regression"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_data_sets_of_plain_pytorch_are_watched(kind, tmp_path):
    y, loss, width, task = PLAIN[kind]
    dls = DataLoaders.from_dsets(Plain(y), Plain(y), bs=3, num_workers=0, device=torch.device("cpu"))
    dls.n_inp = 1
    learn = learner_of(dls, net(width), tmp_path, loss)
    run = watch(learn, n=6)
    history = run.history.query("frame == 1")
    assert statuses(run) == ["ok", "ok"] and history.loss.notna().all()
    if task == "category":
        expected = [str(i % (2 if width == 1 else 3)) for i in range(6)]
        assert list(history.sort_values("item").label) == expected == list(history.sort_values("item").target)
    elif task == "regression":
        assert history.target.str.startswith("score").all() and history.prob.isna().all()
    sample = dls.valid_ds[2]
    assert learn.gradcam(sample).map.shape == learn.gradcam(sample[0]).map.shape


@pytest.mark.slow
@pytest.mark.parametrize("unknown", [-1, 99])
def test_a_label_that_is_not_known_is_not_wrong(unknown, tmp_path):
    data_ = Plain(lambda i: (unknown if i == 2 else i % 3,))
    dls = DataLoaders.from_dsets(data_, data_, bs=3, num_workers=0, device=torch.device("cpu"))
    dls.vocab = ["a", "b", "c"]
    learn = learner_of(dls, net(), tmp_path, nn.CrossEntropyLoss(ignore_index=unknown))
    rows = watch(learn, n=6).history.query("frame == 1").sort_values("item")
    row = rows.iloc[2]
    assert not isinstance(row.label, str) or row.label == ""
    assert pd.isna(row.correct) and row.target == row.pred
    assert rows.correct.notna().sum() == 5


class Stream(torch.utils.data.IterableDataset):
    def __len__(self):
        return 6

    def __iter__(self):
        return iter([(torch.rand(3, 16, 16), i % 3) for i in range(6)])


@pytest.mark.slow
def test_a_stream_is_refused_before_training(tmp_path):
    dls = DataLoaders(*(DataLoader(Stream(), bs=3, num_workers=0) for _ in range(2)))
    learn = learner_of(dls, net(), tmp_path)
    with pytest.raises(GradCAMError, match="a stream"):
        watch(learn)


def test_a_network_of_one_class_says_its_class(image_folder, photo, tmp_path):
    dls = data(image_folder, get_y=lambda f: "thing")
    cam = learner_of(dls, net(1), tmp_path).gradcam(photo)
    assert (cam.pred, cam.label, cam.prob) == ("thing", "thing", 1)


# --- every entry takes every task

TASKS = {
    "category": ((ImageBlock, CategoryBlock), label, lambda: net(3), nn.CrossEntropyLoss()),
    "labels": ((ImageBlock, MultiCategoryBlock), lambda f: [label(f)], lambda: net(3), BCEWithLogitsLossFlat()),
    "single logits": (
        (ImageBlock, CategoryBlock),
        lambda f: label(f) == "red",
        lambda: net(1, nn.Flatten(0)),
        BCEWithLogitsLossFlat(),
    ),
    "regression": ((ImageBlock, RegressionBlock), lambda f: float(f.stem), lambda: net(1), MSELossFlat()),
}


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["gradcam", "show_gradcam", "plot_top_gradcams", "callback"])
@pytest.mark.parametrize("task", TASKS)
def test_every_entry_takes_every_task(task, entry, image_folder, photo, tmp_path):
    blocks, get_y, make, loss = TASKS[task]
    learn = learner_of(data(image_folder, blocks, get_y), make(), tmp_path, loss)
    if entry == "gradcam":
        cams = learn.gradcam([photo, photo])
        assert len(cams) >= 2 and all(c.map.shape == (8, 8) for c in cams)
    elif entry == "show_gradcam":
        assert all(c.actual is not None and c.pred is not None for c in learn.show_gradcam(max_n=3))
    elif entry == "plot_top_gradcams":
        kind = Interpretation if task == "regression" else ClassificationInterpretation
        interp = kind.from_learner(learn)
        assert len(interp.plot_top_gradcams(2)) >= 2
    else:
        assert statuses(watch(learn, n=3)) == ["ok", "ok"]
