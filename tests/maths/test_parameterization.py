"""x0 and the raw outputs of the model types, against the forward processes that define them."""

import math

import numpy as np
import pytest
import torch

from guidekit.samplers import parameterization as to_from
from guidekit.tests.maths.problems import DTYPES, SHAPES, exact, latents, non_contiguous

SIGMAS = (0.02, 0.5, 0.97)  # one per sample; a flow has t in (0, 1]
SPACES = {
    "eps": (to_from.to_eps, to_from.from_eps),
    "v": (to_from.to_v, to_from.from_v),
    "velocity": (to_from.to_velocity, to_from.from_velocity),
}


def process(space: str, x0: float, noise: float, sigma: float) -> tuple[float, float]:
    """(x, raw output) by the definition of each model type: how noise is added, and what the network is to predict."""
    if space == "velocity":  # a rectified flow walks on a straight line from data to noise
        return (1 - sigma) * x0 + sigma * noise, noise - x0
    x = x0 + sigma * noise
    if space == "eps":
        return x, noise
    # v of Salimans & Ho for x / sqrt(1 + sigma^2) = a x0 + b noise, a variance-preserving process
    a, b = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    return x, a * noise - b * x0


def problem(space: str, shape: tuple[int, ...], sigmas=SIGMAS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x0, x, raw output in float64, each sample with its own sigma."""
    x0, noise = exact(latents(shape, 1)), exact(latents(shape, 2))
    made = [process(space, x0[i], noise[i], sigmas[i]) for i in range(shape[0])]
    return x0, np.stack([x for x, _ in made]), np.stack([raw for _, raw in made])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("space", SPACES)
def test_inverts_the_process(space, shape):
    to, back = SPACES[space]
    x0, x, raw = map(torch.from_numpy, problem(space, shape))
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    # x - x0 loses digits where sigma is small, hence absolute and 1 / sigma.
    torch.testing.assert_close(to(x, x0, sigma), raw, rtol=0, atol=1e-15 * 100 / min(SIGMAS))
    torch.testing.assert_close(back(x, raw, sigma), x0, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("space", SPACES)
def test_there_and_back(space, shape, dtype):
    """In the precision of the latent, also when sigma comes as float32 or float64, as the host gives it."""
    to, back = SPACES[space]
    x0, x, _ = (torch.from_numpy(t).to(dtype) for t in problem(space, shape))
    size = max(x0.abs().max().item(), x.abs().max().item())
    for sigma_dtype in (torch.float32, torch.float64):
        sigma = torch.tensor(SIGMAS, dtype=sigma_dtype)
        raw = to(x, x0, sigma)
        assert raw.dtype == back(x, raw, sigma).dtype == dtype
        torch.testing.assert_close(back(x, raw, sigma), x0, rtol=0, atol=8 * torch.finfo(dtype).eps * size)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("space", SPACES)
def test_each_sample_has_its_own_sigma(space, shape):
    x0, x, _ = map(torch.from_numpy, problem(space, shape))
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    for function in SPACES[space]:
        together = function(x, x0, sigma)
        assert together.shape == shape
        for i, one in enumerate(SIGMAS):
            for way in (one, torch.tensor(one, dtype=torch.float64), torch.tensor([one], dtype=torch.float64)):
                alone = function(x[i : i + 1], x0[i : i + 1], way)
                torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("space", SPACES)
def test_affine_combinations_are_the_same_in_every_space(space, shape):
    """Why CFG, autoguidance and perturbed branches need no conversion: weights that sum to 1 commute with the maps."""
    to, back = SPACES[space]
    _, x, _ = map(torch.from_numpy, problem(space, shape))
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    predictions = [latents(shape, seed) for seed in (4, 5, 6)]
    for weights in [(7.5, -6.5, 0), (4, -3, 0), (3, 1.5, -3.5)]:
        in_x0 = sum(w * p for w, p in zip(weights, predictions))
        in_raw = sum(w * to(x, p, sigma) for w, p in zip(weights, predictions))
        torch.testing.assert_close(back(x, in_raw, sigma), in_x0, rtol=0, atol=1e-10)


def test_noise_and_data_of_a_flow():
    """At t = 1, x is noise and x - v the data; the noise itself is x0 + v at every t."""
    x0, noise = latents((3, 4, 6, 5), 1), latents((3, 4, 6, 5), 2)
    for t in (0.1, 0.6, 1.0):
        x = (1 - t) * x0 + t * noise
        torch.testing.assert_close(x0 + to_from.to_velocity(x, x0, t), noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(to_from.from_velocity(noise, noise - x0, 1.0), x0, rtol=0, atol=1e-13)


def test_limits_of_v():
    """Without noise, v is the noise direction; under much noise, minus the data."""
    x0, noise = latents((3, 4, 6, 5), 1), latents((3, 4, 6, 5), 2)
    torch.testing.assert_close(to_from.to_v(x0 + 1e-4 * noise, x0, 1e-4), noise, rtol=0, atol=1e-3)
    torch.testing.assert_close(to_from.to_v(x0 + 1e4 * noise, x0, 1e4), -x0, rtol=0, atol=2e-3)


@pytest.mark.parametrize("space", SPACES)
def test_memory_layout_does_not_matter(space):
    x0, x, _ = map(torch.from_numpy, problem(space, SHAPES["video"]))
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    for function in SPACES[space]:
        wanted = function(x, x0, sigma)
        for layout, view in non_contiguous(x).items():
            other = non_contiguous(x0)[layout]
            torch.testing.assert_close(function(view, other, sigma), wanted, rtol=1e-15, atol=0, msg=layout)
