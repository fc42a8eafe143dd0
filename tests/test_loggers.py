"""TensorBoard, Weights & Biases and MLflow, with the real packages and their real files."""

import io
import json
import struct
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from training import Quiet, differences, left_by, one_thread, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback
from fastai_gradcam.loggers import MLflowLogger, TensorBoardLogger, WandbLogger, _table, _wandb_step, mean_numbers
from fastai_gradcam.render import overlay


def fitted(folder, path, *cbs, **settings):
    with Quiet():
        learn = tiny_learner(folder, path, cbs=[*cbs, GradCAMCallback(n=3, **settings)])
        with learn.no_bar(), learn.no_logging():
            learn.fit(2)
    return learn


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return read.Reload()


def assert_frames_are_in(read, run, steps):
    images = read.Images("gradcam/grid")
    assert [i.step for i in images] == steps
    for image, frame in zip(images, run.frames, strict=True):
        logged = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
        assert np.array_equal(logged, np.asarray(run.grid(frame["frame"])))
        for name, mean in mean_numbers(run, frame).items():
            value = next(s.value for s in read.Scalars(f"gradcam/{name}") if s.step == steps[frame["frame"]])
            assert value == pytest.approx(mean, rel=1e-5)


@pytest.mark.slow
def test_a_tensorboard_logger_writes_each_frame_and_its_means(image_folder, tmp_path):
    pytest.importorskip("tensorboard")
    learn = fitted(image_folder, tmp_path, loggers=[TensorBoardLogger(tmp_path / "tb")])
    assert_frames_are_in(events(tmp_path / "tb"), learn.grad_cam.run, [0, 1, 2])


@pytest.mark.slow
def test_beside_fastais_tensorboard_callback_frames_go_there_under_its_steps(image_folder, tmp_path):
    pytest.importorskip("tensorboard")
    from fastai.callback.tensorboard import TensorBoardCallback

    tensorboard = TensorBoardCallback(tmp_path / "tb", trace_model=False, log_preds=False)
    learn = fitted(image_folder, tmp_path, tensorboard)
    batches = len(learn.dls.train)
    read = events(tmp_path / "tb")
    assert_frames_are_in(read, learn.grad_cam.run, [0, batches, 2 * batches])
    assert [s.step for s in read.Scalars("valid_loss")] == [batches, 2 * batches]


@pytest.mark.slow
def test_in_a_second_fit_fastais_steps_begin_again_and_those_of_a_logger_go_on(image_folder, tmp_path):
    pytest.importorskip("tensorboard")
    from fastai.callback.tensorboard import TensorBoardCallback

    beside = TensorBoardCallback(tmp_path / "beside", trace_model=False, log_preds=False)
    learn = fitted(image_folder, tmp_path, beside, loggers=TensorBoardLogger(tmp_path / "own"))
    with learn.no_bar(), learn.no_logging(), Quiet():
        learn.fit(1)
    batches = len(learn.dls.train)
    steps = [sorted(i.step for i in events(tmp_path / f).Images("gradcam/grid")) for f in ("beside", "own")]
    # As docs/watching.md says.
    assert steps == [[0, batches, batches, 2 * batches], [0, 1, 2, 3]]


def records(file):
    """The records of W&B's own file: a LevelDB log (blocks of 32 KiB, fragments with a header of 7 bytes) behind a
    header.
    """
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            yield record
            record = b""


def wandb_records(file):
    """The records of W&B's file, once the last one is there: `finish` may return before its process has written.

    Waited for, as on a busy machine that takes seconds.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(600):
        found = []
        # Half a record is there, too, until the rest is.
        with suppress(DecodeError):
            for data in records(file):
                found.append(Record())
                found[-1].ParseFromString(data)
        if "exit" in [record.WhichOneof("record_type") for record in found]:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{file} has no end: {[r.WhichOneof('record_type') for r in found]}")


def wandb_rows(folder):
    "(step, values) of each row of history in an offline run of W&B."
    rows = []
    for record in wandb_records(next(folder.rglob("*.wandb"))):
        if record.WhichOneof("record_type") == "history":
            values = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows.append((values.get("_step"), values))
    return rows


@pytest.fixture
def offline_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "wandb").mkdir()  # older versions write elsewhere where it is not there
    run = wandb.init(mode="offline", dir=str(tmp_path / "wandb"), project="gradcam", settings={"console": "off"})
    yield run
    wandb.finish()


def assert_frames_are_logged(rows, run):
    logged = [values for _, values in rows if any(k.startswith("gradcam/grid") for k in values)]
    assert len(logged) == len(run.frames)
    for values, frame in zip(logged, run.frames, strict=True):
        for name, mean in mean_numbers(run, frame).items():
            assert values[f"gradcam/{name}"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.slow
def test_a_wandb_logger_logs_each_frame_and_its_means(image_folder, tmp_path, offline_wandb):
    learn = fitted(image_folder, tmp_path, loggers=[WandbLogger()])
    offline_wandb.finish()
    assert_frames_are_logged(wandb_rows(tmp_path / "wandb"), learn.grad_cam.run)
    pictures = list((tmp_path / "wandb").rglob("media/images/gradcam/grid*.png"))
    assert len(pictures) == 3
    sizes = {Image.open(p).size for p in pictures}
    assert sizes == {learn.grad_cam.run.grid(0).size, learn.grad_cam.run.grid(1).size}
    assert_rows_are_in_tables(tmp_path / "wandb", learn.grad_cam.run)


def assert_rows_are_in_tables(folder, run):
    tables = [json.loads(file.read_text()) for file in folder.rglob("gradcam/panel*.table.json")]
    rows = [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]
    assert len(rows) == len(run.history) == 9
    for entry in run.history.to_dict("records"):
        name = run.panel[entry["item"]]["name"]
        row = next(r for r in rows if (r["frame"], r["item"]) == (entry["frame"], name))
        assert (row["run"], row["epoch"], row["pred"]) == (run.name, entry["epoch"], entry["pred"])
        assert row["prob"] == pytest.approx(entry["prob"])
    # Offline, the file has a word for each picture.
    table = _table(run, run.frames[1])
    for row in (dict(zip(table.columns, cells, strict=True)) for cells in table.data):
        item = next(entry["item"] for entry in run.panel if entry["name"] == row["item"])
        map = run.maps(1)[row["layer"]][item]
        for column, expected in (("image", run.image(item)), ("map", overlay(run.image(item), map))):
            assert np.array_equal(np.asarray(row[column].image), np.asarray(expected))


@pytest.mark.slow
def test_beside_fastais_wandb_callback_frames_go_there_by_themselves(
    image_folder, tmp_path, offline_wandb, monkeypatch
):
    import fastai.callback.wandb
    from fastai.callback.wandb import WandbCallback

    # fastai 2.8 fails to write down the learner's settings under recent fastcore; that has no part in this.
    monkeypatch.setattr(fastai.callback.wandb, "_format_config", lambda config: config)
    learn = fitted(image_folder, tmp_path, WandbCallback(log_preds=False))
    offline_wandb.finish()
    rows = wandb_rows(tmp_path / "wandb")
    assert_frames_are_logged(rows, learn.grad_cam.run)
    last_frame = max(step for step, values in rows if "gradcam/prob" in values)
    assert last_frame == max(step for step, values in rows if "valid_loss" in values)


@pytest.mark.slow
def test_a_second_learner_in_the_same_wandb_run_loses_no_frame(image_folder, tmp_path, offline_wandb, monkeypatch):
    import fastai.callback.wandb
    from fastai.callback.wandb import WandbCallback

    monkeypatch.setattr(fastai.callback.wandb, "_format_config", lambda config: config)
    learners = [fitted(image_folder, tmp_path / name, WandbCallback(log_preds=False)) for name in ("first", "second")]
    offline_wandb.finish()
    rows = wandb_rows(tmp_path / "wandb")
    framed = [(step, values) for step, values in rows if "gradcam/prob" in values]
    means = [mean_numbers(le.grad_cam.run, f)["prob"] for le in learners for f in le.grad_cam.run.frames]
    assert [values["gradcam/prob"] for _, values in framed] == pytest.approx(means, rel=1e-5)
    # Frame 0 is with the first batch, the others with their epochs; and each batch has its row.
    batches = len(learners[0].dls.train)
    epochs = [step for step, values in rows if "valid_loss" in values]
    assert [step for step, _ in framed] == [0, *epochs[:2], 2 * batches, *epochs[2:]]
    assert [step for step, values in rows if "train_loss" in values] == list(range(4 * batches))


@pytest.mark.slow
def test_a_frame_never_overwrites_one_in_a_row_of_wandb_that_is_still_open(image_folder, tmp_path, offline_wandb):
    run = fitted(image_folder, tmp_path).grad_cam.run
    first, second = SimpleNamespace(_wandb_step=3), SimpleNamespace(_wandb_step=2)
    WandbLogger(step=partial(_wandb_step, first))(run, run.frames[2])
    assert offline_wandb.step == second._wandb_step + 1  # what fastai's callback makes of an open row
    WandbLogger(step=partial(_wandb_step, second))(run, run.frames[0])
    assert (first._wandb_step, second._wandb_step) == (3, 3)
    offline_wandb.finish()
    rows = [(step, values["gradcam/prob"]) for step, values in wandb_rows(tmp_path / "wandb")]
    assert [step for step, _ in rows] == [3, 4]
    expected = [mean_numbers(run, run.frames[i])["prob"] for i in (2, 0)]
    assert [prob for _, prob in rows] == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    yield mlflow
    mlflow.end_run()


@pytest.mark.slow
def test_an_mlflow_logger_writes_each_frame_and_its_means(image_folder, tmp_path, mlflow):
    with mlflow.start_run() as active:
        run = fitted(image_folder, tmp_path, loggers=MLflowLogger()).grad_cam.run
    client, id = mlflow.MlflowClient(), active.info.run_id
    for name, mean in mean_numbers(run, run.frames[2]).items():
        logged = client.get_metric_history(id, f"gradcam/{name}")
        assert {m.step: m.value for m in logged}[2] == pytest.approx(mean)
    for frame in run.frames:
        pattern = f"*/{id}/artifacts/images/gradcam*grid*step+{frame['frame']}+*.png"
        (file,) = (tmp_path / "store").glob(pattern)
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(run.grid(frame["frame"])))


@pytest.mark.slow
def test_without_a_run_of_mlflow_the_warning_says_what_to_call(image_folder, tmp_path, mlflow):
    with pytest.warns(UserWarning, match=r"no MLflow run to log to: call mlflow.start_run\(\) first, or give run_id="):
        run = fitted(image_folder, tmp_path, loggers=MLflowLogger()).grad_cam.run
    assert [f["status"] for f in run.frames] == ["ok"] * 3


@pytest.mark.parametrize("loggers", [WandbLogger, [WandbLogger], [print, TensorBoardLogger]])
def test_a_class_is_no_logger(loggers):
    with pytest.raises(TypeError, match=r"the class (Wandb|TensorBoard)Logger: give an object of it"):
        GradCAMCallback(loggers=loggers)


@pytest.mark.parametrize("loggers", ["wandb", ["wandb"]])
def test_a_name_is_no_logger(loggers):
    with pytest.raises(TypeError, match=r"such as WandbLogger\(\) of fastai_gradcam.loggers, got 'wandb'\.$"):
        GradCAMCallback(loggers=loggers)


def test_a_number_is_no_logger():
    with pytest.raises(TypeError, match=r"loggers must be callables \(run, frame\).*got 3\.$"):
        GradCAMCallback(loggers=3)


@pytest.mark.slow
def test_a_logger_that_fails_is_a_warning_and_the_weights_are_the_same(image_folder, tmp_path):
    def broken(run, frame):
        raise ConnectionError("the network is down")

    with Quiet():
        plain = tiny_learner(image_folder, tmp_path / "plain")
        with plain.no_bar(), plain.no_logging():
            plain.fit(2)
    with pytest.warns(UserWarning, match=r"logger broken at frame 0 failed.*the network is down"):
        learn = tiny_learner(image_folder, tmp_path / "watched", cbs=GradCAMCallback(n=3, loggers=broken))
        with learn.no_bar(), learn.no_logging():
            learn.fit(2)
    assert [f["status"] for f in learn.grad_cam.run.frames] == ["ok"] * 3
    learn.remove_cb(GradCAMCallback)
    assert not differences(left_by(plain), left_by(learn))


@pytest.mark.slow
def test_no_package_is_imported_until_it_is_used():
    code = (
        "import sys; from fastai.vision.all import *; before = set(sys.modules);"
        "from fastai_gradcam import *; import fastai_gradcam.loggers, fastai_gradcam.app, fastai_gradcam.cli;"
        "extras = {'tensorboard', 'wandb', 'mlflow', 'gradio', 'mkdocs'};"
        "sys.exit(any(m.split('.')[0] in extras for m in set(sys.modules) - before))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
