"""A damaged run costs no more than what is damaged: what `Run`, findings, pictures and report say of each damage."""

import io
import json
import re
import shutil
import socket
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import embedded
from PIL import Image
from report_fixture import make_run

from fastai_gradcam import GradCAMError, Run

LAYER = "0.7.2"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    "Three images, three frames, with their grids; the last image has a name of several bytes a character."
    labels = ["Trout", 'b, "c"', "魚"]
    path = make_run(tmp_path_factory.mktemp("sound") / "run", n=3, frames=3, labels=labels)
    for k in range(3):
        Image.new("RGB", (30, 20), (k, 0, 0)).save(path / f"frames/frame-{k:03d}.png")
    return path


@pytest.fixture
def damaged(sound, tmp_path):
    return Run(shutil.copytree(sound, tmp_path / "run"))


# --- damages: functions of the run's folder


def cut(name, size):
    def damage(path):
        file = path / name
        file.write_bytes(file.read_bytes()[:size])

    return damage


def gone(name):
    return lambda path: (path / name).unlink()


def garbage(name):
    return lambda path: (path / name).write_bytes(b"\x89PNG nothing")


def half_row(size):
    "The last row of the history, cut after so many bytes, or so many before its end."

    def damage(path):
        file = path / "history.csv"
        data = file.read_bytes()
        last = data.rstrip(b"\n").rindex(b"\n") + 1
        assert len(data) - last > abs(size)
        file.write_bytes(data[: last + size] if size > 0 else data[:size])

    return damage


def row_cut_at(text, extra):
    def damage(path):
        file = path / "history.csv"
        data = file.read_bytes()
        file.write_bytes(data[: data.rindex(text.encode()) + extra])

    return damage


def with_cell(column, value, row=4):
    def damage(path):
        table = pd.read_csv(path / "history.csv", dtype=str, keep_default_na=False)
        table.loc[row, column] = value
        table.to_csv(path / "history.csv", index=False)

    return damage


def without_column(path):
    table = pd.read_csv(path / "history.csv", dtype=str, keep_default_na=False)
    table.drop(columns="entropy").to_csv(path / "history.csv", index=False)


def header(shape, kind="<f4"):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": kind, "fortran_order": False, "shape": shape})
    return data.getvalue()


def maps(change):
    return lambda path: change(path / "maps" / "frame-001.npz")


def replaced(file, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{LAYER}.npy", content)


def flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def marked(*bits):
    "Bits set in the headers of the archive, each a mark that names the header and a place in it."

    def change(file):
        data = bytearray(file.read_bytes())
        for mark, at, bit in bits:
            data[data.index(mark) + at] |= bit
        file.write_bytes(data)

    return change


def broken_stream(file):
    content = header((3, 7, 7)) + np.random.default_rng(0).bytes(588)
    replaced(file, content, zipfile.ZIP_DEFLATED)
    data = bytearray(file.read_bytes())
    data[60:160] = b"\xff" * 100
    file.write_bytes(data)


def saved(**arrays):
    return lambda file: np.savez(file, **{LAYER if name == "layer" else name: a for name, a in arrays.items()})


UNREADABLE = {"run": "maps of frame 1 .* cannot be read", "pictures": "Frame 1 is left out", "report": "^left out: its"}
UNFIT = {"pictures": r"Frame 1 is left out: The maps of frame 1 ", "report": "^left out: its maps"}
ROW = dict.fromkeys(("run", "findings", "pictures"), r"history\.csv: a damaged row is left out")
GAP = ROW | {"report": r"the numbers of 1 of 3 images are missing|damaged row"}
IMAGE = {
    "run": "picture .* cannot be read",
    "pictures": "Image 1 is drawn grey: The picture",
    "report": "cannot be read",
}
MASK = {"run": "picture .* cannot be read", "findings": "^The mask of image 1 is left out: .*cannot be read"}
MASK |= {"report": MASK["findings"]}
GRID = {"run": r"picture .*frame-000\.png.* cannot be read"}
HISTORY = {"run": r"history\.csv.* is damaged", "findings": "is damaged", "pictures": "is damaged"}
HISTORY |= {"report": "^The numbers of this run cannot be read .* is damaged"}

# The damage done to the folder, and what each reader says of it; a reader that is not named says nothing.
DAMAGES = {
    **{f"maps cut to {n}": (cut("maps/frame-001.npz", n), UNREADABLE) for n in (0, 1, 100, 500, -1)},
    "maps gone": (gone("maps/frame-001.npz"), UNREADABLE),
    "maps with a flipped byte": (maps(flipped), UNREADABLE),
    "maps of a petabyte": (maps(lambda f: replaced(f, header((2, 400_000, 400_000)) + bytes(100))), UNREADABLE),
    "maps of an unknown compression": (maps(marked((b"PK\3\4", 8, 77), (b"PK\1\2", 10, 77))), UNREADABLE),
    "encrypted maps": (maps(marked((b"PK\3\4", 6, 1), (b"PK\1\2", 8, 1))), UNREADABLE),
    "maps of a broken stream": (maps(broken_stream), UNREADABLE),
    "pickled objects": (maps(saved(layer=np.array([{"a": 1}], object))), UNREADABLE),
    "maps of text": (maps(lambda f: replaced(f, header((3, 7, 7), "<U1") + bytes(3 * 7 * 7 * 4))), UNFIT),
    "maps of another layer": (maps(saved(other=np.ones((3, 7, 7), np.float32))), UNFIT),
    "too few maps": (maps(saved(layer=np.ones((2, 7, 7), np.float32))), UNFIT),
    "a vector as maps": (maps(saved(layer=np.ones(3, np.float32))), UNFIT),
    **{f"a row cut at {n}": (half_row(n), GAP) for n in (1, 3, 19, 40, 90, 150, -2, -3)},
    "a row cut within a character": (row_cut_at("魚", 1), GAP),
    "a row cut within quotes": (row_cut_at('"b, ', 3), ROW | {"report": "numbers of 2 of 3"}),
    **{
        f"a row with {cell}": (with_cell(*cell.split("=")), GAP)
        for cell in "fit= fit=0.5 epoch=x epoch=inf item=inf item=1.5 item=99 item=-1 item=1e300 frame= frame=nan "
        "layer=? layer=".split()
    },
    "a history that is not text": (lambda path: (path / "history.csv").write_bytes(b"frame,fit\n\xff\xfe\n"), HISTORY),
    "a history without a column": (without_column, HISTORY),
    "an image gone": (gone("panel/001.jpg"), IMAGE),
    "an image of garbage": (garbage("panel/001.jpg"), IMAGE),
    "a mask gone": (gone("panel/001-mask.png"), MASK),
    "a mask of garbage": (garbage("panel/001-mask.png"), MASK),
    "a grid gone": (gone("frames/frame-000.png"), GRID),
    "a grid of garbage": (garbage("frames/frame-000.png"), GRID),
}


# --- readers: what each says, as warnings, errors or notes


def heard(*acts):
    said = []
    for act in acts:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                act()
            except GradCAMError as error:
                said.append(str(error))
        # Ours are plain; threads and garbage that other tests left behind may warn of their own at any moment.
        ours = [w for w in caught if w.category is UserWarning]
        assert all(Path(w.filename) == Path(__file__) for w in ours)  # at the line of whoever asked
        said += [str(w.message) for w in ours]
    return said


def run_says(run, sound):
    frames = (lambda k=k: run.maps(k) for k in range(3))
    images = (lambda i=i, read=read: read(i) for i in range(3) for read in (run.image, run.mask, run.grid))
    return heard(*frames, lambda: run.history, *images)


def findings_say(run, sound):
    return heard(run.findings)


def pictures_say(run, sound):
    whole = Run(sound)
    draws = (run.evolution, run.animation, lambda: run.compare(whole), lambda: run.compare(whole, frame=-1))
    said = [heard(draw) for draw in draws]
    assert len({bool(sentences) for sentences in said}) == 1, said  # each of the four says it, or none
    return [sentence for sentences in said for sentence in sentences]


def report_says(run, sound):
    said = heard(run.report)
    data = embedded(run.path / "report.html")
    notes = [one.get("note") for one in (*data["frames"], *data["panel"])]
    return [*filter(None, notes), *data["notes"], *said]


READERS = {"run": run_says, "findings": findings_say, "pictures": pictures_say, "report": report_says}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_named_and_costs_nothing_else(damage, reader, damaged, sound):
    do, expected = DAMAGES[damage]
    do(damaged.path)
    said = READERS[reader](damaged, sound)
    if reader in expected:
        assert said and re.search(expected[reader], said[0]), said
    else:
        assert said == []


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_of_a_sound_run_nothing_is_said(reader, damaged, sound):
    assert READERS[reader](damaged, sound) == []


# --- what is left


@pytest.mark.parametrize("damage", [name for name, (_, says) in DAMAGES.items() if says is GAP])
def test_a_damaged_row_costs_itself_and_no_other(damage, damaged):
    whole = damaged.history
    DAMAGES[damage][0](damaged.path)
    with pytest.warns(UserWarning, match="damaged row"):
        left = damaged.history
    lost = 4 if damage.startswith("a row with") else 8
    pd.testing.assert_frame_equal(left, whole.drop(index=lost).reset_index(drop=True))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [name for name, (_, says) in DAMAGES.items() if says in (UNREADABLE, UNFIT)])
def test_damaged_maps_cost_their_frame_alone(damage, damaged, sound):
    DAMAGES[damage][0](damaged.path)
    with pytest.warns(UserWarning, match="Frame 1 is left out"):
        assert damaged.evolution().width < Run(sound).evolution().width
    with pytest.warns(UserWarning, match="Frame 1 is left out"), Image.open(damaged.animation()) as gif:
        assert gif.n_frames == 2
    data = embedded(damaged.report())
    assert [cells is not None for cells in data["maps"][0]["cells"]] == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["an image gone", "an image of garbage"])
def test_an_image_that_cannot_be_read_is_drawn_grey(damage, damaged, sound):
    whole = Run(sound)
    draws = (damaged.evolution, lambda: damaged.compare(whole), lambda: damaged.compare(whole, frame=-1))
    plain = [draw() for draw in draws]
    DAMAGES[damage][0](damaged.path)
    for draw, before in zip(draws, plain, strict=True):
        with pytest.warns(UserWarning, match=r"^Image 1 is drawn grey") as said:
            page = draw()
        assert not [w for w in said if "same picture" in str(w.message)]
        assert page.size == before.size and page.tobytes() != before.tobytes()
    with pytest.warns(UserWarning, match="Image 1 is drawn grey"):
        page = damaged.evolution(items=[1], alpha=0)
    assert ((np.asarray(page) == (0x8C, 0x95, 0x9F)).all(-1)).sum() > 4 * 150 * 150


def test_findings_survive_damaged_last_maps(damaged):
    cut("maps/frame-002.npz", 50)(damaged.path)
    assert heard(damaged.findings) == []


# --- run.json


def changed(path, change):
    info = json.loads((path / "run.json").read_text())
    change(info)
    (path / "run.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema_version": 1', "[]", "null", "{}", '{"schema_version": "1"}', "\x00"], ids=repr
)
def test_a_damaged_run_json_is_named(text, damaged):
    (damaged.path / "run.json").write_text(text)
    with pytest.raises(GradCAMError, match=r"run\.json.* is damaged"):
        Run(damaged.path)


@pytest.mark.parametrize(
    "change, words",
    [
        *((lambda i, key=key: i.pop(key), f"it has no '{key}'") for key in ("frames", "panel", "layers", "status")),
        (lambda i: i.update(frames=None), "'frames' is None"),
        (lambda i: i.update(frames=[1]), "frame 0 is 1"),
        (lambda i: i.update(layers=None), "'layers' is None"),
        (lambda i: i.update(layers=[]), r"'layers' is \[\]"),
        (lambda i: i.update(layers=[3]), r"'layers' is \[3\]"),
        (lambda i: i.update(panel={}), r"'panel' is \{\}"),
        (lambda i: i.update(settings=None), "'settings' is None"),
        (lambda i: i.update(vocab="ab"), "'vocab' is 'ab'"),
        (lambda i: i["panel"][1].pop("label"), "image 1 has no 'label'"),
        (lambda i: i["panel"][1].pop("image"), "image 1 has no 'image'"),
        (lambda i: i["panel"][1].update(image=None), "'image' of image 1 is None"),
        (lambda i: i["panel"][1].update(width=0), "image 1 is 0×128 pixels"),
        (lambda i: i["panel"].append("x"), "image 3 is 'x'"),
        (lambda i: i["frames"][1].update(frame="1"), "'frame' of frame 1 is '1'"),
        (lambda i: i["frames"][1].update(frame=True), "'frame' of frame 1 is True"),
        (lambda i: i["frames"][1].update(history_bytes="9"), "'history_bytes' of frame 1 is '9'"),
        (lambda i: i["frames"][1].pop("error"), "frame 1 has no 'error'"),
        (lambda i: i["frames"][1].update(metrics=[]), r"'metrics' of frame 1 is \[\]"),
        (lambda i: i["frames"][1]["metrics"].update(loss="x"), "'loss' of the metrics of frame 1 is 'x'"),
    ],
)
def test_what_is_wrong_in_a_run_file_is_named(change, words, damaged):
    changed(damaged.path, change)
    with pytest.raises(GradCAMError, match=rf"run\.json' is damaged: {words}\.$"):
        Run(damaged.path)


def test_a_folder_without_a_run_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "gone", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"There is no run in .*no run\.json"):
            Run(path)


def test_a_run_of_a_newer_version_is_refused_with_both_versions(damaged):
    changed(damaged.path, lambda info: info.update(schema_version=7))
    with pytest.raises(GradCAMError, match=r"schema version 7; this fastai_gradcam reads up to 1"):
        Run(damaged.path)


def test_what_a_newer_writer_adds_is_no_obstacle(damaged):
    changed(damaged.path, lambda info: (info.update(weather="fine"), info["frames"][0].update(more=1)))
    history = damaged.path / "history.csv"
    lines = history.read_text().splitlines()
    history.write_text("\n".join([lines[0] + ",extra", *(line + ",1" for line in lines[1:])]) + "\n")
    assert len(Run(damaged.path).history) == 9 and Run(damaged.path).history["prob"].notna().all()


@pytest.mark.parametrize("pid", ["12", -1, 0, 2**80, None, 1.5])
def test_a_process_number_that_is_not_one_is_a_process_that_is_gone(pid, damaged):
    changed(damaged.path, lambda info: info.update(status="running", pid=pid, host=socket.gethostname()))
    assert Run(damaged.path).status == "interrupted"


# --- a run that somebody sent


@pytest.mark.parametrize("where", ["../secret.jpg", "/etc/hostname"])
def test_a_run_that_names_files_elsewhere_shows_none_of_them(damaged, where):
    changed(damaged.path, lambda info: info["panel"][0].update(image=where))
    with pytest.raises(GradCAMError, match="lies outside of its folder"):
        Run(damaged.path).image(0)


@pytest.mark.parametrize("name", ["frames/frame-000.png", "maps/frame-000.npz", "panel/000.jpg", "panel/000-mask.png"])
def test_a_link_out_of_the_run_is_not_followed(name, damaged, tmp_path):
    read = {"frames": damaged.grid, "maps": damaged.maps}.get(name.split("/")[0])
    read = read or (damaged.mask if "mask" in name else damaged.image)
    file = damaged.path / name
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    with pytest.raises(GradCAMError, match="lies outside of its folder"):
        read(0)
