"""Two hundred frames in one process leave nothing behind but their files."""

import gc
import os
import threading
from itertools import count
from pathlib import Path

import pytest
from fastai.vision.all import Callback
from training import HOOKS, one_thread, tiny_learner  # noqa: F401

from fastai_gradcam import GradCAMCallback
from fastai_gradcam.report import write_report

FRAMES, SETTLED = 200, 20
PROC = Path("/proc/self")


def memory():
    "Resident memory of this process, in bytes."
    return int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Inventory(Callback):
    "Memory, open files, threads and hooks behind each frame."

    order = GradCAMCallback.order + 1

    def __init__(self):
        self.seen = []

    def after_epoch(self):
        # Behind the frames handed over: what is still being written is not a leak.
        self.learn.grad_cam.flush()
        if len(self.seen) in (SETTLED - 2, FRAMES - 2):
            gc.collect()
        modules = list(self.learn.model.modules())
        self.seen.append(
            {
                "memory": memory(),
                "open files": len(os.listdir(PROC / "fd")),
                "threads": threading.active_count(),
                "hooks": sum(len(getattr(m, hooks)) for m in modules for hooks in HOOKS),
            }
        )


@pytest.mark.slow
@pytest.mark.skipif(not PROC.exists(), reason="reads memory and open files from /proc")
def test_two_hundred_frames_leave_nothing_behind(image_folder, tmp_path, monkeypatch):
    # The report at known frames: else a timer makes it in the middle of the counting.
    monkeypatch.setattr("fastai_gradcam._watch.publish._RARELY", 0)
    made = count()
    seldom = lambda *args, **how: None if next(made) % 10 else write_report(*args, **how)
    monkeypatch.setattr("fastai_gradcam._watch.publish.write_report", seldom)
    inventory = Inventory()
    learn = tiny_learner(image_folder, tmp_path, cbs=[GradCAMCallback(n=3, layer=[0, 2]), inventory])
    threads, files = threading.active_count(), len(os.listdir(PROC / "fd"))
    learn.fit(FRAMES - 1, 1e-3)
    frames = learn.grad_cam.run.frames
    assert [f["status"] for f in frames] == ["ok"] * FRAMES
    # Frame 0 is before training: the 20th frame is behind the 19th epoch.
    twentieth, last = inventory.seen[SETTLED - 2], inventory.seen[-1]
    assert last["memory"] <= 1.05 * twentieth["memory"]
    assert {s["open files"] for s in inventory.seen} == {twentieth["open files"]}
    assert {s["hooks"] for s in inventory.seen} == {0}
    assert {s["threads"] for s in inventory.seen} == {threads + 1}
    assert threading.active_count() == threads
    assert len(os.listdir(PROC / "fd")) == files
