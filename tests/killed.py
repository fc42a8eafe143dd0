"""Trains again and again in processes that are killed by SIGKILL, each at another moment. Run by test_loops_faults.py.

A moment is a number of steps of the file system: so many have been taken, some inside of a write, when the process
kills itself. That covers the narrow places between two writes, which a clock would miss, on any machine.
"""

import os
import random
import signal
import sys
from pathlib import Path

import torch
from loops import LOOPS


def killing_itself(moment):
    "Counts the steps of writing, and ends the process at the `moment`-th; the middle of a write is one too."
    steps, write, replace = iter(range(10**9)), Path.write_bytes, os.replace

    def step():
        if next(steps) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_slowly(self, data):
        step()
        write(self, data[: len(data) // 2])
        step()
        return write(self, data)

    def replace_slowly(source, target):
        step()
        replace(source, target)
        step()

    Path.write_bytes, os.replace = write_slowly, replace_slowly


def main(who, out, count):
    torch.set_num_threads(1)  # forked below, which threads do not survive
    rng = random.Random(3)
    # Some in the first writes, before there is a run; the others spread over the frames, four writes each.
    for k in range(count):
        moment = rng.randrange(14) if k < 3 else rng.randrange(14, 14 + 16 * 6)
        child = os.fork()
        if not child:
            killing_itself(moment)
            LOOPS[who](Path(out) / f"killed-{k}", {"n": 2, "name": "night"}, epochs=8)
            os._exit(3)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"moment {moment}: {status}"
        print("moment", moment, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
