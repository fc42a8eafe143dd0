"""The command line, run as a person runs it: in a process of its own, offline, on small images."""

import json
import os
import subprocess
import sys

import pytest
from pages import embedded
from report_fixture import make_run

from fastai_gradcam import Run
from fastai_gradcam.cli import main
from fastai_gradcam.demo import make_fish
from fastai_gradcam.findings import Thresholds

# A network so small that seconds are enough; weights are never looked for on the network here.
QUICK = ["--arch", "squeezenet1_1", "--size", "64", "--bs", "8", "--epochs", "1", "--n", "4"]


def command(*args, home, **more):
    env = {**os.environ, "TORCH_HOME": str(home), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "2", **more}
    # A proxy that nobody listens at: a machine without network, wherever the test runs.
    env |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    words = [sys.executable, "-m", "fastai_gradcam.cli", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    return make_fish(tmp_path_factory.mktemp("data") / "fish", per_species=5, size=64)


@pytest.fixture(scope="module")
def trained(fish, tmp_path_factory):
    "What `train` printed, its run, and the learner that it exported."
    out = tmp_path_factory.mktemp("out")
    args = ["train", fish, "--out", out, "--name", "first", "--export", out / "learner.pkl", *QUICK]
    return command(*args, home=out), out / "first", out / "learner.pkl"


def test_train_watches_and_says_where_the_pictures_are(trained):
    done, path, _ = trained
    assert done.returncode == 0, done.stderr
    run = Run(path)
    assert run.status == "finished"
    assert [f["status"] for f in run.frames] == ["ok", "ok"]
    assert str(path / "frames") in done.stdout
    assert str(path / "report.html") in done.stdout
    assert (path / "report.html").exists() and (path / "evolution.png").exists()


def test_without_network_one_line_says_that_training_is_from_scratch(trained):
    lines = [line for line in trained[0].stdout.splitlines() if "training from scratch" in line]
    assert len(lines) == 1 and lines[0].startswith("no pretrained weights (")


def test_the_fish_layout_brings_its_masks(trained):
    run = Run(trained[1])
    # An empty map has no share: the network has barely begun to learn.
    assert (run.history["mask_share"].notna() == (run.history["evidence"] > 0)).all()
    assert all(0 < run.mask(p["item"]).mean() < 0.6 for p in run.panel)
    assert "share of the attention that lies on the object" in trained[0].stdout


def test_a_name_that_exists_is_refused_before_training(trained, fish):
    path = trained[1]
    done = command("train", fish, "--out", path.parent, "--name", path.name, *QUICK, home=path.parent)
    assert done.returncode == 2
    assert f"There is a run {path.name!r}" in done.stderr and "Traceback" not in done.stderr
    assert len(Run(path).frames) == 2


def test_explain_writes_an_overlay_for_each_image_and_prints_json(trained, fish, tmp_path):
    images = sorted((fish / "Trout" / "Trout").glob("*.png"))[:3]
    args = ["explain", trained[2], images[0], fish / "Shrimp" / "Shrimp", "--out", tmp_path / "maps", "--json"]
    done = command(*args, home=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 6 == len(list((tmp_path / "maps").glob("*.png")))
    assert rows[0]["image"] == str(images[0]) and rows[0]["pred"] in Run(trained[1]).vocab
    assert 0 <= rows[0]["prob"] <= 1


def test_explain_goes_on_after_an_image_that_cannot_be_read_and_says_so(trained, fish, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = fish / "Trout" / "Trout" / "00001.png"
    args = ["explain", trained[2], broken, good, "--target", "Trout", "--target", "Shrimp", "--out", tmp_path / "maps"]
    done = command(*args, home=tmp_path)
    assert done.returncode == 1
    assert "broken.png" in done.stderr and "Traceback" not in done.stderr
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2


def test_report_is_made_again_from_the_folder(trained, tmp_path, capsys):
    assert main(["report", str(trained[1]), "--out", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["report", "nowhere"], "There is no run in 'nowhere'"),
        (["train", "nowhere"], "There is no folder 'nowhere'"),
        (["explain", "nowhere.pkl", "a.jpg"], "There is no learner file 'nowhere.pkl'"),
        (["demo", "--method", "gradcamm"], "no method 'gradcamm'. Did you mean 'gradcam'?"),
        (["demo", "--epochs", "0", "--per-species", "1", "--out", "{tmp}"], "epochs must be positive"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence_without_a_traceback(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(tmp=tmp_path) for a in args]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


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


@pytest.mark.parametrize("name", ["demo", "train", "explain", "report"])
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
