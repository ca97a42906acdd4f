"""Classifier-free guidance and the effective scale, against straight lines and least squares in numpy."""

import numpy as np
import pytest
import torch

from guidekit.samplers.guidance.cfg import cfg, effective_scale
from guidekit.tests.maths.parameterization import from_eps, from_v, from_velocity, to_eps, to_v, to_velocity
from guidekit.tests.maths.problems import DTYPES, SHAPES, exact, latents, rounding, samples

SCALES = (-1.0, 0.0, 0.5, 1.0, 3.0, 7.5, 30.0)
SPACES = {"eps": (to_eps, from_eps), "v": (to_v, from_v), "velocity": (to_velocity, from_velocity)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lies_on_the_line_through_both_predictions(shape, dtype):
    cond, uncond = latents(shape, 1, dtype), latents(shape, 2, dtype)
    for scale in SCALES:
        guided = cfg(cond, uncond, scale)
        assert guided.shape == shape
        assert guided.dtype == dtype
        wanted = scale * exact(cond) + (1 - scale) * exact(uncond)
        # Three roundings (in float64 also those of the line above), the first of a difference that is then enlarged.
        size = (1 + 2 * abs(scale)) * (np.abs(exact(cond)) + np.abs(exact(uncond)))
        assert (np.abs(exact(guided) - wanted) <= 2 * rounding(dtype) * size).all(), scale


def test_limits():
    cond, uncond = latents(SHAPES["image"], 1), latents(SHAPES["image"], 2)
    assert torch.equal(cfg(cond, uncond, 0), uncond)
    torch.testing.assert_close(cfg(cond, uncond, 1), cond, rtol=0, atol=1e-14)
    assert torch.equal(cfg(cond, cond, 9), cond)
    # Seen from the other end, the scale is mirrored at one half.
    torch.testing.assert_close(cfg(cond, uncond, 4), cfg(uncond, cond, -3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("space", SPACES)
def test_the_same_in_every_space(space, shape):
    to, back = SPACES[space]
    x, cond, uncond = (latents(shape, seed) for seed in (1, 2, 3))
    sigma = torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)
    for scale in SCALES:
        raw_cond, raw_uncond = to(x, cond, sigma), to(x, uncond, sigma)
        in_raw = raw_uncond + scale * (raw_cond - raw_uncond)
        torch.testing.assert_close(back(x, in_raw, sigma), cfg(cond, uncond, scale), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_effective_scale_of_cfg_is_its_scale(shape):
    cond, uncond = latents(shape, 1), latents(shape, 2)
    for scale in SCALES:
        found = effective_scale(cfg(cond, uncond, scale), cond, uncond)
        assert found.shape == (shape[0],)
        torch.testing.assert_close(found.double(), torch.full((shape[0],), scale).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_effective_scale_is_the_nearest_cfg(shape, dtype):
    """The least-squares fit of D - D_u by the guidance direction, for any D at all; numpy's own solver."""
    cond, uncond, denoised = (latents(shape, seed, dtype) for seed in (1, 2, 3))
    found = exact(effective_scale(denoised, cond, uncond))
    for i, (c, u, d) in enumerate(zip(*map(samples, (cond, uncond, denoised)))):
        (wanted,), *_ = np.linalg.lstsq((c - u)[:, None], d - u, rcond=None)
        # Differences are taken in the precision of the predictions.
        assert found[i] == pytest.approx(wanted, rel=1e-6, abs=8 * rounding(dtype))


def test_effective_scale_does_not_see_what_is_orthogonal():
    shape = SHAPES["image"]
    cond, uncond, extra = (latents(shape, seed) for seed in (1, 2, 3))
    axes = [np.linalg.qr((c - u)[:, None])[0][:, 0] for c, u in zip(samples(cond), samples(uncond))]
    across = [e - a * (a @ e) for e, a in zip(samples(extra), axes)]
    moved = cfg(cond, uncond, 5) + torch.from_numpy(np.stack(across)).reshape(shape)
    torch.testing.assert_close(effective_scale(moved, cond, uncond), torch.full((3,), 5.0), rtol=1e-6, atol=0)


def test_effective_scale_is_per_sample():
    cond, uncond, denoised = (latents(SHAPES["video"], seed) for seed in (1, 2, 3))
    together = effective_scale(denoised, cond, uncond)
    for i in range(3):
        alone = effective_scale(denoised[i : i + 1], cond[i : i + 1], uncond[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=0)
