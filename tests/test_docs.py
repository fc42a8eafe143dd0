"""Every block of code in README.md, CONTRIBUTING.md, docs/ and benchmarks/ is run; links, messages, reference hold.

Blocks of Python run in their order, one namespace per document, in a folder with what a reader has: a few images under
`path/to/images`, photos, two runs, an exported learner. `GIVEN` has what a reader
brings along and the text does not make. A small network takes the place of resnet34, and nothing is downloaded; the
text of a block is never changed.

Blocks of shell: `fastai-gradcam …` runs, with the options of `SMALLER` behind those that are written (the last one
counts), and so does a command that starts a program which a block of the same document is, marked by
`<!-- file: its name -->`; of all other commands it is checked that the program, the files, the modules and the extras
exist.

A block that is not run has the comment `<!-- not run: why -->` in the line above it, and stands in `NOT_RUN`.
"""

import ast
import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from documents import DOCUMENTS, ROOT, Block, anchors_of, blocks_of, commands_of, execute, links_of, prose_of, text_of
from PIL import Image
from processes import environment
from small import small_networks, small_resnet
from torch import nn
from training import one_thread  # noqa: F401

# The options that a command gets instead, so that it takes a second.
SMALLER = {
    "demo": ["--per-species", "5", "--size", "64", "--epochs", "1", "--bs", "8", "--n", "4"],
    "train": ["--size", "64", "--epochs", "1", "--bs", "8", "--n", "4"],
    "explain": [],
    "judge": ["--n", "12"],
    "report": [],
}

NOT_RUN = [
    ("README.md", "the layout of a folder"),
    ("docs/app.md", "serves until it is interrupted"),
    ("docs/architecture.md", "a picture in letters"),
    ("docs/atlas.md", "a folder"),
    ("docs/coming-from.md", "needs TensorFlow, which is no dependency of the tests"),
]


# --- a reader's folder and names


def draw(file, colour, rng):
    pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
    y, x = rng.integers(0, 40, 2)
    pixels[y : y + 24, x : x + 24, colour] = 230
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[y : y + 24, x : x + 24] = 255
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory):
    "Images by class, enough for a batch of fastai's default size, their masks, photos and two runs."
    path, rng = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    for colour, label in enumerate(("Sea Bass", "Shrimp", "Trout")):
        for i in range(32):
            mask = draw(path / f"path/to/images/{label}/{label.lower()}-{i}.jpg", colour, rng)
            file = path / f"path/to/masks/{label}/{label.lower()}-{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mask.save(file)
    for name in ("trout.jpg", "photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        draw(path / name, 2, rng)
    with pytest.MonkeyPatch.context() as patch, small_networks():
        patch.chdir(path)
        learner(epochs=3, n=4, name="my-run", path="gradcam")
    shutil.copytree(path / "gradcam/my-run", path / "gradcam/my-other-run")
    return path


@pytest.fixture
def here(readers_folder, tmp_path, monkeypatch):
    "A copy of the reader's folder, as the working directory."
    monkeypatch.chdir(shutil.copytree(readers_folder, tmp_path / "reader"))
    with small_networks():
        yield Path.cwd()


def given(document):
    "The names that the reader of a document has already."
    found = {"torch": torch, "Path": Path, "path": Path("path/to/images")}
    if document in GIVEN:
        found |= GIVEN[document]()
    return found


def plain_model():
    return {"model": small_resnet().eval(), "x": torch.randn(1, 3, 64, 64)}


def a_loop():
    return {**plain_model(), "y": [0], "train_one_epoch": nn.Module.train}


def learner(epochs=1, **watched):
    "`dls` and `learn` as the first block of the README makes them, trained; `watched`: settings of a callback."
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, vision_learner

    from fastai_gradcam import GradCAMCallback

    dls = ImageDataLoaders.from_folder(
        Path("path/to/images"), valid_pct=0.2, seed=1, item_tfms=Resize(64), bs=24, device=torch.device("cpu")
    )
    learn = vision_learner(dls, small_resnet, metrics=accuracy, cbs=GradCAMCallback(**watched) if watched else None)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs)
    return {"dls": dls, "learn": learn}


def segmenter():
    from fastai.vision.learner import create_unet_model
    from torchvision.models.resnet import resnet18

    net = create_unet_model(resnet18, 2, (64, 64), pretrained=False).eval()
    return {**plain_model(), "segmenter": net, "mask": torch.ones(64, 64)}


def everything():
    import fastai.vision.all

    return {**vars(fastai.vision.all), **plain_model(), **learner()}


def judged():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    batches = [(torch.rand(12, 3, 20, 20), torch.arange(12) % 2)]
    return {**learner(), "model": model, "batches": batches, "vocab": ["cat", "dog"]}


def add_a_method():
    from fastai_gradcam.methods import register

    return {"register": register, "Tensor": torch.Tensor}


# The README and docs/watching.md begin with their own imports.
GIVEN = {
    "README.md": a_loop,
    "CONTRIBUTING.md": add_a_method,
    "docs/models.md": segmenter,
    "docs/app.md": learner,
    "docs/atlas.md": learner,
    "docs/judging.md": judged,
    "docs/mending.md": learner,
    "docs/reading.md": everything,
    "docs/faithfulness.md": everything,
    "docs/pytorch.md": everything,
    "docs/coming-from.md": everything,
    "docs/troubleshooting.md": everything,
}


# --- blocks


def every_block():
    return [block for document in DOCUMENTS for block in blocks_of(document)]


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(b.language == "python" for b in blocks_of(d))])
def test_the_blocks_of_python_run(document, here):
    names = given(document)
    for block in blocks_of(document):
        if block.language == "python" and not block.not_run:
            if block.file:
                Path(block.file).write_text(block.text)
            else:
                execute(block, names)
    if document in AFTERWARDS:
        AFTERWARDS[document](SimpleNamespace(**names))


def shell_blocks():
    return [pytest.param(b, id=f"{b.document}:{b.line}") for b in every_block() if b.language == "sh"]


@pytest.mark.slow
@pytest.mark.parametrize("block", shell_blocks())
def test_the_blocks_of_shell_run_or_name_what_exists(block, here, capsys):
    parsed = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert parsed.returncode == 0, parsed.stderr
    commands = commands_of(block)
    assert commands
    for words in commands:
        programs = [b for b in every_block() if b.file in words and b.document == block.document]
        if Path(words[0]).name == "fastai-gradcam":
            run_command(words[1:], capsys)
        elif programs:
            run_program(words, programs)
        else:
            check_command(words)


def run_program(words, programs):
    "A command that runs files which blocks of the same document have written, in processes of its own."
    for program in programs:
        Path(program.file).write_text(program.text)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(words, env=environment(PATH=path), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [run["status"] for run in map(run_json, Path("runs").glob("*/run.json"))] == ["finished"]


def run_json(file):
    return json.loads(file.read_text())


def run_command(words, capsys):
    from fastai_gradcam.cli import main

    if words[0] == "explain":
        learner()["learn"].export(Path("model.pkl").resolve())
    assert main([*words, *SMALLER[words[0]]]) == 0, capsys.readouterr().err
    for line in capsys.readouterr().out.splitlines():
        for named in re.findall(r"^(?:grids|report|course): +(\S.*)$", line):
            assert Path(named).exists(), line


def check_command(words):
    "That a command which is not run names a program, modules, files, options and extras that there are."
    program, *rest = words
    while "=" in program and not program.startswith((".", "/")):  # a variable before the command
        program, *rest = rest
    beside = Path(sys.executable).with_name(Path(program).name)
    if program.startswith(".venv/bin/") or "/" not in program:
        assert beside.exists() or shutil.which(program), f"there is no program {program!r}"
    else:
        assert os.access(ROOT / program, os.X_OK), f"{program} is no program of this repository"
    if Path(program).name in ("python", "python3") and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), f"there is no module {rest[1]!r}"
    scripts = [ROOT / word for word in rest if word.endswith(".py")]
    for word in rest:
        if re.fullmatch(r"\.?\[.*\]|\.\[.*\]", word):
            assert set(word[word.index("[") + 1 : -1].split(",")) <= extras(), f"there is no extra {word}"
        elif word.endswith(".py") or word.startswith(("tests", "docs", "benchmarks", "examples")):
            assert (ROOT / word).exists() or written_by_a_block(word), f"there is no {word}"
        elif word.startswith("--") and scripts and rest.index(word) > rest.index(str(scripts[0].relative_to(ROOT))):
            assert f'"{word.split("=")[0]}"' in scripts[0].read_text(), f"{scripts[0].name} has no option {word}"


def written_by_a_block(name):
    return any(block.file == name for block in every_block())


def extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


def test_a_block_that_is_not_run_says_why():
    for block in every_block():
        assert block.language in ("python", "sh") or block.not_run, (
            f"{block.document}:{block.line}: a block of {block.language or 'no language'} is not run: say why in a "
            "comment above it, <!-- not run: … -->, and enter it in NOT_RUN"
        )
        assert block.not_run is None or len(block.not_run.split()) > 1
        assert block.not_run is None or block.language != "sh", (
            f"{block.document}:{block.line}: shell is always checked"
        )


def test_which_blocks_are_not_run():
    assert [(b.document, b.not_run) for b in every_block() if b.not_run] == NOT_RUN


def test_a_marker_stands_above_a_block():
    for document in DOCUMENTS:
        text = re.sub(r"`[^`\n]*`", "", text_of(document))
        assert len(re.findall(r"<!-- (?:not run|file):", text)) == len(
            [b for b in blocks_of(document) if b.not_run or b.file]
        )


def after_the_readme(made):
    (run,) = Path("runs").glob("*/run.json")
    frames = len(list((run.parent / "frames").glob("*.png")))
    assert frames == 1 + 1 + 5 and (run.parent / "report.html").exists()


def after_watching(made):
    for name, frames in (("first", 4), ("masks", 3)):
        assert len(list(Path("runs", name, "frames").glob("*.png"))) == frames
    assert made.learn.grad_cam.run.history["mask_share"].notna().any()
    assert Path("course.png").exists() and Path("course.gif").exists()


def after_contributing(made):
    from fastai_gradcam import gradcam

    net = small_resnet().eval()
    maps = gradcam(net, torch.randn(1, 3, 64, 64), method="mymethod").maps[0]
    assert maps.shape == (1, 2, 2)


def after_pytorch(made):
    from fastai_gradcam import gradcam

    engine = gradcam(made.model, made.x, layer="layer3", target=243).maps[0][0]
    assert torch.allclose(made.cam_map, engine, rtol=1e-4, atol=1e-6)
    assert Path("photo-gradcam.png").exists()


def after_coming_from(made):
    """The results that the document calls the same are the same."""
    from fastai_gradcam import gradcam
    from fastai_gradcam.render import normalise, upsample

    assert torch.allclose(made.cam.map, made.cam_map.relu(), rtol=1e-3, atol=1e-6)
    assert made.cam.map.any()
    raw = made.raw.numpy()
    assert raw.any()
    # Theirs is enlarged by OpenCV's bilinear interpolation, and from 0 at the lowest cell.
    low = scaled(raw)
    assert np.corrcoef(upsample(low, (64, 64)).ravel(), made.grayscale_cam.ravel())[0, 1] > 0.99
    assert torch.allclose(made.captum_map[0, 0], made.raw, rtol=1e-4, atol=1e-7)
    assert np.allclose(made.torchcam_map[0].numpy(), low, atol=1e-4)
    assert normalise(raw).max() == 1
    with pytest.raises(ValueError, match="for a batch of 1 images"):
        gradcam(made.model, made.x, target=torch.tensor([1, 2]))
    assert list(Path("logs").glob("events*")) and len(list(Path("runs/tf-style/frames").glob("*.png"))) == 2


AFTERWARDS = {
    "README.md": after_the_readme,
    "CONTRIBUTING.md": after_contributing,
    "docs/watching.md": after_watching,
    "docs/pytorch.md": after_pytorch,
    "docs/coming-from.md": after_coming_from,
}


# --- tables


def rows_of_table(document, heading):
    "The cells of each row of the first table of `document` whose head begins with `heading`."
    lines = iter(text_of(document).splitlines())
    next(line for line in lines if line.startswith(f"| {heading} |"))
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_the_ranges_that_are_told_hold_for_a_history(here):
    from fastai_gradcam.run import HISTORY_COLUMNS, Run

    history, told = Run("gradcam/my-run").history, {}
    for names, _, range_ in rows_of_table("docs/reading.md", "column"):
        low, _, high = range_.partition(" … ") if " … " in range_ else range_.partition(" …")
        bounds = [float(x) if re.fullmatch(r"-?[\d.]+", x) else np.inf for x in (low, high)] if range_ else None
        told |= dict.fromkeys(re.findall("`(.+?)`", names), bounds)
    assert set(told) == set(HISTORY_COLUMNS)
    checked = 0
    for column, bounds in told.items():
        if bounds and history[column].dtype.kind in "if":
            numbers = history[column].dropna()
            assert numbers.between(*bounds).all(), (column, bounds, numbers.min(), numbers.max())
            checked += len(numbers) > 0
    assert checked > 10 and history["loss"].max() > 1  # a range up to 1 would be told wrongly


def test_the_page_on_findings_has_each_kind_with_its_severity():
    from fastai_gradcam.findings import KINDS

    told = {}
    for name, severity, means, action in rows_of_table("docs/findings.md", "kind"):
        told[name.strip("`")] = tuple(float(x) for x in severity.split(" … "))
        assert means and action
    assert told == KINDS


# --- links and names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for link in links_of(document):
        if link.startswith("http"):
            assert link.startswith("https://"), link
            continue
        target, _, anchor = link.partition("#")
        file = (ROOT / document).parent / target if target else ROOT / document
        assert file.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in anchors_of(file.resolve().relative_to(ROOT).as_posix()), f"{document}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    for name in re.findall(r"`((?:\.ci|docs|tests|benchmarks|examples|fastai_gradcam)/[^`\s]*)`", prose_of(document)):
        assert (ROOT / name).exists(), f"{document}: {name}"


def test_every_document_is_linked_from_the_readme():
    assert {d for d in DOCUMENTS if d.startswith("docs/")} <= {link.partition("#")[0] for link in links_of("README.md")}


# --- the checks themselves


def block(text, language="python", comment=""):
    return Block("README.md", language, text, 1, comment)


def test_a_broken_block_is_noticed():
    with pytest.raises(NameError):
        execute(block("gradcaam(model, x)"), {})
    for words in ("pip install -e .[tests]", "python benchmarks/costs.py", "torchrunn train.py", ".ci/runs"):
        with pytest.raises(AssertionError):
            check_command(words.split())
    with pytest.raises(AssertionError):
        check_command("python benchmarks/cost.py --onli maps".split())


# --- messages in docs/troubleshooting.md


def messages(*calls):
    """The texts in the package's source, with NUL for values: all, or those given to functions of these names."""
    for file in sorted((ROOT / "fastai_gradcam").glob("**/*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if calls:
            found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in calls]
            yield from filter(None, (said(n.args[0]) for n in found))
        else:
            yield from filter(None, map(said, ast.walk(tree)))


def said(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def quoted(text):
    "The quotations of a Markdown text, each on one line."
    found = re.findall(r"^> .*(?:\n> .*)*", text, flags=re.M)
    return [" ".join(line.removeprefix("> ") for line in one.split("\n")) for one in found]


def occurs(quote, all_messages):
    """Whether a quotation is in one of the messages: its words, with something put in or left out where it has an
    ellipsis.
    """
    words = quote.removeprefix("GradCAMCallback: ") if quote not in all_messages else quote
    for candidate in {quote, words}:
        pattern = re.compile(".*".join(re.escape(part) for part in candidate.split("…")), flags=re.S)
        if any(pattern.search(message) for message in all_messages):
            return True
    return False


@pytest.mark.slow
def test_messages_that_are_quoted_are_those_of_the_source():
    known, quotes = list(messages()), quoted(text_of("docs/troubleshooting.md"))
    assert len(quotes) > 40
    for quote in quotes:
        assert len(re.sub(r"[\W…]", "", quote)) > 8, f"too little is quoted to find it: {quote}"
        assert occurs(quote, known), f"no such message: {quote}"
    assert not occurs("There is no runn in …: it has no run.json.", known)


@pytest.mark.slow
def test_every_warning_is_explained():
    quotes = quoted(text_of("docs/troubleshooting.md"))
    warned = [m for m in messages("warn", "self.say", "errors.append", "self._errors.append") if re.search(r"\w{4}", m)]
    assert len(warned) > 12
    for message in warned:
        # A quotation may end early.
        start = message.split(". ")[0].rstrip(".")
        pattern = re.compile(".*".join(re.escape(part) for part in start.split("\0")), flags=re.S)
        assert any(pattern.search(quote) for quote in quotes), f"docs/troubleshooting.md does not explain: {message!r}"


# --- the reference


@pytest.fixture(scope="module")
def make_api():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_reference_is_up_to_date(make_api):
    assert make_api.FILE.read_text(encoding="utf-8") == make_api.page(), "run python docs/make_api.py"


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_no_empty_entry(make_api):
    import fastai_gradcam

    text = make_api.page()
    listed = {name for _, _, names in make_api.PAGES for name in names}
    assert set(fastai_gradcam.__all__) <= listed
    for entry in re.split(r"^### ", text, flags=re.M)[1:]:
        name, text = entry.split("\n", 1)
        words = [
            line for line in text.split("\n") if line and not re.match(rf"`(from fastai_gradcam|{name}\()|#", line)
        ]
        assert words, f"{name} has no docstring"


# --- what docs/compare.md says of the others


PEERS = {"grad-cam": "1.5.7", "torchcam": "0.5.0", "captum": "0.9.0"}


def in_place(inplace=True):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(*layers)


def map_of(package, net, x):
    if package == "grad-cam":
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with GradCAM(model=net, target_layers=[net[0]]) as cam:
            return torch.tensor(cam(x, [ClassifierOutputTarget(3)] * len(x)))
    if package == "torchcam":
        from torchcam.methods import GradCAM

        with GradCAM(net, net[0]) as extractor:
            return extractor(3, net(x))[0]
    if package == "captum":
        from captum.attr import LayerGradCam

        return LayerGradCam(net, net[0]).attribute(x, 3, relu_attributions=True)
    from fastai_gradcam import gradcam

    return gradcam(net, x, layer="0", target=3).maps[0]


@pytest.mark.parametrize("package", [*PEERS, "fastai_gradcam"])
def test_what_the_comparison_says_of_the_others(package):
    if package in PEERS and metadata.version(package) != PEERS[package]:
        pytest.skip(f"docs/compare.md speaks of {package} {PEERS[package]}, installed is {metadata.version(package)}")
    x = torch.randn(2, 3, 16, 16)
    right = package in ("captum", "fastai_gradcam")
    assert torch.allclose(map_of(package, in_place(), x), map_of(package, in_place(False), x)) == right
    frozen = in_place().requires_grad_(False)
    with nullcontext() if right else pytest.raises(RuntimeError):
        map_of(package, frozen, x)
    net = in_place().train()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    map_of(package, net, x)
    as_before = net.training and all((p.grad == 1).all() for p in net.parameters())
    assert as_before == (package != "grad-cam")


@pytest.mark.parametrize("package", ["grad-cam", "torchcam"])
def test_whose_gradcam_plus_plus_is_the_papers(package):
    if metadata.version(package) != PEERS[package]:
        pytest.skip(f"docs/compare.md speaks of {package} {PEERS[package]}, installed is {metadata.version(package)}")
    from pytorch_grad_cam import GradCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAMpp

    from fastai_gradcam import gradcam

    head = nn.Flatten(), nn.Linear(8 * 64, 20), nn.Tanh(), nn.Linear(20, 5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), *head).eval()
    x = torch.randn(1, 3, 8, 8)
    ours = gradcam(net, x, layer="1", target=3, method="gradcam++").maps[0][0]
    if package == "grad-cam":
        with GradCAMPlusPlus(model=net, target_layers=[net[1]]) as cam:
            theirs = torch.tensor(cam(x, [ClassifierOutputTarget(3)])[0])
    else:
        with GradCAMpp(net, net[1]) as extractor:
            theirs = extractor(3, net(x))[0][0]
    apart = (scaled(ours) - scaled(theirs)).abs().max()
    assert apart < 0.01 if package == "grad-cam" else apart > 0.03


def scaled(map):
    return (map - map.min()) / (map.max() - map.min())


def test_the_comparison_names_the_versions_it_is_about():
    for package, version in PEERS.items():
        name = "pytorch-grad-cam" if package == "grad-cam" else package
        for document in ("README.md", "docs/compare.md"):
            assert f"{name} {version}" in text_of(document)


def test_all_methods_are_documented():
    from fastai_gradcam.methods import methods

    text = text_of("docs/pytorch.md")
    rows = re.findall(r"^\| `([^`=]+)` \|", text, flags=re.M)
    assert sorted(rows) == sorted(methods)
    assert len(methods) == 11 and "eleven methods" in text_of("README.md")
    assert re.search(r"class activation methods \| 11,", text_of("docs/compare.md"))
