"""CFG-Cache (Lv et al.: "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality", ICLR 2025,
arXiv 2410.19355, section 3.3): the unconditional output from the conditional one and the difference that the two had
when both were last evaluated.

    u  ~  c + a_low low(u' - c') + a_high high(u' - c')

in the space of the network's output, c' and u' being those of the last step in which both were evaluated, low and high
its frequencies inside and outside a disc. With a_low = a_high = 1 the difference is taken as it is.
"""

import math

import torch
from torch import Tensor

from ..reductions import norm


def split_by_disc(x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """(low, high) of `x` [B, C, ..., H, W], low being its frequencies k, in periods per image, with |k| <= `radius`.
    They add up to `x`. Frames of a video are images; of audio [B, C, L] the one spatial dimension is split."""
    axes = (-2, -1) if x.ndim > 3 else (-1,)
    wide = torch.promote_types(x.dtype, torch.float32)
    spectrum = torch.fft.fftn(x.to(wide), dim=axes)
    square = torch.zeros((), dtype=wide, device=x.device)
    for axis in axes:
        side = x.shape[axis]
        places = (side * torch.fft.fftfreq(side, dtype=wide, device=x.device)).round()
        square = square + places.square().reshape(-1, *[1] * (-axis - 1))
    low = torch.fft.ifftn(spectrum * (square <= radius**2), dim=axes).real.to(x.dtype)
    return low, x - low


def usual_radius(shape: tuple[int, ...]) -> int:
    """The authors': a fifth of the shorter side, rounded down."""
    return min(shape[-2:] if len(shape) > 3 else shape[-1:]) // 5


def estimate(cond: Tensor, difference: Tensor, low: float = 1.0, high: float = 1.0) -> Tensor:
    """u above, from c and u' - c', [B, ...]; `low`, `high`: a_low and a_high."""
    if low == high:
        return cond + low * difference
    slow, fast = split_by_disc(difference, usual_radius(tuple(difference.shape)))
    return cond + low * slow + high * fast


def missed(estimated: Tensor, uncond: Tensor, cond: Tensor) -> Tensor:
    """|u - estimate| / |u - c| per sample, [B]: 0 is a perfect estimate, 1 no better than to take c for u. Where u and
    c are equal there is no guidance to miss: 0."""
    error, whole = norm(uncond - estimated), norm(uncond - cond)
    return torch.where(whole > 0, error / whole, 0.0).flatten()


def strengths(kept: int, step: int, steps: int, low: float, high: float) -> tuple[float, float]:
    """a_low and a_high in `step`, for a difference kept in step `kept`. They grow with every step of its age, as the
    authors' code multiplies what it keeps: the low frequencies from a tenth to nine tenths of the run, the high ones in
    the last three tenths."""
    shares = [s / steps for s in range(kept + 1, step + 1)]
    return low ** sum(0.1 <= s < 0.9 for s in shares), high ** sum(s >= 0.7 for s in shares)


def first_reuse(share: float, steps: int) -> int:
    """The first step that may do without an evaluation, where `share` of the steps are evaluated in any case."""
    return math.ceil(share * steps - 1e-9)


def evaluates(step: int, steps: int, first: int, every: int) -> bool:
    """Whether both outputs are evaluated in `step` of `steps`: before `first`, in every `every`-th one from there on,
    and in the last. The authors' `every` is 5, their `first` a third of the steps: of 20 steps 11."""
    return step < first or (step - first) % every == 0 or step == steps - 1
