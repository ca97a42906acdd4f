"""Noise levels of the model in use.

Relies on: CONST being the host's class for rectified flows, x = (1 - t) x0 + t n; every other class of
comfy/model_sampling.py samples x0 + sigma n (its own test: comfy/k_diffusion/sampling.py:152, sigma_to_half_log_snr).
"""

import comfy.model_sampling


def is_flow(model_sampling) -> bool:
    """Whether sigma is the time t of a rectified flow rather than a noise-to-signal ratio."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def from_ratio(ratio: float, model_sampling) -> float:
    """The model's sigma at a noise-to-signal ratio: the ratio itself, or t = r / (1 + r) of a flow."""
    return ratio / (1 + ratio) if is_flow(model_sampling) else ratio
