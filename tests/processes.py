"""Processes of their own: they find the package and the tests' modules, reach no network, and use one thread.

`python` starts an interpreter. `Nursery` forks instead, from a copy of this process in which everything is imported and
nothing has been run: a program begins at once, where importing torch and a trainer takes ten seconds.
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
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


class Nursery:
    """A copy of this process that does nothing but fork: make it before the first test. `end` ends it.

    `run(script, *words)` is `python script words…`, to its end; `ranks`: so many processes of it at once, as torchrun
    would start them; `needs`: modules that the copy imports first, for this program and all later ones.
    """

    def __init__(self):
        self.pipe, other = multiprocessing.Pipe()
        self.pid = os.fork()
        if not self.pid:
            self.pipe.close()
            _serve(other)
        other.close()

    def run(self, script, *words, ranks=1, needs=(), timeout=540) -> subprocess.CompletedProcess:
        words = [str(script), *map(str, words)]
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(rank) for rank in range(ranks)]
            env = environment() | (_rendezvous(ranks) if ranks > 1 else {})
            self.pipe.send((words, needs, env, places, timeout))
            codes = self.pipe.recv()
            out, err = ("".join(place.with_suffix(kind).read_text() for place in places) for kind in (".out", ".err"))
        return subprocess.CompletedProcess(words, next(filter(None, codes), 0), out, err)

    def end(self):
        self.pipe.close()
        os.waitpid(self.pid, 0)


def _rendezvous(ranks: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | {
        name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    }


def _serve(pipe) -> None:
    try:
        while True:
            words, needs, env, places, timeout = pipe.recv()
            for name in needs:
                importlib.import_module(name)
            children = {}
            for rank, place in enumerate(places):
                child = os.fork()
                if not child:
                    ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if len(places) > 1 else {}
                    _become(words, env | ranked, place, timeout)
                children[child] = None
            pipe.send(_wait(children))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        os._exit(0)


def _wait(children) -> list[int]:
    "The exit codes, as the children end. Where one fails, nobody waits for the others."
    while None in children.values():
        child, status = os.wait()
        children[child] = os.waitstatus_to_exitcode(status)
        if children[child]:
            for other in [pid for pid, code in children.items() if code is None]:
                os.kill(other, signal.SIGKILL)
    return list(children.values())


def _become(words, env, place, timeout) -> None:
    "Be `python words…`, which writes to two files, and end."
    code = 1
    try:
        signal.alarm(timeout)  # ends a process that waits for one which will not come
        for target, kind in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(place.with_suffix(kind), os.O_WRONLY | os.O_CREAT), target)
        sys.stdout, sys.stderr = (open(target, "w", closefd=False) for target in (1, 2))
        os.environ.clear()
        os.environ.update(env)
        sys.argv = words
        warnings.resetwarnings()
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
