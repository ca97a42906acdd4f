"""What the exact inverters share: a state of two latents, and steps that have an inverse in closed form.

All is written with the drift f(x, sigma) = (x - D(x, sigma)) / sigma of the denoiser D, which is the noise estimate of
models whose latents are x0 + sigma n, and the velocity of rectified flows, where sigma = t; in both dx / dsigma = f.
The inverse of a step evaluates f at the very points at which the step did, so that whatever f is, a network in low
precision too, the way there and back agree to the rounding of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

_SHOWN = 50  # noise levels in an error
Drift = Callable[[Tensor, float], Tensor]


def check_falling(sigmas: Sequence[float]) -> None:
    """Raises ValueError for levels that cannot be walked."""
    if len(sigmas) < 2 or any(a <= b for a, b in zip(sigmas, sigmas[1:])) or sigmas[-1] < 0:
        shown = ", ".join(f"{sigma:g}" for sigma in sigmas[:_SHOWN]) + (", ..." if len(sigmas) > _SHOWN else "")
        raise ValueError(f"The noise levels are [{shown}]. Give at least two, falling, down to 0 or above.")


class Pair(NamedTuple):
    """The state; the image, at the clean end, is `x`."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Levels:
    """Falling noise levels sigma_0 > ... > sigma_N of a generation. `scale(sigma)`: the factor with which the network
    takes its input: 1 / sqrt(1 + sigma^2) in variance-preserving models, 1 in flows.

    `quantum`: if not 0, latents are kept at multiples of it, well above the rounding of their precision. Each step of
    an inversion is then undone to the bit: from an image to noise and back, the network is evaluated at exactly the
    same points. In the other direction, from noise to an image and back, what lies below the quantum is lost.
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
        """The nearest multiples of the quantum."""
        return (x / self.quantum).round() * self.quantum if self.quantum else x


After = Callable[[int, Pair], Pair]
Before = Callable[[int], None]


def unchanged(i: int, pair: Pair) -> Pair:
    """The `After` that leaves states as they are."""
    return pair


def _silent(i: int) -> None:
    pass


class Method(Protocol):
    """A way to step. `evaluations` of f in each step; `first`: the index of the step from which a state goes on, 1
    where it is made of two levels; `to_zero`: whether the last level may be 0."""

    evaluations: int
    first: int
    to_zero: bool

    def clean(self, f: Drift, x: Tensor, levels: Levels) -> Pair:
        """The state at the clean end, of an image."""

    def sample_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        """From level i to level i + 1."""

    def invert_step(self, f: Drift, pair: Pair, levels: Levels, i: int) -> Pair:
        """The inverse of `sample_step`."""


def sample(
    method: Method, f: Drift, pair: Pair, levels: Levels, after: After = unchanged, before: Before = _silent
) -> Pair:
    """From the noisy end to the clean one. `after(i, pair)` may change the state that level i is reached with;
    `before(i)` is told that f is asked for step i from now on."""
    for i in range(method.first, levels.steps):
        before(i)
        pair = after(i + 1, method.sample_step(f, pair, levels, i))
    return pair


def invert(
    method: Method, f: Drift, x: Tensor, levels: Levels, after: After = unchanged, before: Before = _silent
) -> Pair:
    """From an image `x` to the noisy end; steps are those of `sample`, in reverse."""
    if levels.sigmas[-1] == 0 and not method.to_zero:
        raise ValueError(
            f"{type(method).__name__} evaluates the model at both ends of a step. End above noise level 0."
        )
    if method.first:  # the image's neighbour has to be found
        before(levels.steps - 1)
    pair = after(levels.steps, method.clean(f, x, levels))
    for i in reversed(range(method.first, levels.steps)):
        before(i)
        pair = after(i, method.invert_step(f, pair, levels, i))
    return pair
