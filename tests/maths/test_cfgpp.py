"""CFG++: the paper's algorithms, the plain samplers it becomes, and the two kinds of noise."""

import itertools
import math

import pytest
import torch

from samplers.guidance import cfgpp
from samplers.guidance.cfgpp import Prediction, equivalent_scale
from tests.maths.problems import SHAPES, latents

SAMPLERS = {"euler": cfgpp.euler, "dpmpp_2m": cfgpp.dpmpp_2m, "dpmpp_2s": cfgpp.dpmpp_2s_ancestral}
SHAPE = SHAPES["image"]
VE = torch.tensor([14.6, 6.0, 3.1, 1.2, 0.4, 0.05, 0.0], dtype=torch.float64)
FLOW = VE / (1 + VE)
LAMBDA = 0.6

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def to_ratio(x, sigma, flow):
    """x and sigma as x0 + sigma n sees them."""
    return (x / (1 - sigma), sigma / (1 - sigma)) if flow else (x, sigma)


class Toy:
    """Two smooth denoisers, functions of the noise-to-signal ratio, so that they mean the same to flow and VE."""

    def __init__(self, flow=False, guidance_lambda=LAMBDA, equal=False, extra=0.0, **weights):
        self.flow, self.guidance_lambda, self.equal, self.extra = flow, guidance_lambda, equal, extra
        self.weights = {"cond": 1.3, "uncond": -0.7} | weights
        self.seen = []

    def predict(self, which, x, sigma):
        x, sigma = to_ratio(x, sigma, self.flow)
        return torch.tanh(self.weights[which] * x / (1 + sigma) + x.roll(1, -1) / (2 + sigma)) + 0.1 * sigma**0.5

    def __call__(self, x, sigma, factor):
        uncond = self.predict("uncond", x, sigma)
        change = 0 * x if self.equal else self.predict("cond", x, sigma) - uncond
        base = uncond + self.extra
        scale = self.guidance_lambda * factor
        self.seen.append((float(sigma), scale, x))
        return Prediction(base + scale * change, base, self.guidance_lambda * change)


def fixed_noise(sigma, target):
    return latents(SHAPE, int(1000 * target) % 997)


def numbered_noise():
    """Noise that depends only on how often it was asked for."""
    count = itertools.count()
    return lambda *_: latents(SHAPE, next(count))


def solve(name, toy, sigmas, x=None, eta=0.0, noise=fixed_noise):
    x = latents(SHAPE, 1) * sigmas[0] if x is None else x
    return SAMPLERS[name](toy, x, sigmas, toy.flow, eta=eta, noise=noise, report=lambda *_: None)


def no_noise(*_):
    raise AssertionError("a deterministic sampler asked for noise")


# The paper


def test_euler_is_the_papers_ddim():
    """Algorithm 2 in its own coordinates: z = x / sqrt(1 + sigma^2), alpha-bar = 1 / (1 + sigma^2)."""
    toy, x = Toy(), latents(SHAPE, 1) * VE[0]
    z = x / (1 + VE[0] ** 2).sqrt()
    for sigma, target in zip(VE, VE[1:]):
        bar, bar_next = 1 / (1 + sigma**2), 1 / (1 + target**2)
        x = z / bar.sqrt()
        cond, uncond = ((x - toy.predict(k, x, sigma)) / sigma for k in ("cond", "uncond"))
        guided = uncond + LAMBDA * (cond - uncond)
        z0 = (z - (1 - bar).sqrt() * guided) / bar.sqrt()
        z = bar_next.sqrt() * z0 + (1 - bar_next).sqrt() * uncond
    assert torch.allclose(solve("euler", Toy(), VE, noise=no_noise), z, rtol=1e-10, atol=1e-12)


def test_euler_is_the_papers_rule_for_flow():
    toy, x = Toy(flow=True), latents(SHAPE, 1)
    ours = solve("euler", Toy(flow=True), FLOW, x, noise=no_noise)
    for t, target in zip(FLOW, FLOW[1:]):
        cond, uncond = toy.predict("cond", x, t), toy.predict("uncond", x, t)
        noise = (x - (1 - t) * uncond) / t
        x = (1 - target) * (uncond + LAMBDA * (cond - uncond)) + target * noise
    assert torch.allclose(ours, x, rtol=1e-10, atol=1e-12)


def test_dpmpp_2m_is_the_authors():
    """x' = D_l - e^-h D_u + e^-h x + (1 - e^-h) / 2r (D_l - D_u,old); Euler in the first and the last step."""
    toy, x, old, h_old = Toy(), latents(SHAPE, 1) * VE[0], None, None
    ours = solve("dpmpp_2m", Toy(), VE, noise=no_noise)
    for sigma, target in zip(VE, VE[1:]):
        cond, uncond = toy.predict("cond", x, sigma), toy.predict("uncond", x, sigma)
        guided = uncond + LAMBDA * (cond - uncond)
        if target == 0:
            x = guided
            break
        h = (sigma / target).log()
        decay = (-h).exp()
        x = guided - decay * uncond + decay * x
        if old is not None:
            x = x + (1 - decay) / (2 * h_old / h) * (guided - old)
        old, h_old = uncond, h
    assert torch.allclose(ours, x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_dpmpp_2s_is_the_authors(eta):
    """sigma_m = sigma e^(-h/2), x2 = e^(-h/2) x + (1 - e^(-h/2)) D_u, x' = D_l(x2) - e^-h D_u(x2) + e^-h x + noise."""
    toy, x = Toy(), latents(SHAPE, 1) * VE[0]
    ours = solve("dpmpp_2s", Toy(), VE, eta=eta)
    for sigma, target in zip(VE, VE[1:]):
        up = min(target, eta * (target**2 * (sigma**2 - target**2) / sigma**2).sqrt())
        down = (target**2 - up**2).sqrt()
        if target == 0:
            x = toy.predict("uncond", x, sigma) * (1 - LAMBDA) + LAMBDA * toy.predict("cond", x, sigma)
            break
        h = (sigma / down).log()
        middle, half = sigma * (-h / 2).exp(), (-h / 2).exp()
        x2 = half * x + (1 - half) * toy.predict("uncond", x, sigma)
        cond, uncond = toy.predict("cond", x2, middle), toy.predict("uncond", x2, middle)
        x = uncond + LAMBDA * (cond - uncond) - (-h).exp() * uncond + (-h).exp() * x + up * fixed_noise(sigma, target)
    assert torch.allclose(ours, x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_is_dpmpp_2m_sde_with_the_guidance_at_full_weight(eta):
    """x' = sigma'/sigma e^(-eta h) x + (1 - e^(-(1 + eta) h)) (D_u + (D_l - D_u,old) / 2r) + l D + noise."""
    toy, x, old, h_old = Toy(), latents(SHAPE, 1) * VE[0], None, None
    ours = solve("dpmpp_2m", Toy(), VE, eta=eta)
    for sigma, target in zip(VE, VE[1:]):
        cond, uncond = toy.predict("cond", x, sigma), toy.predict("uncond", x, sigma)
        guided = uncond + LAMBDA * (cond - uncond)
        if target == 0:
            x = guided
            break
        h = (sigma / target).log()
        data = 1 - (-(1 + eta) * h).exp()
        x = target / sigma * (-eta * h).exp() * x + data * uncond + guided - uncond
        x = x + target * (1 - (-2 * eta * h).exp()).sqrt() * fixed_noise(sigma, target)
        if old is not None:
            x = x + data * h / (2 * h_old) * (guided - old)
        old, h_old = uncond, h
    assert torch.allclose(ours, x, rtol=1e-10, atol=1e-12)


# Its properties


@every_sampler
def test_without_a_difference_it_is_the_plain_sampler(name):
    """lambda plays no part where cond and uncond agree."""
    one, other = (solve(name, Toy(equal=True, guidance_lambda=value), VE) for value in (0.2, 0.9))
    assert torch.equal(one, other)


@every_sampler
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("flow", [False, True])
def test_lambda_0_does_not_depend_on_the_positive(name, eta, flow):
    sigmas = FLOW if flow else VE
    one, other = (solve(name, Toy(flow, 0.0, cond=c), sigmas, eta=eta) for c in (1.3, 40.0))
    assert torch.equal(one, other)
    assert not torch.equal(one, solve(name, Toy(flow, 0.1), sigmas, eta=eta))


@every_sampler
def test_the_last_step_gives_the_guided_prediction(name):
    toy, x = Toy(), latents(SHAPE, 2)
    sigmas = torch.tensor([0.8, 0.0], dtype=torch.float64)
    uncond, cond = toy.predict("uncond", x, sigmas[0]), toy.predict("cond", x, sigmas[0])
    assert torch.equal(solve(name, toy, sigmas, x, noise=no_noise), uncond + LAMBDA * (cond - uncond))
    assert toy.seen[0][1] == LAMBDA


@every_sampler
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_flow_and_ve_agree(name, eta):
    """x_flow = (1 - t) x_VE at t = sigma / (1 + sigma): the same denoisers give the same trajectory."""
    x = latents(SHAPE, 1) * VE[0]
    ve, flow = Toy(), Toy(flow=True)
    one = solve(name, ve, VE, x, eta=eta, noise=numbered_noise())
    other = solve(name, flow, FLOW, x * (1 - FLOW[0]), eta=eta, noise=numbered_noise())
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)
    assert len(ve.seen) == len(flow.seen)
    for (sigma, scale, x_ve), (t, scale_flow, x_flow) in zip(ve.seen, flow.seen):
        assert math.isclose(sigma, t / (1 - t), rel_tol=1e-9)
        assert math.isclose(scale, scale_flow, rel_tol=1e-9)
        assert torch.allclose(x_ve, x_flow / (1 - t), rtol=1e-8, atol=1e-9)


@every_sampler
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_flow_may_begin_at_pure_noise(name, eta):
    """At t = 1 there is no signal; the first step is the limit of beginning just below. 2M keeps nothing of it: it is
    infinitely far away in log SNR."""
    x, sigmas = latents(SHAPE, 1), torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    toy, below = Limited(flow=True), torch.tensor([1 - 1e-9, 0.8], dtype=torch.float64)
    first = solve(name, toy, sigmas[:2], x, eta=eta)
    # 2S puts its midpoint where there is signal: by that much the share of x that stays differs.
    assert torch.allclose(first, solve(name, toy, below, x, eta=eta), rtol=1e-3, atol=1e-3)
    assert torch.allclose(solve(name, toy, sigmas, x, eta=eta), solve(name, toy, sigmas[1:], first, eta=eta))


class Limited(Toy):
    """A flow denoiser that is finite at t = 1."""

    def predict(self, which, x, sigma):
        return torch.tanh(self.weights[which] * x + (1 - sigma) * x.roll(1, -1))


@pytest.mark.parametrize("flow", [False, True])
def test_euler_equals_cfg_at_the_equivalent_scale(flow):
    sigmas = FLOW if flow else VE
    toy, x = Toy(flow), latents(SHAPE, 1) * sigmas[0]
    ours = solve("euler", Toy(flow), sigmas, x)
    for sigma, target in zip(sigmas, sigmas[1:]):
        scale = equivalent_scale(LAMBDA, sigma.item(), target.item(), flow)
        cond, uncond = toy.predict("cond", x, sigma), toy.predict("uncond", x, sigma)
        x = x + (target - sigma) / sigma * (x - (uncond + scale * (cond - uncond)))
    assert torch.allclose(ours, x, rtol=1e-9, atol=1e-10)


@every_sampler
@pytest.mark.parametrize("flow", [False, True])
def test_all_evaluations_of_a_step_get_the_scale_of_its_euler_step(name, flow):
    toy, sigmas = Toy(flow), (FLOW if flow else VE)
    solve(name, toy, sigmas)
    wanted = [equivalent_scale(LAMBDA, a, b, flow) for a, b in itertools.pairwise(sigmas.tolist())]
    if name == "dpmpp_2s":
        wanted = [scale for scale in wanted[:-1] for _ in range(2)] + wanted[-1:]
    assert [scale for _, scale, _ in toy.seen] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("sigma", "target", "flow", "expected"),
    [
        (2.0, 1.0, False, 0.6 * 2 / (2 - 1)),
        (0.5, 0.0, False, 0.6),
        (0.5, 0.0, True, 0.6),
        (1.0, 0.9, True, 0.6),  # (1 - t') t / (t - t') at t = 1
        (0.8, 0.5, True, 0.6 * 0.5 * 0.8 / 0.3),
        (1.0, 2.0, False, 0.6 * 2 / (2 - 1)),  # inversion: the step seen from its other end
        (0.5, 0.8, True, 0.6 * 0.5 * 0.8 / 0.3),
        (0.7, 0.7, False, 0.6),
    ],
)
def test_equivalent_scale(sigma, target, flow, expected):
    assert math.isclose(equivalent_scale(0.6, sigma, target, flow), expected, rel_tol=1e-12)


@every_sampler
def test_corrections_after_cfg_have_the_weight_of_the_plain_sampler(name):
    """A correction of the prediction (PAG, APG) is not multiplied like lambda's part: the step moves by it as the plain
    sampler does."""
    sigmas = torch.tensor([3.0, 1.5], dtype=torch.float64)
    x = latents(SHAPE, 3)
    without, added = (solve(name, Constant(extra=extra), sigmas, x) for extra in (0.0, 2.0))
    assert torch.allclose(added - without, torch.full_like(x, 2.0 * (1 - 1.5 / 3.0)), rtol=1e-10)


class Constant(Toy):
    def predict(self, which, x, sigma):
        return torch.full_like(x, self.weights[which])


@pytest.mark.parametrize("flow", [False, True])
def test_inversion_undoes_euler_exactly_where_predictions_do_not_depend_on_x(flow):
    sigmas = (FLOW if flow else VE)[:-1]
    x = latents(SHAPE, 3) * sigmas[0]
    there = solve("euler", Constant(flow), sigmas, x)
    back = cfgpp.invert(Constant(flow), there, sigmas.flip(0), flow, report=lambda *_: None)
    assert torch.allclose(back, x, rtol=1e-8, atol=1e-9)
    assert not torch.allclose(there, x, rtol=1e-2)


@pytest.mark.parametrize("flow", [False, True])
def test_inversion_is_unguided_tweedie_and_guided_renoising(flow):
    sigmas = (FLOW if flow else VE)[:-1].flip(0)
    toy, x = Toy(flow), latents(SHAPE, 3)
    ours = cfgpp.invert(Toy(flow), x, sigmas, flow, report=lambda *_: None)
    for sigma, target in zip(sigmas, sigmas[1:]):
        a, b = (1 - sigma, 1 - target) if flow else (1.0, 1.0)
        cond, uncond = toy.predict("cond", x, sigma), toy.predict("uncond", x, sigma)
        guided = uncond + LAMBDA * (cond - uncond)
        x = b * uncond + target * (x - a * guided) / sigma
    assert torch.allclose(ours, x, rtol=1e-9, atol=1e-10)


def test_every_step_is_reported_once_with_what_it_denoised():
    for name in SAMPLERS:
        told: list = []

        def report(i, x, sigma, denoised, told=told):
            told.append((i, sigma, denoised))

        SAMPLERS[name](Toy(), latents(SHAPE, 1), VE, False, eta=0.0, noise=no_noise, report=report)
        assert [i for i, _, _ in told] == [*range(len(VE) - 1)]
        assert [s for _, s, _ in told] == VE[:-1].tolist()
        assert all(d.shape == SHAPE for _, _, d in told)


@every_sampler
def test_a_step_of_no_length_changes_nothing(name):
    """Schedules may repeat a sigma."""
    x = latents(SHAPE, 1)
    sigmas = torch.tensor([2.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.equal(solve(name, Toy(), sigmas[:2], x), x)
    whole = solve(name, Toy(), sigmas, x)
    assert torch.allclose(whole, solve(name, Toy(), sigmas[1:], x)) or name == "dpmpp_2m"
    assert torch.isfinite(whole).all()


@every_sampler
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_rank_and_no_mixing_of_samples(name, shape):
    x = latents(shape, 1)
    together = SAMPLERS[name](Toy(), x, VE, False, eta=0.0, noise=no_noise, report=lambda *_: None)
    alone = [SAMPLERS[name](Toy(), s, VE, False, eta=0.0, noise=no_noise, report=lambda *_: None) for s in x.split(1)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-12)


def test_ancestral_steps_keep_the_level_of_the_noise():
    """With nothing predicted, unit noise at sigma becomes unit noise at sigma': d^2 + (1 - d^2) = 1."""

    class Nothing(Toy):
        def predict(self, which, x, sigma):
            return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, 200_000), generator=generator, dtype=torch.float64) * 4.0
    sigmas = torch.tensor([4.0, 1.5], dtype=torch.float64)
    for name, eta in (("euler", 1.0), ("euler", 0.5), ("dpmpp_2m", 1.0), ("dpmpp_2s", 1.0)):
        fresh = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        out = solve(name, Nothing(), sigmas, x, eta=eta, noise=lambda *_, fresh=fresh: fresh)
        assert math.isclose(out.std().item(), 1.5, rel_tol=0.01)
        assert not torch.allclose(out, x * 1.5 / 4.0)
