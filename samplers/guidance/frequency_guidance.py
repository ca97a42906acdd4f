"""Guidance by frequency: Frequency-Decoupled Guidance (FDG; Sadat et al.: "Guidance in the Frequency Domain Enables
High-Fidelity Sampling at Low CFG Scales", 2025, arXiv 2506.19713), and the frequency-aware CFG of FreCaS (Zhang et al.:
"FreCaS", ICLR 2025, arXiv 2410.18410, section 3.3).

Both split the predictions into bands and guide each with a scale of its own, D = sum_b U_b + w_b (C_b - U_b). They
differ in the split (pyramid.py). Splits are linear: the same scale in all bands is plain CFG.
"""

from collections.abc import Sequence

from torch import Tensor

from ..reductions import parallel_coefficient, wide_dtype
from .pyramid import collapse, high_and_low, laplacian_pyramid


def pyramid_guidance(
    cond: Tensor, uncond: Tensor, scale: float, factors: Sequence[float], parallel: float = 1.0
) -> Tensor:
    """FDG: what to add to plain CFG at `scale` for w_b = factors[b] * scale in band b, the finest first.

    `parallel`: how much of the part of C_b - U_b that is parallel to C_b is kept, as in APG (arXiv 2410.02416); with
    less than 1 the rule is D_b = C_b + (w_b - 1) (what is kept), and factors of 1 are not plain CFG.

    Shapes [B, C, ...], x0 space."""
    if parallel == 1:
        levels = laplacian_pyramid(cond - uncond, len(factors))
        return collapse([(factor - 1) * scale * level for factor, level in zip(factors, levels)])
    changes = []
    for factor, c, u in zip(factors, *(laplacian_pyramid(x, len(factors)) for x in (cond, uncond)), strict=True):
        along = parallel_coefficient(c - u, c, wide_dtype(c.device)).to(c.dtype) * c
        kept = c - u - (1 - parallel) * along
        changes.append((factor * scale - 1) * kept - (scale - 1) * (c - u))
    return collapse(changes)


def resize_guidance(cond: Tensor, uncond: Tensor, scale: float, high: float, low: float, factor: float) -> Tensor:
    """FreCaS: the same for two bands, [high, low] * scale, split by making the image smaller by `factor`."""
    fine, coarse = high_and_low(cond - uncond, factor)
    return (high - 1) * scale * fine + (low - 1) * scale * coarse
