"""`Run` reads what is there, whole or damaged, without torch; and the pictures of a whole run."""

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_fixture import LABELS, make_run

from fastai_gradcam import Run
from fastai_gradcam.pictures import title
from fastai_gradcam.record import Frame, Recorder, append
from fastai_gradcam.render import RIGHT, WRONG
from fastai_gradcam.run import HISTORY_COLUMNS

STRANGE = ["NA", "null", "", "nan", "None", "Ködel-Ünïcode 鱼 🐟", "x" * 300, 'a, "b"; c', "007", "True", "1e5", "-"]


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "run", n=4, frames=4, failed=(2,))
    for k in (0, 1, 3):
        Image.new("RGB", (30, 20), (k, 0, 0)).save(path / f"frames/frame-{k:03d}.png")
    return Run(path)


def recorded(path, labels, frames=3, **changes):
    "A run folder as the callback's recorder writes it, one image per label."
    n, rng = len(labels), np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in labels]
    recorder = Recorder.create(
        path, settings={}, arch="tiny", layers=["0.2"], vocab=labels, names=[f"{i}.png" for i in range(n)],
        labels=labels, images=images, masks=[None] * n,
    )  # fmt: skip
    for k in range(frames):
        maps = rng.random((n, 3, 4)).astype(np.float32)
        rows = [
            {"frame": k, "fit": 0, "epoch": k - 1, "item": i, "layer": "0.2", "label": label, "target": label,
             "prob": 0.1 + i / 100, "pred": label, "pred_prob": 0.5, "correct": i % 2 == 0, "loss": float("nan"),
             "evidence": float(maps[i].sum()), "pointing_hit": None, **changes}
            for i, label in enumerate(labels)
        ]  # fmt: skip
        recorder.add(Frame(k, 0, k - 1, {"accuracy": 0.5, "f1": None} if k else {}, {"0.2": maps}, rows))
    recorder.close("finished")
    assert recorder.take_errors() == []
    return Run(path)


# What it reads


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


def test_a_line_break_in_a_class_name_is_a_space_in_the_history(tmp_path):
    run = recorded(tmp_path / "run", ["two\nlines", "carriage\r\nreturn", "tab\there"])
    assert list(run.history.query("frame == 0")["label"]) == ["two lines", "carriage return", "tab\there"]
    assert run.vocab[0] == "two\nlines"
    assert len(run.history) == 9
    run.grid(0), run.evolution()


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


# Damage


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema_version": 1', "[]", "null", "{}", '{"schema_version": "1"}', "\x00"], ids=repr
)
def test_a_damaged_run_json_is_named(text, run):
    (run.path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json.* is damaged"):
        Run(run.path)


def test_a_folder_without_a_run_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "gone", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"There is no run in .*no run\.json"):
            Run(path)


def test_a_run_of_a_newer_version_is_refused_with_both_versions(run):
    info = json.loads((run.path / "run.json").read_text()) | {"schema_version": 7}
    (run.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"schema version 7; this fastai_gradcam reads up to 1"):
        Run(run.path)


def test_what_a_newer_writer_adds_is_no_obstacle(run):
    info = json.loads((run.path / "run.json").read_text()) | {"weather": "fine"}
    info["frames"][0]["more"] = 1
    (run.path / "run.json").write_text(json.dumps(info))
    history = run.path / "history.csv"
    lines = history.read_text().splitlines()
    history.write_text("\n".join([lines[0] + ",extra", *(line + ",1" for line in lines[1:])]) + "\n")
    assert len(Run(run.path).history) == 12 and Run(run.path).history["prob"].notna().all()


@pytest.mark.parametrize("size", [0, 1, 100, 500, -1])
def test_damaged_maps_are_named_and_cost_no_other_frame(size, run):
    file = run.path / "maps" / "frame-001.npz"
    data = file.read_bytes()
    file.write_bytes(data[:size])
    with pytest.raises(ValueError, match=r"maps of frame 1 .*frame-001\.npz"):
        run.maps(1)
    assert run.maps(0) and run.maps(3)
    file.unlink()
    with pytest.raises(ValueError, match=r"maps of frame 1 .*frame-001\.npz"):
        run.maps(1)
    assert run.evolution().width > 100
    with Image.open(run.animation()) as gif:
        assert gif.n_frames == 2


def test_maps_with_a_flipped_byte_are_refused_not_believed(run):
    file = run.path / "maps" / "frame-001.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"maps of frame 1"):
        run.maps(1)


@pytest.mark.parametrize("cut", [1, 3, 19, 40, 90, 150, -2, -3])
def test_half_a_row_at_the_end_is_left_out_with_a_warning(cut, run):
    whole = run.history
    file = run.path / "history.csv"
    text = file.read_text()
    last = text.rstrip("\n").rindex("\n") + 1
    assert len(text) - last > abs(cut)
    cut = cut if cut > 0 else len(text) - last + cut
    file.write_text(text[: last + cut])
    with pytest.warns(UserWarning, match="damaged row"):
        left = run.history
    pd.testing.assert_frame_equal(left, whole[:-1])


@pytest.mark.parametrize("cut", [1, 2, 40, -2])
def test_the_rows_of_a_frame_that_is_being_written_are_left_out_without_a_word(cut, run):
    whole, file = run.history, run.path / "history.csv"
    last = file.read_bytes().splitlines(keepends=True)[-1]
    row = b"77" + last[last.index(b",") :]
    with file.open("ab") as out:
        out.write(row + row[:cut])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(run.history, whole)


def test_a_history_cut_within_a_character_keeps_its_whole_rows(tmp_path):
    run = recorded(tmp_path / "run", ["鱼", "魚"])
    whole, file = run.history, run.path / "history.csv"
    data = file.read_bytes()
    file.write_bytes(data[: data.rindex("魚".encode()) + 1])
    with pytest.warns(UserWarning, match="damaged row"):
        pd.testing.assert_frame_equal(run.history, whole[:-1])


def test_a_history_that_a_spreadsheet_saved_is_the_same(run):
    whole, file = run.history, run.path / "history.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(run.history, whole)


def test_a_frame_adds_to_the_history_and_rewrites_nothing_of_it(tmp_path):
    run = recorded(tmp_path / "run", ["a", "b"], frames=2)
    file = run.path / "history.csv"
    before, inode = file.read_bytes(), file.stat().st_ino
    append(file, b"a row\n")
    assert file.stat().st_ino == inode and file.read_bytes() == before + b"a row\n"


def test_what_cannot_be_added_whole_is_not_added(tmp_path):
    file = tmp_path / "history.csv"
    file.write_bytes(b"x" * 900)
    code = (
        "import resource, signal, sys; from pathlib import Path; from fastai_gradcam.record import append\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "append(Path(sys.argv[1]), b'y' * 500)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert "File too large" in done.stderr, done.stderr
    assert file.read_bytes() == b"x" * 900


def test_a_history_that_is_no_text_is_damaged(run):
    (run.path / "history.csv").write_bytes(b"frame,fit\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"history\.csv.* is damaged"):
        _ = run.history


def test_a_row_that_ends_within_quotes_is_left_out(tmp_path):
    run = recorded(tmp_path / "run", ["a", 'b, "c"'])
    whole, file = run.history, run.path / "history.csv"
    text = file.read_text()
    file.write_text(text[: text.rindex('"b, ') + 3])
    with pytest.warns(UserWarning, match="damaged row"):
        pd.testing.assert_frame_equal(run.history, whole[:-1])


def test_a_history_without_a_column_is_damaged(run):
    file = run.path / "history.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False).drop(columns="entropy")
    table.to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"history\.csv.* is damaged: it has no column 'entropy'"):
        _ = run.history


@pytest.mark.parametrize("name", ["panel/000.jpg", "frames/frame-000.png"])
def test_a_damaged_picture_is_named(name, run):
    file = run.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=f"{Path(name).name}.* cannot be read"):
        run.image(0) if "panel" in name else run.grid(0)


# Without torch


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
    with pytest.raises(ValueError, match=r"\.gif, \.webp or \.png, got 'a\.mp4'"):
        run.animation(tmp_path / "a.mp4")


def test_curves_are_the_means_of_the_history(run):
    axes = run.plot(["prob", "entropy"])
    assert len(axes) == 2 and axes[0].get_title() == "prob"
    mean = run.history.groupby("frame")["prob"].mean()
    thick = max(axes[0].lines, key=lambda line: line.get_linewidth())
    assert np.allclose(thick.get_ydata(), mean) and list(thick.get_xdata()) == [0, 1, 3]
    assert len(axes[0].lines) == 5
    own = plt.subplots()[1]
    assert run.plot(["loss"], ax=own)[0] is own
    plt.close("all")


def test_columns_without_numbers_are_left_out(tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=2, masks=False))
    assert [a.get_title() for a in run.plot(["mask_share", "prob"])] == ["prob"]
    with pytest.raises(ValueError, match="no numbers"):
        run.plot(["mask_share"])
    plt.close("all")


def test_two_runs_on_the_same_panel_stand_side_by_side(tmp_path):
    one, other = (Run(make_run(tmp_path / name, n=3, frames=f, seed=0)) for name, f in (("one", 3), ("other", 5)))
    page = one.compare(other)
    assert page.width > 2 * 160 and page.height > 3 * 160
    assert page.tobytes() != one.compare(one).tobytes() != other.compare(one).tobytes()
    assert one.compare(other, items=[1]).height < page.height / 2


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


def test_maps_of_zeros_and_of_nan_are_drawn_without_a_warning(tmp_path):
    run = Run(make_run(tmp_path / "run", n=3, frames=3, empty=[(0, 0), (1, 0), (2, 0)]))
    with np.load(run.path / "maps" / "frame-001.npz") as stored:
        maps = dict(stored)
    maps["0.7.2"][1] = np.nan
    np.savez(run.path / "maps" / "frame-001.npz", **maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.evolution(), run.animation(), run.compare(run), run.findings()


def test_frames_are_named_shortly():
    assert title({"epoch": -1, "fit": 0}) == "before"
    assert title({"epoch": 3, "fit": 1}) == "fit 1 ep 3" and title({"epoch": 3, "fit": 0}, False) == "epoch 3"
