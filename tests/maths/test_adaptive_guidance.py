"""The cosine that decides in adaptive guidance."""

import numpy as np
import pytest
import torch

from guidekit.tests.maths.parameterization import to_eps, to_v, to_velocity
from samplers.guidance.adaptive_guidance import agreement
from tests.maths.problems import DTYPES, SHAPES, latents, rounding, samples


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_the_cosine_of_each_sample(shape, dtype):
    a, b = latents(shape, 1, dtype), latents(shape, 2, dtype)
    expected = [u @ v / np.sqrt(u @ u * (v @ v)) for u, v in zip(samples(a), samples(b))]
    assert agreement(a, b).shape == (shape[0],)
    assert np.allclose(agreement(a, b), expected, rtol=1e-12, atol=1e-12)


def test_limits():
    a = latents(SHAPES["image"], 1)
    assert torch.allclose(agreement(a, 3 * a), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(agreement(a, -a), -torch.ones(3, dtype=torch.float64))


def test_the_space_matters():
    """The same pair of predictions at high noise: nearly parallel as eps, not at all as x0."""
    x, cond, uncond = (latents((1, 4, 8, 8), seed) for seed in (1, 2, 3))
    x, sigma = x * 14, torch.tensor([14.0], dtype=torch.float64)
    in_eps, in_v = (agreement(f(x, cond, sigma), f(x, uncond, sigma)) for f in (to_eps, to_v))
    assert in_eps > 0.98
    assert agreement(cond, uncond) < 0.5
    assert abs(in_v - agreement(cond, uncond)) < 0.1  # v is about -x0 there
    in_flow = agreement(to_velocity(x, cond, sigma), to_velocity(x, uncond, sigma))
    assert torch.allclose(in_flow, in_eps)


def test_small_angles_are_seen_in_every_precision():
    """Thresholds are near 1, so sums are in double precision."""
    a = latents((1, 4, 64, 64), 1, torch.float32)
    b = a + 0.01 * latents((1, 4, 64, 64), 2, torch.float32)
    expected = agreement(a.double(), b.double())
    assert torch.allclose(agreement(a, b), expected, atol=1e-12)
    assert 1 - expected > 10 * rounding(torch.float32)
