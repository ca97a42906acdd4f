"""Adaptive Projected Guidance (Sadat, Hilliges, Weber: "Eliminating Oversaturation and Artifacts of High Guidance
Scales in Diffusion Models", ICLR 2025, arXiv 2410.02416), Algorithm 1."""

import torch
from torch import Tensor

from ..reductions import norm, parallel_coefficient, wide_dtype


def apg(
    cond: Tensor,
    uncond: Tensor,
    scale: float,
    *,
    eta: float = 0.0,
    norm_threshold: float = 0.0,
    momentum: float = 0.0,
    running: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The guided prediction and the momentum buffer after this step.

    The part of the update that is parallel to `cond` only amplifies it, which saturates; it is multiplied by `eta`.

    Args:
        cond, uncond: denoised predictions [B, ...] of any rank, x0 space. The rule differs in other spaces.
        scale: CFG scale; 1 returns `cond`.
        eta: weight of the parallel part; 1 with no threshold and no momentum is plain CFG.
        norm_threshold: largest L2 norm, per sample, of the update before the scale; 0 means no limit.
        momentum: weight of the previous buffer; negative values damp steady components ("reverse momentum").
        running: the buffer of the previous step, None at the start of a run.

    Returns:
        (denoised in the dtype of `cond`, running in at least float32).
    """
    wide = torch.promote_types(cond.dtype, torch.float32)
    update = cond.to(wide) - uncond.to(wide)
    if running is not None:
        update = update + momentum * running
    running = update
    if norm_threshold > 0:
        length = norm(update, wide)
        update = update * torch.where(length > norm_threshold, norm_threshold / length, 1.0)
    # The paper projects in double precision.
    parallel = parallel_coefficient(update, cond, wide_dtype(cond.device)).to(wide) * cond
    update = update - (1 - eta) * parallel
    return (cond + (scale - 1) * update).to(cond.dtype), running
