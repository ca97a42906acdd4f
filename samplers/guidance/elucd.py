"""EluCD: classifier guidance with an off-the-shelf classifier, calibrated by design (Ma, Hu, Wang, Sun: "Elucidating
the Design Space of Classifier-Guided Diffusion Generation", ICLR 2024, arXiv 2310.11311).

The gradient is taken with respect to the denoised estimate itself, not through the network that made it; Softplus
stands for ReLU in the classifier (samplers/classifiers/resnet.py), and the joint logit weighs more than the marginal:

    L = tau_1 f_y - log sum_i exp(tau_2 f_i),   tau_2 <= tau_1
    D = D_cfg + c_i rms(D_c) g / rms(g),        g = dL / dD_c

The published code takes the logarithm of a quotient of exponentials, which overflows; this is the same by logsumexp.
The size of g is that of the authors' EDM sampler, applied to the denoised estimate:

    c_i = c ((N - i) / N + kappa sin(pi i / (N - 1))),   N levels, step i of 0 ... N - 2

Here the limit of many steps is taken, c (1 - u + kappa sin(pi u)) with u = i / (N - 1) the part of the generation that
lies behind: it depends on the noise level alone, so that a run in two parts gives what a run in one gives.
"""

import math

import torch
from torch import Tensor

from ..reductions import rms

KAPPA = 0.3


def objective(logits: Tensor, target: int, tau_1: float = 1.0, tau_2: float = 0.5) -> Tensor:
    """L of each sample, [B], of logits [B, classes]."""
    return tau_1 * logits[:, target] - torch.logsumexp(tau_2 * logits, 1)


def strength(scale: float, progress: float, kappa: float = KAPPA) -> float:
    """c ((1 - u) + kappa sin(pi u)) at `progress` u: 0 at the largest noise level, 1 at none. `scale` at u = 0."""
    return scale * (1 - progress + kappa * math.sin(math.pi * progress))


def guidance_update(denoised: Tensor, gradient: Tensor, strength: float) -> Tensor:
    """What is added to the guided prediction: of each sample `strength` times its rms, in the direction of its
    gradient; nothing where that is zero or not finite."""
    size = rms(gradient)
    usable = (size > 0) & size.isfinite()
    direction = torch.where(usable, gradient / torch.where(usable, size, 1.0), 0.0)
    return (strength * rms(denoised) * direction).to(denoised.dtype)
