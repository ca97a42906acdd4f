"""Guidance by band against the papers' sums in double precision."""

import pytest
import torch

from guidekit.samplers.guidance.cfg import cfg
from guidekit.samplers.guidance.frequency_guidance import pyramid_guidance, resize_guidance
from guidekit.samplers.guidance.pyramid import collapse, high_and_low, laplacian_pyramid
from guidekit.tests.maths.problems import SHAPES, latents

FACTORS = ((2.0, 1.0), (0.5, 3.0), (2.0, 1.5, 0.7), (4.0, 1.0, 1.0, 0.0))


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_band_is_guided_by_its_own_scale(shape, factors):
    """collapse(U_b + w_b (C_b - U_b))."""
    cond, uncond, scale = latents(shape, 1), latents(shape, 2), 5.0
    bands = zip(*(laplacian_pyramid(x, len(factors)) for x in (cond, uncond)))
    wanted = collapse([u + f * scale * (c - u) for f, (c, u) in zip(factors, bands)])
    got = cfg(cond, uncond, scale) + pyramid_guidance(cond, uncond, scale, factors)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_frecas_guides_what_a_smaller_image_loses(shape):
    """The paper's 35 and 7.5."""
    cond, uncond, scale = latents(shape, 1), latents(shape, 2), 7.5
    (c_high, c_low), (u_high, u_low) = high_and_low(cond, 2.0), high_and_low(uncond, 2.0)
    wanted = u_high + 35 * (c_high - u_high) + u_low + 7.5 * (c_low - u_low)
    got = cfg(cond, uncond, scale) + resize_guidance(cond, uncond, scale, 35 / 7.5, 1.0, 2.0)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("parallel", [0.0, 0.4])
@pytest.mark.parametrize("factors", FACTORS)
def test_the_parallel_part_goes_band_by_band(factors, parallel):
    """Algorithm of FDG with APG's projection, one sample at a time; with one band it is APG."""
    shape, scale = SHAPES["image"], 6.0
    cond, uncond = latents(shape, 1), latents(shape, 2)
    got = cfg(cond, uncond, scale) + pyramid_guidance(cond, uncond, scale, factors, parallel)
    for i in range(shape[0]):
        guided = []
        for f, c, u in zip(factors, *(laplacian_pyramid(x[i : i + 1], len(factors)) for x in (cond, uncond))):
            shift = c - u
            along = (shift * c).sum() / (c * c).sum() * c
            guided.append(c + (f * scale - 1) * (shift - along + parallel * along))
        torch.testing.assert_close(got[i : i + 1], collapse(guided), rtol=0, atol=1e-10)


def test_the_same_factor_everywhere_is_another_cfg():
    cond, uncond = latents(SHAPES["video"], 1), latents(SHAPES["video"], 2)
    assert not pyramid_guidance(cond, uncond, 5.0, (1.0, 1.0, 1.0)).any()
    assert not resize_guidance(cond, uncond, 5.0, 1.0, 1.0, 3.0).any()
    for change in (
        pyramid_guidance(cond, uncond, 5.0, (1.6,) * 3),
        resize_guidance(cond, uncond, 5.0, 1.6, 1.6, 3.0),
    ):
        torch.testing.assert_close(cfg(cond, uncond, 5.0) + change, cfg(cond, uncond, 8.0), rtol=0, atol=1e-11)


def test_samples_do_not_see_each_other():
    cond, uncond = latents(SHAPES["image"], 1), latents(SHAPES["image"], 2)
    for rule in (
        lambda c, u: pyramid_guidance(c, u, 5.0, (2.0, 1.0), 0.3),
        lambda c, u: resize_guidance(c, u, 5.0, 2.0, 1.0, 2.0),
    ):
        whole = rule(cond, uncond)
        for i in range(len(cond)):
            torch.testing.assert_close(whole[i : i + 1], rule(cond[i : i + 1], uncond[i : i + 1]), rtol=0, atol=1e-12)
