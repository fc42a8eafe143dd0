"""The examples, run as a reader runs them, on small or real data."""

import os
import runpy
from pathlib import Path

import pytest
from PIL import Image
from processes import environment

from fastai_gradcam import Run

# Trainings, and networks of their real size.
pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    "`example(name, *args, home)`: what the program prints; it is run in an empty folder, offline."

    def run(name, *args, home="/nonexistent"):
        for variable, value in environment(home).items():
            monkeypatch.setenv(variable, value)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [name, *map(str, args)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_fish_example_trains_with_masks_and_shows_all_layers(example, tmp_path):
    out = example("fish.py", "--arch", "resnet18", "--epochs", 1, "--size", 48, "--per-species", 5, "--no-pretrained")
    assert "mask_share" in out
    frames = list((tmp_path / "fish-example" / "runs").glob("*/frames/*.png"))
    assert len(frames) == 3
    layers = Image.open(tmp_path / "fish-example" / "layers.png")
    assert layers.width > 600


def test_the_photo_example_finds_the_dog_above_and_the_cat_below(example, tmp_path, shared_data):
    photo = shared_data / "photos" / "dog_and_cat.png"
    out = example("photo.py", photo, "--arch", "squeezenet1_1", home=shared_data / "torch_home")
    assert "predicted: bull mastiff" in out
    down = {line.split(":")[0]: int(line.split()[-2].rstrip("%")) for line in out.splitlines() if "looks most" in line}
    assert down["bull mastiff"] < 55 < down["tiger cat"]
    assert Image.open(tmp_path / "photo-gradcam.png").width > 3 * 224


def test_the_vgg_example_shows_the_map_step_by_step(example, tmp_path):
    photo = tmp_path / "photo.png"
    Image.effect_noise((300, 200), 80).convert("RGB").save(photo)
    out = example("vgg16.py", photo)
    assert "activations: (512, 14, 14)" in out
    assert Image.open(tmp_path / "vgg16-gradcam.png").width > 1000


def test_the_fashion_example_explains_three_convolutions(example, tmp_path):
    if not FASHION.is_dir():
        reason = "needs the four Fashion-MNIST files (Debian's dataset-fashion-mnist)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    out = example("fashion_mnist.py", "--data", FASHION)
    accuracy = int(out.split("test images: ")[1].split("%")[0])
    assert accuracy > 65
    assert Image.open(tmp_path / "fashion-mnist.png").height > 500


def test_a_loop_of_ones_own_is_watched(example, tmp_path):
    if not FASHION.is_dir():
        reason = "needs the four Fashion-MNIST files (Debian's dataset-fashion-mnist)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    out = example("plain_pytorch.py", "--data", FASHION, "--epochs", 2)
    assert int(out.split("epoch 1: accuracy on 2,000 test images: ")[1].split("%")[0]) > 65
    run = Run(next((tmp_path / "fashion-mnist-runs").iterdir()))
    assert [f["status"] for f in run.frames] == ["ok"] * 3 and (run.path / "report.html").exists()
    assert [p["label"] for p in run.panel] == run.vocab


@pytest.mark.parametrize("trainer", ["lightning", "transformers"])
def test_the_fish_are_watched_in_other_trainers(trainer, example, tmp_path):
    pytest.importorskip(trainer)
    out = example(f"{trainer}_fish.py", "--epochs", 1, "--size", 48, "--per-species", 5)
    assert "report.html" in out
    run = Run(next((tmp_path / f"{trainer}-fish" / "gradcam").iterdir()))
    assert [f["status"] for f in run.frames] == ["ok"] * 2 and run.status == "finished"
    assert "Trout" in run.vocab and {"accuracy", "eval_accuracy"} & run.frames[1]["metrics"].keys()
