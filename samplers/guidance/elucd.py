"""EluCD: classifier guidance with an off-the-shelf classifier, calibrated by design (Ma, Hu, Wang, Sun: "Elucidating
the Design Space of Classifier-Guided Diffusion Generation", ICLR 2024, arXiv 2310.11311).

The gradient is that with respect to the denoised estimate itself, not through the diffusion network; the classifier
uses Softplus instead of ReLU (samplers/classifiers/resnet.py), and the joint logit has more weight than the marginal:

    L = tau_1 f_y - log sum_i exp(tau_2 f_i),   tau_2 <= tau_1
    D = D_cfg + c_i rms(D_c) g / rms(g),        g = dL / dD_c

The published code computes the logarithm of a quotient of exponentials, which overflows; logsumexp gives the same
value. The size of the update is that of the authors' EDM sampler, applied to the denoised estimate:

    c_i = c ((N - i) / N + kappa sin(pi i / (N - 1))),   N levels, step i of 0 ... N - 2

Here its limit for many steps is used, c (1 - u + kappa sin(pi u)), where u = i / (N - 1) is the fraction of the
generation that is done: it depends on the noise level alone, so that a run in two parts gives the same result.
"""

import math

import torch
from torch import Tensor

from ..reductions import rms

KAPPA = 0.3


def objective(logits: Tensor, target: int, tau_1: float = 1.0, tau_2: float = 0.5) -> Tensor:
    """L for each sample, [B], from logits [B, classes]."""
    return tau_1 * logits[:, target] - torch.logsumexp(tau_2 * logits, 1)


def strength(scale: float, progress: float, kappa: float = KAPPA) -> float:
    """c (1 - u + kappa sin(pi u)) for `scale` c at `progress` u, 0 at the largest noise level and 1 at none."""
    return scale * (1 - progress + kappa * math.sin(math.pi * progress))


def guidance_update(denoised: Tensor, gradient: Tensor, strength: float) -> Tensor:
    """The term to add to the guided prediction: for each sample the direction of its gradient, with `strength` times
    the rms of `denoised`; 0 where the gradient is zero or not finite. Shapes [B, ...], x0 space."""
    size = rms(gradient)
    usable = (size > 0) & size.isfinite()
    direction = torch.where(usable, gradient / torch.where(usable, size, 1.0), 0.0)
    return (strength * rms(denoised) * direction).to(denoised.dtype)
