"""The examples in the docstrings: each runs by itself, in an empty folder, and every documented name has one."""

import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import fastai_gradcam

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
from make_api import FOREIGN, PAGES


def documented():
    "(name, object) of everything in docs/api.md."
    importlib.import_module("fastai_gradcam.learner")
    for _, module, names in PAGES:
        home = importlib.import_module(f"fastai_gradcam.{module}")
        for name in names:
            owner, _, attribute = name.rpartition(".")
            place = getattr(importlib.import_module(FOREIGN[owner]), owner) if owner else home
            yield name, getattr(place, attribute or name)


def examples():
    "Every docstring with `>>>`, by its name: those of all modules, and of the methods given to fastai's classes."
    finder = doctest.DocTestFinder()
    found = []
    for module in pkgutil.walk_packages(fastai_gradcam.__path__, "fastai_gradcam."):
        if not module.name.endswith("__main__"):
            found += finder.find(importlib.import_module(module.name), module.name)
    for name, thing in documented():
        if "." in name:
            found += finder.find(thing, name, module=False)
    return [test for test in found if test.examples]


def slow(example):
    return [pytest.mark.slow] * any(words in example.docstring for words in ("fastai.vision", "wandb.init", "Watch("))


@pytest.mark.parametrize("example", [pytest.param(test, id=test.name, marks=slow(test)) for test in examples()])
def test_the_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # docs/api.md says how each name is imported: that name is there, and all others are the example's to import.
    if "._" not in example.name:
        own = example.name.removeprefix(f"{example.globs.get('__name__')}.").partition(".")[0]
        example.globs = {"__name__": "example", own: example.globs.get(own)}
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    said = []
    failed, _ = doctest.DocTestRunner(optionflags=options, verbose=False).run(example, out=said.append)
    assert failed == 0, "".join(said)


def test_every_documented_name_has_an_example():
    assert [name for name, thing in documented() if ">>>" not in (thing.__doc__ or "")] == []


def test_an_example_that_is_wrong_is_noticed(tmp_path, monkeypatch):
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    with pytest.raises(AssertionError, match="Expected:"):
        test_the_example_runs(wrong, tmp_path, monkeypatch)
