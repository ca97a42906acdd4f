"""CFG-Zero* (Fan et al.: "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025, arXiv
2503.18886): the unconditional velocity scaled to what of it is in the conditional one, and first steps that stand
still.

    v = s v_u + w (v_c - s v_u),   s = <v_c, v_u> / |v_u|^2

s is not the same in x0 space, as v_u = (x - D_u) / t has another origin: D = s D_u + w (D_c - s D_u) + (1 - s) (1 - w)
x. What is taken here are differences D - a x from the denoised prediction of an output of 0, which are the network's
outputs (velocity, eps or v) but for a factor that all of them share.
"""

import math

from torch import Tensor

from ..reductions import parallel_coefficient, wide_dtype


def optimized_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """s above, per sample, [B, 1, ..., 1]: the multiple of `uncond` that is nearest to `cond`. Outputs [B, ...], up to
    a common factor; 0 where `uncond` is 0, and any multiple of it."""
    return parallel_coefficient(cond, uncond, wide_dtype(cond.device))


def cfg_zero_star(cond: Tensor, uncond: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What to add to plain CFG at `scale`, (s - 1) (1 - w) v_u, and s. Outputs [B, ...], or what is in proportion to
    them, as D - a x of denoised predictions: the change is in the same units."""
    s = optimized_scale(cond, uncond)
    return ((s - 1) * (1 - scale)).to(uncond.dtype) * uncond, s


def zero_init_steps(share: float, steps: int) -> int:
    """How many of the first steps stand still (zero-init): a share of all, to the nearest whole number. The paper's
    0.04 is 1 of 28 steps and 2 of 50; of 12 or fewer it is none."""
    return math.floor(share * steps + 0.5)
