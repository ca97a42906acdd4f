"""BDIA (Zhang, Lewis, Kleijn: "Exact Diffusion Inversion via Bi-directional Integration Approximation", ECCV 2024,
arXiv 2307.10829): the two-level step of multistep.py with

    k = gamma scale(sigma_p) / scale(sigma_s),   c = (sigma_s - sigma_t) - k (sigma_p - sigma_t)
"""

from dataclasses import dataclass

from .multistep import TwoLevels
from .reversible import Levels


@dataclass(frozen=True)
class Bdia(TwoLevels):
    """BDIA with `gamma` in (0, 1]; an inversion amplifies errors by 1 / gamma in every step.

    Raises:
        ValueError: `gamma` is out of range.
    """

    gamma: float = 0.96

    def __post_init__(self):
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma:g}. It lies above 0 and is at most 1.")

    def coefficients(self, levels: Levels, i: int) -> tuple[float, float]:
        p, t, s = levels.sigmas[i - 1 : i + 2]
        k = self.gamma * levels.scale(p) / levels.scale(s)
        return k, (s - t) - k * (p - t)
