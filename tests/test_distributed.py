"""Two processes train together under fastai's `distrib_ctx`, and one of them watches."""

from pathlib import Path

import pytest

from fastai_gradcam import Run

pytest.importorskip("accelerate", reason="fastai's distrib_ctx needs accelerate")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(image_folder, tmp_path_factory, nursery):
    "The lines that both processes reported, and the folder of their runs."
    out = tmp_path_factory.mktemp("distributed")
    needs = ("training", "fastai.distributed", "accelerate")
    done = nursery.run(Path(__file__).with_name("distributed.py"), image_folder, out, ranks=2, needs=needs)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout, out


@pytest.mark.parametrize("what", ["fit", "fine_tune", "rank 0 only", "failing"])
def test_two_processes_train_the_same_to_the_last_bit(what, two_processes):
    lines, _ = two_processes
    for rank in (0, 1):
        assert f"rank {rank} {what}: differences: []" in lines


@pytest.mark.parametrize("what", ["fit", "fine_tune"])
def test_the_panel_is_watched_on_rank_0_only(what, two_processes):
    lines, out = two_processes
    assert f"rank 0 {what}: has a run: True" in lines
    assert f"rank 1 {what}: has a run: False" in lines
    run = Run(out / what / "gradcam/run")
    assert [p.name for p in (out / what / "gradcam").iterdir()] == ["run"]
    assert [f["status"] for f in run.frames] == ["ok"] * 3
    assert run.status == "finished"
    # The unwrapped model's own names, not `module.0.0`.
    assert run.layers == ["0.0", "0.2"]
    assert len(run.panel) == 3
    assert len(run.history) == 3 * 3 * 2
    assert set(run.history.label) == {"red", "green", "blue"}


def test_a_frame_that_fails_on_rank_0_keeps_nobody_waiting(two_processes):
    _, out = two_processes
    frames = Run(out / "failing/gradcam/run").frames
    assert [f["status"] for f in frames] == ["ok", "failed", "failed"]
    assert "on purpose" in frames[1]["error"]
