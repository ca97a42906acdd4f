"""O-BELM (Wang et al.: "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact Inversion in Diffusion
Models", NeurIPS 2024, arXiv 2410.07273): the two-level step of multistep.py with

    k = (h / h+)^2,   c = -h (h + h+) / h+,   h = sigma_t - sigma_s,   h+ = sigma_p - sigma_t

Its local error is of third order.
"""

from dataclasses import dataclass

from .multistep import TwoLevels
from .reversible import Levels


@dataclass(frozen=True)
class OBelm(TwoLevels):
    """O-BELM; it has no parameters."""

    def coefficients(self, levels: Levels, i: int) -> tuple[float, float]:
        p, t, s = levels.sigmas[i - 1 : i + 2]
        h, before = t - s, p - t
        return (h / before) ** 2, -h * (h + before) / before
