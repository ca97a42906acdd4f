"""Weak-branch guidance and its rescaling, against numpy sample by sample."""

import numpy as np
import pytest
import torch

from guidekit.samplers.guidance.cfg import cfg
from guidekit.samplers.guidance.weak_branch import RESCALE, weak_branch
from guidekit.tests.maths.parameterization import from_eps, from_v, from_velocity, to_eps, to_v, to_velocity
from guidekit.tests.maths.problems import SHAPES, latents, samples

CASES = [pytest.param(shape, rescale, id=f"{name}-{rescale}") for name, shape in SHAPES.items() for rescale in RESCALE]


def predictions(shape):
    cond, uncond, weak = (latents(shape, seed) for seed in (1, 2, 3))
    return cond, uncond, weak, cfg(cond, uncond, 4.0)


def wanted(cond, weak, guided, scale, rescale):
    g = scale * (cond - weak)
    if rescale == "partial":
        return g * cond.std() / (cond + g).std()
    if rescale == "full":
        return (guided + g) * cond.std() / (guided + g).std() - guided
    return g


@pytest.mark.parametrize(("shape", "rescale"), CASES)
def test_is_the_formula_in_each_sample(shape, rescale):
    cond, _, weak, guided = predictions(shape)
    found = weak_branch(cond, weak, 2.5, guided, rescale)
    for f, c, k, g in zip(*map(samples, (found, cond, weak, guided))):
        np.testing.assert_allclose(f, wanted(c, k, g, 2.5, rescale), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_full_has_the_spread_of_cond(shape):
    cond, _, weak, guided = predictions(shape)
    result = guided + weak_branch(cond, weak, 2.5, guided, "full")
    for r, c in zip(samples(result), samples(cond)):
        np.testing.assert_allclose(r.std(), c.std(), rtol=1e-5)


@pytest.mark.parametrize(("shape", "rescale"), CASES)
def test_samples_do_not_see_each_other(shape, rescale):
    cond, _, weak, guided = predictions(shape)
    together = weak_branch(cond, weak, 2.5, guided, rescale)
    for i in range(shape[0]):
        one = slice(i, i + 1)
        alone = weak_branch(cond[one], weak[one], 2.5, guided[one], rescale)
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-12)


def test_is_linear_in_the_scale():
    cond, _, weak, guided = predictions(SHAPES["image"])
    one = weak_branch(cond, weak, 1.0, guided)
    torch.testing.assert_close(weak_branch(cond, weak, 7.0, guided), 7 * one, rtol=0, atol=1e-12)
    assert not weak_branch(cond, cond, 7.0, guided).any()


def test_predictions_of_zero_give_no_guidance():
    zero = torch.zeros(2, 4, 6, 5)
    for rescale in RESCALE:
        assert not weak_branch(zero, zero, 3.0, zero, rescale).any()


@pytest.mark.parametrize(
    ("to", "back"), [(to_eps, from_eps), (to_v, from_v), (to_velocity, from_velocity)], ids=["eps", "v", "velocity"]
)
def test_the_same_in_every_space(to, back):
    x, cond, uncond, weak = (latents(SHAPES["image"], seed) for seed in (4, 1, 2, 3))
    sigma = torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)
    raw = [to(x, d, sigma) for d in (cond, uncond, weak)]
    in_raw = raw[1] + 4.0 * (raw[0] - raw[1]) + 2.5 * (raw[0] - raw[2])
    guided = cfg(cond, uncond, 4.0)
    in_x0 = guided + weak_branch(cond, weak, 2.5, guided)
    torch.testing.assert_close(back(x, in_raw, sigma), in_x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_autoguidance_shares_one_scale(alpha):
    """Equation of appendix B.2: D = D_m + sum (w_i - 1)(D_m - D_i)."""
    cond, uncond, weak, _ = predictions(SHAPES["image"])
    w, s = (1 - alpha) * 4.0 + 1, alpha * 4.0
    guided = cfg(cond, uncond, w)
    w_u, w_c = (1 - alpha) * 4.0 + 1, alpha * 4.0 + 1
    paper = cond + (w_u - 1) * (cond - uncond) + (w_c - 1) * (cond - weak)
    torch.testing.assert_close(guided + weak_branch(cond, weak, s, guided), paper, rtol=0, atol=1e-12)
