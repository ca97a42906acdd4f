"""Adaptive guidance (Castillo et al.: "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
AAAI 2025, arXiv 2312.12487), section 5: once the two predictions agree, the unconditional one is no longer needed."""

from torch import Tensor

from ..reductions import cosine, wide_dtype


def agreement(cond: Tensor, uncond: Tensor) -> Tensor:
    """gamma = <c, u> / (|c| |u|) per sample, [B].

    Shapes [B, ...], in the space of the network's output as in the paper. Thresholds depend on the space: the cosine of
    the same two predictions is different in x0 space."""
    return cosine(cond, uncond, wide_dtype(cond.device)).flatten()
