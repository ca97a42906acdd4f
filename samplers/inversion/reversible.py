"""The common part of the exact inverters: a state of two latents, and steps with an inverse in closed form.

Everything is written with the drift f(x, sigma) = (x - D(x, sigma)) / sigma of the denoiser D. It is the noise estimate
of models with latents x0 + sigma n, and the velocity of rectified flows, where sigma = t; in both dx / dsigma = f. The
inverse of a step evaluates f at exactly the same points as the step, so that for any f, also a network in low
precision, inversion and sampling agree to the rounding of the latents. Latents are [B, ...] of any rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

_SHOWN = 50  # noise levels in an error
Drift = Callable[[Tensor, float], Tensor]


def check_falling(sigmas: Sequence[float]) -> None:
    """Checks noise levels.

    Raises:
        ValueError: they are fewer than two, do not fall strictly, or end below 0.
    """
    if len(sigmas) < 2 or any(a <= b for a, b in zip(sigmas, sigmas[1:])) or sigmas[-1] < 0:
        shown = ", ".join(f"{sigma:g}" for sigma in sigmas[:_SHOWN]) + (", ..." if len(sigmas) > _SHOWN else "")
        raise ValueError(f"The noise levels are [{shown}]. Give at least two, falling, down to 0 or above.")


class Pair(NamedTuple):
    """The state of an inverter; at the clean end `x` is the image."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Levels:
    """Falling noise levels sigma_0 > ... > sigma_N of a generation. `scale(sigma)`: the factor on the network's input,
    1 / sqrt(1 + sigma^2) in variance-preserving models, 1 in flows.

    `quantum`: if not 0, latents are rounded to multiples of it, which are much larger than the rounding of their
    precision. Each step of an inversion is then undone to the bit: from an image to noise and back, the network is
    evaluated at exactly the same points. From noise to an image and back, differences below the quantum are lost.

    Raises:
        ValueError: see `check_falling`.
    """

    sigmas: tuple[float, ...]
    scale: Callable[[float], float]
    quantum: float = 0.0

    def __post_init__(self):
        check_falling(self.sigmas)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def quantize(self, x: Tensor) -> Tensor:
        """`x` rounded to multiples of the quantum; unchanged if that is 0."""
        return (x / self.quantum).round() * self.quantum if self.quantum else x


After = Callable[[int, Pair], Pair]
Before = Callable[[int], None]


def unchanged(i: int, pair: Pair) -> Pair:
    """The `After` that changes nothing."""
    return pair


def _silent(i: int) -> None:
    pass


class Method(Protocol):
    """A kind of reversible step. `evaluations`: those of f in each step; `first`: the index of the first step, 1 where
    a state spans two levels; `to_zero`: whether the last level may be 0."""

    evaluations: int
    first: int
    to_zero: bool

    def clean(self, f: Drift, x: Tensor, levels: Levels) -> Pair:
        """The state at the clean end for an image `x`."""

    def sample_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        """The step from level i to level i + 1."""

    def invert_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        """The inverse of `sample_step`."""


def sample(
    method: Method, f: Drift, pair: Pair, levels: Levels, after: After = unchanged, before: Before = _silent
) -> Pair:
    """Samples from the noisy end to the clean one. `after(i, pair)`: may change the state at level i; `before(i)`: is
    called before f is evaluated for step i."""
    for i in range(method.first, levels.steps):
        before(i)
        pair = after(i + 1, method.sample_step(f, pair, levels, i))
    return pair


def invert(
    method: Method, f: Drift, x: Tensor, levels: Levels, after: After = unchanged, before: Before = _silent
) -> Pair:
    """Inverts from an image `x` to the noisy end: the steps of `sample` in reverse order, with the same `after` and
    `before`.

    Raises:
        ValueError: the last level is 0, and the method does not allow that.
    """
    if levels.sigmas[-1] == 0 and not method.to_zero:
        raise ValueError(
            f"{type(method).__name__} evaluates the model at both ends of a step. End above noise level 0."
        )
    if method.first:  # `clean` evaluates f for the last step
        before(levels.steps - 1)
    pair = after(levels.steps, method.clean(f, x, levels))
    for i in reversed(range(method.first, levels.steps)):
        before(i)
        pair = after(i, method.invert_step(f, pair, levels, i))
    return pair
