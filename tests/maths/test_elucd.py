"""The calibrated objective, and the size of what is added."""

import math

import pytest
import torch

from guidekit.samplers.guidance.elucd import guidance_update, objective, strength
from guidekit.samplers.reductions import rms
from guidekit.tests.maths.problems import latents


def logits(rows=5, n=7):
    return torch.randn(rows, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3


def gradient(f, *settings):
    f = f.clone().requires_grad_()
    objective(f, 2, *settings).sum().backward()
    return f.grad


def test_at_equal_temperatures_it_is_the_log_probability():
    assert torch.allclose(objective(logits(), 2, 1.0, 1.0), logits().log_softmax(1)[:, 2])


@pytest.mark.parametrize(("tau_1", "tau_2"), [(1.0, 0.5), (2.0, 0.7)])
def test_by_hand(tau_1, tau_2):
    """The published form, where it does not overflow."""
    f = logits()
    wanted = torch.log(torch.exp(tau_1 * f[:, 2]) / torch.exp(tau_2 * f).sum(1))
    assert torch.allclose(objective(f, 2, tau_1, tau_2), wanted)


def test_joint_only():
    """tau_2 = 0: the gradient is that of the target's logit, whatever the others are."""
    found = gradient(logits(), 1.5, 0.0)
    assert torch.equal(found, 1.5 * torch.nn.functional.one_hot(torch.tensor([2] * 5), 7).double())


def test_a_constant_added_to_all_logits():
    f = logits()
    assert torch.allclose(objective(f + 3, 2, 1.0, 0.4) - objective(f, 2, 1.0, 0.4), torch.tensor(0.6 * 3).double())
    assert torch.allclose(gradient(f + 3, 1.0, 0.4), gradient(f, 1.0, 0.4))


def test_large_logits():
    f = torch.tensor([[1e4, -1e4, 1e4], [-1e4, 1e4, -1e4]])
    assert objective(f, 2).isfinite().all()
    assert gradient(f).isfinite().all()


def test_the_schedule():
    """EDM's, in the limit of many steps: falling, with a sine on it, which is nothing at the start and most in the
    middle."""
    steps, m = 18000, 0.004
    for i in range(0, steps, 997):
        wanted = max(m * (steps + 1 - i) / (steps + 1), 1e-5) + math.sin(math.pi * i / steps) * m * 0.3
        assert strength(m, i / steps) == pytest.approx(wanted, abs=1e-4 * m)
    assert strength(m, 0.0) == m
    sine = [strength(m, i / 18) - strength(m, i / 18, kappa=0.0) for i in range(19)]
    assert sine[0] == 0
    assert max(sine) == sine[9] == pytest.approx(0.3 * m)
    assert sine[18] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 10), (3, 4, 6, 5), (3, 4, 3, 5, 2)])
def test_the_size_is_the_sample_s_own(shape):
    """Whatever the classifier's scale."""
    denoised, g = latents(shape, 1), latents(shape, 2)
    found = guidance_update(denoised, g, 0.05)
    assert torch.allclose(rms(found), 0.05 * rms(denoised))
    assert torch.allclose(guidance_update(denoised, 10 * g, 0.05), found)
    for i in range(3):
        assert torch.allclose(guidance_update(denoised[i : i + 1], g[i : i + 1], 0.05), found[i : i + 1])
        along = torch.nn.functional.cosine_similarity(found[i].flatten(), g[i].flatten(), dim=0)
        assert along.item() == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_gradient_of_zero_or_nan_adds_nothing(value):
    denoised, g = latents((3, 4, 10), 1), latents((3, 4, 10), 2)
    g[1] = value
    found = guidance_update(denoised, g, 0.05)
    assert torch.equal(found[1], torch.zeros_like(found[1]))
    assert torch.equal(found[[0, 2]], guidance_update(denoised, latents((3, 4, 10), 2), 0.05)[[0, 2]])
    assert found.dtype == denoised.dtype
