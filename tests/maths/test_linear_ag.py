"""LinearAG: least squares over trajectories, one scalar per step and regressor."""

import numpy as np
import pytest
import torch

from samplers.guidance.linear_ag import (
    CONDITIONAL,
    ESTIMATED,
    GUIDED,
    Coefficients,
    estimate,
    fit,
    gram,
    policy,
    unexplained,
)
from tests.maths.problems import SHAPES, latents

STEPS = 5


def process(seed, shape=SHAPES["image"]):
    """A trajectory whose uncond is a known linear combination of what comes before it."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn((STEPS, STEPS), generator=generator, dtype=torch.float64).tril()
    b = torch.randn((STEPS, STEPS), generator=generator, dtype=torch.float64).tril(-1)
    cond = [latents(shape, 100 * seed + i) for i in range(STEPS)]
    uncond: list = []
    for t in range(STEPS):
        uncond.append(sum(a[t, i] * cond[i] for i in range(t + 1)) + sum(b[t, i] * uncond[i] for i in range(t)))
    return cond, uncond, Coefficients(a, b)


def random_process(seed, shape=SHAPES["image"]):
    return [latents(shape, 100 * seed + i) for i in range(STEPS)], [
        latents(shape, 100 * seed + 50 + i) + latents(shape, 100 * seed + i) for i in range(STEPS)
    ]


def rebuilt(coefficients, cond, uncond):
    return [estimate(coefficients, t, cond, uncond) for t in range(STEPS)]


def test_recovers_a_linear_process_to_rounding():
    """Only what the coefficients predict is determined: past uncond outputs are combinations themselves."""
    cond, uncond, _ = process(1)
    coefficients = fit(gram(cond, uncond), ridge=0.0)
    for found, wanted in zip(rebuilt(coefficients, cond, uncond), uncond):
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max())


def test_recovers_the_coefficients_where_they_are_determined():
    generator = torch.Generator().manual_seed(3)
    cond = [latents(SHAPES["image"], i) for i in range(STEPS)]
    uncond = [latents(SHAPES["image"], 50 + i) for i in range(STEPS - 1)]
    weights = torch.randn(2 * STEPS - 1, generator=generator, dtype=torch.float64)
    uncond.append(sum(w * v for w, v in zip(weights, [*cond, *uncond])))
    found = fit(gram(cond, uncond), ridge=0.0)
    assert torch.allclose(torch.cat([found.cond[-1], found.uncond[-1, :-1]]), weights, rtol=1e-9)
    assert found.uncond[-1, -1] == 0


def test_is_the_least_squares_solution():
    """Against numpy's solver on the stacked outputs of three trajectories."""
    runs = [random_process(seed) for seed in range(3)]
    found = fit(sum(gram(*run) for run in runs), ridge=0.0)
    for t in range(STEPS):
        rows = np.concatenate([np.stack([v.numpy().ravel() for v in [*c[: t + 1], *u[:t]]]) for c, u in runs], 1)
        target = np.concatenate([u[t].numpy().ravel() for _, u in runs])
        wanted = np.linalg.lstsq(rows.T, target, rcond=None)[0]
        assert np.allclose([*found.cond[t, : t + 1], *found.uncond[t, :t]], wanted, rtol=1e-8)


def test_ridge_shrinks_and_keeps_equal_outputs_finite():
    cond, uncond = random_process(1)
    products = gram(cond, uncond)
    sizes = [fit(products, ridge).cond.norm() for ridge in (0.0, 0.1, 10.0)]
    assert sizes[0] > sizes[1] > sizes[2]
    same = gram([cond[0]] * STEPS, [uncond[0]] * STEPS)
    assert torch.isfinite(fit(same, 1e-6).cond).all()
    assert torch.isfinite(fit(same, 0.0).cond).all()


def test_order_and_batching_of_trajectories_do_not_matter():
    runs = [random_process(seed) for seed in range(3)]
    forwards = sum(gram(*run) for run in runs)
    backwards = sum(gram(*run) for run in runs[::-1])
    batched = gram(*([torch.cat(parts) for parts in zip(*side)] for side in zip(*runs)))
    one_by_one = sum(gram([v[i : i + 1] for v in c], [v[i : i + 1] for v in u]) for c, u in runs for i in range(3))
    for other in (backwards, batched, one_by_one):
        assert torch.allclose(forwards, other, rtol=1e-12)


def test_half_precision_outputs_are_summed_in_double():
    cond, uncond = random_process(1)
    half = [[v.half() for v in side] for side in (cond, uncond)]
    exact = gram(*[[v.double() for v in side] for side in half])
    assert torch.allclose(gram(*half), exact, rtol=1e-12)
    assert gram(*half).dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_cond_alone_gives_cond(shape, dtype):
    """beta^c_t = 1 and nothing else: the estimate is the conditional output, and the step a conditional one."""
    eye = Coefficients(torch.eye(STEPS, dtype=torch.float64), torch.zeros(STEPS, STEPS, dtype=torch.float64))
    cond, uncond = ([v.to(dtype) for v in side] for side in random_process(1, shape))
    for t in range(STEPS):
        assert torch.equal(estimate(eye, t, cond, uncond), cond[t])


def test_the_estimate_takes_nothing_from_the_future():
    cond, uncond = random_process(1)
    coefficients = fit(gram(cond, uncond))
    assert torch.equal(coefficients.cond, coefficients.cond.tril())
    assert torch.equal(coefficients.uncond, coefficients.uncond.tril(-1))
    assert torch.equal(estimate(coefficients, 2, cond, uncond), estimate(coefficients, 2, cond[:3], uncond[:2]))


def test_unexplained_is_the_error_against_taking_the_positive():
    cond, uncond = random_process(1)
    products = gram(cond, uncond)
    coefficients = fit(products)
    for t, found in enumerate(unexplained(products, coefficients)):
        error = (uncond[t] - estimate(coefficients, t, cond, uncond)).square().sum()
        assert torch.allclose(found, error / (uncond[t] - cond[t]).square().sum(), rtol=1e-9)


def test_the_papers_policy():
    steps = [policy(i, 20) for i in range(20)]
    assert steps[:10] == [GUIDED, ESTIMATED] * 5
    assert steps[10:] == [CONDITIONAL] * 10
    assert sum({GUIDED: 2, ESTIMATED: 1, CONDITIONAL: 1}[step] for step in steps) == 25
    assert policy(0, 1) == CONDITIONAL
    assert [policy(i, 3) for i in range(3)] == [GUIDED, CONDITIONAL, CONDITIONAL]


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        fit(torch.full((4, 4), torch.nan))
