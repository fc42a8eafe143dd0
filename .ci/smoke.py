"""Builds the sdist and, from it, the wheel; checks what they hold; tries the wheel where nothing else of this tree is.

python .ci/smoke.py    with the interpreter of an environment that has the package's dependencies and `build`
"""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Runs in the new environment, away from the tree. A run is read, and its report made, where torch and fastai cannot be
# imported; then a map is made with them.
TRY = """
import importlib.metadata, json, sys
from pathlib import Path

blocked = ("torch", "fastai")
sys.modules.update(dict.fromkeys(blocked))
import fastai_gradcam
from fastai_gradcam import Run

assert Path(fastai_gradcam.__file__).is_relative_to(sys.prefix), f"not the wheel's: {fastai_gradcam.__file__}"
assert fastai_gradcam.__version__ == importlib.metadata.version("fastai_gradcam") == sys.argv[2]
run = Run(sys.argv[1])
assert len(run.frames) == 3 and len(run.history) == 12 and len(run.findings()) >= 0
report = run.report().read_text(encoding="utf-8")
assert "<style" in report and "'use strict'" in report and len(report) > 50_000, len(report)
assert run.evolution().width > 100
assert all(sys.modules[name] is None for name in blocked)

for name in blocked:
    del sys.modules[name]
import torch
from fastai_gradcam import GradCAMCallback, gradcam
from torch import nn

net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
cams = gradcam(net, torch.randn(2, 3, 8, 8))
assert cams.maps[0].shape == (2, 6, 6) and GradCAMCallback().order > 50
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        say("building sdist and wheel")
        known = copy_of_tree(folder / "tree")
        # Without --sdist or --wheel the wheel is built from the sdist: what the sdist lacks, the wheel lacks too.
        call(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "tree")
        (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
        version = check_contents(sdist, wheel, set(known))
        say(f"installing {wheel.name} into an empty environment")
        python = environment(folder / "venv", wheel)
        make_run(folder / "run")
        for arguments in (["--help"], ["--version"], ["report", folder / "run", "--out", folder / "report.html"]):
            call(python.with_name("fastai-gradcam"), *arguments, cwd=folder)
        call(python, "-I", "-c", TRY, folder / "run", version, cwd=folder)
        say(f"{sdist.name} and {wheel.name} are whole, and the wheel works")


def copy_of_tree(path: Path) -> list[str]:
    "The files that git knows, copied: an earlier build's traces beside them would decide what the sdist holds."
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, path / name)
    return names


def check_contents(sdist: Path, wheel: Path, known: set[str]) -> str:
    """Both hold the package's files and no other, and the sdist all of the tree, `known`; the version that both name.

    So that the tests, which read the tree, run in what the sdist unpacks to.
    """
    wanted = {name for name in known if name.startswith("fastai_gradcam/")}
    assert {"fastai_gradcam/py.typed", "fastai_gradcam/report/static/report.html"} <= wanted
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(n for n in names if n.endswith(".dist-info/METADATA"))
        message = BytesParser().parsebytes(archive.read(metadata))
    same(wanted, {n for n in names if ".dist-info/" not in n}, wheel)
    assert any(n.endswith("LICENSE") for n in names), f"{wheel.name} has no LICENSE"
    with tarfile.open(sdist) as archive:
        inside = {n.partition("/")[2] for n in archive.getnames() if not archive.getmember(n).isdir()}
    same(wanted, {n for n in inside if n.startswith("fastai_gradcam/")}, sdist)
    lacking = known - inside - {".gitignore"}
    assert not lacking, f"{sdist.name} lacks {sorted(lacking)}"
    version = message["Version"]
    assert f"-{version}-" in wheel.name and sdist.name.endswith(f"-{version}.tar.gz")
    return version


def same(wanted: set[str], got: set[str], archive: Path) -> None:
    assert wanted == got, f"{archive.name} lacks {sorted(wanted - got)} and has {sorted(got - wanted)} too much"


def environment(path: Path, wheel: Path) -> Path:
    """A new environment in which only the wheel gives `fastai_gradcam`.

    The dependencies are those of the running environment, read where they are: torch alone takes minutes to install
    again. Its folder is put on the path by a line in a .pth file, and .pth files inside of it are not read, so that
    the editable installation of this tree is out of reach; `TRY` asserts that it is.
    """
    venv.create(path, with_pip=False, symlinks=True)
    python = path / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def make_run(path: Path) -> None:
    "A run folder written by the tests' own hand."
    sys.path.insert(0, str(ROOT / "tests"))
    from report_fixture import make_run

    make_run(path, n=4, frames=3)


def call(*command: object, cwd: Path | None = None) -> None:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))} failed:\n{done.stdout}{done.stderr}")


def say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    main()
