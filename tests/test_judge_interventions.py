"""Each intervention of the judge against a slow copy, pixel by pixel, and the boxes that patches are cut by."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fastai_gradcam._findings.tried import _SAYS
from fastai_gradcam._judge.boxes import hottest, places_of, random_beside, random_corners, side_of
from fastai_gradcam._judge.interventions import PUT, Pairs, blurred, interventions
from fastai_gradcam._judge.rule import _CONFIRMED_BY

N, C, H, W = 5, 3, 20, 24
SIDE = (4, 5)


def test_every_intervention_has_its_words_in_findings_and_docs():
    "One that is put on images and lacks a sentence would confirm a shortcut without a word."
    put = {name for name, one in interventions.items() if one.direction == PUT}
    assert put == set(_SAYS)
    assert set(interventions) - put == set(_CONFIRMED_BY) and set().union(*_CONFIRMED_BY.values()) <= put
    page = (Path(__file__).parent.parent / "docs/judging.md").read_text(encoding="utf-8")
    assert [name for name in interventions if f"| `{name}` |" not in page] == []


@pytest.fixture(scope="module")
def pairs():
    "Random images with masks, boxes and regions of all kinds."
    g = torch.Generator().manual_seed(0)
    x, partner, other = (torch.randn(N, C, H, W, generator=g) for _ in range(3))
    corners = [random_corners(N, (H, W), SIDE, g) for _ in range(4)]
    regions = [torch.rand(N, H, W, generator=g) < 0.3 for _ in range(2)]
    masks = [torch.rand(N, H, W, generator=g) < 0.4 for _ in range(3)]
    return Pairs(x, partner, other, corners[0], corners[1], corners[2], SIDE, *regions, corners[3], *masks)


def slow_paste(x, at, source, start):
    out = x.numpy().copy()
    for n in range(N):
        for c in range(C):
            for i in range(SIDE[0]):
                for j in range(SIDE[1]):
                    pixel = source[n, c, int(start[n, 0]) + i, int(start[n, 1]) + j]
                    out[n, c, int(at[n, 0]) + i, int(at[n, 1]) + j] = pixel
    return out


def slow_where(mask, inside, outside):
    out = outside.numpy().copy()
    for n in range(N):
        for i in range(H):
            for j in range(W):
                if mask[n, i, j]:
                    out[n, :, i, j] = inside[n, :, i, j]
    return out


def slow_colour(x, like):
    out = np.empty_like(x.numpy())
    for n in range(N):
        for c in range(C):
            ours, theirs = x[n, c].numpy().ravel(), like[n, c].numpy().ravel()
            mean, theirs_mean = sum(ours) / len(ours), sum(theirs) / len(theirs)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in ours) / (len(ours) - 1))
            theirs_deviation = math.sqrt(sum((v - theirs_mean) ** 2 for v in theirs) / (len(theirs) - 1))
            for i in range(H):
                for j in range(W):
                    out[n, c, i, j] = (x[n, c, i, j] - mean) / deviation * theirs_deviation + theirs_mean
    return out


def slow_blur(x):
    "A weighted mean over a window, whose pixels beyond the edge are mirrored."
    sigma = min(H, W) / 24
    reach = round(3 * sigma)
    weight = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    mirrored = lambda k, n: -k if k < 0 else 2 * (n - 1) - k if k >= n else k
    out = np.zeros(x.shape)
    for i in range(H):
        for j in range(W):
            for a, wa in enumerate(weight):
                for b, wb in enumerate(weight):
                    y, z = mirrored(i + a - reach, H), mirrored(j + b - reach, W)
                    out[:, :, i, j] += wa * wb * x[:, :, y, z].numpy() / sum(weight) ** 2
    return torch.tensor(out, dtype=torch.float32)


def slow_emptied(x, mask):
    out = x.clone()
    for n in range(N):
        for c in range(C):
            beside = [float(x[n, c, i, j]) for i in range(H) for j in range(W) if not mask[n, i, j]]
            out[n, c][mask[n]] = sum(beside) / len(beside)
    return out


SLOW = {
    "transplant": lambda p: (
        slow_paste(p.x, p.at, p.partner, p.hot),
        slow_paste(p.x, p.at, p.partner, p.cold),
    ),
    "exchange": lambda p: (
        slow_paste(p.x, p.seat, p.partner, p.hot),
        slow_paste(p.x, p.seat, p.partner, p.cold),
    ),
    "keep": lambda p: (slow_paste(p.x, p.hot, p.partner, p.hot), slow_paste(p.x, p.cold, p.partner, p.cold)),
    "cover": lambda p: (slow_paste(p.x, p.hot, p.partner, p.hot), slow_paste(p.x, p.cold, p.partner, p.cold)),
    "place": lambda p: (slow_where(p.region, p.partner, p.x), slow_where(p.region, p.other, p.x)),
    "border": lambda p: (slow_where(p.region, p.partner, p.x), slow_where(p.region, p.other, p.x)),
    "place_away": lambda p: (slow_where(p.region, p.partner, p.x), slow_where(p.opposite, p.partner, p.x)),
    "colour": lambda p: (slow_colour(p.x, p.partner), slow_colour(p.x, p.other)),
    "colour_away": lambda p: (slow_colour(p.x, p.partner), slow_colour(p.x, p.other)),
    "blur": lambda p: (slow_where(p.mask, p.x, slow_blur(p.x)), slow_where(p.mask, slow_blur(p.x), p.x)),
    "blur_away": lambda p: (slow_where(p.mask, p.x, slow_blur(p.x)), slow_where(p.mask, slow_blur(p.x), p.x)),
    "swap": lambda p: (
        slow_where(p.mask, p.x, slow_emptied(p.partner, p.partner_mask)),
        slow_where(p.mask, p.x, slow_emptied(p.other, p.other_mask)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(interventions))
def test_an_intervention_is_what_its_slow_copy_makes_pixel_by_pixel(name, pairs):
    before = pairs.x.clone()
    changed, control = interventions[name].change(pairs)
    slow, slow_control = SLOW[name](pairs)
    np.testing.assert_allclose(changed.numpy(), slow, atol=1e-5)
    np.testing.assert_allclose(control.numpy(), slow_control, atol=1e-5)
    assert torch.equal(pairs.x, before), "the images themselves were changed"
    assert not torch.equal(changed, pairs.x) and not torch.equal(changed, control)


@pytest.mark.parametrize("name", sorted(interventions))
def test_an_intervention_does_not_depend_on_how_inputs_are_normalised(name, pairs):
    scale, shift = torch.tensor([2.0, 0.5, 3.0])[:, None, None], torch.tensor([1.0, -2.0, 0.3])[:, None, None]
    other = Pairs(**{**vars(pairs), **{k: getattr(pairs, k) * scale + shift for k in ("x", "partner", "other")}})
    for plain, scaled in zip(interventions[name].change(pairs), interventions[name].change(other), strict=True):
        torch.testing.assert_close(plain * scale + shift, scaled, atol=1e-4, rtol=1e-4)


def test_a_flat_channel_takes_the_other_images_mean_and_no_noise(pairs):
    flat = Pairs(**{**vars(pairs), "x": torch.ones(N, C, H, W)})
    changed, _ = interventions["colour"].change(flat)
    torch.testing.assert_close(changed, pairs.partner.mean((2, 3), keepdim=True).expand_as(changed))


def test_a_blur_keeps_a_constant_picture():
    torch.testing.assert_close(blurred(torch.full((1, 3, 16, 16), 0.7)), torch.full((1, 3, 16, 16), 0.7))


def test_the_hottest_box_holds_more_of_the_map_than_any_other():
    maps = torch.rand(6, 18, 22, generator=torch.Generator().manual_seed(1))
    for map, corner in zip(maps, hottest(maps, SIDE), strict=True):
        held = {
            (i, j): float(map[i : i + SIDE[0], j : j + SIDE[1]].sum())
            for i in range(18 - SIDE[0] + 1)
            for j in range(22 - SIDE[1] + 1)
        }
        assert held[tuple(corner.tolist())] == pytest.approx(max(held.values()))


def test_random_boxes_lie_in_the_picture_and_beside_the_hot_one():
    g = torch.Generator().manual_seed(2)
    hot = random_corners(300, (20, 24), SIDE, g)
    cold = random_beside(hot, (20, 24), SIDE, g)
    for boxes in (hot, cold):
        assert boxes.min() == 0 and boxes[:, 0].max() == 16 and boxes[:, 1].max() == 19
    shared = (SIDE[0] - (hot - cold)[:, 0].abs()).clamp(min=0) * (SIDE[1] - (hot - cold)[:, 1].abs()).clamp(min=0)
    assert shared.max() <= 0.25 * SIDE[0] * SIDE[1]


@pytest.mark.parametrize(
    ("place", "at"),
    [
        ("top left corner", (slice(0, 10), slice(0, 10))),
        ("bottom right corner", (slice(20, 30), slice(20, 30))),
        ("border", None),
    ],
)
def test_the_places_of_a_class_is_where_its_mean_map_is_densest(place, at):
    map = torch.full((30, 30), 0.1)
    if at is None:
        map[0], map[-1], map[:, 0], map[:, -1] = 9.0, 9.0, 9.0, 9.0
    else:
        map[at] = 1.0
    found = places_of(map)["densest"]
    assert places_of(map)["corner" if at else "border"].name == found.name
    region, control = found.region, found.opposite
    assert found.name == place
    assert map[region].mean() > map[control].mean()
    assert abs(int(region.sum()) - int(control.sum())) <= 0.05 * region.sum(), "the control has another area"
    assert not (region & control).any()


def test_a_patch_covers_a_16th_of_the_picture():
    assert side_of((100, 200)) == (25, 50) and side_of((8, 8)) == (2, 2)
