"""Bands of an image against dense matrices in double precision."""

import itertools

import numpy as np
import pytest
import torch

from guidekit.samplers.guidance.pyramid import collapse, high_and_low, laplacian_pyramid
from guidekit.tests.maths.problems import DTYPES, SHAPES, latents, non_contiguous

SIDES = (1, 2, 3, 4, 5, 7, 8, 16, 33, 65)


def mirrored(place, side):
    """Like light between two mirrors on the first and the last place."""
    while not 0 <= place < side:
        place = -place if place < 0 else 2 * (side - 1) - place
    return place


def blur(side):
    """[side, side] in numpy."""
    found = np.zeros((side, side))
    if side == 1:
        return np.ones((1, 1))
    for row in range(side):
        for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1)):
            found[row, mirrored(row + offset, side)] += weight / 16
    return found


def halving(side):
    return blur(side)[::2]


def doubling(side):
    if side == 1:
        return np.ones((1, 1))
    zeros = np.zeros((side, -(-side // 2)))
    zeros[np.arange(0, side, 2), np.arange(zeros.shape[1])] = 2
    return blur(side) @ zeros


@pytest.mark.parametrize(("height", "width"), list(itertools.product(SIDES, (1, 2, 5, 12))))
def test_a_level_is_the_difference_to_what_half_the_size_keeps(height, width):
    """Burt and Adelson's, with dense matrices."""
    x = latents((1, 2, height, width), 1)
    fine, coarse = laplacian_pyramid(x, 2)
    image = x.numpy()
    small = halving(height) @ image @ halving(width).T
    np.testing.assert_allclose(coarse.numpy(), small, atol=1e-12)
    np.testing.assert_allclose(fine.numpy(), image - doubling(height) @ small @ doubling(width).T, atol=1e-12)


@pytest.mark.parametrize("side", range(1, 66))
def test_any_size_comes_back(side):
    for other, levels in ((1, 4), (6, 2), (65 - side + 1, 7)):
        x = latents((2, 3, side, other), side)
        torch.testing.assert_close(collapse(laplacian_pyramid(x, levels)), x, rtol=0, atol=1e-12)
        torch.testing.assert_close(sum(high_and_low(x, 1.7)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_comes_back_in_every_precision_rank_and_layout(shape, dtype):
    x = latents(shape, 1, dtype)
    for y in (x, *non_contiguous(x).values()):
        for parts in (collapse(laplacian_pyramid(y, 3)), sum(high_and_low(y, 2.0))):
            assert parts.dtype == dtype
            atol = 16 * torch.finfo(dtype).eps * x.abs().max().item()
            torch.testing.assert_close(parts, x, rtol=0, atol=atol)


def checkerboard(height, width):
    return (1 - 2 * ((torch.arange(height)[:, None] + torch.arange(width)) % 2)).double().expand(1, 1, -1, -1)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12), (2, 3), (33, 65)])
def test_the_two_ends_of_the_spectrum(height, width):
    """Constants are all low, a checkerboard is all high: up to the edge."""
    constant, board = torch.full((1, 1, height, width), 3.0, dtype=torch.float64), checkerboard(height, width)
    for levels in (2, 3, 5):
        *high, low = laplacian_pyramid(constant, levels)
        assert max(level.abs().max() for level in high) < 1e-14
        torch.testing.assert_close(low, torch.full_like(low, 3.0))
        first, *rest = laplacian_pyramid(board, levels)
        torch.testing.assert_close(first, board)
        assert max(level.abs().max() for level in rest) < 1e-14
    torch.testing.assert_close(high_and_low(constant, 2.0)[1], constant)
    if height % 2 == width % 2 == 0:
        torch.testing.assert_close(high_and_low(board, 2.0)[0], board)


def test_frames_and_channels_are_images_by_themselves():
    x = latents((2, 3, 4, 9, 6), 1)
    for split in (lambda y: laplacian_pyramid(y, 3), lambda y: high_and_low(y, 1.5)):
        whole = split(x)
        for b, c, t in itertools.product(range(2), range(3), range(4)):
            for band, alone in zip(whole, split(x[b : b + 1, c : c + 1, t])):
                torch.testing.assert_close(band[b, c, t], alone[0, 0], rtol=0, atol=1e-13)


def test_the_resized_is_bilinear():
    """By two: pairs are averaged, and the way back is a quarter and three quarters."""
    x = latents((1, 1, 2, 4), 1)
    small = x.mean(2).reshape(2, 2).mean(1)
    row = torch.stack([small[0], 0.75 * small[0] + 0.25 * small[1], 0.25 * small[0] + 0.75 * small[1], small[1]])
    torch.testing.assert_close(high_and_low(x, 2.0)[1], row.expand(1, 1, 2, 4), rtol=0, atol=1e-13)
