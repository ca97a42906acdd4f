"""Exact inverters that step over two levels: x_s from x_t and x_p, the one before, with one evaluation at x_t.

    x_s = k x_p + (1 - k) x_t + c f(x_t, sigma_t),   x_p = (x_s - (1 - k) x_t - c f(x_t, sigma_t)) / k

BDIA (Zhang, Lewis, Kleijn: "Exact Diffusion Inversion via Bi-directional Integration Approximation", ECCV 2024, arXiv
2307.10829): k = gamma scale(sigma_p) / scale(sigma_s), c = (sigma_s - sigma_t) - k (sigma_p - sigma_t).

O-BELM (Wang et al.: "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact Inversion in Diffusion Models",
NeurIPS 2024, arXiv 2410.07273): k = r^2 with r = h / h+, c = -h (h + h+) / h+, h = sigma_t - sigma_s, h+ = sigma_p -
sigma_t; its local error is of third order.

A state is (x_t, x_p). The picture's neighbour comes from an Euler step back, with the drift at the neighbour's level.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .reversible import Drift, Levels, Pair


class _TwoStep:
    evaluations, first, to_zero = 1, 1, True

    def coefficients(self, levels: Levels, i: int) -> tuple[float, float]:
        """k and c of the step from level i to i + 1."""
        raise NotImplementedError

    def clean(self, f: Drift, x: Tensor, levels: Levels) -> Pair:
        before, last = levels.sigmas[-2:]
        snap = self._snap(levels)
        x = snap(x)
        return Pair(x, snap(x + (before - last) * f(x, before)))

    def forward(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        k, c = self.coefficients(levels, i)
        snap = self._snap(levels)
        return Pair(snap(k * pair.y) + snap((1 - k) * pair.x + c * f(pair.x, levels.sigmas[i])), pair.x)

    def backward(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        k, c = self.coefficients(levels, i)
        snap = self._snap(levels)
        return Pair(pair.y, snap((pair.x - snap((1 - k) * pair.y + c * f(pair.y, levels.sigmas[i]))) / k))

    def _snap(self, levels: Levels) -> Callable[[Tensor], Tensor]:
        """Multiples of the unit come back where no step makes latents longer."""
        shortens = all(self.coefficients(levels, i)[0] <= 1 for i in range(1, levels.steps))
        return levels.snap if shortens else lambda x: x


@dataclass(frozen=True)
class Bdia(_TwoStep):
    """`gamma` in (0, 1]; an inversion enlarges what does not fit the trajectory by 1 / gamma in every step."""

    gamma: float = 0.96

    def __post_init__(self):
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma:g}. It lies above 0 and is at most 1.")

    def coefficients(self, levels: Levels, i: int) -> tuple[float, float]:
        p, t, s = levels.sigmas[i - 1 : i + 2]
        k = self.gamma * levels.scale(p) / levels.scale(s)
        return k, (s - t) - k * (p - t)


@dataclass(frozen=True)
class OBelm(_TwoStep):
    def coefficients(self, levels: Levels, i: int) -> tuple[float, float]:
        p, t, s = levels.sigmas[i - 1 : i + 2]
        h, before = t - s, p - t
        return (h / before) ** 2, -h * (h + before) / before
