"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), with which every other rule is compared."""

from torch import Tensor

from ..reductions import dot


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """D = D_u + scale (D_c - D_u), in the host's order of operations; shapes [B, ...], x0 space."""
    return uncond + (cond - uncond) * scale


def along_guidance(denoised: Tensor, cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
    """<D - D_u, D_c - D_u> and |D_c - D_u|^2 per sample, [B, 1, ..., 1], of predictions [B, ...] in x0 space: the ratio
    of their sums over steps and samples is the effective scale of a run."""
    delta = cond - uncond
    return dot(denoised - uncond, delta), dot(delta, delta)


def effective_scale(denoised: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """omega_e = <D - D_u, D_c - D_u> / |D_c - D_u|^2 per sample, [B]: the CFG scale nearest to a guided prediction.

    Shapes [B, ...], x0 space. The remainder, D - (D_u + omega_e (D_c - D_u)), is orthogonal to the guidance direction
    (arXiv 2602.22570). NaN for a sample whose two predictions are equal, since any scale gives the same result."""
    along, square = along_guidance(denoised, cond, uncond)
    return (along / square).flatten()
