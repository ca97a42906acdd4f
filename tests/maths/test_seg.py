"""Blurred queries against a dense Gaussian matrix in float64."""

import math

import pytest
import torch

from guidekit.samplers.attention.seg import MEAN_FROM, blur_queries
from guidekit.tests.maths.problems import DTYPES, rounding

GRIDS = [(6, 6), (4, 9), (9, 4), (3, 4, 5), (1, 8), (2, 2)]


def queries(grid, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 3, math.prod(grid), 4), generator=generator, dtype=torch.float64).to(dtype)


def along(side: int, sigma: float) -> torch.Tensor:
    """The blur of one axis as a matrix [side, side]: Gaussian weights of an odd window, reflected at the edges."""
    width = math.ceil(6 * sigma)
    width = min(width + 1 - width % 2, side if side % 2 else side + 1)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for i in range(side):
        for d in range(-(width // 2), width // 2 + 1):
            j = abs(i + d)
            j = j if j < side else 2 * (side - 1) - j
            matrix[i, j] += math.exp(-(d**2) / (2 * sigma**2))
    return matrix / matrix.sum(1, keepdim=True)


def matrix_of(grid, sigma) -> torch.Tensor:
    image = torch.kron(along(grid[-2], sigma), along(grid[-1], sigma))
    return torch.block_diag(*[image] * math.prod(grid[:-2]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 100.0])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_is_the_dense_blur(grid, sigma, dtype):
    q = queries(grid, dtype=dtype)
    found = blur_queries(q, grid, sigma)
    assert found.shape == q.shape
    assert found.dtype == dtype
    wanted = torch.einsum("ij,rnjd->rnid", matrix_of(grid, sigma), q.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=max(1e-6, 4 * rounding(dtype)))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_smooths_the_energy(grid):
    """(G q) k^T = G (q k^T)."""
    q, k = queries(grid), queries(grid, 2)
    energy = q @ k.transpose(-1, -2)
    smoothed = torch.einsum("ij,rnjd->rnid", matrix_of(grid, 1.5), energy)
    torch.testing.assert_close(blur_queries(q, grid, 1.5) @ k.transpose(-1, -2), smoothed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [math.inf, MEAN_FROM * 1.01])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_infinity_is_the_mean_of_each_frame(grid, sigma):
    q = queries(grid)
    frames = q.reshape(2, 3, -1, grid[-2] * grid[-1], 4)
    wanted = frames.mean(3, keepdim=True).expand_as(frames).reshape(q.shape)
    torch.testing.assert_close(blur_queries(q, grid, sigma), wanted, rtol=0, atol=1e-6)


def test_limits():
    q = queries((6, 6))
    assert blur_queries(q, (6, 6), 0.0) is q
    constant = torch.ones_like(q)
    torch.testing.assert_close(blur_queries(constant, (6, 6), 2.0), constant, rtol=0, atol=1e-6)


def test_height_and_width_are_not_exchanged():
    q = queries((4, 9))
    assert not torch.allclose(blur_queries(q, (4, 9), 1.0), blur_queries(q, (9, 4), 1.0), atol=1e-3)


def test_a_grid_of_other_size_is_refused():
    with pytest.raises(ValueError, match="36 queries.*5 x 7"):
        blur_queries(queries((6, 6)), (5, 7), 1.0)
