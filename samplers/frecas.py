"""FreCaS (Zhang et al.: "FreCaS: Efficient Higher-Resolution Image Generation via Frequency-aware Cascaded Sampling",
ICLR 2025, arXiv 2410.18410): a large image in stages of growing size, each of which ends before all noise is gone.

A stage ends with a prediction of the denoised image at its last noise level. That is made larger, and gets new noise:
at more than that level, for the same noise says less about what is the same image in more pixels (section 3.2).
"""

from collections.abc import Sequence

import numpy as np


def next_sigma(sigma: float, ratio: float, gamma: float) -> float:
    """The noise-to-signal ratio at which a stage begins whose sides are `ratio` times those of the stage before, which
    has ended at `sigma`. The paper's abar' = k abar / (1 + (k - 1) abar) with k = ratio^-gamma, in sigma^2 = 1 / abar -
    1."""
    return sigma * ratio ** (gamma / 2)


def next_time(t: float, ratio: float) -> float:
    """The same for the time of a rectified flow, 0 to 1: t / (1 - t) is multiplied by the root of `ratio`."""
    root = ratio**0.5
    return root * t / (1 + (root - 1) * t)


def stage_levels(curve: Sequence[float], start: float, end: float, steps: int) -> list[float]:
    """The noise levels at which the `steps` steps of a stage begin, both `start` and `end` among them: as far from each
    other along `curve` as possible, a falling schedule of many levels above 0, whose ends are taken for what is beyond.

    Of a curve of equal timesteps, equal timesteps, as in the authors' code."""
    levels, places = np.log(np.asarray(curve, dtype=np.float64)[::-1]), np.arange(len(curve))[::-1]
    first, last = np.interp(np.log([start, max(end, curve[-1])]), levels, places)
    found = np.exp(np.interp(np.linspace(first, last, steps), places[::-1], levels[::-1]))
    found[0] = start
    if steps > 1 and end > curve[-1]:
        found[-1] = end
    return found.tolist()
