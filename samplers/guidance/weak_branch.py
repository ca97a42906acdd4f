"""Guidance away from a weakened prediction for the same condition. PAG, SEG, SLG and autoguidance differ only in how
it is weakened."""

from torch import Tensor

from ..reductions import std

RESCALE = ("off", "partial", "full")


def weak_branch(cond: Tensor, weak: Tensor, scale: float, guided: Tensor, rescale: str = "off") -> Tensor:
    """The term to add to `guided`, the CFG result: D - D_cfg(w), with D = D_cfg(w) + g, g = s (D_c - weak).

    `rescale` restores the standard deviation of each sample's `cond` (after CFG-rescale, Lin et al. 2024, arXiv
    2305.08891): "full" for the whole result, D = r (D_cfg + g) with r = std(D_c) / std(D_cfg + g); "partial" for this
    guidance alone, r g with r = std(D_c) / std(D_c + g); "off" for neither.

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
