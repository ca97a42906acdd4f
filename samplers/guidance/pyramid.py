"""Splits of an image into frequency bands that add up to it, for sides of any length and latents of any rank.

What is split are the last two dimensions; of audio, [B, C, L], the last one. Frames of a video are images. All splits
are linear and mix no samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # binomial
_REACH = 2


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """`levels` levels of `x` [B, C, ...], the finest first; the last is the low-pass (Burt and Adelson 1983).

    Each level has half the sides of the one before, rounded up; a side of 1 stays. Edges are mirrored, so that
    constants stay constant up to the edge."""
    found = []
    for _ in range(levels - 1):
        smaller = _halved(x)
        found.append(x - _doubled(smaller, x.shape))
        x = smaller
    return [*found, x]


def collapse(levels: Sequence[Tensor]) -> Tensor:
    """What `laplacian_pyramid` was made of."""
    *finer, x = levels
    for level in reversed(finer):
        x = level + _doubled(x, level.shape)
    return x


def high_and_low(x: Tensor, factor: float) -> list[Tensor]:
    """[x - low, low]: low is `x` made smaller by `factor`, at least 1, and large again, both bilinearly (arXiv
    2410.18410, section 3.3; pixels are squares, as with align_corners False)."""
    sides = [x.shape[axis] for axis in _axes(x)]
    flat = x.reshape(-1, 1, *sides).to(torch.promote_types(x.dtype, torch.float32))
    mode = "bilinear" if len(sides) == 2 else "linear"
    small = interpolate(flat, [max(1, round(side / factor)) for side in sides], mode=mode)
    low = interpolate(small, sides, mode=mode).reshape(x.shape).to(x.dtype)
    return [x - low, low]


def _axes(x: Tensor) -> tuple[int, ...]:
    return (-2, -1) if x.ndim > 3 else (-1,)


def _halved(x: Tensor) -> Tensor:
    for axis in _axes(x):
        x = _blurred(x, axis)[_every_other(x, axis)]
    return x


def _doubled(x: Tensor, shape: Sequence[int]) -> Tensor:
    """To `shape`, by zeros between the values and the same kernel, twice as strong."""
    for axis in _axes(x):
        if (side := shape[axis]) > 1:
            wide = x.new_zeros(*x.shape[:axis], side, *(x.shape[axis:][1:]))
            wide[_every_other(wide, axis)] = x
            x = 2 * _blurred(wide, axis)
    return x


def _every_other(x: Tensor, axis: int) -> tuple:
    return (..., slice(None, None, 2), *[slice(None)] * (-axis - 1))


def _blurred(x: Tensor, axis: int) -> Tensor:
    side = x.shape[axis]
    if side == 1:
        return x
    padded = x.index_select(axis, _mirrored(side, x.device))
    first, *others = (weight * padded.narrow(axis, i, side) for i, weight in enumerate(_KERNEL))
    return sum(others, first)


def _mirrored(side: int, device: torch.device) -> Tensor:
    """Places -2 to side + 1, where those outside are mirrored at the first and the last one, as often as it takes."""
    places = torch.arange(-_REACH, side + _REACH, device=device) % (2 * side - 2)
    return torch.minimum(places, 2 * side - 2 - places)
