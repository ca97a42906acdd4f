"""Negative prompts inside attention, for models that run without CFG.

NASA, Negative-Away Steer Attention (Nguyen et al.: "Supercharged One-step Text-to-Image Diffusion Models with Negative
Prompts" (SNOOPI), 2024, arXiv 2412.02687): the same queries attend to the positive and to the negative text, and the
output is

    Z = Z+ - alpha Z-

NAG, Normalized Attention Guidance (Chen et al., 2025, arXiv 2505.21179), extrapolates instead and limits the length of
each token:

    Z~ = Z+ + phi (Z+ - Z-),  Z^ = Z~ min(R, tau) / R  with  R = |Z~|_1 / |Z+|_1,  Z = a Z^ + (1 - a) Z+

Z+ and Z- are attention outputs with heads merged: [..., tokens, channels]. Where text and image share one attention, Z-
of NAG is its whole output with the negative text instead of the positive, as in the paper's code. For NASA this case is
not published; here Z- is the part of that output that comes from the text, so that the image's attention to itself is
not subtracted.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..kernels.choice import fastest


def nasa(positive: Tensor, negative: Tensor, alpha: float) -> Tensor:
    """Z+ - alpha Z-, as in the paper, not (1 + alpha) Z+ - alpha Z-; [..., tokens, channels]."""
    return torch.sub(positive, negative, alpha=alpha)


def nag(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """NAG at `scale` = phi + 1, as in published code; at scale 1, and at `alpha` 0, it returns Z+.

    Args:
        positive, negative: Z+ and Z-, [..., tokens, channels].
        tau: the largest length of a token relative to Z+, in the L1 norm over channels; at least 1.
        alpha: the weight of the result; Z+ has 1 - alpha.
    """
    fused = positive.is_cuda and positive.ndim == 3 and positive.dtype.itemsize <= 4 and not positive.requires_grad
    if not fused:
        return nag_in_torch(positive, negative, scale, tau, alpha)
    return fastest("NAG", _kernels, "nag_fused", nag_in_torch, positive, negative, scale, tau, alpha)


def nag_in_torch(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """`nag` in torch, the reference for the kernel."""
    z, far = positive.float(), negative.float()
    pushed = z + (scale - 1) * (z - far)
    # min(R, tau) / R, without dividing by a length that may be 0.
    longest = tau * _length(z)
    pushed = pushed * (longest / _length(pushed).clamp_min(torch.finfo(z.dtype).tiny)).clamp_max(1)
    return (z + alpha * (pushed - z)).to(positive.dtype)


def _kernels() -> ModuleType:
    from ..kernels import nag_triton

    return nag_triton


def _length(z: Tensor) -> Tensor:
    return z.abs().sum(-1, keepdim=True)
