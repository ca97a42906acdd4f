"""Noise levels of the model in use.

Relies on: CONST being the host's class for rectified flows, x = (1 - t) x0 + t n; every other class of
comfy/model_sampling.py uses x0 + sigma n (the host tests it the same way: comfy/k_diffusion/sampling.py:152,
sigma_to_half_log_snr); `percent_to_sigma` falling from the largest level at 0 to 0 at 1 (model_sampling.py:211, 260,
321, 372, 414).
"""

from collections.abc import Callable

import comfy.model_sampling

_NEARLY = 0.99  # of the largest level: schedules pass through tables
_BISECTIONS = 20  # to a millionth


def is_flow(model_sampling) -> bool:
    """Whether sigma is the time t of a rectified flow rather than a noise-to-signal ratio."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def from_ratio(ratio: float, model_sampling) -> float:
    """The model's sigma at a noise-to-signal ratio: the ratio itself, or t = r / (1 + r) of a flow."""
    return ratio / (1 + ratio) if is_flow(model_sampling) else ratio


def is_pure_noise(sigma: float, model_sampling) -> bool:
    """Whether `sigma` is the largest level of the model."""
    return sigma >= _NEARLY * float(model_sampling.sigma_max)


def progress_at(sigma: float, sigma_at: Callable[[float], float]) -> float:
    """The fraction of the generation that is done at `sigma`, 0 to 1: the inverse of `Run.sigma_at`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_at(middle) > sigma else (low, middle)
    return (low + high) / 2
