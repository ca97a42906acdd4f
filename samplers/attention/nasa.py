"""Negative prompts inside attention, for models that run without CFG.

NASA, Negative-Away Steer Attention (Nguyen et al.: "Supercharged One-step Text-to-Image Diffusion Models with Negative
Prompts" (SNOOPI), 2024, arXiv 2412.02687): the same queries look at the positive and at the negative text, and

    Z = Z+ - alpha Z-

goes on. NAG, Normalized Attention Guidance (Chen et al., 2025, arXiv 2505.21179), extrapolates instead and bounds what
comes of it, token by token:

    Z~ = Z+ + phi (Z+ - Z-),  Z^ = Z~ min(R, tau) / R  with  R = |Z~|_1 / |Z+|_1,  Z = a Z^ + (1 - a) Z+

Z+ and Z- are attention outputs, all heads side by side: [..., tokens, channels]. Where text and image share one
attention, Z- of NAG is its whole output with the negative text in the place of the positive, as in the paper's code.
How NASA's authors did it there is not published; here Z- is what this output has from the text, so that the image's
attention to itself stays.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..kernels.choice import fastest


def nasa(positive: Tensor, negative: Tensor, alpha: float) -> Tensor:
    """Z+ - alpha Z-, as the paper has it: not (1 + alpha) Z+ - alpha Z-."""
    return torch.sub(positive, negative, alpha=alpha)


def nag(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """NAG at `scale` = phi + 1, as published code counts it; at 1 and at `alpha` 0 it is `positive`.

    Args:
        tau: how many times as long as Z+ (in the L1 norm over channels) a token may become; at least 1.
        alpha: share of the result beside Z+.
    """
    fused = positive.is_cuda and positive.ndim == 3 and positive.dtype.itemsize <= 4 and not positive.requires_grad
    if not fused:
        return nag_in_torch(positive, negative, scale, tau, alpha)
    return fastest("NAG", _kernels, "nag_fused", nag_in_torch, positive, negative, scale, tau, alpha)


def nag_in_torch(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """The definition."""
    z, far = positive.float(), negative.float()
    pushed = z + (scale - 1) * (z - far)
    # min(R, tau) / R without the division by a length that may be 0.
    longest = tau * _length(z)
    pushed = pushed * (longest / _length(pushed).clamp_min(torch.finfo(z.dtype).tiny)).clamp_max(1)
    return (z + alpha * (pushed - z)).to(positive.dtype)


def _kernels() -> ModuleType:
    from ..kernels import nag_triton

    return nag_triton


def _length(z: Tensor) -> Tensor:
    return z.abs().sum(-1, keepdim=True)
