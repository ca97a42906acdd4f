"""Guidance away from a weakened prediction of the same condition: PAG, SEG, SLG and autoguidance differ in how it
is weakened, not in what is done with it."""

from torch import Tensor

from ..reductions import std

RESCALE = ("off", "partial", "full")


def weak_branch(cond: Tensor, weak: Tensor, scale: float, guided: Tensor, rescale: str = "off") -> Tensor:
    """What to add to `guided`, the CFG result: D - D_cfg(w), with D = D_cfg(w) + s (D_c - weak).

    `rescale` brings the spread of a sample back to that of its `cond` (after CFG-rescale, Lin et al. 2024, arXiv
    2305.08891): "full" that of the whole result, D = r (D_cfg + g) with r = std(D_c) / std(D_cfg + g); "partial" that
    of this guidance alone, g r with r = std(D_c) / std(D_c + g).

    Shapes [B, ...], x0 space. Source of the formula: arXiv 2403.17377, equation 14.
    """
    change = scale * (cond - weak)
    if rescale == "partial":
        change = change * _ratio(cond, cond + change).to(change.dtype)
    elif rescale == "full":
        whole = guided + change
        change = whole * _ratio(cond, whole).to(change.dtype) - guided
    return change


def _ratio(wanted: Tensor, found: Tensor) -> Tensor:
    """std(wanted) / std(found) per sample; 1 where `found` is constant."""
    spread = std(found)
    return (std(wanted) / spread).where(spread > 0, 1.0)
