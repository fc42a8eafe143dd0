"""Two processes train together in each loop, and the first of them watches."""

from pathlib import Path

import pytest
from loops import NEEDS

from fastai_gradcam import Run

for library in ("lightning", "transformers", "accelerate"):
    pytest.importorskip(library)
pytestmark = pytest.mark.slow

WHO = ["plain", "lightning", "transformers"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, nursery):
    "The lines that both processes reported, and the folder of their runs."
    out = tmp_path_factory.mktemp("distributed")
    done = nursery.run(Path(__file__).with_name("loops_distributed.py"), out, ranks=2, needs=NEEDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout, out


@pytest.mark.parametrize("who", WHO)
def test_two_processes_train_the_same_to_the_last_bit(who, two_processes):
    lines, _ = two_processes
    for rank in (0, 1):
        assert f"rank {rank} {who} watched: differences: []" in lines
        assert f"rank {rank} {who} failing: differences: []" in lines
        assert f"rank {rank} {who} careless: changed: True" in lines


@pytest.mark.parametrize("who", WHO)
def test_the_first_process_watches_and_nobody_waits(who, two_processes):
    lines, out = two_processes
    assert f"rank 0 {who} watched: has a run: True" in lines
    assert f"rank 1 {who} watched: has a run: False" in lines
    run = Run(out / who / "watched/gradcam/run")
    assert [p.name for p in run.path.parent.iterdir()] == ["run"]
    assert ([f["status"] for f in run.frames], run.status) == (["ok"] * 3, "finished")
    # The model's own names, not those of the wrapper: `module.body`.
    assert run.layers == ["net.body" if who == "lightning" else "body"]
    assert all(any("loss" in name for name in f["metrics"]) for f in run.frames[1:])
    failing = Run(out / who / "failing/gradcam/run").frames
    assert [f["status"] for f in failing] == ["ok", "ok", "failed"]
    assert "on purpose" in failing[2]["error"]
