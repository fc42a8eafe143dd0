"""Runs that were killed, damaged, sent by somebody, or are still being written, and what a reader sees of them."""

import json
import os
import threading
import time
import warnings

import pytest
from report_fixture import make_run
from training import Quiet, tiny_learner

from fastai_gradcam import GradCAMCallback
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


@pytest.mark.slow
def test_a_run_that_another_process_is_writing_is_not_resumed(image_folder, tmp_path):
    run = fit(image_folder, tmp_path, name="one")
    changed(run.path, lambda info: info.update(status="running", pid=os.getppid()))
    with pytest.raises(ValueError, match="Another process is writing the run 'one' now"):
        fit(image_folder, tmp_path, name="one", resume=True)
    changed(run.path, lambda info: info.update(pid=2**22 + 1))  # no such process: it was killed
    assert len(fit(image_folder, tmp_path, name="one", resume=True).frames) == 3


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_full_disk_is_one_warning_and_loggers_are_not_asked(image_folder, tmp_path, monkeypatch):
    import fastai_gradcam._run.writer as writer

    written, asked = writer.write_whole, []

    def full(file, data):
        if file.name == "frame-001.npz":
            raise OSError(28, "No space left on device")
        written(file, data)

    monkeypatch.setattr(writer, "write_whole", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(image_folder, tmp_path, loggers=lambda run, frame: asked.append(frame["frame"]))
    assert [f["status"] for f in run.frames] == ["ok", "failed"]
    assert asked == [0]
    assert len([w for w in caught if "GradCAMCallback" in str(w.message)]) == 1


class AtOnce:
    "A writer's thread, in a test: what is handed over is done."

    def after(self, work):
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_names_that_differ_in_blanks_stay_apart_in_the_history(image_folder, tmp_path):
    import shutil

    for split in ("train", "valid"):
        classes = sorted(p for p in (image_folder / split).iterdir() if p.is_dir())
        for folder, name in zip(classes, ("a b", "a  b", " c"), strict=False):
            shutil.copytree(folder, tmp_path / "images" / split / name)
    run = fit(tmp_path / "images", tmp_path)
    assert set(run.history["label"]) == {p["label"] for p in run.panel} == {"a b", "a  b", " c"}
