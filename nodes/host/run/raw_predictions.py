"""Denoised predictions to the space of the network's output (eps, v, velocity), and back.

Relies on: `calculate_denoised(sigma, output, x)` of every class of comfy/model_sampling.py being linear in x and
output, denoised = a(sigma) x + b(sigma) output; any class for which this holds works. Tensors [B, ...], sigma [B].
"""

import torch
from torch import Tensor


def to_raw(model_sampling, x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """The output for which the model would have predicted `denoised` at (x, sigma)."""
    return raw_direction(model_sampling, x, denoised, sigma) / _slope(model_sampling, x, sigma)


def raw_direction(model_sampling, x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """`to_raw` up to a factor that depends on sigma alone: enough for a cosine."""
    return denoised - model_sampling.calculate_denoised(sigma, torch.zeros_like(x), x)


def from_raw(model_sampling, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The denoised prediction that belongs to a network output; inverse of `to_raw`."""
    return model_sampling.calculate_denoised(sigma, output, x)


def _slope(model_sampling, x: Tensor, sigma: Tensor) -> Tensor:
    return model_sampling.calculate_denoised(sigma, torch.ones_like(x), torch.zeros_like(x))
