"""Diffusion-KTO, Diffusion-DPO and DiffusionNFT against their formulas in numpy, float64, one image at a time, and the
properties that their papers give them."""

import math

import numpy as np
import pytest
import torch

from guidekit.samplers.preference import diffusion_nft, dpo, kto
from guidekit.samplers.preference.errors import mean_square
from guidekit.samplers.preference.objectives import DPO, KTO, NFT, SFT
from guidekit.tests.maths.problems import SHAPES, latents, samples

BETAS = (0.1, 1.0, 100.0)
SIGNS = (1.0, -1.0, 1.0, 1.0, -1.0, -1.0)
LIKED = torch.tensor(SIGNS) > 0


def gains(scale=0.01):
    return scale * torch.randn(len(SIGNS), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_errors_are_means(shape, dtype):
    a, b = latents(shape, 0, dtype), latents(shape, 1, dtype)
    found = mean_square(a, b)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    wanted = [np.mean((x - y) ** 2) for x, y in zip(samples(a), samples(b))]
    assert np.allclose(found.numpy(), wanted, rtol=1e-5 if dtype != torch.float64 else 1e-14)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("kind", kto.REFERENCE_POINTS)
def test_kto_is_its_formula(beta, kind):
    g = gains()
    point = kto.reference_point(g, LIKED, kind)
    liked, disliked = g[LIKED].numpy(), g[~LIKED].numpy()
    wanted = {
        "mean": max(0.0, float(np.mean(g.numpy()))),
        "mean of classes": (liked.mean() + disliked.mean()) / 2,
        "none": 0.0,
    }[kind]
    assert float(point) == pytest.approx(wanted, abs=1e-15)
    losses = [1 - sigmoid(s * beta * (float(x) - wanted)) for s, x in zip(SIGNS, g)]
    assert np.allclose(kto.loss(g, LIKED, beta, point).numpy(), losses, rtol=1e-13)


def test_the_reference_point_is_never_below_zero_and_has_no_gradient():
    g = -gains().abs()
    assert kto.reference_point(g, LIKED) == 0
    g = gains().abs().requires_grad_()
    assert not kto.reference_point(g, LIKED).requires_grad
    assert not kto.reference_point(g, LIKED, "mean of classes").requires_grad


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("objective", [KTO, DPO])
def test_slopes_are_the_derivatives_by_the_errors(objective, beta):
    """By automatic differentiation of the loss; the reference point is a constant in it."""
    objective, reference = objective(beta), torch.rand(len(SIGNS), dtype=torch.float64)
    liked = torch.tensor([True, False] * 3) if isinstance(objective, DPO) else LIKED
    error = (reference - gains()).requires_grad_()
    objective.losses(reference - error, liked).sum().backward()
    assert torch.allclose(objective.slopes((reference - error).detach(), liked), error.grad, rtol=1e-12)
    signs = torch.where(liked, 1.0, -1.0)
    assert (error.grad * signs > 0).all()  # liked: less error
    assert error.grad.abs().max() <= beta * (0.25 if isinstance(objective, KTO) else 0.5) + 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_dpo_is_its_formula_with_the_half_of_the_authors_code(beta):
    """Errors of the tuned model and of the reference, better and worse."""
    e = torch.rand((4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tuned_w, tuned_l, reference_w, reference_l = e
    found = dpo.loss(reference_w - tuned_w, reference_l - tuned_l, beta)
    for i in range(5):
        inside = -0.5 * beta * ((tuned_w[i] - tuned_l[i]) - (reference_w[i] - reference_l[i]))
        assert float(found[i]) == pytest.approx(-math.log(sigmoid(float(inside))), rel=1e-12)
    assert torch.equal(DPO(beta).losses(torch.zeros(4), torch.ones(4)), torch.full((4,), math.log(2) / 2))


def outputs(shape, dtype=torch.float64):
    """The tuned model's, the old one's, and what they should be."""
    return [latents(shape, seed, dtype) for seed in (5, 6, 7)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("weighted", [True, False])
def test_nft_is_its_formula(shape, beta, weighted):
    rewards = (1.0, 0.0, 0.3)
    tensors = outputs(shape)
    found = diffusion_nft.loss(*tensors, torch.tensor(rewards, dtype=torch.float64), beta, weighted)
    for r, got, v, old, wanted in zip(rewards, found, *map(samples, tensors)):
        parts = beta * v + (1 - beta) * old - wanted, (1 + beta) * old - beta * v - wanted
        weights = [np.mean(np.abs(part)) if weighted else 1.0 for part in parts]
        plus, minus = (np.mean(part**2) / weight for part, weight in zip(parts, weights))
        assert float(got) == pytest.approx((r * plus + (1 - r) * minus) / beta, rel=1e-12)


def gradient(loss, v):
    v = v.clone().requires_grad_()
    loss(v).sum().backward()
    return v.grad


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("reward", [0.0, 0.25, 0.5, 1.0])
def test_nft_is_a_regression(shape, beta, reward):
    v, old, wanted = outputs(shape)
    r = torch.full((len(v),), reward, dtype=torch.float64)
    target = diffusion_nft.regression_target(old, wanted, r, beta)
    found = gradient(lambda v: diffusion_nft.loss(v, old, wanted, r, beta, weighted=False), v)
    regression = gradient(lambda v: beta * mean_square(v, target), v)
    assert (found - regression).norm() <= 1e-12 * found.norm()


def test_nfts_weights_have_no_gradient():
    v, old, wanted = outputs(SHAPES["image"])
    zeros = torch.zeros(len(v), dtype=torch.float64)
    found = gradient(lambda v: diffusion_nft.loss(v, old, wanted, zeros, 0.5), v)
    error = 1.5 * old - 0.5 * v - wanted
    weight = error.abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(found, -0.5 * 2 * error / error[0].numel() / weight / 0.5, rtol=1e-12)


def test_nft_of_liked_images_alone_is_plain_training():
    """At beta 1, whatever the old model says."""
    v, old, wanted = outputs(SHAPES["image"])
    ones = torch.ones(len(v), dtype=torch.float64)
    found = gradient(lambda v: diffusion_nft.loss(v, old, wanted, ones, 1.0, weighted=False), v)
    sft = gradient(lambda v: SFT().losses(v, None, wanted, ones > 0), v)
    assert torch.allclose(found, sft, rtol=1e-13)


def test_half_a_reward_moves_nothing():
    v = outputs(SHAPES["image"])[1].clone().requires_grad_()
    _, old, wanted = outputs(SHAPES["image"])
    optimizer = torch.optim.SGD([v], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        diffusion_nft.loss(v, old, wanted, torch.full((len(v),), 0.5), 0.1, weighted=False).sum().backward()
        optimizer.step()
    assert torch.allclose(v.detach(), old, atol=1e-12)


def test_at_the_start_kto_and_nft_pull_the_same_way():
    """v = v_old, no reference point: by -s beta/4 2 (v* - v) / N and -2 beta (2r - 1)(v* - v_old) / (beta N)."""
    _, old, wanted = outputs(SHAPES["image"])
    n, beta = old[0].numel(), 3.0
    liked = torch.tensor([True, False, True])
    sign = torch.where(liked, 1.0, -1.0).double().reshape(-1, 1, 1, 1)
    reference = mean_square(old, wanted)

    def of_kto(v):
        return kto.loss(reference - mean_square(v, wanted), liked, beta, torch.zeros(()))

    assert torch.allclose(gradient(of_kto, old), -sign * beta / 4 * 2 * (wanted - old) / n, rtol=1e-12)
    of_nft = gradient(lambda v: diffusion_nft.loss(v, old, wanted, liked.double(), beta, weighted=False), old)
    assert torch.allclose(of_nft, -sign * 2 * (wanted - old) / n, rtol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_nft_moves_a_gaussian_by_the_closed_form(beta):
    """Images are numbers of a normal distribution, those above 0 are liked; the output at one noised value is one
    number v. It ends at v_old + E[(2r - 1)(v* - v_old)] / beta, which is E|x| / beta for the old mean 0."""
    images = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    liked = (images[:, 0] > 0).double()
    old, v = torch.zeros_like(images), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        loss = diffusion_nft.loss(v.expand_as(images), old, images, liked, beta, weighted=False).mean()
        (grad,) = torch.autograd.grad(loss, v)
        v = (v - 0.4 / beta * grad).detach().requires_grad_()
    assert v.item() == pytest.approx(images.abs().mean().item() / beta, rel=1e-9)
    assert v.item() == pytest.approx(math.sqrt(2 / math.pi) / beta, rel=0.03)


@pytest.mark.parametrize("objective", [KTO(100.0), KTO(100.0, "mean of classes"), KTO(100.0, "none")])
def test_saturation_is_seen(objective):
    assert objective.steepness(torch.zeros(6), LIKED) == pytest.approx(0.25)
    far = torch.where(LIKED, 1.0, -1.0)
    assert objective.steepness(far, LIKED) < 1e-6


@pytest.mark.parametrize("objective", [NFT(0.5), SFT()])
def test_images_do_not_see_each_other(objective):
    v, old, wanted = outputs(SHAPES["image"])
    liked = torch.tensor([True, False, True])
    together = objective.losses(v, old, wanted, liked)
    apart = [objective.losses(*(t[i : i + 1] for t in (v, old, wanted, liked))) for i in range(3)]
    assert torch.equal(together, torch.cat(apart))
