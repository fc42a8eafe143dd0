"""Processes of their own: they find the package and the tests' modules, reach no network, and use one thread."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# A proxy that nobody listens at: a machine without a network, wherever the tests run.
NOWHERE = "http://127.0.0.1:9"


def environment(home="/nonexistent", **more) -> dict[str, str]:
    "`home`: where torch looks for downloaded weights."
    paths = [TESTS.parent, TESTS, os.environ.get("PYTHONPATH")]
    own = {
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        "TORCH_HOME": str(home),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
    }
    return {**os.environ, **own, **more}


def python(*words, home="/nonexistent", cwd=None, timeout=540) -> subprocess.CompletedProcess:
    "`python words…`, to its end, with what it wrote."
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(home), cwd=cwd, timeout=timeout, check=False
    )
