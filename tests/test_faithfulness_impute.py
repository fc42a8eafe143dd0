"""`impute` against a literal sparse solve of ROAD's equation, and against what is known without solving."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import dok_matrix
from scipy.sparse.linalg import spsolve

from fastai_gradcam import GradCAMError
from fastai_gradcam.faithfulness import impute


def literal(x, missing):
    "ROAD, equation 4, pixel by pixel: each missing pixel is the weighted mean of its neighbours inside the image."
    channels, height, width = x.shape
    at = {place: k for k, place in enumerate(zip(*np.nonzero(missing), strict=True))}
    matrix, right = dok_matrix((len(at), len(at))), np.zeros((len(at), channels))
    for (i, j), k in at.items():
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                a, b = i + di, j + dj
                if (di, dj) == (0, 0) or not (0 <= a < height and 0 <= b < width):
                    continue
                weight = 1 / 6 if di == 0 or dj == 0 else 1 / 12
                matrix[k, k] += weight
                if (a, b) in at:
                    matrix[k, at[a, b]] -= weight
                else:
                    right[k] += weight * x[:, a, b]
    filled = x.astype(np.float64).copy()
    solved = spsolve(matrix.tocsc(), right).reshape(len(at), channels)
    for (i, j), k in at.items():
        filled[:, i, j] = solved[k]
    return filled


def hottest_half(height, width, n=1):
    "Half of the pixels in the blobs of a random map, as a CAM has them."
    maps = F.interpolate(torch.rand(n, 1, 5, 5), size=(height, width), mode="bilinear")[:, 0]
    return maps >= maps.flatten(1).median(1).values[:, None, None]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (24, 17), (64, 64), (1, 12), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["scattered", "blobs", "all but one"])
def test_impute_is_the_solution_of_the_equation(size, kind):
    x = torch.rand(2, 3, *size)
    missing = torch.rand(2, *size) < 0.5 if kind == "scattered" else hottest_half(*size, 2)
    if kind == "all but one":
        missing = torch.ones(2, *size, dtype=torch.bool)
    missing[:, 0, 1] = False
    filled = impute(x, missing, noise=0)
    for got, image, mask in zip(filled, x, missing, strict=True):
        assert np.abs(got.numpy() - literal(image.numpy(), mask.numpy())).max() < 1e-6
        assert torch.equal(got[:, ~mask], image[:, ~mask])


@pytest.mark.slow
def test_impute_agrees_with_pytorch_grad_cams_solver_on_large_images():
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    x = torch.rand(2, 3, 224, 224)
    missing = torch.stack([torch.rand(224, 224) < 0.5, hottest_half(224, 224)[0]])
    filled = impute(x, missing, noise=0)
    for got, image, mask in zip(filled, x, missing, strict=True):
        assert (got - NoisyLinearImputer(noise=0)(image, (~mask).float())).abs().max() < 1e-5


def test_constants_and_ramps_come_back():
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(200.0), indexing="ij")
    image = torch.stack([torch.full_like(x, 0.3), 0.1 + (2 * y + x) / 800, 0.9 - y / 300])[None].double()
    scattered, blob = torch.rand(224, 200) < 0.7, (y - 100) ** 2 + (x - 90) ** 2 < 80**2
    for missing in (scattered, blob):
        constant = impute(image[:, :1], missing[None], noise=0)
        assert (constant / 0.3 - 1).abs().max() < 1e-6
        inside = missing.clone()
        inside[[0, -1]] = inside[:, [0, -1]] = False
        filled = impute(image, inside[None], noise=0)
        assert (filled / image - 1).abs().max() < 1e-6


def test_what_is_missing_has_no_influence_and_what_is_known_stays():
    x, missing = torch.rand(2, 3, 20, 20), torch.rand(2, 20, 20) < 0.4
    other = x.masked_fill(missing[:, None], float("nan"))
    assert torch.equal(impute(x, missing), impute(other, missing))
    assert torch.equal(impute(x, torch.zeros_like(missing)), x)


def test_an_image_without_a_known_pixel_is_grey_and_leaves_the_others_alone():
    x, missing = torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16) < 0.4
    alone = impute(x[1:], missing[1:], noise=0)
    missing[0] = True
    filled = impute(x, missing, noise=0)
    assert torch.equal(filled[0], torch.full_like(x[0], 0.5))
    assert torch.allclose(filled[1:], alone, atol=1e-6)


def test_a_nan_among_the_known_pixels_stays_in_its_image():
    x, missing = torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16) < 0.4
    missing[:, 3, 3] = False
    alone = impute(x, missing, noise=0)
    x[0, 1, 3, 3] = float("nan")
    filled = impute(x, missing, noise=0)
    assert filled[0, 1][missing[0]].isnan().all()
    assert torch.allclose(filled[1], alone[1], atol=1e-6)


def test_noise_is_of_its_size_on_missing_pixels_only_and_the_same_each_time():
    x, missing = torch.full((4, 3, 64, 64), 0.5), torch.rand(4, 64, 64) < 0.5
    state = torch.get_rng_state()
    noisy = impute(x, missing, noise=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    added = (noisy - x).movedim(1, -1)
    assert added[missing].std().item() == pytest.approx(0.1, rel=0.05) and added[~missing].abs().max() == 0
    assert torch.equal(impute(x, missing, noise=0.1), noisy)
    assert torch.equal(impute(x[2:], missing[2:], noise=0.1, seed=2), noisy[2:])
    assert not torch.equal(impute(x, missing, noise=0.1, seed=7), noisy)


def test_types_and_channels_stay_as_they_are():
    x, missing = torch.rand(1, 1, 12, 12), torch.rand(1, 12, 12) < 0.5
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        assert impute(x.to(kind), missing).dtype == kind
    assert impute(x[:0], missing[:0]).shape == (0, 1, 12, 12)


def test_memory_may_be_laid_out_in_any_way():
    x, missing = torch.rand(3, 3, 20, 16), torch.rand(20, 16).expand(3, -1, -1) < 0.5
    filled = impute(x.contiguous(), missing.contiguous())
    turned = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    for laid in (x.to(memory_format=torch.channels_last), turned, x.flip(0).flip(0)):
        assert torch.equal(impute(laid, missing), filled)
    slanted = missing.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert torch.equal(impute(x, slanted), filled)


@pytest.mark.parametrize(
    ("x", "missing"),
    [
        (torch.rand(3, 8, 8), torch.ones(8, 8)),
        (torch.rand(1, 3, 8, 8), torch.ones(1, 3, 8, 8)),
        (1, torch.ones(1, 8, 8)),
    ],
    ids=["without a batch", "a mask per channel", "not a tensor"],
)
def test_shapes_that_do_not_fit_are_quoted(x, missing):
    with pytest.raises(GradCAMError, match="impute needs"):
        impute(x, missing)
