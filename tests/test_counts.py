"""The cost of a frame, counted and never timed: passes, modules in the backward pass, files, decoded images."""

import gc
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fastai.vision.all import Callback
from torch.nn.modules.module import register_module_forward_hook
from training import tiny_learner

from fastai_gradcam import GradCAMCallback
from fastai_gradcam._run import writer
from fastai_gradcam._watch.core import Watcher

# Enough to see what grows from one frame to the next.
EPOCHS = 3
# An audit hook cannot be taken away again: it asks this list where to write, and writes nowhere while it is empty.
_watching: list[list] = []


def _audit(event, args):
    if _watching and event in ("open", "os.rename"):
        _watching[-1].append((event, args))


sys.addaudithook(_audit)


class Alive(Callback):
    "How many tensors are alive behind each frame."

    order = GradCAMCallback.order + 1

    def __init__(self):
        self.tensors = []

    def after_epoch(self):
        if hasattr(self.learn, "grad_cam"):
            self.learn.grad_cam.flush()
        gc.collect()
        self.tensors.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))


@pytest.fixture
def watched(image_folder, tmp_path, monkeypatch):
    "A function that trains with the callback and gives what each frame cost: passes, backward passes, modules, files."

    def train(epochs=1, **settings):
        learn = tiny_learner(image_folder, tmp_path)
        watch = GradCAMCallback(path=tmp_path / "runs", name="run", show=False, **settings)
        alive = Alive()
        frames = []
        take, grad = Watcher.take, torch.autograd.grad

        def took(self, epoch, metrics):
            files, passes, gradients, behind = [], Counter(), [], set()
            for name, module in self.subject.model().named_modules():
                module.label = name  # the engine looks at a copy, which has these, too

            def count(module, args, out):
                if hasattr(module, "label"):
                    passes[module.label] += 1
                    if isinstance(out, torch.Tensor) and out.requires_grad:
                        behind.add(module.label)

            # A hook of all modules comes before those of a module, which are the engine's.
            handle = register_module_forward_hook(count)
            monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: gradients.append(1) or grad(*a, **k))
            _watching.append(files)
            try:
                take(self, epoch, metrics)
                self.flush()
            finally:
                _watching.remove(files)
                monkeypatch.setattr(torch.autograd, "grad", grad)
                handle.remove()
            frames.append((passes, len(gradients), behind, files))

        monkeypatch.setattr(Watcher, "take", took)
        learn.add_cbs([watch, alive])
        learn.fit(epochs)
        assert [f["status"] for f in learn.grad_cam.run.frames] == ["ok"] * (epochs + 1)
        return learn, alive, frames

    return train


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("target, classes", [("true", 1), ([0, 1, 2], 3)])
def test_a_frame_is_one_forward_pass_and_a_short_backward_pass_per_class(watched, layer, target, classes):
    learn, _, frames = watched(n=5, layer=layer, target=target)
    modules = {name for name, _ in learn.model.named_modules()}
    for passes, gradients, in_backward, _ in frames:
        assert passes == dict.fromkeys(modules, 1)
        assert gradients == classes
        # The graph begins at the layer's own output: no module inside of the layer or before it has a part in it.
        blocks = {name.split(".")[1] for name in in_backward if name.startswith("0.")}
        assert {str(k) for k in range(layer + 1, 3)} <= blocks
        assert not blocks & {str(k) for k in range(layer)}
        assert not any(name.startswith(f"0.{layer}.") for name in in_backward)


@pytest.mark.slow
def test_several_layers_cost_no_further_pass(watched):
    _, _, frames = watched(n=3, layer=[0, 1, 2])
    for passes, gradients, _, _ in frames:
        assert set(passes.values()) == {1} and gradients == 1


def _files(opened, run):
    "How often the files of `run` were opened for writing and put in place, and which were read."
    written, put, read = Counter(), Counter(), Counter()
    for event, args in opened:
        place = Path(str(args[1] if event == "os.rename" else args[0]))
        if not place.is_relative_to(run):
            # Whatever else is opened, no image of the data is.
            assert event != "open" or place.suffix not in (".png", ".jpg"), f"{place} was decoded again"
            continue
        # A file that is put in place later has the process and the thread in its name.
        name = re.sub(r"\.\d+-\d+\.part$", ".part", place.relative_to(run).as_posix())
        if event == "os.rename":
            put[name] += 1
        elif isinstance(args[1], str) and set(args[1]) & set("wax+"):
            written[name] += 1
        else:
            read[name] += 1
    return written, put, read


@pytest.mark.slow
def test_a_frame_writes_four_files_and_reads_none_of_the_data(watched, monkeypatch):
    # The report, which grows with the run, has a time of its own: see the next test.
    monkeypatch.setattr("fastai_gradcam._watch.publish.ReportRefresher.__call__", lambda self, recorder, frame: None)
    learn, _, frames = watched(n=5)
    run = learn.grad_cam.run.path.resolve()
    for k, (_, _, _, opened) in enumerate(frames):
        written, put, _ = _files(opened, run)
        new = {f"maps/frame-{k:03d}.npz": 1, f"frames/frame-{k:03d}.png": 1, "run.json": 1}
        assert put == new
        part = lambda name: str(Path(name).with_name(f".{Path(name).name}.part").as_posix())
        assert written == {part(name): 1 for name in new} | {"history.csv": 1}


@pytest.mark.slow
def test_the_size_of_what_a_frame_writes_does_not_grow(watched, monkeypatch):
    frames, sizes = [], {}

    def counting(write):
        def counted(file, data, *at):
            sizes[file.name.partition("-")[0]] = len(data)
            written = write(file, data, *at)
            if file.name == "run.json":  # the last file of a frame
                frames.append(dict(sizes))
            return written

        return counted

    for name in ("write_whole", "append_at"):
        monkeypatch.setattr(writer, name, counting(getattr(writer, name)))
    watched(EPOCHS, n=4)
    early, late = (next(f for f in frames[k:] if "history.csv" in f) for k in (2, EPOCHS))
    assert late["frame"] > 0 and late["history.csv"] > 0
    # Digits come and go; a history written anew would be twice as long by now.
    assert late["history.csv"] < 1.4 * early["history.csv"]
    # `run.json` names every frame, in a few lines each.
    assert 0 < (late["run.json"] - early["run.json"]) / (EPOCHS - 2) < 600


@pytest.mark.slow
def test_no_tensor_stays_behind_a_frame(watched, image_folder, tmp_path):
    # fastai keeps the losses of all batches; that much, and no more.
    alone = Alive()
    tiny_learner(image_folder, tmp_path, cbs=alone).fit(EPOCHS)
    _, alive, _ = watched(EPOCHS, n=4)
    grown = [[after - before for before, after in pairwise(one.tensors[1:])] for one in (alone, alive)]
    assert len(grown[0]) == EPOCHS - 2 and grown[0] == grown[1]


@pytest.mark.slow
def test_the_default_layer_is_searched_for_before_training_only(watched):
    _, _, frames = watched(n=2)
    for passes, gradients, _, _ in frames:
        assert set(passes.values()) == {1} and gradients == 1
