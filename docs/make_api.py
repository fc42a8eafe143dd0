"""Writes docs/api.md from the docstrings and signatures of the public names.

python docs/make_api.py            write it
python docs/make_api.py --check    say whether it is up to date, by the exit status
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from importlib import import_module
from itertools import pairwise
from pathlib import Path

FILE = Path(__file__).with_name("api.md")

HEAD = """# API reference

Made from the docstrings by `python docs/make_api.py`; a test holds it up to date. Shapes are `(N, C, h, w)` for N
images, C channels, and a layer's h × w cells; `*space` is any number of dimensions. A default written as `…` is an
object of the library's own.
"""

# Things that a reader looks for, in the order of the data's flow: (heading, module, names). A method is
# named by its class.
PAGES = [
    ("Watching a training", "callback", ["GradCAMCallback"]),
    (
        "In a notebook",
        "learner",
        """Learner.gradcam Learner.show_gradcam Learner.gradcam_check Learner.gradcam_judge
        Learner.gradcam_atlas
        ClassificationInterpretation.plot_top_gradcams
        CAM CAMList""".split(),
    ),
    ("In your own loop", "watch", ["Watch"]),
    ("In Lightning", "lightning", ["GradCAMCallback"]),
    ("In transformers", "transformers", ["GradCAMCallback"]),
    ("Plain PyTorch", "cam", ["gradcam", "CAMs"]),
    ("Hooks", "hooks", ["Hook", "HookBwd"]),
    ("Targets", "targets", ["contrast", "segment"]),
    (
        "Methods",
        "methods",
        ["smoothed", "augmented", "eigen", "fuse", "register", "register_weights", "resolve_method", "Method"],
    ),
    ("Runs", "run", ["Run"]),
    ("Findings", "findings", ["findings", "checks", "checks_in_words", "Thresholds"]),
    ("The whole data set", "atlas", ["Atlas", "to_spotlight", "to_fiftyone", "to_wandb"]),
    ("Judging", "judge", ["judge", "Verdicts", "Rule", "Suspicion"]),
    ("Mending", "guide", ["GradCAMGuide", "CoverPlace", "SwapColours"]),
    ("Pictures of a run", "pictures", ["evolution", "animation", "plot"]),
    ("Comparing runs", "comparison", ["compare"]),
    ("Pictures of a map", "render", ["overlay", "grid", "normalise", "upsample", "Cell"]),
    (
        "Numbers about a map",
        "measures",
        """measure evidence negative_share entropy concentration border_share centroid centroid_shift similarity iou_top
        mask_share pointing_hit""".split(),
    ),
    (
        "Is a map any good?",
        "faithfulness",
        """road impute deletion insertion average_drop increase win energy_pointing pointing_hit randomisation
        random_logit baseline interval check Scores""".split(),
    ),
    ("Loggers", "loggers", ["TensorBoardLogger", "WandbLogger", "MLflowLogger"]),
    ("A page to try a model on", "app", ["build"]),
    ("The embedded fish", "demo", ["make_fish", "fish_items", "fish_label", "fish_mask", "scratch_learner"]),
    ("Errors", "_errors", ["GradCAMError"]),
]

# Attributes of a run's files that the library's own rooms ask for.
INNER = {"contents", "frozen", "maps_of", "frame"}

# Only what belongs to this library; the rest of these classes is fastai's.
FOREIGN = {"Learner": "fastai.learner", "ClassificationInterpretation": "fastai.interpret"}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 where api.md is not up to date"
    )
    options = parser.parse_args(argv)
    made = page()
    if not options.check:
        FILE.write_text(made, encoding="utf-8")
        return 0
    if FILE.read_text(encoding="utf-8") == made:
        return 0
    print("docs/api.md is not up to date: python docs/make_api.py", file=sys.stderr)
    return 1


def page() -> str:
    import fastai.vision.all  # noqa: F401  (the learner's methods are attached to fastai's classes)

    import_module("fastai_gradcam.learner")
    parts = [HEAD]
    for heading, module, names in PAGES:
        home = import_module(f"fastai_gradcam.{module}")
        parts.append(f"## {heading}\n")
        parts += [entry(home, name) for name in names]
    return "\n".join(parts).rstrip() + "\n"


def entry(home, name: str) -> str:
    owner, _, attribute = name.rpartition(".")
    if owner:
        what = getattr(getattr(import_module(FOREIGN[owner]), owner), attribute)
        shown = f"{'learn' if owner == 'Learner' else 'interp'}.{attribute}"
        origin = ""
    else:
        what, shown = getattr(home, name), name
        package = __import__("fastai_gradcam")
        origin = "fastai_gradcam" if name in package.__all__ else home.__name__
    lines = [f"### {shown}\n"]
    if origin:
        lines.append(f"`from {origin} import {name}`\n")
    if inspect.isclass(what):
        lines += [f"`{line}`\n" for line in [signature(what, name)] if "(" in line]
        lines.append(text_of(what))
        lines += [f"- `{field}` = {value}: {text}" for field, value, text in described_fields(what)] + [""]
        lines += members(what, name)
    else:
        lines += [f"`{signature(what, shown)}`\n", text_of(what)]
    return "\n".join(lines)


def members(cls, name: str) -> list[str]:
    "The public methods and properties with a docstring that the class, or a base of it in this library, defines."
    found, own = [], [c for c in reversed(cls.__mro__) if c.__module__.startswith("fastai_gradcam")]
    for attribute, value in {k: v for c in own for k, v in vars(c).items() if k not in INNER}.items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        wrapped = getattr(value, "func", None)  # a cached property
        function = wrapped if wrapped is not None else function
        if attribute.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        is_call = function is value or hasattr(value, "__func__")
        shown = signature(function, f"{name}.{attribute}") if is_call else f"{name}.{attribute}"
        found.append(f"**`{shown}`**\n\n{text_of(function)}")
    return found


def signature(what, shown: str) -> str:
    "The signature on one line, with annotations as they are written."
    try:
        given = inspect.signature(what)
    except (TypeError, ValueError):
        return shown
    parameters = [p for p in given.parameters.values() if p.name != "self"]
    annotations = annotations_of(what)
    written, star = [], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not star and not any(q.kind is q.VAR_POSITIONAL for q in parameters):
            written.append("*")
            star = True
        text = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        if p.name in annotations:
            text += f": {annotations[p.name]}"
        if p.default is not p.empty:
            text += f"{' = ' if p.name in annotations else '='}{default(p.default)}"
        written.append(text)
    after = f" -> {annotations['return']}" if "return" in annotations and not inspect.isclass(what) else ""
    return f"{shown}({', '.join(written)}){after}"


def source_of(what) -> ast.FunctionDef | ast.ClassDef:
    return ast.parse(textwrap.dedent(inspect.getsource(what))).body[0]


def annotations_of(what) -> dict[str, str]:
    """Annotations as they are written: what they stand for is spelled differently from one version of Python to the
    next.
    """
    tree = source_of(what)
    if isinstance(tree, ast.ClassDef):
        init = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is None:
            return {n.target.id: ast.unparse(n.annotation) for n in tree.body if isinstance(n, ast.AnnAssign)}
        tree = init
    given = tree.args
    named = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    found = {a.arg: ast.unparse(a.annotation) for a in named if a is not None and a.annotation is not None}
    return found | ({"return": ast.unparse(tree.returns)} if tree.returns is not None else {})


def described_fields(cls):
    "(name, default, text) of each field of a data class that has a text of its own below it."
    body = source_of(cls).body
    for field, text in pairwise(body):
        told = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and told and field.value is not None:
            yield field.target.id, ast.unparse(field.value), " ".join(text.value.value.split())


def default(value) -> str:
    plain = value is None or isinstance(value, (bool, int, float, str, tuple, list))
    return repr(value) if plain else getattr(value, "__name__", "…")


def text_of(what) -> str:
    "The docstring as Markdown: its paragraphs and points are Markdown already."
    text = inspect.cleandoc(what.__doc__ or "")
    # Markdown would run points into the paragraph above them.
    text = re.sub(r"(?<=\S)\n(- )", r"\n\n\1", text) if "\n- " in text and "\n\n- " not in text else text
    return text + "\n"


if __name__ == "__main__":
    sys.exit(main())
