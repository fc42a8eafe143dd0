"""Every picture of a run names what it shows, by one rule and in the same words."""

import numpy as np
import pytest
from PIL import Image
from report_fixture import make_run

from fastai_gradcam import Run
from fastai_gradcam._draw import frame as frames
from fastai_gradcam._draw.frame import cells_of, frame_grid, heading
from fastai_gradcam._draw.series import Series
from fastai_gradcam._run.schema import Frame, PanelItem
from fastai_gradcam._run.words import map_note

LABELS = ["dress", "hat", "shorts"]
PANEL = [PanelItem(i, f"{i}.jpg", label, "", None, 40, 30) for i, label in enumerate(LABELS)]
IMAGES = [Image.new("RGB", (40, 30), "grey")] * 3


def looked(targets=LABELS, preds=("shorts", "hat", "shorts"), layers=("0.7",), classes=1, **more):
    "A frame in which the first image is wrong and the others are right; `targets`: the classes explained."
    shape = (3, 4, 4) if classes == 1 else (3, classes, 4, 4)
    rows = [
        {"item": i, "layer": layer, "label": LABELS[i], "target": target, "prob": 0.23, "pred": preds[i],
         "pred_prob": 0.8, "correct": preds[i] == LABELS[i]}
        for i in range(3) for layer in layers for target in (targets[i : i + 1] if classes == 1 else targets[:classes])
    ]  # fmt: skip
    return Frame(2, 0, 1, {"accuracy": 0.5}, {layer: np.ones(shape, np.float32) for layer in layers}, rows, **more)


def notes(*given, **more):
    return [cell.note for cell in cells_of(looked(*given, **more), IMAGES, PANEL)]


def test_a_map_that_is_not_of_the_prediction_names_its_class():
    assert notes() == ["map of dress (23%)", "", ""]
    assert notes(("shorts", "hat", "shorts")) == ["", "", ""]  # target="pred"
    assert notes(("hat", "hat", "hat")) == ["map of hat (23%)", "", "map of hat (23%)"]  # target="hat"


def test_several_layers_and_classes_are_named_each():
    assert notes(layers=("0.6", "0.7"))[:4] == ["0.6 · map of dress (23%)", "0.7 · map of dress (23%)", "0.6", "0.7"]
    named = notes(classes=2)
    assert named == ["map of dress (23%)", "map of hat (23%)"] * 3


def test_an_image_without_a_prediction_or_class_says_nothing_of_it():
    assert map_note(None, 0.2, "hat") == map_note("", None, "hat") == ""
    assert map_note("-score", None, "0.7") == "map of -score"


def test_a_frame_is_called_by_fit_and_epoch_counted_from_1():
    assert heading(looked()) == "Fit 1 · epoch 2\nframe 2 · accuracy 0.5"
    assert heading(looked(frozen=True)).startswith("Fit 1 · frozen epoch 2\n")
    assert heading(Frame(0, 0, -1)) == "Before training\nframe 0"


def test_the_grid_of_volumes_says_how_many_slices_are_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(frames, "grid", lambda cells, words, columns: drawn.append((cells, words)))
    volumes = [
        PanelItem(*[getattr(p, k) for k in "item name label image mask width height".split()], 12) for p in PANEL
    ]
    frame_grid(looked(), IMAGES, volumes), frame_grid(looked(), IMAGES, PANEL)
    assert [words.endswith(" · 4 of 12 slices") for _, words in drawn] == [True, False]
    assert [{cell.depth for cell in cells} for cells, _ in drawn] == [{12}, {None}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(make_run(tmp_path_factory.mktemp("say") / "run", n=6, frames=5))


@pytest.mark.slow
def test_the_animation_says_the_same_as_the_frames(run, monkeypatch):
    pages, plain = [], None
    from fastai_gradcam import pictures

    plain = pictures.grid
    monkeypatch.setattr(
        pictures, "grid", lambda cells, words, tile: pages.append((cells, words)) or plain(cells, words, tile=tile)
    )
    run.animation()
    assert [words.split("\n")[0] for _, words in pages][:3] == ["Before training", "Fit 1 · epoch 1", "Fit 2 · epoch 1"]
    right, wrong = set(), set()
    for cells, _ in pages:
        for i, cell in enumerate(cells):
            (right if cell.verdict else wrong).add((i, cell.note))
    assert right and {note for _, note in right} == {""}
    assert wrong and all(note.startswith(f"map of {run.panel[i]['label']} ") for i, note in wrong)


def test_a_row_of_the_evolution_names_the_class_where_a_prediction_is_another(run):
    series = Series(run, None)
    verdicts = [[series.answer(i, k)[1] for k in range(5)] for i in range(6)]
    assert any(all(row[3:]) and not all(row) for row in verdicts)
    for i, row in enumerate(verdicts):
        assert series.classes_of(i, range(5)) == ("" if all(row) else f"maps of {run.panel[i]['label']}")
        assert series.classes_of(i, [k for k in range(5) if row[k]]) == ""


@pytest.mark.parametrize("draw", ["grid", "evolution", "compare", "pair"])
def test_a_notebook_stores_a_picture_once(draw, tmp_path):
    run = Run(make_run(tmp_path / "run", n=2, frames=2))
    Image.new("RGB", (80, 60), "red").save(run.path / "frames/frame-001.png")
    made = {"grid": run.grid, "evolution": run.evolution, "compare": lambda: run.compare(run)}
    page = made.get(draw, lambda: run.compare(run, frame=-1))()
    pytest.importorskip("IPython")
    from IPython.core.formatters import DisplayFormatter

    stored, _ = DisplayFormatter().format(page)
    assert set(stored) == {"text/plain", "image/jpeg"}
    page.save(tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").tobytes() == page.tobytes()


def test_curves_have_whole_frames_and_a_legend(run):
    (ax,) = run.plot("prob")
    ax.figure.canvas.draw()
    assert all(float(tick).is_integer() for tick in ax.get_xticks())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mean of the panel", "each image"]


@pytest.mark.slow
@pytest.mark.parametrize("space, depth", [((8, 16, 16), 8), ((16, 16), None)])
def test_a_run_of_volumes_says_how_many_slices_they_have(space, depth, tmp_path):
    import torch
    from torch import nn

    from fastai_gradcam import Watch

    conv, pool = (nn.Conv3d, nn.AdaptiveAvgPool3d) if depth else (nn.Conv2d, nn.AdaptiveAvgPool2d)
    model = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 2))
    with Watch(model, torch.rand(2, 1, *space), labels=[0, 1], vocab=["a", "b"], path=tmp_path) as watch:
        watch(0)
    assert [entry.get("depth") for entry in watch.run.panel] == [depth] * 2
    assert Series(watch.run, None).about == ("" if depth is None else "4 of 8 slices")
