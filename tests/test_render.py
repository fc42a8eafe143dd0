"""Maps become colours, overlays and grids: sizes, blends, empty maps, text that fits."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from fastai_gradcam.render import (
    FAINT,
    RIGHT,
    WRONG,
    Cell,
    colormap,
    font,
    grid,
    normalise,
    overlay,
    shorten,
    shown_slices,
    upsample,
    wrap,
)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def count(page, colour):
    return int((np.array(page).astype(int) == rgb(colour)).all(2).sum())


def test_upsampling_is_bilinear_between_the_cells_centres():
    up = upsample(np.array([[0.0, 4.0]]), (8, 2))
    assert up.dtype == np.float32 and up.shape == (2, 8)
    assert np.allclose(up[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])
    assert np.allclose(upsample(np.full((3, 5), 7.0), (20, 10)), 7)
    ramp = np.arange(12, dtype=np.float64).reshape(3, 4)
    assert np.array_equal(upsample(ramp.T[::-1].T, (4, 3)), ramp[:, ::-1])  # also what is no contiguous array


def test_normalising_divides_by_the_maximum_and_keeps_zero():
    assert normalise(np.array([[0, 2], [4, 1]])).tolist() == [[0, 0.5], [1, 0.25]]
    assert normalise(np.array([[0, 2], [4, 1]]), vmax=2).tolist() == [[0, 1], [1, 0.5]]
    assert not normalise(np.zeros((2, 2))).any() and not normalise(np.full((2, 2), -1.0)).any()
    assert normalise(np.array([[np.nan, 2, np.inf, -np.inf]])).tolist() == [[0, 1, 0, 0]]
    assert normalise(np.array([[1e-38, 2e-38]], np.float32)).max() == 1


def test_colours_are_matplotlibs():
    assert colormap("jet").shape == (256, 3) and colormap("jet").dtype == np.uint8
    expected = matplotlib.colormaps["inferno"]([0, 100, 255], bytes=True)[:, :3]
    assert np.array_equal(colormap("inferno")[[0, 100, 255]], expected)
    with pytest.raises(ValueError, match=r"There is no colormap 'jett'\. Did you mean 'jet'\?"):
        colormap("jett")


def test_an_overlay_is_the_blend_of_image_and_colours(image):
    map = np.random.default_rng(1).random((3, 4))
    heat = np.rint(upsample(map / map.max(), (90, 60)).clip(0, 1) * 255).astype(int)
    colours = matplotlib.colormaps["viridis"](heat, bytes=True)[..., :3].astype(float)
    for alpha in (0, 0.3, 1):
        made = np.array(overlay(image, map, alpha, "viridis"), dtype=float)
        assert np.abs(made - ((1 - alpha) * np.array(image) + alpha * colours)).max() <= 1
    assert overlay(image, map, 0).tobytes() == image.tobytes()
    assert overlay(image, map * 1e-6).tobytes() == overlay(image, map).tobytes() == overlay(image, map * 1e6).tobytes()
    assert overlay(image.convert("L"), map).mode == "RGB"


def test_a_common_scale_makes_overlays_comparable(image):
    weak, strong = np.full((2, 2), 1.0), np.full((2, 2), 4.0)
    shades = [np.array(overlay(image, m, 1, "gray", vmax=4))[0, 0, 0] for m in (weak, strong)]
    assert shades == [64, 255]


def test_an_empty_map_leaves_the_image_and_warns_of_nothing(image, recwarn):
    for map in (np.zeros((3, 3)), np.full((3, 3), -2.0), np.full((3, 3), np.nan)):
        assert overlay(image, map, 1).tobytes() == image.tobytes()
    assert len(recwarn) == 0


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_outside_of_0_to_1_is_refused(image, alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in 0…1, got"):
        overlay(image, np.ones((2, 2)), alpha)


@pytest.mark.parametrize("cells, columns, rows", [(1, 1, 1), (2, 2, 1), (3, 2, 2), (9, 3, 3), (16, 4, 4), (17, 5, 4)])
def test_a_grid_has_as_many_cells_as_asked_for(image, cells, columns, rows):
    page = grid([Cell(image.resize((50, 50)), None, "title", "words", True)] * cells, tile=100)
    assert columns * 100 < page.width < columns * 110 + 20
    assert rows * 100 < page.height < rows * 150 + 20
    outline = 4 * 99 * 2 - 4 * 2 * 2
    assert count(page, RIGHT) >= cells * outline
    assert grid([Cell(image)] * cells, columns=1).height > cells * 139


def test_verdicts_have_colours_and_signs(image):
    plain = image.resize((80, 80))
    pages = {v: grid([Cell(plain, None, "a", "b 50%", v)], tile=80) for v in (True, False, None)}
    for verdict, colour in ((True, RIGHT), (False, WRONG), (None, FAINT)):
        counts = {c: count(pages[verdict], c) for c in (RIGHT, WRONG, FAINT)}
        assert counts[colour] > 500 and all(counts[c] < 30 for c in counts if c != colour)
    without = grid([Cell(plain, None, "a", "", True)], tile=80)
    assert without.height < pages[True].height


def test_an_empty_and_a_broken_map_say_so(image):
    shown = [grid([Cell(image, map)]) for map in (np.ones((2, 2)), np.zeros((2, 2)), np.full((2, 2), np.nan))]
    assert len({page.tobytes() for page in shown}) == 3
    white = [(np.array(page)[45:75, 20:100].reshape(-1, 3) == 255).all(1).sum() for page in shown]
    assert white[0] < 50 < white[1] and white[2] > 50


def test_a_grid_of_maps_has_a_key_to_its_colours(image):
    page = np.asarray(grid([Cell(image, np.ones((2, 2)))] * 4, "Heading", cmap="viridis"))
    ends = matplotlib.colormaps["viridis"]([0, 255], bytes=True)[:, :3]
    near = lambda row, colour: np.abs(row.astype(int) - colour).max(-1) < 8
    bar = [row for row in range(20, 60) if all(near(page[row], end).any() for end in ends)]
    assert len(bar) > 6
    first, last = (np.flatnonzero(near(page[bar[0]], end))[0] for end in ends)
    assert 40 < last - first < 100
    plain = grid([Cell(image)] * 4, "Heading", cmap="viridis")
    assert plain.height < page.shape[0] and not near(np.asarray(plain)[:40], ends[1]).any()


def test_the_slices_of_a_volume_are_parted_and_numbered(image):
    maps = np.ones((2, 2))
    plain, marked, other = (grid([Cell(image, maps, depth=d)]) for d in (None, 12, 40))
    assert shown_slices(12) == [1, 4, 7, 10] and shown_slices(4) == [0, 1, 2, 3] and shown_slices(1) == [0] * 4
    white = [(np.asarray(page) == 255).all(-1) for page in (plain, marked)]
    changed = (white[1] & ~white[0]).sum(0).max(), (white[1] & ~white[0]).sum(1).max()
    assert changed[0] > 130 and changed[1] > 200  # a line down, and one across
    assert marked.tobytes() != other.tobytes()


def test_no_cells_are_refused():
    with pytest.raises(ValueError, match="no cells"):
        grid([])


@pytest.mark.parametrize("size", [(1, 1), (300, 20), (20, 300), (4000, 3000)])
def test_images_of_every_shape_fit_their_tile(size):
    page = grid([Cell(Image.new("RGB", size, "blue"), np.ones((2, 2)), "title")], tile=120)
    assert page.width < 150 and page.height < 180
    blue = np.array(grid([Cell(Image.new("RGB", size, "blue"))], tile=120)).astype(int)
    assert (np.abs(blue - [0, 0, 255]).max(2) < 5).any() or min(size) * 120 / max(size) < 8 or size == (20, 300)


@pytest.mark.parametrize("words", ["x" * 300, "two\nlines " * 20, "鱼" * 100, "", "a b c", "word " * 50 + "99%"])
def test_words_are_shortened_to_their_width_and_keep_a_percentage(words):
    short = shorten(words, font(14), 150)
    assert font(14).getlength(short) <= 150 and "\n" not in short
    if words.endswith("%"):
        assert short.endswith("99%")
    assert short == " ".join(words.split()) or "…" in short


def test_headings_are_wrapped_between_their_parts():
    words = " · ".join(f"metric_{i} 0.12345" for i in range(12))
    lines = wrap(f"Fit 0\n{words}", font(16), 400)
    assert lines[0] == "Fit 0" and len(lines) > 4
    assert all(font(16).getlength(line) <= 400 for line in lines)
    assert " · ".join(lines[1:]) == words
    image = Image.new("RGB", (50, 50))
    narrow = grid([Cell(image)], "Fit 0\nmean_absolute_percentage_error 0.12345", tile=100)
    assert font(100 // 11).getlength("mean_absolute_percentage_error 0.12345") < narrow.width - 12 < 300
    assert grid([Cell(image)], "x" * 300, tile=100).width <= 312
    assert grid([Cell(image)], f"Fit 0\n{words}").height > grid([Cell(image)], "Fit 0").height
