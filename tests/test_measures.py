"""Each number about a map against values worked out by hand, and what must hold for any map."""

import math
import time
import timeit
import warnings

import numpy as np
import pytest
from processes import python

from fastai_gradcam.measures import (
    MEASURES,
    border_share,
    centroid,
    centroid_shift,
    concentration,
    entropy,
    evidence,
    iou_top,
    mask_share,
    measure,
    negative_share,
    pointing_hit,
    similarity,
)


@pytest.fixture(autouse=True)
def no_silent_arithmetic():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixel(h, w, y, x, value=1.0):
    map = np.zeros((h, w), dtype=np.float32)
    map[y, x] = value
    return map


def same(a, b):
    return a == pytest.approx(b, rel=1e-12, abs=1e-15, nan_ok=True)


# 2 rows, 3 columns, mass 10, no two cells but the zeros alike.
SIX = np.array([[1, 0, 2], [3, 4, 0]], dtype=np.float32)
RNG = np.random.default_rng(7)
RANDOM = [RNG.random(shape).astype(np.float32) ** 3 for shape in [(7, 7), (4, 4), (5, 9), (14, 3), (2, 2)]]


# ---- by hand


def test_evidence_is_the_sum():
    assert evidence(SIX) == 10.0


def test_negative_share_compares_both_signs():
    # 1 + 2 below zero of 1 + 2 + 5 in all
    assert negative_share(np.array([[-1.0, 5.0], [0.0, -2.0]])) == pytest.approx(3 / 8)
    assert negative_share(np.array([[-1.0, -5.0]])) == 1.0
    assert negative_share(SIX) == 0.0


def test_entropy_of_a_half_and_two_quarters():
    # p = ½, ¼, ¼, 0: ½·log 2 + 2·¼·log 4 = 1.5·log 2; over log 4 = 2·log 2: 0.75
    assert entropy(np.array([[2.0, 1.0], [1.0, 0.0]])) == pytest.approx(0.75)


def test_entropy_of_six_cells():
    # p = .1 .2 .3 .4: .23026 + .32189 + .36119 + .36652 = 1.27985; over log 6 = 1.79176: 0.71430
    assert entropy(SIX) == pytest.approx(0.71430, abs=1e-5)


def test_entropy_reaches_its_two_ends():
    assert entropy(pixel(3, 5, 1, 2)) == 0.0
    assert not np.signbit(entropy(pixel(3, 5, 1, 2)))
    assert entropy(np.full((7, 7), 0.1)) == pytest.approx(1.0)
    assert entropy(np.full((7, 7), 0.1)) <= 1.0


def test_concentration_takes_a_tenth_of_the_cells_rounded_up():
    # ten cells 1…10: one cell, 10 of 55
    assert concentration(np.arange(1.0, 11.0).reshape(2, 5)) == pytest.approx(10 / 55)
    # eleven cells 1…11: ⌈1.1⌉ = 2 cells, 11 + 10 of 66
    assert concentration(np.arange(1.0, 12.0).reshape(1, 11)) == pytest.approx(21 / 66)
    # 49 cells 1…49: ⌈4.9⌉ = 5 cells, 45 + 46 + 47 + 48 + 49 = 235 of 49·50/2 = 1225
    assert concentration(np.arange(1.0, 50.0).reshape(7, 7)) == pytest.approx(235 / 1225)
    # 30 cells: exactly 3, though 0.1·30 may be a little more in floating point
    assert concentration(np.ones((5, 6))) == pytest.approx(3 / 30)
    # six cells: at least one
    assert concentration(SIX) == pytest.approx(0.4)


def test_border_share_leaves_out_only_the_inside():
    # 3×4 of 0…11: the inside is 5 and 6, the rest 66 − 11 = 55
    assert border_share(np.arange(12.0).reshape(3, 4)) == pytest.approx(55 / 66)
    # even attention: 24 of 49 cells, 12 of 16
    assert border_share(np.ones((7, 7))) == pytest.approx(24 / 49)
    assert border_share(np.ones((4, 4))) == pytest.approx(12 / 16)
    assert border_share(pixel(5, 4, 2, 1)) == 0.0
    assert border_share(pixel(5, 4, 2, 3)) == 1.0


def test_a_map_two_cells_high_is_all_border():
    assert border_share(SIX) == 1.0


def test_centroid_of_six_cells():
    # rows hold 3 and 7 of 10 at ¼ and ¾: .075 + .525 = .6
    # columns hold 4, 4, 2 of 10 at 1/6, 3/6, 5/6: (4·1 + 4·3 + 2·5)/60 = 26/60
    assert centroid(SIX) == pytest.approx((0.6, 26 / 60))


def test_centroid_of_one_pixel_is_the_centre_of_its_cell():
    assert centroid(pixel(4, 5, 0, 4)) == pytest.approx((0.125, 0.9))


def test_centroid_shift_is_a_straight_line():
    # 0.3 down and 0.4 right
    assert centroid_shift((0.1, 0.2), (0.4, 0.6)) == pytest.approx(0.5)
    # one cell of five down, one of four right: √(.2² + .25²)
    there, here = centroid(pixel(5, 4, 1, 1)), centroid(pixel(5, 4, 2, 2))
    assert centroid_shift(there, here) == pytest.approx(0.320156, abs=1e-6)


def test_similarity_by_hand():
    # 1 2 3 and 1 3 2: deviations −1 0 1 and −1 1 0: 1/√(2·2)
    assert similarity(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]])) == pytest.approx(0.5)
    assert similarity(SIX, SIX * 3) == pytest.approx(1.0)
    assert similarity(SIX, 4 - SIX) == pytest.approx(-1.0)
    # one pixel each in two of four cells: deviations ¾ −¼ −¼ −¼: (−3/16 − 3/16 + 2/16)/(12/16) = −1/3
    assert similarity(pixel(2, 2, 0, 0), pixel(2, 2, 1, 1)) == pytest.approx(-1 / 3)


def test_iou_of_the_top_fifth():
    # ten cells: the top two. {9, 8} against {9, 7}: one shared of three
    a = np.array([[9.0, 8.0, 7.0, 1, 1, 1, 1, 1, 1, 1]])
    b = np.array([[9.0, 7.0, 8.0, 1, 1, 1, 1, 1, 1, 1]])
    assert iou_top(a, b) == pytest.approx(1 / 3)
    assert iou_top(a, a) == 1.0
    assert iou_top(a, a[:, ::-1]) == 0.0


def test_iou_rounds_the_number_of_cells_up():
    # eleven cells: ⌈2.2⌉ = 3. {11, 10, 9} against {11, 10, 8}: two of four
    a = np.arange(1.0, 12.0)[None]
    b = a.copy()
    b[0, 7], b[0, 8] = a[0, 8], a[0, 7]
    assert iou_top(a, b) == pytest.approx(2 / 4)


def test_iou_counts_all_ties_and_no_empty_cell():
    # the top fifth of 25 cells is five; only one holds anything, so that empty cells overlap nowhere
    assert iou_top(pixel(5, 5, 0, 0), pixel(5, 5, 4, 4)) == 0.0
    assert iou_top(pixel(5, 5, 2, 2), pixel(5, 5, 2, 2)) == 1.0
    # all 25 cells tie for the fifth place: one of 25
    assert iou_top(np.ones((5, 5)), pixel(5, 5, 4, 4)) == pytest.approx(1 / 25)


def test_mask_share_at_the_maps_own_resolution():
    # 3 + 4 of 10
    assert mask_share(SIX, [[0, 0, 0], [1, 1, 0]]) == pytest.approx(0.7)
    assert pointing_hit(SIX, [[0, 0, 0], [1, 1, 0]]) is True
    assert pointing_hit(SIX, [[1, 1, 1], [1, 0, 0]]) is False


def test_mask_share_at_image_resolution():
    # 1 and 0, enlarged from two to four pixels: pixel centres lie at −¼, ¼, ¾, 1¼ cells, so 1, ¾, ¼, 0 in
    # each row; the left pixel has 1 of 2, the two left ones 1¾ of 2
    map = np.array([[1.0, 0.0]])
    left = np.zeros((3, 4), dtype=bool)
    left[:, 0] = True
    assert mask_share(map, left) == pytest.approx(0.5)
    left[:, 1] = True
    assert mask_share(map, left) == pytest.approx(0.875)
    # a single row of the three: a third of that
    left[1:] = False
    assert mask_share(map, left) == pytest.approx(0.875 / 3)


def test_a_mask_is_height_by_width():
    map = pixel(2, 4, 0, 3)
    mask = np.zeros((20, 60), dtype=np.uint8)
    mask[:10, 45:] = 255
    assert mask_share(map, mask) > 0.6
    assert pointing_hit(map, mask) is True
    assert mask_share(map, mask[::-1]) < 0.2
    assert pointing_hit(map, mask[:, ::-1]) is False


def test_the_whole_image_as_mask_holds_everything():
    for map in RANDOM:
        assert mask_share(map, np.ones((50, 31), dtype=bool)) == pytest.approx(1.0)
        assert mask_share(map, np.ones((50, 31), dtype=bool)) <= 1.0


def test_a_plateau_hits_when_half_of_it_lies_inside():
    # the corner cell of two, enlarged to eight pixels, is flat over its outer two
    map = pixel(2, 2, 0, 0)
    mask = np.zeros((8, 8), dtype=bool)
    mask[0, :2] = True  # two of four pixels
    assert pointing_hit(map, mask) is True
    mask[0, 1] = False  # one of four, though the first in reading order
    assert pointing_hit(map, mask) is False


def test_the_map_is_enlarged_as_its_overlay_is_drawn():
    render = pytest.importorskip("fastai_gradcam.render")
    mask = np.zeros((64, 48), dtype=bool)
    mask[10:40, 5:30] = True
    for map in RANDOM:
        drawn = render.upsample(map, (48, 64))
        assert mask_share(map, mask) == pytest.approx(drawn[mask].sum() / drawn.sum(), rel=1e-5)


# ---- what is undefined


def test_an_empty_map_has_evidence_0_and_nothing_else():
    empty = np.zeros((7, 7), dtype=np.float32)
    row = measure(empty, 1.0, previous=RANDOM[0], first=RANDOM[0], mask=np.ones((8, 8)))
    assert row.pop("evidence") == 0.0
    assert row.pop("negative_share") == 1.0
    assert all(math.isnan(value) for value in row.values()), row
    assert math.isnan(negative_share(empty))
    for number in (entropy, concentration, border_share):
        assert math.isnan(number(empty))
    assert np.isnan(centroid(empty)).all()
    assert math.isnan(mask_share(empty, np.ones((8, 8))))
    assert math.isnan(pointing_hit(empty, np.ones((8, 8))))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_has_no_numbers(bad):
    map = RANDOM[0].copy()
    map[3, 3] = bad
    row = measure(map, 0.5, previous=RANDOM[0], first=RANDOM[0], mask=np.ones((8, 8)))
    assert tuple(row) == MEASURES
    assert all(math.isnan(value) for value in row.values()), row
    assert math.isnan(negative_share(map))
    both = np.array([[math.inf, -math.inf]])
    assert math.isnan(evidence(both)) and math.isnan(negative_share(both))


def test_a_map_whose_sum_overflows_is_not_finite():
    assert all(math.isnan(value) for value in measure(np.full((2, 2), 1e308)).values())


def test_the_whole_range_of_float32_is_measured():
    map = np.array([[1e-45, 0, 2e38], [1e-20, 1, 1e38]], dtype=np.float32)
    row = measure(map, previous=map, first=map, mask=np.ones((9, 9)))
    # p = 2/3 and 1/3: .27031 + .36620 = .63651; over log 6 = 1.79176: 0.35524
    assert row["entropy"] == pytest.approx(0.35524, abs=1e-5)
    assert row["similarity_prev"] == pytest.approx(1.0)
    assert row["mask_share"] == pytest.approx(1.0)


def test_a_one_cell_map_is_all_border_and_has_no_entropy():
    one = np.array([[3.0]])
    row = measure(one, 0.25, previous=one, first=one, mask=np.ones((4, 4)))
    expected = {
        "evidence": 3.0,
        "negative_share": 0.25,
        "entropy": math.nan,
        "concentration": 1.0,
        "border_share": 1.0,
        "centroid_y": 0.5,
        "centroid_x": 0.5,
        "centroid_shift": 0.0,
        "similarity_prev": math.nan,
        "similarity_first": math.nan,
        "iou_prev": 1.0,
        "mask_share": 1.0,
        "pointing_hit": True,
    }
    assert all(same(row[name], expected[name]) for name in MEASURES), row


def test_a_constant_map_correlates_with_nothing():
    # the mean of 49 times 0.1 is not 0.1 in floating point
    flat = np.full((7, 7), 0.1)
    assert flat.sum() / 49 != 0.1
    assert math.isnan(similarity(flat, RANDOM[0]))
    assert math.isnan(similarity(RANDOM[0], flat))
    assert math.isnan(similarity(flat, flat))


def test_nothing_is_compared_with_an_empty_map():
    assert math.isnan(similarity(RANDOM[0], np.zeros((7, 7))))
    assert math.isnan(iou_top(RANDOM[0], np.zeros((7, 7))))
    assert math.isnan(iou_top(np.zeros((7, 7)), RANDOM[0]))


def test_maps_of_different_shapes_share_only_their_centroids():
    row = measure(pixel(4, 4, 0, 0), previous=pixel(2, 2, 0, 0), first=pixel(2, 8, 0, 0))
    assert math.isnan(row["similarity_prev"]) and math.isnan(row["iou_prev"])
    assert math.isnan(row["similarity_first"])
    # from ¼, ¼ to ⅛, ⅛
    assert row["centroid_shift"] == pytest.approx(0.125 * math.sqrt(2))
    assert math.isnan(similarity(RANDOM[0], RANDOM[1])) and math.isnan(iou_top(RANDOM[0], RANDOM[1]))


def test_an_empty_mask_shows_nothing_to_look_at():
    assert math.isnan(mask_share(SIX, np.zeros((9, 9))))
    assert math.isnan(pointing_hit(SIX, np.zeros((9, 9))))


def test_a_mask_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"mask of shape \(9, 9, 3\).*map of shape \(2, 3\)"):
        mask_share(SIX, np.zeros((9, 9, 3)))


def test_a_map_without_axes_is_named():
    with pytest.raises(ValueError, match=r"shape \(\)"):
        evidence(3.0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) has no 3 axes"):
        evidence(SIX, dims=3)


def test_negative_cells_count_as_zero():
    signed = SIX - 5 * (SIX == 0)
    row, plain = measure(signed, previous=RANDOM[4], mask=SIX > 1), measure(SIX, mask=SIX > 1)
    assert all(same(row[name], plain[name]) for name in MEASURES if "shift" not in name)


# ---- all at once


def test_measure_gives_every_column_in_order():
    mask = np.zeros((60, 40), dtype=bool)
    mask[30:, :20] = True
    previous, first = SIX[::-1], SIX[:, ::-1]
    row = measure(SIX, 0.5, previous, first, mask)
    assert tuple(row) == MEASURES
    assert row == {
        "evidence": evidence(SIX),
        "negative_share": 0.5,
        "entropy": entropy(SIX),
        "concentration": concentration(SIX),
        "border_share": border_share(SIX),
        "centroid_y": centroid(SIX)[0],
        "centroid_x": centroid(SIX)[1],
        # rows swapped: from 0.4 to 0.6
        "centroid_shift": pytest.approx(0.2),
        "similarity_prev": similarity(SIX, previous),
        "similarity_first": similarity(SIX, first),
        "iou_prev": iou_top(SIX, previous),
        "mask_share": mask_share(SIX, mask),
        "pointing_hit": pointing_hit(SIX, mask),
    }
    assert row["similarity_prev"] != row["similarity_first"]
    assert {type(value) for value in row.values()} == {float, bool}


def test_the_columns_are_those_of_the_history():
    assert " ".join(MEASURES) == (
        "evidence negative_share entropy concentration border_share centroid_y centroid_x centroid_shift "
        "similarity_prev similarity_first iou_prev mask_share pointing_hit"
    )


def test_what_was_not_given_is_undefined():
    row = measure(SIX)
    assert [name for name in MEASURES if math.isnan(row[name])] == [
        "negative_share",
        "centroid_shift",
        "similarity_prev",
        "similarity_first",
        "iou_prev",
        "mask_share",
        "pointing_hit",
    ]


def test_measuring_leaves_the_maps_alone():
    map = RANDOM[0] - 0.1
    before = map.copy()
    measure(map, 0.1, map, map, np.ones((9, 9)))
    assert (map == before).all()


def test_a_frame_of_maps_takes_milliseconds():
    map, previous, first = (RNG.random((7, 7), dtype=np.float32) for _ in range(3))
    timed = timeit.repeat(lambda: measure(map, 0.1, previous, first), timer=time.process_time, number=100, repeat=5)
    assert min(timed) / 100 < 1e-3  # measured 0.14 ms; the processor's time, for a busy machine


def test_neither_torch_nor_pandas_is_needed():
    code = "import sys, fastai_gradcam.measures; print({'torch', 'fastai', 'pandas', 'matplotlib'} & set(sys.modules))"
    out = python("-c", code)
    assert out.stdout.strip() == "set()"


# ---- any map


@pytest.mark.parametrize("map", RANDOM, ids=lambda map: f"{map.shape[0]}×{map.shape[1]}")
def test_scale_changes_evidence_only(map):
    mask = np.zeros((40, 30), dtype=bool)
    mask[5:25, 3:20] = True
    other = np.roll(map, 1)
    plain = measure(map, 0.1, previous=other, first=other, mask=mask)
    for scale in (1e-30, 0.37, 1e30):
        scaled = measure(map.astype(np.float64) * scale, 0.1, previous=other, first=other, mask=mask)
        assert scaled.pop("evidence") == pytest.approx(plain["evidence"] * scale, rel=1e-5)
        assert scaled == {name: pytest.approx(plain[name], rel=1e-5, abs=1e-7) for name in scaled}


@pytest.mark.parametrize("map", RANDOM, ids=lambda map: f"{map.shape[0]}×{map.shape[1]}")
def test_a_mirrored_map_has_mirrored_numbers(map):
    mask = np.zeros((40, 30), dtype=bool)
    mask[5:25, 3:20] = True
    other = np.roll(map, 3)
    plain = measure(map, previous=other, first=other, mask=mask)
    mirrored = measure(map[:, ::-1], previous=other[:, ::-1], first=other[:, ::-1], mask=mask[:, ::-1])
    assert mirrored.pop("centroid_x") == pytest.approx(1 - plain["centroid_x"])
    assert mirrored == {name: pytest.approx(plain[name], rel=1e-5, nan_ok=True) for name in mirrored}


@pytest.mark.parametrize("map", RANDOM, ids=lambda map: f"{map.shape[0]}×{map.shape[1]}")
def test_numbers_stay_in_their_ranges(map):
    other = np.roll(map, 2)
    row = measure(map, previous=other, first=map, mask=np.eye(30, 40))
    for name in (
        "entropy",
        "concentration",
        "border_share",
        "centroid_y",
        "centroid_x",
        "iou_prev",
        "mask_share",
    ):
        assert 0 <= row[name] <= 1, name
    assert -1 <= row["similarity_prev"] <= 1
    assert 1 - 1e-12 < row["similarity_first"] <= 1


def test_comparing_is_symmetric():
    a, b = RANDOM[0], RANDOM[0].T
    assert similarity(a, b) == similarity(b, a)
    assert iou_top(a, b) == iou_top(b, a)
    assert centroid_shift(centroid(a), centroid(b)) == centroid_shift(centroid(b), centroid(a))


def test_a_share_and_the_share_outside_add_up():
    mask = RNG.random((31, 45)) > 0.6
    for map in RANDOM:
        assert mask_share(map, mask) + mask_share(map, ~mask) == pytest.approx(1.0)


# ---- many maps at once, and other numbers of axes


def test_leading_axes_are_kept():
    maps = RNG.random((2, 3, 5, 4))
    maps[1, 0] = 0
    maps[0, 2, 1, 1] = math.nan
    others = RNG.random((2, 3, 5, 4))
    for number in (evidence, entropy, concentration, border_share, negative_share):
        many = number(maps)
        assert many.shape == (2, 3)
        assert all(same(many[i], number(maps[i])) for i in np.ndindex(2, 3))
    ys, xs = centroid(maps)
    assert all(same(ys[i], centroid(maps[i])[0]) and same(xs[i], centroid(maps[i])[1]) for i in np.ndindex(2, 3))
    for number in (similarity, iou_top):
        many = number(maps, others)
        assert many.shape == (2, 3)
        assert all(same(many[i], number(maps[i], others[i])) for i in np.ndindex(2, 3))
    shifts = centroid_shift(centroid(maps), centroid(others))
    assert same(shifts[1, 1], centroid_shift(centroid(maps[1, 1]), centroid(others[1, 1])))


def test_a_volume_is_one_map():
    volume = np.zeros((3, 3, 4))
    volume[1, 1, 1] = 3  # the only inner cells are (1, 1, 1) and (1, 1, 2)
    volume[0, 1, 1] = 1
    row = measure(volume, previous=volume, first=volume, mask=np.ones((30, 40)))
    assert row["evidence"] == 4.0
    # ¾ and ¼: ¾·log(4/3) + ¼·log 4 = .56234; over log 36 = 3.58352: 0.15692
    assert row["entropy"] == pytest.approx(0.15692, abs=1e-5)
    assert row["concentration"] == 1.0
    assert row["border_share"] == 0.25
    assert (row["centroid_y"], row["centroid_x"]) == pytest.approx((0.5, 0.375))
    assert row["similarity_prev"] == row["similarity_first"] == pytest.approx(1.0)
    assert math.isnan(row["mask_share"]) and math.isnan(row["pointing_hit"])
    assert measure(volume, mask=volume == 3)["mask_share"] == 0.75
    assert border_share(volume, dims=3) == 0.25
    assert border_share(volume).shape == (3,)


def test_a_line_of_cells_has_two_ends_and_no_centroid():
    row = measure(np.array([1.0, 2.0, 3.0, 2.0]), previous=np.array([1.0, 2.0, 3.0, 2.0]))
    # 1 + 2 of 8
    assert row["border_share"] == pytest.approx(3 / 8)
    assert math.isnan(row["centroid_y"]) and math.isnan(row["centroid_x"]) and math.isnan(row["centroid_shift"])
    assert row["similarity_prev"] == pytest.approx(1.0)
