"""One process of trainings on two, in each loop: unwatched, watched, with a frame that fails, and carelessly watched.

Run by test_loops_distributed.py:

torchrun --nproc_per_node 2 loops_distributed.py OUT
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from loops import LOOPS
from training import differences


class failing:
    "A score that raises on the first process once training has begun."

    __name__ = "failing"

    def __init__(self):
        self.armed = False

    def __call__(self, output):
        if self.armed:
            raise RuntimeError("on purpose")
        return output[:, 0]


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for who in ("plain", "lightning", "transformers"):
        train, how = LOOPS[who], {"distributed": True}
        alone, _ = train(out / who / "alone", **how)
        left, watching = train(out / who / "watched", {"name": "run"}, **how)
        report(rank, f"{who} watched: differences", differences(alone, left))
        report(rank, f"{who} watched: has a run", watching.run is not None)
        score = failing()
        at = {1: lambda watching, score=score: setattr(score, "armed", True)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            left, _ = train(out / who / "failing", {"name": "run", "target": score}, at=at, **how)
        report(rank, f"{who} failing: differences", differences(alone, left))
        left, _ = train(out / who / "careless", careless=rank == 0, **how)
        report(rank, f"{who} careless: changed", bool(differences(alone, left)))
    dist.destroy_process_group()


def report(rank, what, found):
    print(f"rank {rank} {what}: {found}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
