"""CFG-Cache: the split of a difference by a disc, the estimate, what it misses, and which steps are evaluated."""

import itertools

import numpy as np
import pytest
import torch

from guidekit.samplers.guidance.cfg_cache import (
    estimate,
    evaluates,
    first_reuse,
    missed,
    split_by_disc,
    strengths,
    usual_radius,
)
from guidekit.tests.maths.problems import DTYPES, SHAPES, latents, samples


def waves(height, width, down, across):
    y, x = (torch.arange(side, dtype=torch.float64) / side for side in (height, width))
    return torch.cos(2 * torch.pi * (down * y[:, None] + across * x) + 0.3).expand(1, 1, -1, -1)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 9), (1, 8), (2, 3), (33, 20), (49, 49)])
def test_waves_are_in_or_out(height, width):
    """One wave for each frequency: all of it is low inside the disc, and none of it outside."""
    radius = 2.0
    for down, across in itertools.product(range(min(4, (height + 1) // 2)), range(min(4, (width + 1) // 2))):
        wave = waves(height, width, down, across)
        low, high = split_by_disc(wave, radius)
        inside = down**2 + across**2 <= radius**2
        torch.testing.assert_close(low, wave if inside else torch.zeros_like(wave), rtol=0, atol=1e-12)
        torch.testing.assert_close(low + high, wave, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parts_add_up_in_every_rank_and_precision(shape, dtype):
    x = latents(shape, 1, dtype)
    low, high = split_by_disc(x, 1)
    assert low.dtype == high.dtype == dtype
    assert not low.isnan().any()
    torch.testing.assert_close(low + high, x, rtol=0, atol=8 * torch.finfo(dtype).eps * x.abs().max().item())
    again, rest = split_by_disc(low, 1)
    torch.testing.assert_close(
        rest.double(), torch.zeros_like(rest).double(), rtol=0, atol=0.05 if dtype.itemsize == 2 else 1e-5
    )


def test_the_mean_is_low_and_frames_are_images():
    x = latents((2, 3, 4, 9, 6), 1)
    low, _ = split_by_disc(x, 0)
    torch.testing.assert_close(low, x.mean((-2, -1), keepdim=True).expand_as(x), rtol=0, atol=1e-12)
    low, _ = split_by_disc(x, 2)
    for b, t in itertools.product(range(2), range(4)):
        torch.testing.assert_close(low[b, :, t], split_by_disc(x[b : b + 1, :, t], 2)[0][0], rtol=0, atol=1e-12)


def test_the_radius_is_the_authors():
    assert usual_radius((1, 4, 128, 96)) == 19
    assert usual_radius((1, 16, 5, 60, 104)) == 12
    assert usual_radius((1, 8, 50)) == 10
    assert usual_radius((1, 4, 3, 3)) == 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_difference_that_stays_is_estimated_exactly(shape):
    cond, difference = latents(shape, 1), latents(shape, 2)
    torch.testing.assert_close(estimate(cond, difference), cond + difference, rtol=0, atol=0)
    low, high = split_by_disc(difference, usual_radius(shape))
    torch.testing.assert_close(estimate(cond, difference, 1.2, 0.7), cond + 1.2 * low + 0.7 * high, rtol=0, atol=1e-13)


def test_missed_is_a_share_of_the_guidance_of_each_sample():
    cond, uncond, guess = (latents(SHAPES["video"], seed) for seed in (1, 2, 3))
    found = missed(guess, uncond, cond)
    for got, g, u, c in zip(found.tolist(), *map(samples, (guess, uncond, cond))):
        assert got == pytest.approx(np.linalg.norm(u - g) / np.linalg.norm(u - c), rel=1e-6)
    assert missed(uncond, uncond, cond).tolist() == [0.0] * 3
    torch.testing.assert_close(missed(cond, uncond, cond), torch.ones(3))
    assert missed(guess, cond, cond).tolist() == [0.0] * 3


def test_of_20_steps_11_are_evaluated():
    """22 % of all 40 evaluations are saved."""
    first = first_reuse(1 / 3, 20)
    assert first == 7
    assert [step for step in range(20) if evaluates(step, 20, first, 5)] == [0, 1, 2, 3, 4, 5, 6, 7, 12, 17, 19]
    assert all(evaluates(step, 20, first, 1) for step in range(20))
    assert all(evaluates(step, 20, 20, 5) for step in range(20))


@pytest.mark.parametrize(
    ("share", "steps", "first"), [(0.0, 20, 0), (0.5, 20, 10), (0.3, 10, 3), (1.0, 7, 7), (0.333, 3, 1)]
)
def test_the_warm_up_is_whole_steps(share, steps, first):
    assert first_reuse(share, steps) == first


def test_strengths_grow_with_the_age_of_the_difference():
    """The low frequencies between a tenth and nine tenths of the run, the high ones in the last three tenths."""
    assert strengths(7, 9, 20, 1.1, 1.3) == pytest.approx((1.1**2, 1.0))
    assert strengths(12, 16, 20, 1.1, 1.3) == pytest.approx((1.1**4, 1.3**3))
    assert strengths(17, 19, 20, 1.1, 1.3) == pytest.approx((1.0, 1.3**2))
    assert strengths(0, 2, 20, 1.1, 1.3) == pytest.approx((1.1, 1.0))
    assert strengths(3, 8, 20, 1.0, 1.0) == (1.0, 1.0)
