"""Exact inverters with two-level steps: x_s from x_t and the previous x_p, with one evaluation at x_t.

    x_s = k x_p + (1 - k) x_t + c f(x_t, sigma_t),   x_p = (x_s - (1 - k) x_t - c f(x_t, sigma_t)) / k

A state is (x_t, x_p), [B, ...] each, in the coordinates of reversible.py. At the image, x_p comes from an Euler step
back, with the drift at the level of x_p. BDIA (bdia.py) and O-BELM (o_belm.py) differ in k and c.
"""

from collections.abc import Callable

from torch import Tensor

from .reversible import Drift, Levels, Pair


class TwoLevels:
    """A `Method` with two-level steps, given by its `coefficients`."""

    evaluations, first, to_zero = 1, 1, True

    def coefficients(self, levels: Levels, i: int) -> tuple[float, float]:
        """k and c of the step from level i to i + 1."""
        raise NotImplementedError

    def clean(self, f: Drift, x: Tensor, levels: Levels) -> Pair:
        before, last = levels.sigmas[-2:]
        quantize = self._quantize(levels)
        x = quantize(x)
        return Pair(x, quantize(x + (before - last) * f(x, before)))

    def sample_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        k, c = self.coefficients(levels, i)
        quantize = self._quantize(levels)
        return Pair(quantize(k * pair.y) + quantize((1 - k) * pair.x + c * f(pair.x, levels.sigmas[i])), pair.x)

    def invert_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        k, c = self.coefficients(levels, i)
        quantize = self._quantize(levels)
        return Pair(pair.y, quantize((pair.x - quantize((1 - k) * pair.y + c * f(pair.y, levels.sigmas[i]))) / k))

    def _quantize(self, levels: Levels) -> Callable[[Tensor], Tensor]:
        """`levels.quantize`, or the identity where a step has k > 1: multiples of the quantum are recovered exactly
        only if no step expands latents."""
        shortens = all(self.coefficients(levels, i)[0] <= 1 for i in range(1, levels.steps))
        return levels.quantize if shortens else lambda x: x
