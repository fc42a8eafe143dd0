"""The example notebooks: executed by a real kernel, and their pictures looked at; and as they are stored."""

import base64
import html
import io
import json
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from notebooks import EXAMPLES, Executed, execute, is_finished_bar, machine_paths
from PIL import Image

FIRST, ANY, FISH, MEND = NOTEBOOKS = (
    "01-first-look.ipynb", "02-any-image.ipynb", "03-is-it-the-fish.ipynb", "04-mend-it.ipynb",
)  # fmt: skip
EPOCHS = 6
# A small network takes the place of resnet18, as in test_docs.py.
SMALL = "from small import small_networks as _small\n_small = _small()\n_small.__enter__()\n"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "All notebooks, executed side by side."
    return execute(NOTEBOOKS, tmp_path_factory.mktemp("notebooks"), SMALL)


@pytest.fixture(scope="module")
def kept():
    "All notebooks as they are stored."
    return {name: Executed(nbformat.read(EXAMPLES / name, as_version=4)) for name in NOTEBOOKS}


@pytest.fixture(params=[pytest.param("executed", marks=pytest.mark.slow), "kept"])
def found(request):
    "The notebooks in both ways, one after the other."
    return {name: one.notebook for name, one in request.getfixturevalue(request.param).items()}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(notebook, words):
    (found,) = [cell for cell in code_cells(notebook) if words in cell.source]
    return found


def shown(notebook, words, kind):
    "The outputs of the cell with `words` in it of the MIME type `kind`."
    return [o.data[kind] for o in cell_with(notebook, words).outputs if kind in o.get("data", {})]


def picture(notebook, words, kind="image/png"):
    "The one picture that a cell shows, float `(H, W, 3)`; it must not be blank."
    (data,) = shown(notebook, words, kind)
    return decoded(data)


def decoded(data):
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)
    assert pixels.std() > 20, "a blank picture"
    assert len(np.unique(pixels.reshape(-1, 3).round(-1), axis=0)) > 30, "hardly a colour"
    return pixels


def heat(pixels):
    "The share of the picture with the hot colours of a map: red far above blue."
    return ((pixels[..., 0] - pixels[..., 2]) > 60).mean()


def tiles(pixels):
    "The images of a grid's first row, side by side: stretches of columns that are not paper."
    rows = pixels[40:180]  # below the key
    ink = (np.abs(rows - pixels[2, 2]).max(axis=(0, 2)) >= 12).astype(int)
    starts, ends = np.flatnonzero(np.diff(ink) == 1) + 1, np.flatnonzero(np.diff(np.append(ink, 0)) == -1) + 1
    starts = np.insert(starts, 0, 0) if ink[0] else starts
    found = [rows[:, start:end] for start, end in zip(starts, ends, strict=True) if end - start > 80]
    width = min(tile.shape[1] for tile in found)
    return [tile[:, :width] for tile in found]


def differ(parts):
    "Whether each of the pictures is another than the first."
    return all(np.abs(parts[0] - part).mean() > 3 for part in parts[1:])


# --------------------------------------------------------------------------------------- while it learns


@pytest.mark.slow
def test_one_grid_stands_below_fastais_table(found):
    outputs = cell_with(found[FIRST], "fit_one_cycle").outputs
    kinds = [kind for o in outputs for kind in ("text/html", "image/jpeg", "image/png") if kind in o.get("data", {})]
    assert kinds.count("image/jpeg") == 1 and "image/png" not in kinds
    assert kinds.index("image/jpeg") > kinds.index("text/html")
    tables = [table for table in shown(found[FIRST], "fit_one_cycle", "text/html") if "valid_loss" in table]
    assert len(tables) == 1 and tables[0].count("<tr") == 1 + EPOCHS
    assert heat(picture(found[FIRST], "fit_one_cycle", "image/jpeg")) > 0.02


def test_no_progress_bar_is_left(found):
    for notebook in found.values():
        for cell in code_cells(notebook):
            left = [o for o in cell.outputs if "<progress " in o.get("data", {}).get("text/html", "")]
            assert not left, cell.source


@pytest.mark.slow
def test_the_grid_is_replaced_in_place_after_each_epoch(executed):
    one = executed[FIRST]
    (grids,) = one.pictures.values()
    assert len(grids) == 1 + EPOCHS
    assert shown(one.notebook, "fit_one_cycle", "image/jpeg") == grids[-1:]
    (frames,) = one.folder.glob("fish/gradcam/*/frames")
    saved = [np.asarray(Image.open(frames / f"frame-{i:03d}.png").convert("RGB"), float) for i in range(1 + EPOCHS)]
    for i, grid in enumerate(map(decoded, grids)):
        away = [np.abs(grid - frame).mean() if grid.shape == frame.shape else 255 for frame in saved]
        assert np.argmin(away) == i and away[i] < 3, f"grid {i} is that of frame {np.argmin(away)}"


def test_a_grid_that_is_not_wanted_is_not_shown(found):
    for words in ('plain = watched("plain")', 'cards = watched("with-cards")'):
        assert "valid_loss" in "".join(shown(found[FISH], words, "text/html"))
        assert shown(found[FISH], words, "image/jpeg") == shown(found[FISH], words, "image/png") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["python", "ipython"])
def test_outside_of_a_notebook_none_is_shown(kind, tmp_path):
    code = "from fastai_gradcam._draw.notebook import in_notebook; print(in_notebook())"
    command = [sys.executable, "-c", code] if kind == "python" else [sys.executable, "-m", "IPython", "-c", code]
    env = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=EXAMPLES.parent)
    assert done.stdout.strip() == "False"


# ----------------------------------------------------------------------------------------------- the run


def test_the_report_is_in_a_frame_with_all_its_frames(found):
    (view,) = shown(found[FIRST], "run.widget", "text/html")
    assert view.count("<iframe") == 1 and 'sandbox="allow-scripts"' in view
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', view)[1])
    data = json.loads(re.search(r'<script type="application/json" id="run-data">(.*?)</script>', page, re.S)[1])
    assert len(data["frames"]) == 1 + EPOCHS and len(data["panel"]) == 6
    decoded(data["panel"][0]["image"].split(",")[1])
    assert any(base64.b64decode(data["maps"][0]["cells"][EPOCHS]))


@pytest.mark.slow
def test_a_run_as_the_last_line_shows_its_newest_grid(found):
    cell = code_cells(found[FISH])[-1]
    assert cell.source == "cards"
    (text,) = [output.data["text/html"] for output in cell.outputs]
    assert "finished" in text and heat(decoded(re.search(r"base64,([^\"]+)", text)[1])) > 0.02


@pytest.mark.slow
def test_history_and_curves_are_shown(found):
    (table,) = shown(found[FIRST], "run.history.query", "text/html")
    assert table.count("<tr") == 1 + 1 + EPOCHS and "centroid_shift" in table
    assert picture(found[FIRST], "run.plot").shape[1] > 500


# ------------------------------------------------------------------------------------------ learn.gradcam


def test_a_map_as_the_last_line_shows_itself(found):
    one = picture(found[ANY], "learn.gradcam(image, layer=6)", "image/jpeg")
    assert heat(one) > 0.02 and len(tiles(one)) == 1


@pytest.mark.parametrize(
    "words, columns",
    [
        ('target=["Red Mullet", "Trout"]', 2),
        ("layer=[5, 6, 7]", 3),
        ("learn.gradcam(dls.valid_ds.items[4:6]", 2),
        ("learn.show_gradcam(ds_idx=1, max_n=2", 2),
    ],
)
def test_several_maps_show_as_one_grid(found, words, columns):
    grid = picture(found[ANY], words, "image/jpeg")
    assert heat(grid) > 0.02 and len(tiles(grid)) == columns and differ(tiles(grid))


def test_maps_are_drawn_into_axes_of_the_users_own(found):
    figure = picture(found[ANY], "show(ctx=ax")
    assert heat(figure) > 0.02 and len(tiles(figure)) == 4 and differ(tiles(figure))


@pytest.mark.slow
def test_the_worst_mistakes_show_two_maps_each(found):
    grid = picture(found[ANY], "plot_top_gradcams(2", "image/jpeg")
    assert len(tiles(grid)) == 4 and differ(tiles(grid))


# ------------------------------------------------------------------------------------------ is it the fish?


def test_the_shortcut_is_found_and_only_there(found):
    (text,) = [o.text for o in cell_with(found[FISH], "run.findings()").outputs]
    plain, cards = re.split(r"^with cards: .*$", text, flags=re.M)
    assert "shortcut" in cards and "shortcut" not in plain
    (table,) = shown(found[FISH], "def last(run)", "text/plain")
    rows = {row.split("  ")[0]: [float(x) for x in row.split()[-4:]] for row in table.splitlines()[1:]}
    (right, on_fish, _, _), (right_by_cards, on_fish_by_cards, _, _) = rows["plain"], rows["with cards"]
    assert right_by_cards > 0.8 > right and on_fish > 0.35 > 0.25 > on_fish_by_cards


# ------------------------------------------------------------------------------------------------ mend it


def test_the_tag_is_named_and_after_boxes_on_a_few_pictures_it_turns_no_other(found):
    text = " ".join("".join(o.text for o in cell_with(found[MEND], "before.findings()").outputs).split())
    assert text.startswith("confirmed") and text.count("confirmed") == 1 and "turned" in text and "into Trout" in text
    assert "GradCAMGuide(boxes)" in text
    (table,) = shown(found[MEND], "def tried(run)", "text/html")
    names = [re.sub("<.*?>", "", cell) for cell in re.findall("<th>.*?</th>", table)]
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>.*?</td>", table)]
    columns = len(cells) // 3
    rows = {name: cells[i * columns : (i + 1) * columns] for i, name in enumerate(names[-3:])}
    assert [row[-1] for row in rows.values()] == ["shortcut", "shortcut", "clear"] and list(rows)[-1] == "guided"
    bare, others, patches = ([float(row[i]) for row in rows.values()] for i in (1, 2, 3))
    assert bare[2] > 0.4 > 0.1 > max(bare[:2])
    assert min(others[:2]) > 0.8 > 0.2 > others[2] and min(patches[:2]) > 0.8 > 0.2 > patches[2]


def test_the_patches_and_both_networks_are_shown(found):
    assert heat(picture(found[MEND], 'watched("before"', "image/jpeg")) > 0.02
    assert heat(picture(found[MEND], "before.compare(guided", "image/jpeg")) > 0.02
    magenta = picture(found[MEND], "patches/*Trout*")
    assert ((magenta[..., 0] > 200) & (magenta[..., 1] < 80) & (magenta[..., 2] > 150)).mean() > 0.01


# --------------------------------------------------------------------------------------------- as stored


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_notebooks_are_small_whole_and_of_no_machine(kept, name):
    notebook = kept[name].notebook
    assert (EXAMPLES / name).stat().st_size < 500_000
    assert len(notebook.cells) <= 20 and len(code_cells(notebook)) <= 12
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, 1 + len(code_cells(notebook))))
    assert machine_paths(json.dumps(notebook)) == []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_notebooks_show_what_they_show_today(kept, executed, name):
    def kinds(cell):
        shown = [output for output in cell.outputs if not is_finished_bar(output)]
        return [sorted(output.get("data", [output.get("name")])) for output in shown]

    for then, now in zip(code_cells(kept[name].notebook), code_cells(executed[name].notebook), strict=True):
        assert kinds(then) == kinds(now), then.source
