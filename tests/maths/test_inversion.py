"""Exact inverters: there and back, and each against its paper written in another way."""

import math

import pytest
import torch

from guidekit.samplers.inversion.bdia import Bdia
from guidekit.samplers.inversion.edict import Edict, mixing
from guidekit.samplers.inversion.o_belm import OBelm
from guidekit.samplers.inversion.reversible import Levels, Pair, invert, sample
from guidekit.samplers.inversion.rex import Rex
from guidekit.tests.maths.problems import latents

STEPS = (1, 2, 11, 45, 50)
MODELS = ("variance preserving", "flow")


def methods(steps):
    p = max(0.93, mixing(steps))
    return {
        "edict": Edict(p),
        "edict own level": Edict(p, own_level=True),
        "bdia": Bdia(),
        "o-belm": OBelm(),
        "rex": Rex(),
    }


METHODS = list(methods(50))


def schedule(model, steps, end=0.0):
    """Falling sigmas of a stable-diffusion-like model, uneven, or of a flow with shift 3, down to `end`."""
    if model == "flow":
        t = torch.linspace(1, end / (3 - 2 * end), steps + 1, dtype=torch.float64)
        return Levels(tuple((3 * t / (1 + 2 * t)).tolist()), lambda sigma: 1.0)
    ramp, last = torch.linspace(0, 1, steps + 1, dtype=torch.float64), end or 0.03
    sigmas = (14.6 ** (1 / 7) + ramp * (last ** (1 / 7) - 14.6 ** (1 / 7))) ** 7
    sigmas[-1] = end
    return Levels(tuple(sigmas.tolist()), lambda sigma: 1 / math.sqrt(1 + sigma**2))


def levels_for(method, model, steps):
    return schedule(model, steps, 0.0 if method.to_zero else 0.01)


def drift(model, cfg=1.0, dtype=torch.float64):
    """Smooth, between the posterior means of a normal distribution and of two points; with a second one, guided. The
    network, what is between the latent and its raw output, works in `dtype`."""
    directions = [torch.linspace(-1, 1, 12, dtype=torch.float64), torch.linspace(1, 0.2, 12, dtype=torch.float64)]

    def network(x, sigma):
        clean = x if model != "flow" else x / (1 - sigma) if sigma < 1 else 1e6 * x
        ratio = sigma if model != "flow" else sigma / max(1 - sigma, 1e-6)
        outs = []
        for direction in directions:
            along = (clean * direction).sum(-1, keepdim=True) / (ratio**2 + 0.3)
            outs.append(torch.tanh(along) * direction + 0.5 * clean / (ratio**2 + 0.5))
        return outs[1] + cfg * (outs[0] - outs[1])

    def f(x, sigma):
        assert sigma > 0
        return (x - network(x.to(dtype), sigma).to(x.dtype)) / sigma

    return f


def solution(f, x, levels):
    """By Heun's method."""
    for sigma, target in zip(levels.sigmas, levels.sigmas[1:]):
        d = f(x, sigma)
        if target > 0:
            d = (d + f(x + (target - sigma) * d, target)) / 2
        x = x + (target - sigma) * d
    return x


def error(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def start():
    return latents((3, 12), 5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_there_and_back(name, model, steps, cfg, dtype):
    """From an image to noise and back, whatever the network's precision; and from noise, if both latents are kept."""
    method, f = methods(steps)[name], drift(model, cfg, dtype)
    levels, x = levels_for(method, model, steps), start()
    noise = invert(method, f, x, levels)
    assert error(sample(method, f, noise, levels).x, x) < 1e-10
    if steps > method.first:
        alone = Pair(noise.x, noise.x + 1e-3)
        assert error(sample(method, f, alone, levels).x, x) > 1e-8

    pair = Pair(*(levels.sigmas[0] * latents((3, 12), seed) for seed in (1, 2)))
    clean = sample(method, f, pair, levels)
    again = clean
    for i in reversed(range(method.first, levels.steps)):
        again = method.invert_step(f, again, levels, i)
    assert max(error(a, b) for a, b in zip(again, pair)) < 1e-9


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("steps", [2, 11, 50])
def test_with_a_unit_nothing_is_left_of_rounding(name, model, steps):
    """The same bits, and the same questions to the network; where every step of a method shortens latents."""
    method, f, asked = methods(steps)[name], drift(model, 1.0, torch.float32), []

    def heard(x, sigma):
        asked.append(x)
        return f(x, sigma)

    exact = levels_for(method, model, steps)
    levels = Levels(exact.sigmas, exact.scale, 2.0**-28)  # Rex makes large numbers of this model
    x = levels.quantize(start())
    noise = invert(method, heard, x, levels)
    there = asked[method.first :]
    asked = []
    found = sample(method, heard, noise, levels)
    if name == "o-belm" and any(method.coefficients(levels, i)[0] > 1 for i in range(1, steps)):
        assert error(found.x, x) < 1e-6
        return
    assert torch.equal(found.x, x)
    assert {tuple(q.flatten().tolist()) for q in there} == {tuple(q.flatten().tolist()) for q in asked}
    # No coarser than it says.
    assert error(noise.x, invert(method, f, x, exact).x) < 1e-5


def test_no_unit_where_steps_grow():
    """O-BELM makes latents longer there, and rounding to multiples of a quantum would not come back."""
    f, exact = drift("flow", 1.0), schedule("flow", 11)
    levels = Levels(exact.sigmas, exact.scale, 2.0**-20)
    assert error(sample(OBelm(), f, invert(OBelm(), f, start(), levels), levels).x, start()) < 1e-11


@pytest.mark.parametrize("name", METHODS)
def test_every_level_has_one_state(name):
    """What `after` is told, there and back."""
    method, f, seen = methods(6)[name], drift("flow"), {}
    levels = levels_for(method, "flow", 6)

    def there(i, pair):
        seen[i] = pair
        return pair

    def back(i, pair):
        assert max(error(a, b) for a, b in zip(pair, seen[i])) < 1e-9
        return pair

    noise = invert(method, f, start(), levels, there)
    assert list(seen) == list(reversed(range(method.first, 7)))
    sample(method, f, noise, levels, back)


@pytest.mark.parametrize("name", METHODS)
def test_states_in_single_precision(name):
    method, f = methods(50)[name], drift("variance preserving", 3.0)
    levels, x = levels_for(method, "variance preserving", 50), start().float()
    found = sample(method, f, invert(method, f, x, levels), levels).x
    assert found.dtype == torch.float32
    assert 0 < error(found, x) < 1e-2


def test_naive_inversion_is_not_exact():
    f, levels, x = drift("flow"), schedule("flow", 50), start()
    noisy = x
    for target, sigma in reversed(list(zip(levels.sigmas, levels.sigmas[1:]))):
        noisy = noisy + (target - sigma) * f(noisy, target)
    for sigma, target in zip(levels.sigmas, levels.sigmas[1:]):
        noisy = noisy + (target - sigma) * f(noisy, sigma)
    assert error(noisy, x) > 1e-3


@pytest.mark.parametrize("name", ["bdia", "o-belm", "rex"])
@pytest.mark.parametrize("model", MODELS)
def test_each_solves_the_equation(name, model):
    """With many steps they come to where Heun's method does. (EDICT is of order 0: what is mixed stays.)"""
    f, x = drift(model), schedule(model, 1).sigmas[0] * start()
    end = 0.03 if model != "flow" else 0.01
    exact = solution(f, x, schedule(model, 4000, end))

    def found(steps):
        method, levels = {"bdia": Bdia(1.0), "o-belm": OBelm(), "rex": Rex()}[name], schedule(model, steps, end)
        a, b = levels.sigmas[:2]
        pair = Pair(x + (b - a) * f(x, a), x) if method.first else Pair(x, x)
        return error(sample(method, f, pair, levels).x, exact)

    errors = [found(steps) for steps in (200, 800)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.02


@pytest.mark.parametrize("own_level", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_edict_is_about_as_accurate_as_euler(own_level, model):
    f, x, levels = drift(model), schedule(model, 1).sigmas[0] * start(), schedule(model, 50)
    exact, euler = solution(f, x, schedule(model, 4000)), x
    for sigma, target in zip(levels.sigmas, levels.sigmas[1:]):
        euler = euler + (target - sigma) * f(euler, sigma)
    assert error(sample(Edict(0.93, own_level), f, Pair(x, x), levels).x, exact) < 3 * error(euler, exact)


def count_evaluations(method, model, steps, direction):
    calls, f = [], drift(model)

    def counted(x, sigma):
        calls.append(sigma)
        return f(x, sigma)

    levels = levels_for(method, model, steps)
    noise = invert(method, counted if direction == "invert" else f, start(), levels)
    if direction == "sample":
        sample(method, counted, noise, levels)
    return calls


@pytest.mark.parametrize("name", METHODS)
def test_what_it_costs(name):
    method = methods(10)[name]
    per_run = 10 * method.evaluations - method.first * method.evaluations
    assert len(count_evaluations(method, "flow", 10, "sample")) == per_run
    assert len(count_evaluations(method, "flow", 10, "invert")) == per_run + method.first


@pytest.mark.parametrize("name", METHODS)
def test_there_and_back_at_the_same_points(name):
    """Levels at which the network is asked, in reverse order; no step asks at 0."""
    there, back = (count_evaluations(methods(11)[name], "variance preserving", 11, d) for d in ("invert", "sample"))
    assert sorted(there[methods(11)[name].first :]) == sorted(back)
    assert min(there) > 0


# EDICT


def edict_in_vp(f, pair, sigmas, p):
    """As the paper's code has it: variance-preserving latents, the noise at timestep i for both, DDIM steps."""
    alpha = [1 / math.sqrt(1 + s**2) for s in sigmas]

    def eps(z, i):
        return f(z / alpha[i], sigmas[i])

    x, y = (alpha[0] * u for u in pair)
    for i in range(len(sigmas) - 1):
        a = alpha[i + 1] / alpha[i]
        b = math.sqrt(1 - alpha[i + 1] ** 2) - a * math.sqrt(1 - alpha[i] ** 2)
        if i % 2 == 0:
            x = a * x + b * eps(y, i)
            y = a * y + b * eps(x, i)
        else:
            y = a * y + b * eps(x, i)
            x = a * x + b * eps(y, i)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return x / alpha[-1], y / alpha[-1]


@pytest.mark.parametrize("steps", [3, 10])
def test_edict_is_the_paper_s(steps):
    levels, f = schedule("variance preserving", steps), drift("variance preserving", 3.0)
    pair = Pair(*(14.6 * latents((3, 12), seed) for seed in (1, 2)))
    found = sample(Edict(0.93), f, pair, levels)
    wanted = edict_in_vp(f, pair, levels.sigmas, 0.93)
    assert max(error(a, b) for a, b in zip(found, wanted)) < 1e-12
    naive = sample(Edict(0.93), f, pair, Levels(levels.sigmas, lambda sigma: 1.0))
    assert error(naive.x, wanted[0]) > 1e-3


@pytest.mark.parametrize("p", [0.5, 0.93, 1.0])
def test_edict_s_mixing(p):
    """Keeps p u_0 + u_1, and shortens the difference by p^2."""
    method, (x, y), quantize = Edict(p), (latents((3, 12), seed) for seed in (1, 2)), schedule("flow", 2).quantize
    mixed = method._mixed(x, y, quantize)
    assert torch.allclose(p * mixed.x + mixed.y, p * x + y, rtol=1e-13)
    assert torch.allclose(mixed.x - mixed.y, p**2 * (x - y), rtol=1e-12)
    assert max(error(a, b) for a, b in zip(method._unmixed(*mixed, quantize), (x, y))) < 1e-13


def test_edict_without_a_drift_stays():
    x = start()
    pair = sample(Edict(0.9), lambda v, sigma: torch.zeros_like(v), Pair(x, x), schedule("variance preserving", 11))
    assert max(error(u, x) for u in pair) < 1e-14


@pytest.mark.parametrize("steps", [20, 40, 50, 200])
def test_automatic_p_bounds_the_growth(steps):
    assert math.isclose(mixing(steps) ** (-2 * steps), 1000)
    assert mixing(50) == pytest.approx(0.933, abs=1e-3)


def test_edict_s_own_level_is_more_accurate():
    f, x = drift("flow"), start()
    exact, levels = solution(f, x, schedule("flow", 4000)), schedule("flow", 25)
    errors = [error(sample(Edict(0.93, own), f, Pair(x, x), levels).x, exact) for own in (False, True)]
    assert errors[1] < 0.95 * errors[0]


# BDIA and O-BELM


@pytest.mark.parametrize("gamma", [0.5, 0.96, 1.0])
def test_bdia_is_the_paper_s(gamma):
    """z_s = gamma z_p - gamma DDIM(z_t to p) + DDIM(z_t to s), in variance-preserving latents."""
    levels, f = schedule("variance preserving", 6), drift("variance preserving")
    sigmas = levels.sigmas
    alpha = [1 / math.sqrt(1 + s**2) for s in sigmas]
    x_p, x_t = (14.6 * latents((3, 12), seed) for seed in (1, 2))

    def ddim(z, i, j, eps):
        a = alpha[j] / alpha[i]
        return a * z + (math.sqrt(1 - alpha[j] ** 2) - a * math.sqrt(1 - alpha[i] ** 2)) * eps

    for i in range(1, 6):
        z_p, z_t, eps = alpha[i - 1] * x_p, alpha[i] * x_t, f(x_t, sigmas[i])
        wanted = gamma * z_p - gamma * ddim(z_t, i, i - 1, eps) + ddim(z_t, i, i + 1, eps)
        found = Bdia(gamma).sample_step(f, Pair(x_t, x_p), levels, i)
        assert error(found.x, wanted / alpha[i + 1]) < 1e-12
        assert found.y is x_t


def test_o_belm_is_exact_on_parabolas():
    """Where f is linear in sigma and does not depend on x, one step has no error, however uneven the levels."""
    levels = Levels((5.0, 3.1, 1.7, 0.4, 0.0), lambda sigma: 1.0)

    def f(x, sigma):
        return torch.full_like(x, 2 - 3 * sigma)

    def solution(sigma):
        return torch.tensor([1 + 2 * sigma - 1.5 * sigma**2], dtype=torch.float64)

    pair = sample(OBelm(), f, Pair(solution(3.1), solution(5.0)), levels)
    assert error(pair.x, solution(0.0)) < 1e-13
    assert error(sample(Bdia(1.0), f, Pair(solution(3.1), solution(5.0)), levels).x, solution(0.0)) > 1e-2


def test_at_equal_steps_both_are_the_leapfrog():
    levels, f = Levels(tuple(1 - i / 8 for i in range(9)), lambda sigma: 1.0), drift("flow")
    first = Pair(*(latents((3, 12), seed) for seed in (1, 2)))
    x, before = first
    for i in range(1, 8):
        x, before = before + 2 * (levels.sigmas[i + 1] - levels.sigmas[i]) * f(x, levels.sigmas[i]), x
    for method in (Bdia(1.0), OBelm()):
        assert error(sample(method, f, first, levels).x, x) < 1e-13


# Rex


def test_rex_with_nothing_mixed_is_two_interleaved_eulers():
    levels, f = schedule("flow", 4, 0.01), drift("flow")
    x, y = first = Pair(*(latents((3, 12), seed) for seed in (1, 2)))
    for sigma, target in zip(levels.sigmas, levels.sigmas[1:]):
        x = x + (target - sigma) * (x - (y - sigma * f(y, sigma))) / sigma
        y = y + (target - sigma) * (y - (x - target * f(x, target))) / sigma
    found = sample(Rex(1.0), f, first, levels)
    assert max(error(a, b) for a, b in zip(found, (x, y))) < 1e-12


def test_rex_mixes_a_little_of_the_second():
    pair = Rex(0.9).sample_step(
        lambda v, sigma: torch.zeros_like(v), Pair(start(), 2 * start()), schedule("flow", 4, 0.01), 1
    )
    # Without a drift D is x: x' = keep (zeta x + (1 - zeta) y) + (1 - keep) y.
    keep = schedule("flow", 4, 0.01).sigmas[2] / schedule("flow", 4, 0.01).sigmas[1]
    assert error(pair.x, (keep * (0.9 + 0.1 * 2) + (1 - keep) * 2) * start()) < 1e-13


# Bad input


@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 1.0, 0.0), (0.0, 1.0), (1.0, -0.5)])
def test_levels_fall(sigmas):
    with pytest.raises(ValueError, match="falling"):
        Levels(sigmas, lambda sigma: 1.0)


@pytest.mark.parametrize("make", [lambda v: Edict(v), lambda v: Bdia(v), lambda v: Rex(v)])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.01])
def test_what_is_mixed_lies_between(make, value):
    with pytest.raises(ValueError, match="above 0 and is at most 1"):
        make(value)


def test_rex_does_not_end_at_zero():
    with pytest.raises(ValueError, match="both ends of a step"):
        invert(Rex(), drift("variance preserving"), start(), schedule("variance preserving", 5))


def test_an_image_does_not_depend_on_the_others():
    f = drift("variance preserving", 3.0)
    for name, method in methods(11).items():
        levels = levels_for(method, "variance preserving", 11)
        whole = invert(method, f, start(), levels)
        single = invert(method, f, start()[1:2], levels)
        assert all(torch.allclose(a[1:2], b, rtol=1e-12) for a, b in zip(whole, single)), name
