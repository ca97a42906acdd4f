"""Noise levels of FreCaS's stages against the paper's formulas in its own units."""

import math

import numpy as np
import pytest

from guidekit.samplers.frecas import next_sigma, next_time, stage_levels


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("sigma", [0.03, 0.7, 14.6])
def test_a_variance_preserving_model_begins_at_the_paper_s_abar(sigma, ratio, gamma):
    abar = 1 / (1 + sigma**2)
    k = ratio**-gamma
    larger = k * abar / (1 + (k - 1) * abar)
    assert next_sigma(sigma, ratio, gamma) == pytest.approx(math.sqrt(1 / larger - 1), rel=1e-9)


def test_the_paper_s_sizes():
    """By two: 1.6818, 2.8284 and 2 times the level."""
    assert [next_sigma(1.0, 2.0, gamma) for gamma in (1.5, 3.0, 2.0)] == pytest.approx([1.6818, 2.8284, 2.0], abs=1e-4)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_a_flow_s_odds_grow_by_the_root_of_the_ratio(t, ratio):
    larger = next_time(t, ratio)
    assert larger / (1 - larger) == pytest.approx(math.sqrt(ratio) * t / (1 - t))
    assert t <= larger < 1


TIMES = np.linspace(1, 0.001, 1000)
SIGMAS = np.exp(np.interp(TIMES, [0, 1], [math.log(0.03), math.log(14.6)]))  # of equal timesteps


@pytest.mark.parametrize(("start", "end", "steps"), [(1.0, 0.2, 40), (0.3, 0.001, 10), (0.7, 0.4, 2)])
def test_steps_are_equally_spaced_in_time_and_both_ends_are_steps(start, end, steps):
    at = lambda t: float(np.exp(np.interp(t, [0, 1], [math.log(0.03), math.log(14.6)])))  # noqa: E731
    found = stage_levels(SIGMAS.tolist(), at(start), at(end), steps)
    assert len(found) == steps
    wanted = [at(t) for t in np.linspace(start, end, steps)]
    assert found == pytest.approx(wanted, rel=1e-6)
    assert (found[0], found[-1]) == (at(start), at(end))


def test_the_last_stage_ends_at_the_last_level():
    """Without noise: the sampler's own last step goes there."""
    found = stage_levels(SIGMAS.tolist(), 1.0, 0.0, 5)
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(SIGMAS[-1])
    assert all(before > after for before, after in zip(found, found[1:]))


def test_a_schedule_of_another_shape_is_followed():
    """Halving from level to level: a stage of three steps has the middle level in its middle."""
    curve = [16.0, 8.0, 4.0, 2.0, 1.0, 0.5]
    assert stage_levels(curve, 8.0, 2.0, 3) == pytest.approx([8.0, 4.0, 2.0])
    assert stage_levels(curve, 16.0, 0.0, 6) == pytest.approx(curve)
