"""Faults on purpose, whoever watches: no failure of ours ends a training, and the run stays readable."""

import errno
import shutil
import subprocess
from pathlib import Path

import pytest
from loops import LOOPS, NEEDS, heard, run_of
from training import assert_whole, differences, one_thread, statuses  # noqa: F401

from fastai_gradcam import Run

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow, pytest.mark.parametrize("who", LOOPS)]

EPOCHS = 3


@pytest.fixture(scope="module")
def left_without(tmp_path_factory):
    "`left_without(who)`: what a training leaves behind unwatched; trained once."
    known = {}

    def left(who):
        if who not in known:
            known[who], _ = LOOPS[who](tmp_path_factory.mktemp(who), epochs=EPOCHS)
        return known[who]

    return left


@pytest.fixture
def watched(tmp_path, left_without):
    "`watched(who, at, **settings)`: the run and the warnings of a training, which has to be as without us."

    def train(who, at=None, **settings):
        settings = {"n": 2, **settings}
        (left, watching), said = heard(lambda: LOOPS[who](tmp_path, settings, epochs=EPOCHS, at=at or {}))
        assert differences(left_without(who), left) == []
        return Run(run_of(watching).path), said

    return train


class failing:
    "A score that raises in one frame, the one after the epoch before which it is armed."

    def __init__(self):
        self.armed = False

    def __call__(self, output):
        if self.armed:
            raise ValueError("a reason")
        return output[:, 0]


def test_a_failure_in_a_frame_is_one_warning_and_a_failed_frame(who, watched):
    score = failing()
    arm, disarm = (lambda _, on=on: setattr(score, "armed", on) for on in (True, False))
    run, said = watched(who, {1: arm, 2: disarm}, target=score)
    assert len(said) == 1 and "ValueError: a reason" in said[0] and "frame 2" in said[0]
    assert statuses(assert_whole(run.path)) == ["ok", "ok", "failed", "ok"]
    assert run.status == "finished" and "a reason" in run.frames[2]["error"]


def test_a_write_that_finds_the_disk_full_fails_its_frame_only(who, watched, monkeypatch):
    write = Path.write_bytes

    def full(self, data):
        if "frame-002.png" in self.name:
            write(self, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    run, said = watched(who)
    assert len(said) == 1 and "No space left on device" in said[0] and "frame 2" in said[0]
    assert statuses(assert_whole(run.path)) == ["ok", "ok", "failed", "ok"]
    assert "No space left" in run.frames[2]["error"]
    assert not list(run.path.rglob("*.part"))


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 2 MB; skipped where it may not be mounted."
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here; the patched write above stands for it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_full_disk_fails_frames_until_there_is_room_again(for_good, who, watched, small_disk):
    def fill(watching):
        watching.flush()
        with open(small_disk / "ballast", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"0" * 4096)

    def clear(watching):
        watching.flush()
        (small_disk / "ballast").unlink()

    run, said = watched(who, {1: fill} if for_good else {1: fill, 2: clear}, path=small_disk)
    if for_good:
        assert said and all("No space left on device" in s for s in said)
        assert statuses(run)[:2] == ["ok", "ok"] and set(run.history.frame) >= {0, 1}
        run.grid(1)
    else:
        assert len(said) == 1 and "No space left on device" in said[0] and "frame 2" in said[0]
        assert statuses(assert_whole(run.path)) == ["ok", "ok", "failed", "ok"]


def test_a_logger_that_raises_is_a_warning_and_keeps_the_frame(who, watched):
    seen = []

    def network(run, frame):
        if frame["epoch"] == 1:
            raise ConnectionError("no route to host")

    run, said = watched(who, loggers=[network, lambda run, frame: seen.append(frame["frame"])])
    assert len(said) == 1 and "network" in said[0] and "no route to host" in said[0]
    assert statuses(assert_whole(run.path)) == ["ok"] * 4
    assert [f["error"] for f in run.frames] == [None, None, "logger network: ConnectionError: no route to host", None]
    assert seen == [0, 1, 2, 3]


def test_on_error_raise_ends_the_training_with_the_failure_itself(who, tmp_path):
    score, caught = failing(), []

    def arm(watching):
        caught.append(watching)
        score.armed = True

    with pytest.raises(ValueError, match="a reason"):
        LOOPS[who](tmp_path, {"n": 2, "target": score, "on_error": "raise"}, epochs=EPOCHS, at={1: arm})
    run = assert_whole(caught[0].run.path)
    assert (statuses(run), run.info["status"]) == (["ok", "ok", "failed"], "interrupted")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_of_the_training_interrupts_the_run(error, who, tmp_path):
    caught = []

    def fail(watching):
        caught.append(watching)
        raise error("the training's own")

    # Lightning ends the process at a KeyboardInterrupt.
    with pytest.raises((error, SystemExit)):
        LOOPS[who](tmp_path, {"n": 2}, epochs=EPOCHS, at={1: fail})
    run = assert_whole(caught[0].run.path)
    assert run.info["status"] == "interrupted" and statuses(run) == ["ok", "ok"]


KILLED = 6


def test_a_run_killed_at_any_moment_is_whole_and_can_be_resumed(who, tmp_path, nursery):
    count = 20 if who == "fastai" else KILLED
    done = nursery.run(Path(__file__).with_name("killed.py"), who, tmp_path, count, needs=NEEDS)
    assert done.returncode == 0, done.stderr[-3000:]
    moments = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("moment ")]
    assert len(moments) == count
    # Moments before, in the middle of and after a write.
    assert len(set(moments)) > 5
    frames = []
    for k in range(count):
        path = tmp_path / f"killed-{k}/gradcam/night"
        if not (path / "run.json").exists():
            # Killed before the run began: nothing calls itself a run.
            continue
        run = assert_whole(path, killed=True)
        assert run.status == "interrupted"
        frames.append(len(run.frames))
        copy = Path(shutil.copytree(path, tmp_path / f"resumed-{k}/gradcam/night"))
        if k % 4 == 0:
            LOOPS[who](tmp_path / f"resumed-{k}", {"n": 2, "name": "night", "resume": True})
            resumed = assert_whole(copy)
            assert [f["frame"] for f in resumed.frames] == list(range(len(resumed.frames)))
            assert len(resumed.frames) == len(run.frames) + 2 + (not run.frames)
            assert (path / "frames/frame-000.png").read_bytes() == (copy / "frames/frame-000.png").read_bytes()
            rows = [line.split(",")[0] for line in (copy / "history.csv").read_text().splitlines()[1:]]
            assert len(rows) == 2 * len(resumed.frames)
            assert not list(copy.rglob("*.part"))
    assert len(set(frames)) > 2
