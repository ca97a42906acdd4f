"""Half-open ranges on every kind of schedule."""

from types import SimpleNamespace

import pytest

from guidekit.nodes.host.run.ranges import Range
from guidekit.tests.host import toy

PARAMETERISATIONS = ["eps", "v", "flow"]


def active(limits: Range, model, sigma: float) -> bool:
    sigma_at = model.get_model_object("model_sampling").percent_to_sigma
    return limits.active(SimpleNamespace(sigma_at=sigma_at, step_sigma=sigma))


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_the_upper_end_is_in_and_the_lower_end_is_out(parameterisation):
    model = toy.model(4, parameterisation)
    sampling = model.get_model_object("model_sampling")
    high, low = float(sampling.percent_to_sigma(0.25)), float(sampling.percent_to_sigma(0.75))
    limits = Range(0.25, 0.75)
    assert active(limits, model, high)
    assert not active(limits, model, low)
    assert active(limits, model, low * 1.0001)
    assert not active(limits, model, high * 1.0001)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_neighbouring_ranges_share_no_step(parameterisation):
    model = toy.model(4, parameterisation)
    sampling = model.get_model_object("model_sampling")
    for percent in (0.1, 0.5, 0.9):
        sigma = float(sampling.percent_to_sigma(percent))
        assert [active(r, model, sigma) for r in (Range(0.0, percent), Range(percent, 1.0))] == [False, True]


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_a_limit_on_the_schedule_is_on_the_same_side_after_rounding(parameterisation):
    """Schedules are in float32, percent_to_sigma is not."""
    model = toy.model(4, parameterisation)
    sampling = model.get_model_object("model_sampling")
    for percent in (0.1, 0.3, 0.5, 0.7, 0.9):
        sigma = float(sampling.percent_to_sigma(percent))
        for rounded in (sigma * (1 - 1e-7), sigma * (1 + 1e-7)):
            assert [active(r, model, rounded) for r in (Range(0.0, percent), Range(percent, 1.0))] == [False, True]


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_the_whole_range_is_every_step(parameterisation):
    model = toy.model(4, parameterisation)
    sampling = model.get_model_object("model_sampling")
    for sigma in (float(sampling.sigma_max), 1e9, float(sampling.sigma_min), 1e-6):
        assert active(Range(), model, sigma)
    assert not active(Range(), model, 0.0)
