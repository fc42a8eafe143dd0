"""Judging a learner: `learn.gradcam_judge()`, and `judge=` of the callback and of `Watch`, with all promises."""

import json
import re
import shutil
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from blocks import body, data, head, learner_of, net
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.torch_core import set_seed
from fastai.vision.all import CategoryBlock, ImageBlock, MaskBlock, PILMask
from fastai.vision.data import ImageDataLoaders
from fastcore.imports import noop
from PIL import Image
from test_judge import NAMES, Filters, Tags, corner, pictures
from torch import nn
from torch.nn import functional as F
from training import differences, left_by, state_around, statuses, watch

import fastai_gradcam._watch.judging as judging
from fastai_gradcam import GradCAMCallback, GradCAMError, Run, Watch
from fastai_gradcam._cli.judge import _conclusion
from fastai_gradcam._run.verdicts import read_table
from fastai_gradcam._watch.judging import images_for
from fastai_gradcam.cli import main
from fastai_gradcam.judge import COLUMNS, PASSES


def learner(path, network=None, extra="stamp", n=72, cbs=None, loss=None):
    "A learner whose network is right from the start, and stays so with the small steps of these tests."
    x, y, _ = (torch.cat(part) for part in zip(*pictures(extra, n), strict=True))
    items = [(one, int(label)) for one, label in zip(x, y, strict=True)]
    if isinstance(loss, BCEWithLogitsLossFlat):
        items = [(one, torch.eye(3)[label]) for one, label in items]
    set_seed(3)
    dls = DataLoaders.from_dsets(items[:24], items, bs=8, num_workers=0, device=torch.device("cpu"))
    dls.vocab = NAMES
    learn = Learner(dls, network or Filters("magenta"), loss_func=loss or CrossEntropyLossFlat(), path=path, metrics=[])
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = noop
    return learn.add_cbs(cbs)


class Ordered(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x[:, self.order]


def callback(path, **settings):
    return GradCAMCallback(n=3, path=path, name="run", **settings)


@pytest.mark.slow
def test_a_learner_is_judged_by_its_validation_images(tmp_path):
    table = learner(tmp_path).gradcam_judge()
    assert tuple(table.columns) == COLUMNS
    named = table[table["verdict"] == "shortcut"]
    assert set(named["label"]) == {"rows"} and "transplant" in set(named["test"])
    verdicts = table.attrs["verdicts"]
    assert verdicts.images == 72 and verdicts.passes <= PASSES


def test_a_learner_with_a_progress_bar_shows_one_for_judging_and_ends_it(tmp_path, capsys, monkeypatch):
    learn = learner(tmp_path, cbs=ProgressCallback())
    learn.gradcam_judge(n=24, tests=["transplant"])
    assert "judging" not in capsys.readouterr().out  # nobody watches a file
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    learn.gradcam_judge(n=24, tests=["transplant"])
    with learn.no_bar():
        learn.gradcam_judge(n=24, tests=["transplant"])
    assert "judging" in capsys.readouterr().out


def test_judging_a_learner_changes_nothing_about_it(tmp_path):
    learn = learner(tmp_path)
    learn.model.train()
    before = state_around(learn.model) | {"loaders": [dl.rng.getstate() for dl in learn.dls.loaders]}
    learn.gradcam_judge(n=30)
    assert (
        differences(before, state_around(learn.model) | {"loaders": [dl.rng.getstate() for dl in learn.dls.loaders]})
        == []
    )


def test_a_set_smaller_than_asked_and_classes_left_out_are_said_in_a_sentence(tmp_path):
    with pytest.warns(UserWarning, match="The judging set has 24 images"):
        learner(tmp_path, n=24).gradcam_judge()
    with pytest.warns(UserWarning, match="'rows' is not judged"):
        learner(tmp_path, Filters(), extra=None, n=6).gradcam_judge()


@pytest.mark.parametrize("loss", [BCEWithLogitsLossFlat(), nn.MSELoss()])
def test_labels_and_regressions_are_refused_with_a_sentence(tmp_path, loss):
    learn = learner(tmp_path, loss=loss)
    if isinstance(loss, nn.MSELoss):
        del learn.dls.vocab
    with pytest.raises(GradCAMError, match="one class per image"):
        learn.gradcam_judge()


@pytest.mark.slow
def test_what_only_all_classes_together_show_is_said_by_learner_and_command(tmp_path):
    x, y, _ = (torch.cat(part) for part in zip(*pictures("tags", 24), strict=True))
    items = [(one, int(label)) for one, label in zip(x, y, strict=True)]
    dls = DataLoaders.from_dsets(items, items, bs=8, num_workers=0, device=torch.device("cpu"))
    dls.vocab = NAMES
    learn = Learner(dls, Tags(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    with learn.no_bar(), pytest.warns(UserWarning, match="Several classes may rest on a shortcut"):
        table = learn.gradcam_judge()
    assert not (table["verdict"] == "shortcut").any()
    said = "\n".join(_conclusion(table.attrs["verdicts"], tmp_path))
    assert "Several classes may rest on a shortcut (test " in said and "patches:" in said


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.head = body(), head(3, 16)

    def forward(self, a, b):
        return self.head(torch.cat([self.enc(a), self.enc(b)], 1))


def mask_of_file(file):
    pixels = np.zeros((32, 32), np.uint8)
    pixels[10:20] = 1
    return PILMask.create(pixels)


def pixels_of(output, y):
    return F.cross_entropy(output, y.long())


UNJUDGED = {
    "segmentation": (
        lambda files: data(files, (ImageBlock, MaskBlock(codes=["back", "fish"])), mask_of_file),
        lambda: nn.Sequential(body(), nn.Conv2d(8, 2, 1), nn.Upsample(scale_factor=4)),
        "one class for each image, got targets|one class per image",
    ),
    "several inputs": (
        lambda files: data(files, (ImageBlock, ImageBlock, CategoryBlock), n_inp=2, get_x=[noop, noop]),
        Pair,
        "one input",
    ),
    "one class": (
        lambda files: data(files, (ImageBlock, CategoryBlock), lambda f: "fish"),
        lambda: net(1),
        "at least two classes",
    ),
}


@pytest.mark.parametrize("kind", UNJUDGED)
def test_what_cannot_be_judged_is_left_out_with_a_sentence_and_is_watched_all_the_same(kind, image_folder, tmp_path):
    dls, make, why = UNJUDGED[kind]
    learn = learner_of(dls(image_folder), make(), tmp_path, F.cross_entropy if kind != "segmentation" else pixels_of)
    with pytest.raises(GradCAMError, match=why):
        learn.gradcam_judge()
    run = watch(learn, n=3, target="pred", judge="end")
    left_out = read_table(run.path, "classes")["left_out"]
    assert statuses(run) == ["ok", "ok"] and re.search(why, left_out[0]) and run.verdicts.empty


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "The state that a training without a callback leaves."
    learn = learner(tmp_path_factory.mktemp("plain"))
    learn.fit(2, 1e-5)
    return left_by(learn)


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["end", "every"])
def test_a_training_that_is_judged_is_the_same_to_the_last_bit_and_has_verdicts_and_loud_findings(
    plain, tmp_path, judge
):
    learn = learner(tmp_path)
    with pytest.warns(UserWarning, match="'rows' may rest on a shortcut") as said:
        learn.fit(2, 1e-5, cbs=callback(tmp_path, judge=judge))
    assert sum("shortcut" in str(w.message) for w in said) == 1, "an alarm is said once"
    assert differences(plain, left_by(learn)) == []
    run = Run(tmp_path / "run")
    assert set(run.verdicts["label"]) == set(NAMES) and run.status == "finished"
    found = run.findings()
    loud = found[found["severity"] >= 0.5]
    assert list(loud["kind"]) == ["confirmed"] and loud["label"].iloc[0] == "rows"
    assert "turned 100 % of them into rows" in loud["text"].iloc[0]
    assert list((run.path / "patches").glob("*.png"))
    alarms = run.path / "patches" / "alarms.csv"
    assert alarms.exists() == (judge == "every")
    if judge == "every":
        assert pd.read_csv(alarms)["frame"].min() == 2, "two judgements in succession, and no more, raise the alarm"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "network", "code"),
    [
        ("stamp", Filters("magenta"), "GradCAMGuide(boxes)"),
        ("corner", Filters("magenta", 1.0, corner()), "CoverPlace('top left corner')"),
        ("cast", Filters("magenta", 0.15), "SwapColours()"),  # so weak that the border alone does not do
    ],
)
def test_the_code_that_the_finding_of_a_shortcut_ends_with_runs_as_it_stands(extra, network, code, tmp_path, capsys):
    x, y, masks = (torch.cat(part) for part in zip(*pictures(extra), strict=True))
    boxes = {}
    for k, split in [(k, split) for split, n in (("train", 12), ("valid", 72)) for k in range(n)]:
        file = tmp_path / split / NAMES[y[k]] / f"{split}-{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[k] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(file)
        (top, left), (bottom, right) = (ends.tolist() for ends in masks[k].nonzero().aminmax(dim=0))
        boxes[file.name] = (left, top, right + 1, bottom + 1)
    dls = ImageDataLoaders.from_folder(tmp_path, valid="valid", bs=6, num_workers=0, device=torch.device("cpu"))
    network = nn.Sequential(network, Ordered([NAMES.index(n) for n in dls.vocab]))
    learn = Learner(dls, network, CrossEntropyLossFlat(), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-5, cbs=callback(tmp_path))
        text = Run(tmp_path / "run").findings()["text"].iloc[0]
        assert text.endswith("learn.gradcam_judge()") and code in text and "rows" in text
        exec("from fastai" + text.rpartition(": from fastai")[2], {"learn": learn, "boxes": boxes})
    assert ("12 of 12 training images have a mask" in capsys.readouterr().out) == ("boxes" in code)
    added = [type(t).__name__ for t in (*dls.train.after_item, *dls.train.after_batch)]
    assert ("boxes" in code) != (code.partition("(")[0] in added)


@pytest.mark.slow
def test_without_judging_no_finding_is_loud(tmp_path):
    learn = learner(tmp_path)
    learn.fit(1, 1e-5, cbs=callback(tmp_path, judge=None))
    run = Run(tmp_path / "run")
    assert run.verdicts.empty and not (run.path / "patches").exists()
    assert (run.findings()["severity"] < 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of luck")])
def test_ctrl_c_and_failures_end_the_judging_and_nothing_else(plain, tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(judging, "judged", fail)
    learn = learner(tmp_path)
    with pytest.warns(UserWarning, match="judging was interrupted|judging failed.*out of luck"):
        learn.fit(2, 1e-5, cbs=callback(tmp_path))
    assert differences(plain, left_by(learn)) == []
    run = Run(tmp_path / "run")
    assert run.status == "finished" and len(run.frames) == 3 and (run.path / "report.html").exists()


@pytest.mark.slow
def test_a_training_that_cannot_be_judged_goes_on_and_the_run_keeps_the_reason(tmp_path):
    learn = learner(tmp_path, loss=BCEWithLogitsLossFlat())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(1, 1e-5, cbs=callback(tmp_path, target="pred"))
    left_out = pd.read_csv(tmp_path / "run" / "patches" / "classes.csv")["left_out"]
    assert "one class per image" in left_out[0] and Run(tmp_path / "run").verdicts.empty


def test_judging_passes_at_most_a_tenth_of_what_the_training_passed_but_no_fewer_than_48_images_and_no_more_than_200():
    assert [images_for(n) for n in (0, 5_000, 12_000, 10**6)] == [48, 48, 100, 200]
    assert all(images_for(n) * PASSES <= n / 10 for n in range(6000, 24_000, 371))


@pytest.mark.slow
def test_watch_judges_its_own_images_in_a_plain_loop(tmp_path):
    x, y, masks = (torch.cat(part) for part in zip(*pictures("stamp", 48), strict=True))
    network = Filters("magenta")
    with pytest.warns(UserWarning, match="may rest on a shortcut"):
        with Watch(
            network,
            x,
            labels=y.tolist(),
            vocab=NAMES,
            masks=list(masks.numpy()),
            path=tmp_path,
            name="run",
            judge="end",
        ) as watch:
            watch(0)
    verdicts = watch.run.verdicts
    assert "swap" in set(verdicts["test"]) and "rows" in set(verdicts[verdicts["verdict"] == "shortcut"]["label"])


def test_a_time_that_is_none_is_refused(tmp_path):
    with pytest.raises(GradCAMError, match="'end', 'every' or None"):
        GradCAMCallback(judge="always")


# --- the command


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A folder of images by class, with valid/, and a learner of them in a file."
    folder = tmp_path_factory.mktemp("judged")
    x, y, _ = (torch.cat(part) for part in zip(*pictures("stamp", 72), strict=True))
    for k, (one, label) in enumerate(zip(x, y, strict=True)):
        file = folder / "photos" / ("train" if k < 9 else "valid") / NAMES[label] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((one.clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()).save(file)
    dls = ImageDataLoaders.from_folder(folder / "photos", bs=8, num_workers=0, device=torch.device("cpu"))
    # In the order of the vocabulary, which is that of the alphabet.
    network = nn.Sequential(Filters("magenta"), Ordered([NAMES.index(n) for n in dls.vocab]))
    Learner(dls, network, CrossEntropyLossFlat(), path=folder).export(folder / "model.pkl")
    return folder


def command(capsys, folder, *words):
    status = main(["judge", str(folder / "model.pkl"), str(folder / "photos"), *map(str, words)])
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_the_command_judges_an_exported_learner_by_a_folder_and_keeps_what_decided(exported, tmp_path, capsys):
    status, out, err = command(capsys, exported, "--out", tmp_path / "judged", "--test", "transplant")
    assert status == 0 and err == ""
    lines = out.splitlines()
    assert lines[0] == "judged by 63 images; the strongest test of each class:"
    assert lines[2].split()[:2] == ["rows", "transplant"] and lines[2].endswith("shortcut")
    assert len(lines) == 7 and max(map(len, lines[:5])) <= 100
    assert set(read_table(tmp_path / "judged")["label"]) == set(NAMES)
    assert list((tmp_path / "judged" / "patches").glob("*rows*.png"))


def test_the_command_prints_an_object_per_class_and_test_for_a_script(exported, tmp_path, capsys):
    status, out, err = command(capsys, exported, "--out", tmp_path, "--test", "place", "--n", 24, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [tuple(row) for row in rows] == [COLUMNS] * 3
    assert err == "The judging set has 24 images: verdicts are often 'undecided' with fewer than 48. Give it more: a " \
        "larger validation set, a larger n=, or, for Watch, a larger x.\n"  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--test", "transplnt"], "There is no test 'transplnt'"),
        (["--n", "0"], "--n must be a number of images from 1 up, got 0."),
        (["--method", "nothing"], "nothing"),
        (["--layer", "nowhere"], "nowhere"),
    ],
)
def test_the_command_refuses_what_does_not_fit_in_one_line(exported, tmp_path, capsys, words, said):
    status, out, err = command(capsys, exported, "--out", tmp_path / "none", *words)
    assert status == 2 and out == "" and len(err.splitlines()) == 1 and said in err
    assert not (tmp_path / "none").exists()


def test_the_command_refuses_folders_that_are_none_of_the_learners_classes(exported, tmp_path, capsys):
    shutil.copytree(exported / "photos" / "valid" / "rows", tmp_path / "cats")
    shutil.copytree(exported / "photos" / "valid" / "rows", tmp_path / "rows")
    assert main(["judge", str(exported / "model.pkl"), str(tmp_path)]) == 2
    assert "There is no class 'cats'" in capsys.readouterr().err
