"""Runs that were killed, damaged, sent by somebody, or are still being written, and what a reader sees of them."""

import io
import json
import os
import socket
import threading
import time
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_fixture import make_run
from training import Quiet, tiny_learner

from fastai_gradcam import GradCAMCallback, Run
from fastai_gradcam._watch.publish import ReportRefresher


def fit(folder, path, **settings):
    with Quiet():
        learn = tiny_learner(folder, path)
    learn.add_cb(GradCAMCallback(n=3, path=path / "runs", **settings))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    return learn.grad_cam.run


def changed(path, change):
    info = json.loads((path / "run.json").read_text())
    change(info)
    (path / "run.json").write_text(json.dumps(info))


def test_a_run_that_another_process_is_writing_is_not_resumed(image_folder, tmp_path):
    run = fit(image_folder, tmp_path, name="one")
    changed(run.path, lambda info: info.update(status="running", pid=os.getppid()))
    with pytest.raises(ValueError, match="Another process is writing the run 'one' now"):
        fit(image_folder, tmp_path, name="one", resume=True)
    changed(run.path, lambda info: info.update(pid=2**22 + 1))  # no such process: it was killed
    assert len(fit(image_folder, tmp_path, name="one", resume=True).frames) == 3


def test_the_beginning_of_a_run_that_was_killed_does_not_block_its_name(image_folder, tmp_path):
    half = tmp_path / "runs" / "one"
    for folder in ("panel", "frames", "maps"):
        (half / folder).mkdir(parents=True)
    (half / "panel" / "000.jpg").write_bytes(b"")
    (half / "panel" / ".001.jpg.part").write_bytes(b"")
    assert len(fit(image_folder, tmp_path, name="one", resume=True).frames) == 2


def test_a_folder_with_something_else_in_it_is_left_alone(image_folder, tmp_path):
    other = tmp_path / "runs" / "one"
    (other / "panel").mkdir(parents=True)
    (other / "panel" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds no run"):
        fit(image_folder, tmp_path, name="one")
    assert (other / "panel" / "holiday.jpg").read_bytes() == b"mine"


def test_a_full_disk_is_one_warning_and_loggers_are_not_asked(image_folder, tmp_path, monkeypatch):
    import fastai_gradcam._run.writer as record

    written, asked = record.write_whole, []

    def full(file, data):
        if file.name == "frame-001.npz":
            raise OSError(28, "No space left on device")
        written(file, data)

    monkeypatch.setattr(record, "write_whole", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(image_folder, tmp_path, loggers=lambda run, frame: asked.append(frame["frame"]))
    assert [f["status"] for f in run.frames] == ["ok", "failed"]
    assert asked == [0]
    assert len([w for w in caught if "GradCAMCallback" in str(w.message)]) == 1


class AtOnce:
    "A recorder's writing thread, in a test: what is handed over is done."

    def behind(self, work):
        work()


def test_a_report_that_was_refreshed_too_soon_is_refreshed_when_it_is_due(tmp_path):
    make_run(tmp_path / "run", frames=2)
    refresh, report = ReportRefresher(tmp_path / "run"), tmp_path / "run" / "report.html"
    refresh(AtOnce(), None)
    first = report.stat().st_mtime_ns
    refresh(AtOnce(), None)
    assert report.stat().st_mtime_ns == first
    for _ in range(600):
        if report.stat().st_mtime_ns != first:
            break
        time.sleep(0.05)
    assert report.stat().st_mtime_ns != first


def test_a_stopped_refresher_writes_no_more(tmp_path):
    make_run(tmp_path / "run", frames=2)
    refresh, report = ReportRefresher(tmp_path / "run"), tmp_path / "run" / "report.html"
    refresh(AtOnce(), None)
    first = report.stat().st_mtime_ns
    refresh(AtOnce(), None)
    refresh.stop()
    refresh._timer.join()
    assert report.stat().st_mtime_ns == first


def test_a_refresh_that_is_just_being_put_off_does_not_keep_the_run_from_ending(image_folder, tmp_path, monkeypatch):
    def put_off(refresher):
        refresher._next = time.monotonic() + 60

    def start_late(timer, start=threading.Timer.start):
        time.sleep(0.3)
        start(timer)

    monkeypatch.setattr(ReportRefresher, "_refresh", put_off)
    monkeypatch.setattr(threading.Timer, "start", start_late)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = fit(image_folder, tmp_path)
    assert run.status == "finished"
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


@pytest.mark.parametrize("where", ["../secret.jpg", "/etc/hostname"])
def test_a_run_that_names_files_elsewhere_shows_none_of_them(tmp_path, where):
    make_run(tmp_path / "run", frames=1)
    changed(tmp_path / "run", lambda info: info["panel"][0].update(image=where))
    with pytest.raises(ValueError, match="lies outside of its folder"):
        Run(tmp_path / "run").image(0)


@pytest.mark.parametrize("key", ["frames", "panel", "layers", "status"])
def test_a_run_file_that_lacks_a_part_is_called_damaged(tmp_path, key):
    make_run(tmp_path / "run", frames=1)
    changed(tmp_path / "run", lambda info: info.pop(key))
    with pytest.raises(ValueError, match=f"is damaged: it has no '{key}'"):
        Run(tmp_path / "run")


def test_findings_survive_damaged_last_maps_and_pictures_say_what_they_leave_out(tmp_path):
    make_run(tmp_path / "run", frames=3)
    last = sorted((tmp_path / "run" / "maps").glob("*.npz"))[-1]
    last.write_bytes(last.read_bytes()[:50])
    run = Run(tmp_path / "run")
    run.findings()
    with pytest.warns(UserWarning, match="Frame 2 is left out"):
        run.evolution()


def test_names_that_differ_in_blanks_stay_apart_in_the_history(image_folder, tmp_path):
    import shutil

    for split in ("train", "valid"):
        classes = sorted(p for p in (image_folder / split).iterdir() if p.is_dir())
        for folder, name in zip(classes, ("a b", "a  b", " c"), strict=False):
            shutil.copytree(folder, tmp_path / "images" / split / name)
    run = fit(tmp_path / "images", tmp_path)
    assert set(run.history["label"]) == {p["label"] for p in run.panel} == {"a b", "a  b", " c"}


# What is damaged costs no more than itself


def with_cells(run, row, **cells):
    "Change cells of one row of the history."
    file = run.path / "history.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    for column, value in cells.items():
        table.loc[row, column] = value
    table.to_csv(file, index=False)


@pytest.mark.parametrize(
    "cells",
    ["fit=", "fit=0.5", "epoch=x", "epoch=inf", "item=inf", "item=1.5", "item=99", "item=-1", "item=1e300", "frame=",
     "frame=nan", "layer=?", "layer="],
)  # fmt: skip
def test_one_bad_cell_costs_its_row_and_no_other(cells, tmp_path):
    run = Run(make_run(tmp_path / "run", n=3, frames=3))
    whole = run.history
    with_cells(run, 4, **dict([cells.split("=")]))
    with pytest.warns(UserWarning, match=r"history\.csv: a damaged row is left out"):
        left = run.history
    pd.testing.assert_frame_equal(left, whole.drop(index=4).reset_index(drop=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.findings(), run.evolution(), run.report()


def replaced(file, content):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("0.7.2.npy", content)


def header(shape, kind="<f4"):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": kind, "fortran_order": False, "shape": shape})
    return data.getvalue()


def huge(file):
    replaced(file, header((2, 400_000, 400_000)) + bytes(100))


def unknown_compression(file):
    data = bytearray(file.read_bytes())
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(mark) + at] = 77
    file.write_bytes(data)


def encrypted(file):
    data = bytearray(file.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    file.write_bytes(data)


def broken_stream(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.7.2.npy", header((3, 7, 7)) + np.random.default_rng(0).bytes(588))
    data = bytearray(file.read_bytes())
    data[60:160] = b"\xff" * 100
    file.write_bytes(data)


def text(file):
    replaced(file, header((3, 7, 7), "<U1") + bytes(3 * 7 * 7 * 4))


def another_layer(file):
    np.savez(file, other=np.ones((3, 7, 7), np.float32))


def too_few(file):
    np.savez(file, **{"0.7.2": np.ones((2, 7, 7), np.float32)})


def a_vector(file):
    np.savez(file, **{"0.7.2": np.ones(3, np.float32)})


@pytest.mark.parametrize(
    "damage", [huge, unknown_compression, encrypted, broken_stream, text, another_layer, too_few, a_vector]
)
def test_maps_that_are_not_what_they_should_be_cost_their_frame_alone(damage, tmp_path):
    run = Run(make_run(tmp_path / "run", n=3, frames=3))
    damage(run.path / "maps" / "frame-001.npz")
    with pytest.warns(UserWarning, match="Frame 1 is left out: The maps of frame 1 "):
        page = run.evolution()
    assert page.width < Run(make_run(tmp_path / "whole", n=3, frames=3)).evolution().width
    with pytest.warns(UserWarning, match="Frame 1 is left out"), Image.open(run.animation()) as gif:
        assert gif.n_frames == 2
    if damage in (huge, unknown_compression, encrypted, broken_stream):
        with pytest.raises(ValueError, match=r"maps of frame 1 .* cannot be read"):
            run.maps(1)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"\x89PNG")])
def test_a_mask_that_cannot_be_read_is_left_out_of_the_findings(damage, tmp_path):
    run = Run(make_run(tmp_path / "run", n=3, frames=3))
    damage(run.path / "panel" / "001-mask.png")
    with pytest.warns(UserWarning, match=r"^The mask of image 1 is left out: .*001-mask\.png.* cannot be read"):
        found = run.findings()
    assert list(found.columns) == list(run.findings().columns)


def test_an_image_that_cannot_be_read_is_drawn_grey(tmp_path):
    run, whole = (Run(make_run(tmp_path / name, n=3, frames=3)) for name in ("run", "whole"))
    draws = (lambda: run.evolution(), lambda: run.compare(whole), lambda: run.compare(whole, frame=-1))
    plain = [draw() for draw in draws]
    (run.path / "panel" / "001.jpg").unlink()
    for draw, before in zip(draws, plain, strict=True):
        with pytest.warns(
            UserWarning, match=r"^Image 1 is drawn grey: The picture .*001\.jpg.* cannot be read"
        ) as said:
            page = draw()
        assert not [w for w in said if "same picture" in str(w.message)]
        assert page.size == before.size and page.tobytes() != before.tobytes()
    with pytest.warns(UserWarning, match="Image 1 is drawn grey"):
        page = run.evolution(items=[1], alpha=0)
    assert ((np.asarray(page) == (0x8C, 0x95, 0x9F)).all(-1)).sum() > 4 * 150 * 150
    with pytest.warns(UserWarning, match="Image 1 is drawn grey"), Image.open(run.animation()) as gif:
        assert gif.n_frames == 3


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda i: i.update(frames=None), "'frames' is None"),
        (lambda i: i.update(frames=[1]), "frame 0 is 1"),
        (lambda i: i.update(layers=None), "'layers' is None"),
        (lambda i: i.update(layers=[]), r"'layers' is \[\]"),
        (lambda i: i.update(layers=[3]), r"'layers' is \[3\]"),
        (lambda i: i.update(panel={}), r"'panel' is \{\}"),
        (lambda i: i.update(settings=None), "'settings' is None"),
        (lambda i: i.update(vocab="ab"), "'vocab' is 'ab'"),
        (lambda i: i["panel"][1].pop("label"), "image 1 has no 'label'"),
        (lambda i: i["panel"][1].pop("image"), "image 1 has no 'image'"),
        (lambda i: i["panel"][1].update(image=None), "'image' of image 1 is None"),
        (lambda i: i["panel"][1].update(width=0), "image 1 is 0×128 pixels"),
        (lambda i: i["panel"].append("x"), "image 2 is 'x'"),
        (lambda i: i["frames"][1].update(frame="1"), "'frame' of frame 1 is '1'"),
        (lambda i: i["frames"][1].update(frame=True), "'frame' of frame 1 is True"),
        (lambda i: i["frames"][1].pop("error"), "frame 1 has no 'error'"),
        (lambda i: i["frames"][1].update(metrics=[]), r"'metrics' of frame 1 is \[\]"),
        (lambda i: i["frames"][1]["metrics"].update(loss="x"), "'loss' of the metrics of frame 1 is 'x'"),
    ],
)
def test_what_is_wrong_in_a_run_file_is_named(change, words, tmp_path):
    make_run(tmp_path / "run", n=2, frames=2)
    changed(tmp_path / "run", change)
    with pytest.raises(ValueError, match=rf"run\.json' is damaged: {words}\.$"):
        Run(tmp_path / "run")


@pytest.mark.parametrize("pid", ["12", -1, 0, 2**80, None, 1.5])
def test_a_process_number_that_is_none_is_a_process_that_is_gone(pid, tmp_path):
    info = {"pid": pid, "host": socket.gethostname()}
    assert Run(make_run(tmp_path / "run", n=1, frames=1, status="running", info=info)).status == "interrupted"


@pytest.mark.parametrize("name", ["frames/frame-000.png", "maps/frame-000.npz", "panel/000.jpg", "panel/000-mask.png"])
def test_a_link_out_of_the_run_is_not_followed(name, tmp_path):
    run = Run(make_run(tmp_path / "run", n=1, frames=1))
    Image.new("RGB", (4, 4)).save(run.path / "frames" / "frame-000.png")
    read = {"frames": lambda: run.grid(0), "maps": lambda: run.maps(0)}.get(name.split("/")[0])
    read = read or (lambda: run.mask(0) if "mask" in name else run.image(0))
    file = run.path / name
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    with pytest.raises(ValueError, match="lies outside of its folder"):
        read()
