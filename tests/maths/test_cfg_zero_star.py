"""CFG-Zero* against the paper's velocity form, in numpy and double precision, one sample at a time."""

import numpy as np
import pytest
import torch

from guidekit.samplers.guidance.cfg import cfg
from guidekit.samplers.guidance.cfg_zero_star import cfg_zero_star, optimized_scale, zero_init_steps
from guidekit.tests.maths.problems import DTYPES, SHAPES, exact, latents, rounding, samples

SCALES = (-1.0, 0.0, 0.5, 1.0, 3.0, 7.5)
T = 0.6


def velocities(shape, dtype=torch.float64):
    """x, and denoised predictions (D_c, D_u), of a rectified flow at time T."""
    return tuple(latents(shape, seed, dtype) for seed in (1, 2, 3))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_the_paper_s_velocity(shape):
    """v = s v_u + w (v_c - s v_u) with v = (x - D) / t; and D written out, whose last term is easily forgotten."""
    x, cond, uncond = velocities(shape)
    for w in SCALES:
        change, _ = cfg_zero_star(cond - x, uncond - x, w)
        guided = cfg(cond, uncond, w) + change
        for got, x_i, c, u in zip(*map(samples, (guided, x, cond, uncond))):
            v_c, v_u = (x_i - c) / T, (x_i - u) / T
            s = (v_c @ v_u) / (v_u @ v_u)
            velocity = s * v_u + w * (v_c - s * v_u)
            np.testing.assert_allclose(got, x_i - T * velocity, rtol=0, atol=1e-12 * (1 + abs(w)) * np.abs(x_i).max())
            written = s * u + w * (c - s * u) + (1 - s) * (1 - w) * x_i
            np.testing.assert_allclose(got, written, rtol=0, atol=1e-12 * (1 + abs(w)) * np.abs(x_i).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_scale_is_least_squares_of_each_sample(shape, dtype):
    cond, uncond = latents(shape, 1, dtype), latents(shape, 2, dtype)
    found = optimized_scale(cond, uncond)
    assert found.shape == (shape[0], *[1] * (len(shape) - 1))
    for got, c, u in zip(exact(found).ravel(), samples(cond), samples(uncond)):
        (wanted,), *_ = np.linalg.lstsq(u[:, None], c, rcond=None)
        assert got == pytest.approx(wanted, rel=1e-9)
        assert abs((c - got * u) @ u) < 1e-9 * (u @ u)  # what is left is orthogonal
    change, _ = cfg_zero_star(cond, uncond, 4.0)
    assert change.dtype == dtype
    wanted = (exact(found) - 1) * (1 - 4.0) * exact(uncond)
    assert (np.abs(exact(change) - wanted) <= 3 * rounding(dtype) * np.abs(wanted)).all()


def test_a_factor_that_both_outputs_share_comes_through():
    """So that it need not be divided out."""
    cond, uncond = latents(SHAPES["image"], 1), latents(SHAPES["image"], 2)
    change, s = cfg_zero_star(cond, uncond, 5.0)
    for factor in (-0.3, 7.0):
        scaled, same = cfg_zero_star(factor * cond, factor * uncond, 5.0)
        torch.testing.assert_close(scaled, factor * change, rtol=1e-12, atol=0)
        torch.testing.assert_close(same, s, rtol=1e-12, atol=0)


def test_limits():
    cond, uncond = latents(SHAPES["image"], 1), latents(SHAPES["image"], 2)
    zero = torch.zeros_like(cond)
    assert not cfg_zero_star(cond, uncond, 1.0)[0].any()
    torch.testing.assert_close(cfg_zero_star(uncond, uncond, 7.5)[0], zero, rtol=0, atol=1e-13)
    assert not cfg_zero_star(cond, zero, 7.5)[0].any()  # any s: there is nothing to scale
    # Outputs in proportion: guidance between s u and c = s u is none.
    guided = cfg(3 * uncond, uncond, 7.5) + cfg_zero_star(3 * uncond, uncond, 7.5)[0]
    torch.testing.assert_close(guided, 3 * uncond, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "still"), [(1, 0), (4, 0), (12, 0), (13, 1), (20, 1), (28, 1), (37, 1), (38, 2), (50, 2), (100, 4)]
)
def test_zero_init_is_the_paper_s_share(steps, still):
    """Published: 1 of 28 steps, 2 of 50."""
    assert zero_init_steps(0.04, steps) == still


def test_zero_init_of_other_shares():
    assert zero_init_steps(0.0, 50) == 0
    assert zero_init_steps(0.02, 50) == 1
    assert zero_init_steps(0.5, 5) == 3
