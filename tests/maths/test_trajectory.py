"""Direct Inversion: the recorded image stays on its trajectory, and the other row is plain DDIM."""

import math

import pytest
import torch

from guidekit.samplers.inversion.direct_inversion import record, replay
from guidekit.tests.maths.problems import latents
from guidekit.tests.maths.test_inversion import MODELS, drift, error, schedule


def silent(i):
    pass


def image():
    return latents((3, 12), 5)[1:2]


def coupled(f):
    """A network in which the second row sees the first."""

    def g(x, sigma):
        out = f(x, sigma)
        return torch.cat([out[:1], out[1:] + 0.3 * torch.tanh(x[:1])])

    return g


@pytest.mark.parametrize("steps", [1, 7])
def test_recording_is_the_paper_s(steps):
    """z_t from z_{t-1} with the noise at t of z_{t-1}, DDIM backwards."""
    f, sigmas = drift("variance preserving"), schedule("variance preserving", steps).sigmas
    kept = record(f, image(), sigmas, silent)
    assert len(kept) == steps + 1
    assert torch.equal(kept[-1], image())
    for i in reversed(range(steps)):
        sigma, clean = sigmas[i], sigmas[i + 1]
        alpha, alpha_clean = (1 / math.sqrt(1 + s**2) for s in (sigma, clean))
        eps = f(kept[i + 1], sigma)
        wanted = alpha / alpha_clean * (alpha_clean * kept[i + 1])
        wanted = wanted + (math.sqrt(1 - alpha**2) - alpha / alpha_clean * math.sqrt(1 - alpha_clean**2)) * eps
        assert error(alpha * kept[i], wanted) < 1e-12


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_the_source_is_the_image_in_the_end(model, cfg):
    sigmas = schedule(model, 9).sigmas
    kept = record(drift(model), image(), sigmas, silent)
    found = replay(coupled(drift(model, cfg)), kept, sigmas, silent)
    assert torch.equal(found[:1], image())


@pytest.mark.parametrize("model", MODELS)
def test_alone_the_other_row_is_ddim(model):
    sigmas = schedule(model, 9).sigmas
    kept, f = record(drift(model), image(), sigmas, silent), drift(model, 3.0)
    x = kept[0]
    for sigma, target in zip(sigmas, sigmas[1:]):
        x = x + (target - sigma) * f(x, sigma)
    assert torch.equal(replay(f, kept, sigmas, silent)[1:], x)
    assert error(replay(coupled(f), kept, sigmas, silent)[1:], x) > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_setting_is_adding_what_lacks(model):
    """The paper adds, after a step of both rows, the offset of the source to the source."""
    sigmas = schedule(model, 9).sigmas
    kept, f = record(drift(model), image(), sigmas, silent), coupled(drift(model, 7.5))
    x = torch.cat([kept[0], kept[0]])
    for i, (sigma, target) in enumerate(zip(sigmas, sigmas[1:])):
        offset = kept[i + 1] - (x[:1] + (target - sigma) * f(x, sigma)[:1])
        x = x + (target - sigma) * f(x, sigma)
        x = torch.cat([x[:1] + offset, x[1:]])
    assert error(replay(f, kept, sigmas, silent), x) < 1e-12


def test_the_other_row_sees_the_recorded_source():
    """At every level, the noisy end too: what the source would have become by itself is not seen."""
    sigmas, seen = schedule("flow", 5).sigmas, []
    kept, f = record(drift("flow"), image(), sigmas, silent), drift("flow", 7.5)

    def heard(x, sigma):
        seen.append(x[:1])
        return f(x, sigma)

    replay(heard, kept, sigmas, silent)
    assert all(torch.equal(a, b) for a, b in zip(seen, kept))
    assert len(seen) == 5


def test_steps_are_told():
    sigmas, there, back = schedule("flow", 5).sigmas, [], []
    kept = record(drift("flow"), image(), sigmas, there.append)
    replay(drift("flow"), kept, sigmas, back.append)
    assert (there, back) == ([4, 3, 2, 1, 0], [0, 1, 2, 3, 4])
