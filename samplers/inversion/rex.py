"""Rex (Blasingame and Liu: "Reversible Solvers for Diffusion Models", ICML 2026, arXiv 2502.08834) with Euler steps:
the coupling of McCallum and Foster, written with the denoiser.

With D(x, sigma) = x - sigma f(x, sigma) and w = 1 - sigma' / sigma:

    x' = (1 - w) (zeta x + (1 - zeta) y) + w D(y, sigma),   y' = (1 - w) y + w D(x', sigma')

The model is evaluated at both ends of a step, so the last level has to be above 0.
"""

from dataclasses import dataclass

from torch import Tensor

from .reversible import Drift, Levels, Pair


@dataclass(frozen=True)
class Rex:
    """Rex with coupling weight `zeta` in (0, 1]: the second latent is mixed into the first with weight 1 - zeta.

    Raises:
        ValueError: `zeta` is out of range.
    """

    zeta: float = 0.999

    evaluations, first, to_zero = 2, 0, False

    def __post_init__(self):
        if not 0 < self.zeta <= 1:
            raise ValueError(f"zeta is {self.zeta:g}. It lies above 0 and is at most 1; the paper uses 0.999.")

    def clean(self, f: Drift, x: Tensor, levels: Levels) -> Pair:
        return Pair(levels.quantize(x), levels.quantize(x))

    def sample_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        sigma, target = levels.sigmas[i : i + 2]
        keep, quantize = target / sigma, levels.quantize
        x = quantize(keep * (self.zeta * pair.x + (1 - self.zeta) * pair.y)) + quantize(
            (1 - keep) * _denoised(f, pair.y, sigma)
        )
        return Pair(x, quantize(keep * pair.y) + quantize((1 - keep) * _denoised(f, x, target)))

    def invert_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        sigma, target = levels.sigmas[i : i + 2]
        keep, quantize = target / sigma, levels.quantize
        y = quantize((pair.y - quantize((1 - keep) * _denoised(f, pair.x, target))) / keep)
        mixed = (pair.x - quantize((1 - keep) * _denoised(f, y, sigma))) / keep
        return Pair(quantize((mixed - (1 - self.zeta) * y) / self.zeta), y)


def _denoised(f: Drift, x: Tensor, sigma: float) -> Tensor:
    return x - sigma * f(x, sigma)
