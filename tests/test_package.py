"""The package as such: one version everywhere, and a public CI that runs on what `setup.cfg` promises."""

import configparser
import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import python

import fastai_gradcam

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def jobs() -> dict:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


def test_the_package_its_metadata_and_the_changelog_say_one_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    top = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", changelog, re.MULTILINE)
    assert top is not None
    assert top[1] == fastai_gradcam.__version__
    # Where this alone fails, the version was changed after `pip install -e .`: install again.
    assert metadata.version("fastai_gradcam") == fastai_gradcam.__version__


def test_the_version_is_written_in_one_place():
    holders = [
        f.name
        for f in (ROOT / "fastai_gradcam").rglob("*.py")
        if fastai_gradcam.__version__ in f.read_text(encoding="utf-8")
    ]
    assert holders == ["_version.py"]
    for file in ("setup.cfg", "pyproject.toml"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not re.search(rf"^version *= *[\"']?{re.escape(fastai_gradcam.__version__)}", text, re.MULTILINE)


def test_public_ci_runs_on_each_python_that_the_package_promises(setup, jobs):
    classifiers = setup["metadata"]["classifiers"].splitlines()
    promised = [c.rpartition(" :: ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    required = SpecifierSet(setup["options"]["python_requires"])
    assert all(f"{version}.0" in required for version in promised)
    (lowest,) = (s["with"]["python-version"] for s in jobs["lowest"]["steps"] if "setup-python" in s.get("uses", ""))
    assert f"{lowest}.0" in required and f"3.{int(lowest.split('.')[1]) - 1}.0" not in required


def test_public_ci_checks_what_the_ci_script_checks(jobs):
    commands = {step.get("run") for job in jobs.values() for step in job["steps"]}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    own = re.findall(r"^\.venv/bin/(.+)$", script, re.MULTILINE)
    assert len(own) >= 5
    assert set(own) <= commands
    assert "python -m pytest -q -n 2" in commands


def test_actions_are_pinned_to_major_versions(jobs):
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in used)


def test_every_dependency_has_a_lowest_version(setup):
    extras = setup["options.extras_require"]
    lines = [setup["options"]["install_requires"], *extras.values()]
    requirements = [Requirement(r) for text in lines for r in text.splitlines() if r and not r.startswith("#")]
    own = "fastai_gradcam"
    unbounded = [r.name for r in requirements if r.name != own and not any(s.operator == ">=" for s in r.specifier)]
    assert requirements and unbounded == []


ALONE = """
import importlib.abc, pkgutil, sys, warnings

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
warnings.simplefilter("ignore")
import fastai_gradcam
for module in pkgutil.walk_packages(fastai_gradcam.__path__, "fastai_gradcam."):
    if not module.name.endswith(("__main__", ".lightning", ".transformers")):
        importlib.import_module(module.name)
        print(module.name)
"""


@pytest.mark.slow
def test_every_module_is_imported_where_only_what_is_required_is_installed():
    extras = """accelerate captum pytorch_grad_cam torchcam timm playwright tensorboard wandb nbclient nbformat
    ipykernel IPython lightning transformers"""
    done = python("-c", ALONE, *extras.split())
    assert done.returncode == 0, done.stderr
    assert {"fastai_gradcam.callback", "fastai_gradcam.cli", "fastai_gradcam._cli.train"} <= set(done.stdout.split())
