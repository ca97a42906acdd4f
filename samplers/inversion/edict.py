"""EDICT (Wallace, Gokul, Naik: "EDICT: Exact Diffusion Inversion via Coupled Transformations", CVPR 2023, arXiv
2211.12446): two latents at one noise level; each is stepped by the drift at the other, then both are mixed.

Step i, with (a, b) = (0, 1) for even i and (1, 0) for odd i:

    u_a += (sigma' - sigma) phi1(u_b),  u_b += (sigma' - sigma) phi2(u_a)
    u_0 = p u_0 + (1 - p) u_1,          u_1 = p u_1 + (1 - p) u_0

The paper uses variance-preserving latents and evaluates both at timestep i. In the coordinates of reversible.py,
phi1(v) = f(v, sigma) and phi2(v) = f(rho v, sigma) with rho = scale(sigma') / scale(sigma): u_a is already at sigma',
and the network gets its variance-preserving form at timestep i.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .reversible import Drift, Levels, Pair

LARGEST_GROWTH = 1e3  # growth of the difference between the two latents in an inversion, for `mixing`


def mixing(steps: int) -> float:
    """The p for which the difference between the two latents grows by a factor of 1000 in an inversion of `steps`
    steps; it grows by 1 / p^2 in every step."""
    return LARGEST_GROWTH ** (-1 / (2 * steps))


@dataclass(frozen=True)
class Edict:
    """EDICT with mixing weight `p` in (0, 1]; 1 is no mixing. `own_level`: evaluate phi2 at the level sigma' that u_a
    is at, which is equally exact and more accurate, but not in the paper.

    Raises:
        ValueError: `p` is out of range.
    """

    p: float = 0.93
    own_level: bool = False

    evaluations, first, to_zero = 2, 0, True

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"p is {self.p:g}. It lies above 0 and is at most 1; the paper uses 0.93.")

    def clean(self, f: Drift, x: Tensor, levels: Levels) -> Pair:
        return Pair(levels.quantize(x), levels.quantize(x))

    def sample_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        h = levels.sigmas[i + 1] - levels.sigmas[i]
        u = list(pair)
        a, b = i % 2, 1 - i % 2  # i counts from the noisy end in both directions, so that any number of steps inverts
        u[a] = u[a] + levels.quantize(h * f(u[b], levels.sigmas[i]))
        u[b] = u[b] + levels.quantize(h * self._second(f, u[a], levels, i))
        return self._mixed(u[0], u[1], levels.quantize)

    def invert_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        h = levels.sigmas[i + 1] - levels.sigmas[i]
        u = list(self._unmixed(*pair, levels.quantize))
        a, b = i % 2, 1 - i % 2
        u[b] = u[b] - levels.quantize(h * self._second(f, u[a], levels, i))
        u[a] = u[a] - levels.quantize(h * f(u[b], levels.sigmas[i]))
        return Pair(*u)

    def _second(self, f: Drift, v: Tensor, levels: Levels, i: int) -> Tensor:
        sigma, target = levels.sigmas[i], levels.sigmas[i + 1]
        if self.own_level:
            return f(v, target if target > 0 else sigma)
        return f(levels.scale(target) / levels.scale(sigma) * v, sigma)

    def _mixed(self, x: Tensor, y: Tensor, quantize: Callable[[Tensor], Tensor]) -> Pair:
        x = quantize(self.p * x + (1 - self.p) * y)
        return Pair(x, quantize(self.p * y + (1 - self.p) * x))

    def _unmixed(self, x: Tensor, y: Tensor, quantize: Callable[[Tensor], Tensor]) -> Pair:
        y = quantize((y - (1 - self.p) * x) / self.p)
        return Pair(quantize((x - (1 - self.p) * y) / self.p), y)
