"""Adaptive guidance (Castillo et al.: "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
AAAI 2025, arXiv 2312.12487), section 5: once the two predictions agree, the unconditional one is no longer needed."""

from torch import Tensor

from ..reductions import cosine, wide_dtype


def agreement(cond: Tensor, uncond: Tensor) -> Tensor:
    """gamma = <c, u> / (|c| |u|) per sample, [B].

    Shapes [B, ...]; the paper's space is that of the network's output, and thresholds belong to their space: in x0
    space, or for eps at high noise, the same pair has another cosine."""
    return cosine(cond, uncond, wide_dtype(cond.device)).flatten()
