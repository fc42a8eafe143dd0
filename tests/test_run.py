"""`Run` reads what is there, whole or damaged, without torch; and the pictures of a whole run."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_fixture import LABELS, make_run

from fastai_gradcam import Run
from fastai_gradcam._draw.compare import _epochs_trained, _shared, _two_names, _two_runs
from fastai_gradcam._draw.frame import frame_grid
from fastai_gradcam._draw.series import Series
from fastai_gradcam._run.files import append_at
from fastai_gradcam._run.schema import FrameEntry
from fastai_gradcam._run.words import frame_name
from fastai_gradcam._run.writer import Frame, Writer
from fastai_gradcam.findings import Thresholds
from fastai_gradcam.render import RIGHT, WRONG, fit, font, overlay
from fastai_gradcam.run import HISTORY_COLUMNS

STRANGE = ["NA", "null", "", "nan", "None", "Ködel-Ünïcode 鱼 🐟", "x" * 300, 'a, "b"; c', "007", "True", "1e5", "-"]


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "run", n=4, frames=4, failed=(2,))
    for k in (0, 1, 3):
        Image.new("RGB", (30, 20), (k, 0, 0)).save(path / f"frames/frame-{k:03d}.png")
    return Run(path)


def recorded(path, labels, frames=3, **changes):
    "A run folder as the callback's writer writes it, one image per label."
    n, rng = len(labels), np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in labels]
    writer = Writer.create(
        path, settings={}, arch="tiny", layers=["0.2"], vocab=labels, names=[f"{i}.png" for i in range(n)],
        labels=labels, images=images, masks=[None] * n, draw=frame_grid,
    )  # fmt: skip
    for k in range(frames):
        maps = rng.random((n, 3, 4)).astype(np.float32)
        rows = [
            {"frame": k, "fit": 0, "epoch": k - 1, "item": i, "layer": "0.2", "label": label, "target": label,
             "prob": 0.1 + i / 100, "pred": label, "pred_prob": 0.5, "correct": i % 2 == 0, "loss": float("nan"),
             "evidence": float(maps[i].sum()), "pointing_hit": None, **changes}
            for i, label in enumerate(labels)
        ]  # fmt: skip
        writer.add(Frame(k, 0, k - 1, {"accuracy": 0.5, "f1": None} if k else {}, {"0.2": maps}, rows))
    writer.close("finished")
    assert writer.take_errors() == []
    return Run(path)


# Reading


def test_a_run_gives_what_the_design_promises(run):
    assert run.status == "finished" and run.layers == ["0.7.2"] and run.vocab == LABELS and run.name == "run"
    assert [f["frame"] for f in run.frames] == [0, 1, 2, 3] and len(run.panel) == 4
    assert {name: m.shape for name, m in run.maps(0).items()} == {"0.7.2": (4, 7, 7)}
    assert run.image(0).mode == "RGB" and run.image(0).size == (128, 128)
    assert run.mask(0).dtype == bool and run.mask(0).shape == (128, 128) and run.mask(0).any()
    assert run.grid(0).mode == "RGB"
    assert "4 frames of 4 images, finished" in repr(run) and "4 frames" in run._repr_html_()


def test_negative_frames_count_from_the_last_complete_one(run):
    assert np.array_equal(run.maps(-1)["0.7.2"], run.maps(3)["0.7.2"])
    assert np.array_equal(run.maps(-2)["0.7.2"], run.maps(1)["0.7.2"])  # frame 2 failed
    assert run.grid().tobytes() == run.grid(3).tobytes()


def test_a_frame_that_is_not_there_or_failed_is_named(run):
    with pytest.raises(IndexError, match=r"no frame 9: the run has frames 0 to 3"):
        run.maps(9)
    with pytest.raises(IndexError, match=r"no frame -4: 3 frames are complete"):
        run.grid(-4)
    with pytest.raises(ValueError, match=r"Frame 2 failed"):
        run.maps(2)


def test_history_has_types_to_compute_with(run):
    history = run.history
    assert list(history.columns) == HISTORY_COLUMNS and len(history) == 3 * 4
    for column in ("frame", "fit", "epoch", "item"):
        assert history[column].dtype == int
    for column in ("correct", "pointing_hit"):
        assert history[column].dtype == "boolean"
    for column in ("layer", "label", "target", "pred"):
        assert history[column].map(type).eq(str).all()
    numbers = [c for c in HISTORY_COLUMNS if c not in "layer label target pred correct pointing_hit".split()]
    assert all(pd.api.types.is_numeric_dtype(history[c]) for c in numbers)
    first = history[history["frame"] == 0]
    assert first[["similarity_prev", "similarity_first", "iou_prev", "centroid_shift"]].isna().all().all()
    assert history["epoch"].min() == -1 and set(history["frame"]) == {0, 1, 3}


def test_a_history_without_rows_has_its_columns_and_types(tmp_path):
    history = recorded(tmp_path / "run", ["a", "b"], frames=0).history
    assert list(history.columns) == HISTORY_COLUMNS and len(history) == 0
    assert history["frame"].dtype == int and history["correct"].dtype == "boolean"
    (tmp_path / "run" / "history.csv").unlink()
    assert len(Run(tmp_path / "run").history) == 0


@pytest.mark.slow
def test_class_names_stay_text_whatever_they_are(tmp_path):
    run = recorded(tmp_path / "run", STRANGE)
    history = run.history
    for column in ("label", "target", "pred"):
        assert list(history.query("frame == 1")[column]) == STRANGE
    assert run.vocab == STRANGE == [p["label"] for p in run.panel]
    assert history["loss"].isna().all() and history["prob"].notna().all() and len(history) == 3 * len(STRANGE)
    page = run.grid(1)
    assert page.width < 1500 and page.height < 2000
    run.evolution(), run.animation(), run.findings()


BROKEN = [
    "two\nlines",
    "carriage\r\nreturn",
    "a\rb",
    "tab\there",
    "\n",
    'a "quoted"\n, name',
    "line\u2028separator",
    "caf\udce9",
]


@pytest.mark.slow
def test_class_names_come_back_letter_by_letter_and_those_that_are_no_text_as_escapes(tmp_path):
    run = recorded(tmp_path / "run", BROKEN)
    history = run.history
    for column in ("label", "target", "pred"):
        assert history.query("frame == 1")[column].tolist() == [*BROKEN[:-1], r"caf\udce9"] == run.vocab
    assert len(history) == 3 * len(BROKEN)
    run.grid(0), run.evolution(), run.report()
    # … and pandas alone reads them all.
    table = pd.read_csv(run.path / "history.csv", keep_default_na=False)
    assert table.query("frame == 1")["label"].tolist() == run.vocab


def test_a_run_of_an_earlier_version_has_its_names_on_one_line_and_says_nothing_of_its_length(tmp_path):
    labels = ["two\nlines", "plain", "same thing", "same\nthing"]
    run = recorded(tmp_path / "run", labels)
    info = json.loads((run.path / "run.json").read_text())
    for frame in info["frames"]:
        del frame["history_bytes"]
    (run.path / "run.json").write_text(json.dumps(info))
    rows = run.history.replace("\n", " ", regex=True)
    rows.to_csv(run.path / "history.csv", index=False)
    # A name that is another's on one line is taken for what it says.
    assert Run(run.path).history.query("frame == 2")["label"].tolist() == ["two\nlines", "plain", *["same thing"] * 2]


@pytest.mark.slow
def test_findings_judge_the_layer_and_by_the_thresholds_that_are_asked_for(tmp_path):
    run = Run(make_run(tmp_path / "run", n=6, frames=6, layers=("0.6.5", "0.7.2")))
    file = run.path / "history.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.loc[(table["layer"] == "0.6.5") & (table["frame"] == "5"), ["evidence", "centroid_y", "mask_share"]] = [
        "0",
        "",
        "",
    ]
    table.to_csv(file, index=False)
    found = run.findings(layer="0.6.5")
    assert (found["kind"] == "empty").sum() > 0 and set(found["layer"]) == {"0.6.5"}
    assert "empty" not in set(run.findings()["kind"]) and set(run.findings()["layer"]) <= {"0.7.2"}
    pd.testing.assert_frame_equal(run.findings(), run.findings(layer="0.7.2"))
    many = run.findings(Thresholds(confident=0.0, over_chance=99.0), layer="0.7.2")
    assert len(many) > len(run.findings())
    with pytest.raises(ValueError, match=r"The run has no layer '0\.7'; it has 0\.6\.5, 0\.7\.2"):
        run.findings(layer="0.7")
    none_yet = Run(make_run(tmp_path / "none", n=1, frames=1, failed=(0,)))
    assert none_yet.findings(layer="0.7.2").empty


# A run that grows


def test_a_run_shows_its_newest_frame_on_the_next_look(tmp_path):
    growing = make_run(tmp_path / "run", n=3, frames=2, status="running")
    run = Run(growing)
    assert len(run.frames) == 2
    longer = make_run(tmp_path / "longer", n=3, frames=4)
    for name in ("maps", "frames"):
        shutil.copytree(longer / name, growing / name, dirs_exist_ok=True)
    shutil.copy(longer / "history.csv", growing / "history.csv")
    assert len(run.history) == 2 * 3  # rows of frames that run.json does not name yet are not told
    shutil.copy(longer / "run.json", growing / "run.json")
    assert len(run.frames) == 4 and len(run.history) == 4 * 3 and run.maps(3)["0.7.2"].shape == (3, 7, 7)


def test_a_run_whose_process_is_gone_is_interrupted(tmp_path):
    here = socket.gethostname()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for i, (pid, host, status) in enumerate(
        [(process.pid, here, "interrupted"), (os.getpid(), here, "running"), (process.pid, "elsewhere", "running")]
    ):
        folder = make_run(tmp_path / str(i), n=1, frames=1, status="running", info={"pid": pid, "host": host})
        assert Run(folder).status == status


def test_run_json_is_read_again_only_when_it_is_another(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", n=3, frames=2, status="running")
    longer = make_run(tmp_path / "longer", n=3, frames=4)
    run, read = Run(folder), []
    monkeypatch.setattr(
        "fastai_gradcam._run.reader.json.loads", lambda text: read.append(1) or json.JSONDecoder().decode(text)
    )
    for item in range(3):
        run.image(item), run.mask(item), run.maps(0), run.maps(-1)
    assert len(read) == 0
    shutil.copytree(longer / "maps", folder / "maps", dirs_exist_ok=True)
    with pytest.raises(IndexError):
        run.maps(3)
    shutil.copy(longer / "run.json", folder / "next.json")
    os.replace(folder / "next.json", folder / "run.json")
    assert run.maps(3) and len(read) == 1
    run.info["frames"].clear()  # what somebody does with an answer changes no other
    assert run.maps(3) and len(run.frames) == 4


# Damage


@pytest.mark.parametrize("cut", [1, 2, 40, -2])
def test_the_rows_of_a_frame_that_is_being_written_are_left_out_without_a_word(cut, tmp_path):
    run = recorded(tmp_path / "run", ["a", "b"])
    whole, file = run.history, run.path / "history.csv"
    info = json.loads((run.path / "run.json").read_text())
    assert info["frames"][-1]["history_bytes"] == file.stat().st_size
    (run.path / "run.json").write_text(json.dumps(info | {"status": "running"}))
    last = file.read_bytes().splitlines(keepends=True)[-1]
    row = b"77" + last[last.index(b",") :]
    with file.open("ab") as out:
        out.write(row + row[:cut])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(run.history, whole)


@pytest.mark.parametrize("knows_its_length", [True, False])
@pytest.mark.parametrize("tail", [b"3,0,2,0,0.2,a\n", b"3,0,2", b""])
def test_a_run_whose_writer_was_killed_goes_on_where_it_was_whole(tail, knows_its_length, tmp_path):
    run = recorded(tmp_path / "run", ["a", "two\nlines"])
    whole, file = run.history, run.path / "history.csv"
    info = json.loads((run.path / "run.json").read_text()) | {"status": "running"}
    if not knows_its_length:
        for frame in info["frames"]:
            del frame["history_bytes"]
    (run.path / "run.json").write_text(json.dumps(info))
    size = file.stat().st_size
    with file.open("ab") as out:
        out.write(tail)
    images = [run.image(i) for i in range(2)]
    writer = Writer.resume(run.path, images, frame_grid)
    assert file.stat().st_size == size
    maps = np.ones((2, 3, 4), np.float32)
    row = {"frame": 3, "fit": 1, "epoch": 0, "item": 0, "layer": "0.2", "label": "a", "target": "a", "correct": True}
    writer.add(Frame(3, 1, 0, {}, {"0.2": maps}, [row, row | {"item": 1}]))
    writer.close("finished")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = run.history
    pd.testing.assert_frame_equal(history[:-2], whole)
    assert history["frame"].tolist()[-2:] == [3, 3] and run.info["frames"][-1]["history_bytes"] == file.stat().st_size


def test_a_history_that_a_spreadsheet_saved_is_the_same(run):
    whole, file = run.history, run.path / "history.csv"
    saved = file.read_bytes().replace(b"\n", b"\r\n").replace(b"True", b"TRUE").replace(b"False", b"FALSE")
    file.write_bytes(b"\xef\xbb\xbf" + saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(run.history, whole)


def test_a_frame_adds_to_the_history_and_rewrites_nothing_of_it(tmp_path):
    run = recorded(tmp_path / "run", ["a", "b"], frames=2)
    file = run.path / "history.csv"
    before, inode = file.read_bytes(), file.stat().st_ino
    assert append_at(file, b"a row\n", len(before)) == len(before) + 6
    assert file.stat().st_ino == inode and file.read_bytes() == before + b"a row\n"
    append_at(file, b"b\n", len(before))  # what lies beyond is half of a frame
    assert file.read_bytes() == before + b"b\n"


def test_what_cannot_be_added_whole_is_not_added(tmp_path):
    file = tmp_path / "history.csv"
    file.write_bytes(b"x" * 900)
    code = (
        "import resource, signal, sys; from pathlib import Path; from fastai_gradcam._run.files import append_at\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "append_at(Path(sys.argv[1]), b'y' * 500, 900)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert "File too large" in done.stderr, done.stderr
    assert file.read_bytes() == b"x" * 900


# Without torch


@pytest.mark.slow
def test_a_run_is_read_and_drawn_without_torch_and_fastai(run, tmp_path):
    code = f"""
import sys
from fastai_gradcam import Run
run = Run({str(run.path)!r})
run.history, run.maps(0), run.mask(0), run.image(0), run.findings(), run.grid(-1)
run.evolution({str(tmp_path / "e.png")!r}); run.animation({str(tmp_path / "e.gif")!r})
run.report({str(tmp_path / "r.html")!r}); run.compare(run)
print(sorted(m for m in ("torch", "fastai", "fastcore", "torchvision") if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert (tmp_path / "e.png").stat().st_size > 1000 and (tmp_path / "r.html").stat().st_size > 1000


# Pictures


@pytest.mark.slow
@pytest.mark.parametrize("frames, images", [(1, 4), (5, 16), (50, 6), (50, 1)])
def test_an_evolution_fits_a_screens_width_however_many_frames(frames, images, tmp_path):
    run = Run(make_run(tmp_path / "run", n=images, frames=frames))
    page = run.evolution(tmp_path / "e.png")
    assert Image.open(tmp_path / "e.png").size == page.size and page.mode == "RGB"
    assert 180 <= page.width <= 1700 and page.height <= 300 * images + 100
    assert (tmp_path / "e.png").stat().st_size < 4_000_000


def coloured(page, colour):
    "How many pixels of `page` have `colour`."
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(np.array(page).astype(int) - rgb).max(2) == 0).sum())


@pytest.mark.slow
def test_an_evolution_tells_right_from_wrong_and_draws_what_was_asked_for(tmp_path):
    for correct, colour, other in ((True, RIGHT, WRONG), (False, WRONG, RIGHT)):
        run = recorded(tmp_path / str(correct), ["a", "b", "c"], correct=correct)
        page = run.evolution()
        assert coloured(page, colour) > 9 * 2 * (100 + 70) and coloured(page, other) == 0
    one = run.evolution(items=[2])
    assert one.height < page.height / 2 and coloured(one, WRONG) == pytest.approx(coloured(page, WRONG) / 3, rel=0.02)
    assert run.evolution(columns=2).width < page.width
    assert run.evolution(alpha=0).tobytes() != page.tobytes() != run.evolution(cmap="jet").tobytes()
    with pytest.raises(ValueError, match="no image 3: the panel has images 0 to 2"):
        run.evolution(items=[0, 3])
    with pytest.raises(ValueError, match=r"no layer '0\.9'; it has 0\.2"):
        run.evolution(layer="0.9")


@pytest.mark.slow
def test_of_many_frames_the_first_and_the_last_are_drawn(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=30))
    first_and_last = Run(shutil.copytree(run.path, tmp_path / "copy"))
    page = run.evolution(columns=4)
    for k in (0, 29):  # any other picture when one of them changes
        with np.load(first_and_last.path / "maps" / f"frame-{k:03d}.npz") as stored:
            turned = {name: m[..., ::-1, ::-1] for name, m in stored.items()}
        np.savez(first_and_last.path / "maps" / f"frame-{k:03d}.npz", **turned)
        changed = first_and_last.evolution(columns=4)
        assert changed.size == page.size and changed.tobytes() != page.tobytes()
        page = changed


@pytest.mark.slow
@pytest.mark.parametrize("frames, shown", [(1, 1), (5, 5), (80, 60)])
def test_an_animation_has_a_page_per_frame_and_rests_on_the_last(frames, shown, tmp_path):
    run = Run(make_run(tmp_path / "run", n=4, frames=frames))
    file = run.animation(seconds=0.5)
    assert file == run.path / "evolution.gif" and file.stat().st_size < 12_000_000
    with Image.open(file) as gif:
        assert getattr(gif, "n_frames", 1) == shown
        if shown > 1:
            assert gif.info["duration"] == 500 and gif.info.get("loop") == 0
            gif.seek(shown - 1)
            assert gif.info["duration"] == 1500


def test_an_animation_is_saved_where_and_as_what_was_asked_for(run, tmp_path):
    file = run.animation(tmp_path / "a.webp", items=[0])
    with Image.open(file) as image:
        assert file == tmp_path / "a.webp" and image.format == "WEBP" and image.n_frames == 3
    with Image.open(run.animation(tmp_path / "a.png")) as image:
        assert image.format == "PNG" and image.n_frames == 3


def test_an_animation_that_this_pillow_cannot_write_is_refused_with_those_it_can(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Pillow writes no \.mp4\. An .* as \.gif or \.webp or \.png, got 'a\.mp4'"):
        run.animation(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"^An animation is saved as \.gif or \.webp or \.png, got 'a'"):
        run.animation(tmp_path / "a")
    handlers = {kind: save for kind, save in Image.SAVE_ALL.items() if kind != "WEBP"}
    monkeypatch.setattr(Image, "SAVE_ALL", handlers)
    with pytest.raises(ValueError, match=r"^An animation is saved as \.gif or \.png, got 'a\.webp'"):
        run.animation(tmp_path / "a.webp")
    # … and one that can, does.
    films = []
    monkeypatch.setitem(Image.EXTENSION, ".mp4", "FILM")
    monkeypatch.setitem(
        handlers, "FILM", lambda image, file, name: films.append(1 + len(image.encoderinfo["append_images"]))
    )
    monkeypatch.setitem(Image.SAVE, "FILM", handlers["FILM"])
    run.animation(tmp_path / "A.MP4")
    assert films == [3]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("a.")] == []


def test_curves_are_the_means_of_the_history(run):
    axes = run.plot(["prob", "entropy"])
    assert len(axes) == 2 and axes[0].get_title() == "probability of the class"
    mean = run.history.groupby("frame")["prob"].mean()
    thick = max(axes[0].lines, key=lambda line: line.get_linewidth())
    assert np.allclose(thick.get_ydata(), mean) and list(thick.get_xdata()) == [0, 1, 3]
    assert len(axes[0].lines) == 5
    own = plt.subplots()[1]
    assert run.plot(["loss"], ax=own)[0] is own
    plt.close("all")


def test_columns_without_numbers_are_left_out(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=2, masks=False))
    assert [a.get_title() for a in run.plot(["mask_share", "prob"])] == ["probability of the class"]
    with pytest.raises(ValueError, match="no numbers"):
        run.plot(["mask_share"])
    plt.close("all")


def thick(ax):
    return max(ax.lines, key=lambda line: line.get_linewidth()).get_ydata()


def test_curves_are_of_one_layer_and_class_which_the_title_names(tmp_path):
    run = Run(make_run(tmp_path / "run", n=3, frames=4, layers=("0.6.5", "0.7.2"), classes=2))
    rows = run.history.groupby(["layer", "frame", "item"])["evidence"].first().groupby(["layer", "frame"]).mean()
    for layer, shown in ((None, "0.7.2"), ("0.6.5", "0.6.5")):
        (ax,) = run.plot(["evidence"], layer=layer)
        assert np.allclose(thick(ax), rows[shown])
        assert ax.get_title() == f"evidence\nlayer {shown}, the first of 2 classes"
    with pytest.raises(ValueError, match=r"no layer '0\.9'; it has 0\.6\.5, 0\.7\.2"):
        run.plot(layer="0.9")
    plt.close("all")


def test_the_second_class_is_never_drawn_as_the_first(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=3, classes=2))
    whole = run.history
    lines = (run.path / "history.csv").read_text().splitlines()
    row = whole.index[(whole["frame"] == 1) & (whole["item"] == 0)][0]
    (run.path / "history.csv").write_text("\n".join([*lines[: row + 1], lines[row + 1][:20], *lines[row + 2 :]]) + "\n")
    with pytest.warns(UserWarning, match="damaged row"):
        course = Series(run, None)
    known = whole[whole["item"] == 0].groupby("frame")["evidence"].first()
    assert course.values(0, "evidence") == pytest.approx([known[0], np.nan, known[2]], nan_ok=True)
    assert course.classes == 2


def test_axes_that_were_given_are_all_used(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=2, masks=False))
    four = plt.subplots(2, 2)[1]
    assert run.plot(ax=four) is four
    assert [a.get_title() for a in four.flat] == [
        "probability of the class",
        "attention on the object",
        "entropy",
        "centroid shift",
    ]
    assert [len(a.lines) for a in four.flat] == [3, 0, 3, 3]
    assert [t.get_text() for t in four.flat[1].texts] == ["no numbers"]
    assert [len(a.lines) for a in run.plot(ax=plt.subplots(1, 3)[1])] == [3, 3, 3]
    with pytest.raises(ValueError, match="ax has 2 axes for 4 columns; give one for each"):
        run.plot(ax=plt.subplots(1, 2)[1])
    plt.close("all")


@pytest.mark.parametrize("column", ["entrpy", "label", "frame"])
def test_a_column_that_there_is_not_is_named(column, run):
    with pytest.raises(ValueError, match=f"There is no column '{column}'"):
        run.plot(["prob", column])
    assert run.plot("correct")[0].get_title() == "correct"
    plt.close("all")


def two_runs(tmp_path, frames=(5, 5), n=3, **options):
    "Two runs on the same pictures, whose maps differ."
    one, other = (
        make_run(tmp_path / name, n=n, frames=f, **options) for name, f in zip(("one", "other"), frames, strict=True)
    )
    for file in (other / "maps").iterdir():
        with np.load(file) as stored:
            turned = {name: m[..., ::-1].copy() for name, m in stored.items()}
        np.savez(file, **turned)
    return Run(one), Run(other)


def cell(page, run, columns, item=0, row=0, column=0, rows=2):
    "The pixels of one picture on a page of pictures, cut where the page's plan says it stands."
    tile = min(160, max(88, 1200 // (columns + 1)))
    space, text = max(6, tile // 16), font(max(11, tile // 9))
    line = round(text.size * 1.5)
    high = fit(run.image(item).size, tile)[1]
    step = line + rows * (high + space) + round(tile * 0.4) + space
    top = page.height - (len(run.panel) - item) * step
    x, y = space + column * (tile + space), top + line + row * (high + space)
    return np.asarray(page.crop((x, y, x + tile, y + high)))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [5, 50])
def test_two_runs_stand_frame_against_frame(frames, tmp_path):
    one, other = two_runs(tmp_path, (frames, frames))
    page = one.compare(other)
    shown = [0, 1, 2, 3, 4] if frames == 5 else [round(i) for i in np.linspace(0, 49, 12)]
    assert 5 * 88 < page.width < 1700
    for item, row, run in ((0, 0, one), (2, 0, one), (0, 1, other), (2, 1, other)):
        small = cell(page, run, len(shown), item, row)
        image = run.image(item).resize(small.shape[1::-1], Image.Resampling.BICUBIC)
        assert np.abs(small[30:].astype(float) - np.asarray(image)[30:]).max() == 0  # below the letter
        for column, k in enumerate(shown):
            expected = np.asarray(overlay(image, run.maps(k)["0.7.2"][item]))[2:-2, 2:-2]
            drawn = cell(page, run, len(shown), item, row, column + 1)[2:-2, 2:-2]
            sign = round(font(max(9, len(small) // 14)).size * 1.3)  # in the upper right corner
            assert np.array_equal(drawn[sign:], expected[sign:]), (item, row, column)
            assert np.array_equal(drawn[:, :-sign], expected[:, :-sign]), (item, row, column)
    assert coloured(page, RIGHT) and coloured(page, WRONG)


@pytest.mark.slow
def test_right_and_wrong_differ_by_more_than_their_colour(tmp_path):
    signs = []
    for correct in (True, False):
        run = recorded(tmp_path / str(correct), ["a"], correct=correct)
        for page, rows in ((run.evolution(), 1), (run.compare(run), 2)):
            corner = cell(page, run, 3, 0, 0, 1, rows)[:14, -14:].astype(int)
            signs.append((corner.min(-1) > 110)[2:-2, 2:-2])
    right, wrong = signs[:2], signs[2:]
    assert np.array_equal(*right) and np.array_equal(*wrong)
    assert right[0].sum() > 8 < wrong[0].sum() and (right[0] != wrong[0]).sum() > 8
    unknown = recorded(tmp_path / "unknown", ["a"], correct=None)
    plain = overlay(unknown.image(0).resize((160, 120), Image.Resampling.BICUBIC), unknown.maps(0)["0.2"][0])
    assert np.array_equal(cell(unknown.evolution(), unknown, 3, 0, 0, 1, 1)[2:-2, 2:-2], np.asarray(plain)[2:-2, 2:-2])


def test_the_pairs_of_two_runs_stand_apart(tmp_path):
    one, other = two_runs(tmp_path, (3, 3), n=6)
    page = np.asarray(one.compare(other, frame=-1, tile=100))
    # Through the middle of a row of pictures, the white gaps between them.
    heights = [y for y in range(page.shape[0]) if (page[y] != 255).all(-1).sum() > 350]
    white = (page[heights[len(heights) // 2]] == 255).all(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[1], white.astype(int), [1]])))
    gaps = [b - a for a, b in zip(edges[1::2], edges[2::2], strict=False)]
    assert len(gaps) == 3 and gaps[1] > 4 * gaps[0] and gaps[0] == gaps[2]
    head = [" · ".join(p) for p in _two_runs([Series(r, None) for r in (one, other)], ("a", "b"), [-1, -1])]
    assert all(re.search(r"epoch 1: train_loss [\d.]+ · valid_loss", words) for words in head), head


def test_a_frame_without_metrics_has_a_name_and_no_colon(tmp_path):
    run = recorded(tmp_path / "run", ["a"], frames=1)
    assert _two_runs([Series(run, None)] * 2, ("a", "b"), [0, 0])[0][-1] == "before training"


@pytest.mark.slow
def test_runs_are_compared_by_their_folders_as_well(tmp_path):
    one, other = two_runs(tmp_path)
    for folder in (other.path, str(other.path)):
        assert one.compare(folder).tobytes() == one.compare(other).tobytes()


@pytest.mark.slow
def test_one_frame_of_each_run_is_a_pair(tmp_path):
    one, other = two_runs(tmp_path, (3, 5))
    page = one.compare(other, frame=-1)
    assert page.width > 2 * 160 and page.height > 3 * 160
    assert page.tobytes() != one.compare(one, frame=-1).tobytes() != other.compare(one, frame=-1).tobytes()
    assert page.tobytes() != one.compare(other, frame=0).tobytes()
    assert one.compare(other, frame=-1, items=[1]).height < page.height
    with pytest.raises(IndexError, match="no frame 4"):
        one.compare(other, frame=4)


def test_runs_of_different_lengths_meet_at_the_same_epochs(tmp_path):
    one = recorded(tmp_path / "one", ["a", "b"], frames=3)
    other = recorded(tmp_path / "other", ["a", "b"], frames=6)
    assert _epochs_trained(Series(one, None)) == [0, 1, 2]
    page = one.compare(other)  # the three that both have, and the longer one's last
    assert _shared([0, 1, 2], [0, 1, 2, 3, 4, 5], 12) == [0, 1, 2, 5]
    assert _shared([0, 1, 2, 3, 4, 5, 6], [0, 3, 6], 12) == [0, 3, 6]
    assert _shared(list(range(51)), list(range(51)), 3) == [0, 25, 50]
    assert _shared([0, 1], [5, 6], 12) == [0, 1, 5, 6]
    blank = cell(page, one, 4, row=0, column=4)
    drawn = cell(page, one, 4, row=1, column=4)
    assert (blank == 255).mean() > 0.9 > (drawn == 255).mean()


def test_epochs_count_over_the_fits_whatever_failed_or_was_passed_over(tmp_path):
    run = Run(make_run(tmp_path / "run", n=1, frames=11, failed=(3,)))
    fits = [(f["fit"], f["epoch"]) for f in run.frames]
    assert fits[:5] == [(0, -1), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert _epochs_trained(Series(run, None)) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_a_comparison_names_the_runs_and_the_settings_that_differ(tmp_path):
    settings = {"n": 3, "method": "gradcam", "seed": 1, "path": "/here", "layer": 5}
    one = Run(make_run(tmp_path / "one", n=2, frames=2, info={"settings": settings, "arch": "resnet18"}))
    more = settings | {"method": "hirescam", "path": "/there", "layer": 7}
    other = Run(make_run(tmp_path / "other", n=2, frames=2, info={"settings": more, "arch": "vgg16"}))
    courses = [Series(one, None), Series(other, None)]
    said = _two_runs(courses, _two_names(one, other), [-1, -1])
    assert said[0][:3] == ["one (resnet18)", "layer 0.7.2", "method gradcam"]
    assert said[0][3].startswith("epoch 1: train_loss ")
    assert said[1][:3] == ["other (vgg16)", "layer 0.7.2", "method hirescam"]
    assert any(part.startswith("accuracy ") for part in said[0])
    (tmp_path / "b").mkdir()
    again = Run(shutil.copytree(one.path, tmp_path / "b" / "one"))
    assert _two_names(one, again) == (f"{tmp_path.name}/one", "b/one")


def resized(run, item, size=None, **changes):
    image = run.image(item)
    image = image if size is None else image.resize((size, size), Image.Resampling.BICUBIC)
    image.paste(**changes) if changes else None
    image.save(run.path / f"panel/{item:03d}.jpg", quality=92)


@pytest.mark.slow
def test_images_of_one_name_that_are_not_the_same_picture_are_told(tmp_path, recwarn):
    one, other = two_runs(tmp_path)
    plain = one.compare(other)
    for item in range(3):
        resized(other, item, 96)
    info = json.loads((other.path / "run.json").read_text())
    for entry in info["panel"]:
        entry |= {"width": 96, "height": 96}
    (other.path / "run.json").write_text(json.dumps(info))
    assert one.compare(other).size == (plain.width, plain.height) and not recwarn  # another size is the same picture
    resized(other, 2, im=(255, 255, 255), box=(70, 70, 90, 90))  # a tag
    with pytest.warns(UserWarning, match=r"1 of 3 images are not the same picture .*: 2 \(Perch/00002\.png\)\. Other"):
        marked = one.compare(other)
    assert coloured(marked, WRONG) > coloured(plain, WRONG)
    with pytest.warns(UserWarning, match="not the same picture"):
        one.compare(other, frame=-1)
    recwarn.clear()
    one.compare(other, items=[0, 1])
    assert not recwarn


@pytest.mark.slow
def test_one_scale_makes_a_weak_map_dark(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=3))
    for k, factor in enumerate((0.1, 1, 0.5)):
        maps = np.ones((2, 7, 7), np.float32) * factor
        maps[1] *= 4
        np.savez(run.path / f"maps/frame-{k:03d}.npz", **{"0.7.2": maps})
    tops = {"map": (1, 1, 1, 1), "image": (0.1, 0.5, 0.1, 0.5), "all": (0.025, 0.125, 0.1, 0.5)}
    for scale, shares in tops.items():
        for draw, rows in ((run.evolution, 1), (lambda **o: run.compare(run, **o), 2)):
            page = draw(scale=scale, alpha=1, cmap="gray")
            found = [cell(page, run, 3, i, 0, c, rows)[60, 60, 0] / 255 for i in (0, 1) for c in (1, 3)]
            assert found == pytest.approx(shares, abs=0.004), scale
    with pytest.raises(ValueError, match="There is no scale 'frame'"):
        run.evolution(scale="frame")


def test_an_empty_map_is_marked_on_an_evolution_and_a_comparison(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=3, empty=[(1, 0)]))
    with np.load(run.path / "maps" / "frame-002.npz") as stored:
        maps = dict(stored)
    maps["0.7.2"][0, 0, 0] = np.nan
    np.savez(run.path / "maps" / "frame-002.npz", **maps)
    for page, rows in ((run.evolution(), 1), (run.compare(run), 2)):
        corners = [(cell(page, run, 3, 0, 0, c, rows)[4:14, 6:60] == 255).all(-1).mean() for c in (1, 2, 3)]
        assert corners[0] < 0.05 < 0.4 < min(corners[1:])


def test_of_several_layers_and_classes_the_one_drawn_is_named(tmp_path):
    several = Run(make_run(tmp_path / "several", n=1, frames=2, layers=("0.6.5", "0.7.2"), classes=2))
    one = Run(make_run(tmp_path / "one", n=1, frames=2))
    assert Series(several, None).about == "layer 0.7.2, the first of 2 classes"
    assert Series(several, "0.6.5").about.startswith("layer 0.6.5") and Series(one, None).about == ""
    line = round(font(160 // 9).size * 1.5)
    assert several.evolution().height == one.evolution().height + line
    text = np.asarray(several.evolution().crop((0, 5 + line, 400, 5 + 2 * line)).convert("L"))
    assert (text < 160).sum() > 200
    with Image.open(several.animation()) as drawn, Image.open(one.animation()) as plain:
        assert drawn.width > plain.width  # the heading says it, and has room


def test_runs_on_different_panels_are_not_compared(tmp_path):
    one = Run(make_run(tmp_path / "one", n=3, frames=2))
    other = Run(make_run(tmp_path / "other", n=4, frames=2))
    with pytest.raises(
        ValueError, match=r"'one' and 'other' watch different images; give both the same items= or seed="
    ):
        one.compare(other)


def test_pictures_of_a_run_without_a_complete_frame_are_refused(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=2, failed=(0, 1)))
    for draw in (run.evolution, run.animation):
        with pytest.raises(ValueError, match="no complete frame yet"):
            draw()


@pytest.mark.slow
def test_maps_of_zeros_and_of_nan_are_drawn_without_a_warning(tmp_path):
    run = Run(make_run(tmp_path / "run", n=3, frames=3, empty=[(0, 0), (1, 0), (2, 0)]))
    with np.load(run.path / "maps" / "frame-001.npz") as stored:
        maps = dict(stored)
    maps["0.7.2"][1] = np.nan
    np.savez(run.path / "maps" / "frame-001.npz", **maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.evolution(), run.animation(), run.compare(run), run.findings()


def test_a_frame_has_one_name():
    frame = Frame(4, fit=1, epoch=3)
    for one in (frame, FrameEntry(4, 1, 3, {}, "ok", None)):
        assert frame_name(one) == "fit 2 · epoch 4" and frame_name(one, several_fits=False) == "epoch 4"
    assert frame_name(Frame(1, 0, 0, frozen=True)) == "fit 1 · frozen epoch 1"
    assert frame_name(Frame(0, 0, -1)) == "before training"
