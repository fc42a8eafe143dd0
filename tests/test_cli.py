"""The command line, run as a person runs it: in a process of its own, offline, on small images."""

import importlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    FuncSplitter,
    ImageBlock,
    Learner,
    MultiCategoryBlock,
    PILImage,
    PILImageBW,
    Resize,
    get_files,
    get_image_files,
    parent_label,
    set_seed,
    vision_learner,
)
from fastcore.imports import noop
from pages import embedded
from PIL import Image
from processes import environment, python
from report_fixture import make_run
from torch import nn
from training import one_thread, tiny, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMError, Run
from fastai_gradcam._cli.parser import METHODS, make_parser
from fastai_gradcam._errors import GradCAMTypeError
from fastai_gradcam.cli import main
from fastai_gradcam.demo import make_fish
from fastai_gradcam.findings import Thresholds
from fastai_gradcam.methods import methods

# A network so small that seconds are enough; weights are never looked for on the network here.
QUICK = ["--arch", "squeezenet1_1", "--size", "64", "--bs", "8", "--epochs", "1", "--n", "4"]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    "No weights on the disk, and no network to get them from."
    for name, value in environment(tmp_path / "none").items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    return make_fish(tmp_path_factory.mktemp("data") / "fish", per_species=5, size=64)


@pytest.fixture(scope="module")
def trained(fish, tmp_path_factory):
    "The words that `train` printed, its run, and the learner that it exported."
    out = tmp_path_factory.mktemp("out")
    args = ["train", fish, "--out", out, "--name", "first", "--export", out / "learner.pkl", *QUICK]
    return python("-m", "fastai_gradcam", *args), out / "first", out / "learner.pkl"


@pytest.mark.slow
def test_train_watches_and_says_where_the_pictures_are(trained):
    done, path, learner = trained
    assert done.returncode == 0, done.stderr
    run = Run(path)
    assert run.status == "finished"
    assert [f["status"] for f in run.frames] == ["ok", "ok"]
    lines = done.stdout.splitlines()
    assert f"grids appear in {path / 'frames'} during training" in lines
    assert lines.index(f"grids:   {path / 'frames'}") > next(
        i for i, l in enumerate(lines) if l.startswith("accuracy on")
    )
    assert lines[-2] == f"learner: {learner}"
    assert lines[-1] == f"next:    open the report in a browser, or: fastai-gradcam explain {learner} IMAGE"
    assert any(l.startswith(("finding: ", "no finding. Looked for: ")) for l in lines)
    assert str(path / "report.html") in done.stdout
    assert (path / "report.html").exists() and (path / "evolution.png").exists()


@pytest.mark.slow
def test_without_network_one_line_says_that_training_is_from_scratch(trained):
    lines = [line for line in trained[0].stdout.splitlines() if "training from scratch" in line]
    assert len(lines) == 1 and lines[0].startswith("no pretrained weights (")


@pytest.mark.slow
def test_the_fish_layout_brings_its_masks(trained):
    run = Run(trained[1])
    # An empty map has no share: the network has barely begun to learn.
    assert (run.history["mask_share"].notna() == (run.history["evidence"] > 0)).all()
    assert all(0 < run.mask(p["item"]).mean() < 0.6 for p in run.panel)
    assert "share of the attention that lies on the object" in trained[0].stdout


@pytest.mark.slow
def test_a_name_that_exists_is_refused_before_training(trained, fish, capsys):
    path = trained[1]
    assert main(["train", str(fish), "--out", str(path.parent), "--name", path.name, *QUICK]) == 2
    assert f"There is a run {path.name!r}" in capsys.readouterr().err
    assert len(Run(path).frames) == 2


@pytest.mark.slow
def test_explain_writes_an_overlay_for_each_image_and_prints_json(trained, fish, tmp_path, capsys):
    images = sorted((fish / "Trout" / "Trout").glob("*.png"))[:3]
    rows = explained(capsys, trained[2], images[0], fish / "Shrimp" / "Shrimp", "--out", tmp_path / "maps")
    assert len(rows) == 6 == len(list((tmp_path / "maps").glob("*.png")))
    assert rows[0]["image"] == str(images[0]) and rows[0]["pred"] in Run(trained[1]).vocab
    assert 0 <= rows[0]["prob"] <= 1


@pytest.mark.slow
def test_explain_goes_on_after_an_image_that_cannot_be_read_and_says_so(trained, fish, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = fish / "Trout" / "Trout" / "00001.png"
    args = ["explain", trained[2], broken, good, "--target", "Trout", "--target", "Shrimp", "--out", tmp_path / "maps"]
    assert main(list(map(str, args))) == 1
    assert "broken.png" in capsys.readouterr().err
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2


def of_colours(path, names):
    "Plain images, coloured by the first word of their name."
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (32, 32), name.split("-")[0]).save(path / f"{name}.png")
    return path


def two_labels(file):
    return ["a", "b"] if file.name.startswith("red") else ["c"] if file.name.startswith("blue") else []


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    "A learner of several labels: on red two, on blue one, on others none."
    path = tmp_path_factory.mktemp("labelled")
    of_colours(path / "images", [f"{colour}-{i}" for colour in ("red", "blue", "white") for i in range(4)])
    set_seed(3)
    dls = DataBlock(
        (ImageBlock, MultiCategoryBlock), get_items=get_image_files, get_y=two_labels, item_tfms=Resize(32)
    ).dataloaders(path / "images", bs=4, num_workers=0)
    learn = vision_learner(dls, tiny, pretrained=False, cut=-3, path=path)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = noop
    with torch.no_grad():
        # A head of three thresholds on the colours' means, so that nothing needs to be learned.
        learn.model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 4, 4)), nn.Flatten(), nn.AdaptiveAvgPool1d(3))
        conv = learn.model[0][0]
        conv.weight.zero_(), conv.bias.fill_(-1)
        # red − green, twice, and blue − green
        for out, (plus, minus) in enumerate(((0, 1), (0, 1), (2, 1))):
            conv.weight[out, plus], conv.weight[out, minus] = 1.0, -1.0
    learn.export(path / "learner.pkl")
    return path / "learner.pkl"


@pytest.mark.parametrize("layer", [[], ["--layer", "0.0"]])
def test_explain_gives_each_image_its_own_maps_whatever_the_number_of_its_labels(labelled, tmp_path, capsys, layer):
    images = of_colours(tmp_path / "images", ["blue", "red", "white"])
    assert main(["explain", str(labelled), str(images), "--out", str(tmp_path / "out"), "--json", *layer]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [(Path(row["image"]).stem, row["pred"]) for row in rows]
    assert told == [("blue", "c"), ("red", "a, b"), ("red", "a, b"), ("white", "(none)")]
    assert sorted(row["target"] for row in rows[1:3]) == ["a", "b"]
    # The overlay beside its name is of the kind that the image is.
    seen = {Path(row["image"]).stem: np.asarray(Image.open(row["overlay"])).mean((0, 1)) for row in rows}
    assert seen["white"].min() > 100 and seen["red"].argmax() == 0


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    "An exported learner whose classes are called 1, 10 and 2."
    path = tmp_path_factory.mktemp("numbers")
    for part in ("train", "valid"):
        for i, name in enumerate(("1", "10", "2")):
            of_colours(path / "images" / part / name, [f"{c}-{i}" for c in ("red", "blue")])
    learn = tiny_learner(path / "images", path)
    learn.export(path / "learner.pkl")
    return path / "learner.pkl"


def explained(capsys, *args):
    assert main(["explain", *map(str, args), "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


class Grey16(PILImageBW):
    "Sixteen bits, read as the learner wants them: Pillow's own conversion to grey would cut them off at 255."

    @classmethod
    def create(cls, file, **kwargs):
        return cls(Image.fromarray((np.asarray(Image.open(file)).astype(float) / 256).astype(np.uint8)))


class FromArray(PILImage):
    @classmethod
    def create(cls, file, **kwargs):
        return cls(Image.fromarray(np.load(file)))


def pixels_of(k, i):
    return np.random.default_rng([k, i]).integers(80 * k, 100 + 80 * k, (24, 32, 3), dtype=np.uint8)


def save_16_bits(path, pixels):
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(path.with_suffix(".png"))


def save_turned(path, pixels):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    pixels[:, :16] = 0
    Image.fromarray(pixels).save(path.with_suffix(".jpg"), exif=exif)


def save_palette(path, pixels):
    Image.fromarray(pixels).quantize(16).save(path.with_suffix(".png"), transparency=0)


def save_transparent(path, pixels):
    image = Image.fromarray(pixels)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path.with_suffix(".png"))


def save_array(path, pixels):
    np.save(path.with_suffix(".npy"), pixels)


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        (Grey16, save_16_bits),
        (PILImage, save_turned),
        (PILImage, save_palette),
        (PILImage, save_transparent),
        (PILImageBW, save_palette),
        (FromArray, save_array),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_explain_opens_files_as_predict_does(kind, save, whole, tmp_path, capsys):
    for k, label in enumerate("ab"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            save(tmp_path / "images" / label / str(i), pixels_of(k, i))
    block = DataBlock(
        (ImageBlock(kind), CategoryBlock),
        get_items=lambda path: get_files(path),
        get_y=parent_label,
        splitter=FuncSplitter(is_last),
        item_tfms=Resize(24),
    )
    dls = block.dataloaders(tmp_path / "images", bs=2, num_workers=0)
    channels = 1 if issubclass(kind, PILImageBW) else 3
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 4, 3, 2), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    with torch.no_grad():
        net[-1].weight.mul_(60)  # so that another picture is another probability
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), path=tmp_path)
    learn.export(tmp_path / "learner.pkl")
    files = sorted(get_files(tmp_path / "images"))
    rows = explained(
        capsys, tmp_path / "learner.pkl", tmp_path / "images" if whole else files[0], "--out", tmp_path / "out"
    )
    assert len(rows) == (6 if whole else 1)
    for row in rows:
        with learn.no_bar(), learn.no_logging():
            label, _, probs = learn.predict(Path(row["image"]))
        assert (row["pred"], row["pred_prob"]) == (label, pytest.approx(float(probs.max()), abs=1e-4))


def is_last(file):
    return file.stem == "2"


@pytest.mark.parametrize(("target", "label"), [("1", "1"), ("2", "2"), ("10", "10"), ("0", "1")])
def test_a_class_is_meant_by_its_name_before_its_number(numbers, tmp_path, capsys, target, label):
    images = of_colours(tmp_path / "images", ["red"])
    (row,) = explained(capsys, numbers, images, "--target", target, "--out", tmp_path / "out")
    assert row["target"] == label


# The layers inside of a body of three blocks.
LAYERS = [f"0.{i}.{j}" for i in range(3) for j in range(3)]


def test_overlays_are_named_by_layer_and_class_where_there_are_several(numbers, tmp_path, capsys):
    images = of_colours(tmp_path / "images", ["red"])
    rows = explained(
        capsys, numbers, images, "--layer", "all", "--target", "1", "--target", "2", "--out", tmp_path / "out"
    )
    assert {Path(row["overlay"]).name for row in rows} == {
        f"images-red-{label}-{layer}.png" for label in "12" for layer in LAYERS
    }
    for row in rows:
        assert Path(row["overlay"]).name == f"images-red-{row['target']}-{row['layer']}.png"
    assert explained(capsys, numbers, images, "--layer", "-1", "--out", tmp_path / "out")[0]["layer"] == "0.2"


def test_overlays_of_an_earlier_run_are_no_images_to_explain(numbers, tmp_path, capsys):
    images = of_colours(tmp_path / "images", ["red", "blue"])
    for _ in range(2):
        assert len(explained(capsys, numbers, images, "--out", images / "explained")) == 2
    before = (images / "red.png").read_bytes()
    assert main(["explain", str(numbers), str(images), "--out", str(images)]) == 2
    assert "is a folder of images to explain: choose another" in capsys.readouterr().err
    # An overlay takes no image's place.
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images-red.png")
    explained(capsys, numbers, images / "red.png", tmp_path / "images-red.png", "--out", tmp_path)
    assert np.asarray(Image.open(tmp_path / "images-red.png")).tolist() == np.full((32, 32, 3), (255, 0, 0)).tolist()
    assert (images / "red.png").read_bytes() == before


def test_the_table_fits_100_columns_whatever_the_names_are():
    from fastai_gradcam._cli.explain import table

    row = {
        "image": "/a/" + "folder/" * 30 + "end.jpg",
        "pred": "p" * 60,
        "pred_prob": 1.0,
        "target": "t" * 60,
        "prob": 0.5,
    }
    lines = table([row | {"layer": f"0.{'x' * 40}{i}"} for i in range(2)]).splitlines()
    assert all(len(line) <= 100 for line in lines) and lines[1].startswith("/a/folder")
    assert all("end.jpg" in line and line.endswith(f"x{i}") for i, line in enumerate(lines[1:]))
    assert "layer" not in table([row | {"layer": "0.1"}])


def test_a_name_cannot_steer_the_terminal():
    from fastai_gradcam._cli.explain import table

    row = {
        "image": "\x1b[2J\x07cat\n.jpg",
        "pred": "a\x9b31m",
        "pred_prob": 1.0,
        "target": "\x7f",
        "prob": 0.5,
        "layer": "1",
    }
    shown = table([row])
    assert r"\x1b[2J\x07cat .jpg" in shown and r"a\x9b31m" in shown and r"\x7f" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_explain_prints_a_table_in_columns_and_writes_it(numbers, tmp_path, capsys):
    images = of_colours(tmp_path / "images", ["red", "blue-of-a-long-name"])
    assert main(["explain", str(numbers), str(images), "--target", "10", "--out", str(tmp_path / "out")]) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and last == f"overlays and table: {tmp_path / 'out'}"
    assert max(map(len, [head, *lines])) <= 100
    for name, word in (("predicted", None), ("map of", "10")):
        at = head.index(name)
        assert all(line[at - 1] == " " != line[at] for line in lines)
        assert word is None or all(line[at:].startswith(word) for line in lines)
    rows = pd.read_csv(tmp_path / "out" / "table.csv", dtype={"target": str})
    assert list(rows) == ["image", "overlay", "target", "prob", "pred", "pred_prob", "layer"]
    assert rows["image"].tolist() == [str(images / "blue-of-a-long-name.png"), str(images / "red.png")]
    assert rows["target"].tolist() == ["10", "10"] and all(Path(o).exists() for o in rows["overlay"])


@pytest.mark.slow
def test_a_reader_that_has_enough_is_not_an_error(tmp_path):
    run = make_run(tmp_path / "run", n=1, frames=1)
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "fastai_gradcam", "report", str(run)]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(writing)
    assert done.stderr == "" and done.returncode == 141


def test_in_a_terminal_a_bar_says_how_far_it_is(numbers, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    images = of_colours(tmp_path / "images", ["red", "blue"])
    monkeypatch.setattr("sys.stderr", Terminal())
    assert main(["explain", str(numbers), str(images), "--out", str(tmp_path)]) == 0
    told = sys.stderr.getvalue()
    assert "[1/2 " in told and "[2/2 " in told, told


def test_ctrl_c_says_what_is_kept(numbers, tmp_path, capsys, monkeypatch):
    images = of_colours(tmp_path / "images", ["red"])

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastai_gradcam._cli.explain.cams_by_image", interrupted)
    assert main(["explain", str(numbers), str(images), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip() == "interrupted; overlays written so far are kept"


def test_a_file_that_is_no_learner_is_named_with_the_reason(labelled, tmp_path, capsys, monkeypatch):
    image = of_colours(tmp_path / "images", ["red"]) / "red.png"

    def refused(file):
        assert main(["explain", str(file), str(image), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    torch.save({"weight": torch.zeros(1)}, tmp_path / "state.pth")
    assert "is not what learn.export() wrote: 'dict' object has no attribute 'dls'" in refused(tmp_path / "state.pth")
    (tmp_path / "own_functions.py").write_text("def lab(file): return 'a'")
    monkeypatch.syspath_prepend(tmp_path)
    import own_functions

    torch.save(own_functions.lab, tmp_path / "learner.pkl")
    del own_functions.lab
    assert "needs a function or class that the notebook or program which made the learner defined" in refused(
        tmp_path / "learner.pkl"
    )
    monkeypatch.delitem(sys.modules, "own_functions")
    (tmp_path / "own_functions.py").unlink()
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert "it needs the module 'own_functions', which is not installed here" in refused(tmp_path / "learner.pkl")


# A user's mistake (2) is a `GradCAMError`, or an `OSError` about a named file; whatever else is raised is our fault
# (1).
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GradCAMError("no such class"), 2),
        (GradCAMTypeError("a list, not a number"), 2),
        (FileNotFoundError(2, "No such file or directory", "gone.png"), 2),
        (PermissionError(13, "Permission denied", "locked.png"), 2),
        (ValueError("too many values to unpack (expected 2)"), 1),
        (TypeError("'NoneType' object is not subscriptable"), 1),
        (KeyError("label"), 1),
        (RuntimeError("no memory"), 1),
        (OSError(28, "No space left on device"), 1),
        (AssertionError(), 1),
    ],
)
def test_a_users_mistake_ends_with_2_and_a_fault_of_ours_with_1_and_how_to_report_it(
    error, status, tmp_path, capsys, monkeypatch
):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("fastai_gradcam._cli.report.Run", fails)
    assert main(["report", str(tmp_path)]) == status
    said = capsys.readouterr().err
    assert said.startswith("fastai-gradcam report: ") and said.count("\n") == 1
    assert " ".join(str(error).split()) in said
    assert ("This is a fault of fastai_gradcam" in said and "--debug" in said) == (status == 1)
    assert (type(error).__name__ in said) == (status == 1)
    with pytest.raises(type(error)):
        main(["report", str(tmp_path), "--debug"])


@pytest.mark.slow
def test_report_is_made_again_from_the_folder(trained, tmp_path, capsys):
    assert main(["report", str(trained[1]), "--out", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["report", "nowhere"], "There is no run in 'nowhere'"),
        (["train", "nowhere"], "There is no folder 'nowhere'"),
        (["explain", "nowhere.pkl", "a.jpg"], "There is no learner file 'nowhere.pkl'"),
        (["demo", "--method", "gradcamm"], "no method 'gradcamm'. Did you mean 'gradcam'?"),
        (["demo", "--epochs", "0", "--per-species", "2", "--out", "{tmp}"], "epochs must be positive"),
        (["demo", "--per-species", "0", "--out", "{tmp}"], "--per-species must be at least 2"),
        (["demo", "--per-species", "-3", "--out", "{tmp}"], "--per-species must be at least 2"),
        (["train", "nowhere", "--export", "{tmp}"], "--export is the learner's file; '{tmp}' is a folder"),
        (["train", "nowhere", "--export", "{tmp}/file/learner.pkl"], "name another file with --export"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence_without_a_traceback(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    assert main([a.format(tmp=tmp_path) for a in args]) == 2
    out, err = capsys.readouterr()
    assert words.format(tmp=tmp_path) in err and "Traceback" not in err
    assert "drawing" not in out or "epochs" in words


@pytest.mark.parametrize(
    "args",
    [
        ["train", "."],
        ["train", ".", "--out", "file/runs"],
        ["judge", "m.pkl", "."],
        ["atlas", "m.pkl", ".", "--out", "a"],
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(args, tmp_path, capsys, monkeypatch):
    of_colours(tmp_path / "red", ["red-1", "red-2"])
    for name in ("m.pkl", "file"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    assert main(args) == 2
    assert "cannot be written: name another folder with --out" in capsys.readouterr().err


def test_an_export_is_tried_before_the_training_and_leaves_nothing(tmp_path, capsys):
    assert main(["train", str(tmp_path / "nowhere"), "--export", str(tmp_path / "new" / "learner.pkl")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    (tmp_path / "old.pkl").write_text("old")
    assert main(["train", str(tmp_path / "nowhere"), "--export", str(tmp_path / "old.pkl")]) == 2
    assert (tmp_path / "old.pkl").read_text() == "old"


@pytest.mark.slow
def test_a_smaller_demo_does_not_train_on_the_fish_of_a_larger_one(tmp_path, capsys, monkeypatch):
    counts = []

    def seen(folder, *args):
        counts.append(len(folder.items))
        raise GradCAMError("enough")

    monkeypatch.setattr("fastai_gradcam._cli.train.train", seen)
    for count in (3, 2):
        assert main(["demo", "--per-species", str(count), "--out", str(tmp_path)]) == 2
    assert counts == [27, 18]


@pytest.mark.slow
def test_the_demo_trains_another_network_as_told_and_prints_json_alone(tmp_path, capsys, offline):
    assert main(["demo", "--per-species", "2", "--out", str(tmp_path), "--lr", "1e-4", "--json", *QUICK]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    run = Run(told["run"])
    assert told["status"] == "finished" and len(run.frames) == 2
    assert "training squeezenet1_1 on 9 images" in err and "valid_loss" in err


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("folder", "--out is the report's file; '{}' is a folder"),
        ("file/report.html", "file"),
        ("file", ""),
    ],
)
def test_a_report_that_cannot_be_written_there_is_a_sentence(out, words, capsys, tmp_path):
    run, place = make_run(tmp_path / "run", n=1, frames=1), tmp_path / out
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    assert main(["report", str(run), "--out", str(place)]) == (0 if out == "file" else 2)
    assert words.format(place) in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_is_made_by_the_thresholds_that_are_given(capsys, tmp_path):
    run = make_run(tmp_path / "run", n=6, frames=6)
    told = []
    for i, more in enumerate(
        ([], ["--threshold", "over_chance=99", "--threshold", "confident=0", "--threshold", "rows=1"])
    ):
        assert main(["report", str(run), "--out", str(tmp_path / f"{i}.html"), *more]) == 0
        told.append(embedded(tmp_path / f"{i}.html")["findings"])
    own = Run(run).findings(Thresholds(over_chance=99.0, confident=0.0, rows=1))
    assert [f["text"] for f in told[1]] == own["text"].tolist() and len(own) == 1
    assert [f["text"] for f in told[0]] == Run(run).findings()["text"].tolist() != own["text"].tolist()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("confidnt=0.5", "There is no threshold 'confidnt'. Did you mean 'confident'?"),
        ("confident", "--threshold confident is a number, such as confident=0.8, got 'confident'."),
        ("rows=2.5", "--threshold rows is a whole number, such as rows=12, got 'rows=2.5'."),
    ],
)
def test_a_threshold_that_is_none_is_named(given, words, capsys, tmp_path):
    assert main(["report", str(make_run(tmp_path / "run", n=1, frames=1)), "--threshold", given]) == 2
    assert words in capsys.readouterr().err


def test_a_file_is_no_run(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    assert main(["report", str(tmp_path / "file")]) == 2
    assert f"There is no run in {str(tmp_path / 'file')!r}" in capsys.readouterr().err


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["demo", "train", "explain", "judge", "report"])
def test_help_teaches(name, capsys):
    told = help_of(capsys, name)
    examples = [line.split("  ")[1] for line in told.splitlines() if line.startswith(f"  fastai-gradcam {name}")]
    assert len(examples) >= 3
    for example in examples:
        words = shlex.split(example.split(" | ")[0])[1:]
        # A name that is shown is taken.
        options = make_parser().parse_args(words)
        assert options.command == name
    for status in ("0    done", "1    the work failed", "2    the request does not fit", "130  interrupted"):
        assert status in told
    if name != "report":
        assert all(f" {method}" in " ".join(told.split()) for method in methods)
        assert "learn.model[0][i]" in told and "'all'" in told
    if name == "explain":
        assert "Loading one runs code from that file" in told


def test_the_methods_that_help_names_are_those_that_there_are():
    assert METHODS.split(", ") == list(methods)


def test_help_needs_no_torch():
    code = "import sys\nfrom fastai_gradcam.cli import main\ntry: main(['train', '--help'])\n"
    code += "except SystemExit: sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_a_report_tells_a_script_about_itself(tmp_path, capsys):
    run = make_run(tmp_path / "run", n=1, frames=2)
    assert main(["report", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(run / "report.html"), "frames": 2, "status": Run(run).status}
