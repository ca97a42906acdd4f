"""Guidance interval: half-open, one decision per step, and the evaluations it saves."""

import math

import comfy.samplers
import pytest
import torch
from comfy_api.latest import io

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.guidance_interval import PRESETS, GuidanceInterval
from guidekit.tests.host import probes, tiny, toy

SIGMAS = [8.0, 5.0, 2.0, 0.5, 0.1, 0.0]


def interval(model, **settings):
    return run_node(GuidanceInterval, model=model, **settings)


def run(model, sigmas=SIGMAS, sampler="euler", cfg=4.0, **options):
    """Scales that the post-CFG functions saw, by evaluation."""
    seen = probes.record_predictions(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
    guider.set_cfg(cfg)
    x = toy.noise(4)
    sampler = comfy.samplers.sampler_object(sampler)
    guider.sample(x, torch.zeros_like(x), sampler, torch.tensor(sigmas), disable_pbar=True, seed=3, **options)
    return [step["cond_scale"] for step in seen.steps]


def test_is_half_open():
    """Guided at sigma_high, not at sigma_low."""
    model = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.5)
    assert run(model) == [1.0, 4.0, 4.0, 1.0, 1.0]
    rounded = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.1)  # 0.1 in float32 is above 0.1
    assert run(rounded) == [1.0, 4.0, 4.0, 4.0, 1.0]
    barely = interval(toy.model(), limits="sigma", sigma_high=4.999, sigma_low=0.499)
    assert run(barely) == [1.0, 1.0, 4.0, 4.0, 1.0]


def test_only_inside_is_the_negative_evaluated():
    model = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.5)
    seen = probes.count_evaluations(model)
    run(model)
    assert seen.chunks == [1, 2, 2, 1, 1]


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral"])
def test_all_evaluations_of_a_step_agree(sampler):
    """Heun's corrector at sigma 2 belongs to the step that began at 5, and so does the midpoint of DPM2."""
    model = interval(toy.model(), limits="sigma", sigma_high=8.0, sigma_low=2.0)
    assert run(model, sampler=sampler) == [4.0] * 4 + [1.0] * 5


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_everything_is_cfg_and_nothing_is_the_positive(parameterisation, rank):
    def sample(limits=None, cfg=4.0):
        model = toy.model(rank, parameterisation)
        if limits:
            model = interval(model, limits="sigma", sigma_high=limits[1], sigma_low=limits[0])
        return toy.sample(model, rank, cfg=cfg, batch=3)

    assert torch.equal(sample((0.0, 1000.0)), sample())
    assert torch.equal(sample((500.0, 1000.0)), sample(cfg=1.0))
    assert not torch.equal(sample(), sample(cfg=1.0))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
def test_presets_are_ratios_of_noise_to_signal(preset, parameterisation):
    """The same ratios for a flow, where sigma is t = r / (1 + r): for SDXL (0.2188, 0.8442]."""
    low, high = PRESETS[preset]
    inside, outside = (low * 1.01, high * 0.99), (low * 0.99, high * 1.01)
    model = interval(toy.model(4, parameterisation), limits=preset)
    ratios = [outside[1], high, inside[1], inside[0], low * 1.0001, outside[0]]
    sigmas = [r / (1 + r) if parameterisation == "flow" else r for r in ratios]
    scales = run(model, [*sigmas, 0.0])
    assert scales[0] == scales[-1] == 1.0
    assert scales[2:5] == [4.0] * 3
    if preset == "SDXL" and parameterisation == "flow":
        assert (low / (1 + low), high / (1 + high)) == pytest.approx((0.2188, 0.8442), abs=1e-4)


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_percent_is_the_hosts(family):
    """On a discrete schedule and on a shifted flow, the same as percent_to_sigma."""
    model = interval(tiny.model(family), limits="percent", start_percent=0.2, end_percent=0.6)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    seen = probes.record_predictions(model)
    tiny.sample(model, family, steps=12)
    for step in seen.steps:
        sigma = float(step["sigma"][0])
        assert step["cond_scale"] == (4.0 if to_sigma(0.6) < sigma <= to_sigma(0.2) else 1.0)
    assert {step["cond_scale"] for step in seen.steps} == {1.0, 4.0}


@pytest.mark.parametrize("parameterisation", ["eps", "v", "edm", "flow"])
def test_percent_on_every_kind_of_schedule(parameterisation):
    model = interval(toy.model(4, parameterisation), limits="percent", start_percent=0.2, end_percent=0.6)
    sampling = model.get_model_object("model_sampling")
    sigmas = [float(sampling.percent_to_sigma(p)) for p in (0.1, 0.2, 0.4, 0.6, 0.8)]
    assert sigmas == sorted(sigmas, reverse=True)
    assert run(model, [*sigmas, 0.0]) == [1.0, 4.0, 4.0, 1.0, 1.0]


def test_percent_narrows_the_other_limits():
    model = interval(toy.model(4, "flow"), limits="sigma", sigma_high=0.9, sigma_low=0.1, start_percent=0.5)
    assert run(model, [1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0]) == [1, 1, 1, 4, 4, 1]


@pytest.mark.parametrize("cfg", [1.0, 0.0])
def test_unusual_scales(cfg):
    model = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.5)
    assert run(model, cfg=cfg) == [1.0, cfg, cfg, 1.0, 1.0]


# The ramp


class Line:
    """A curve of the host, as its Curve Editor gives it."""

    def interp(self, x):
        return x


def test_the_ramp_goes_from_the_first_to_the_last_step_inside():
    model = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.1, ramp=Line())
    assert run(model) == pytest.approx([1.0, 1.0, 2.5, 4.0, 1.0])
    falling = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.1, ramp=[(0, 1.0), (1, 0.0)])
    assert run(falling) == pytest.approx([1.0, 4.0, 2.5, 1.0, 1.0])


def test_the_end_of_a_schedule_is_no_step_of_the_ramp():
    """KSampler (Advanced) may end above 0."""
    model = interval(toy.model(), limits="sigma", sigma_high=100.0, sigma_low=0.0, ramp=Line())
    assert run(model, [8.0, 5.0, 2.0, 0.5]) == pytest.approx([1.0, 2.5, 4.0])


def test_the_ramp_of_the_hosts_curve():
    curves = pytest.importorskip("comfy_api.input")
    if not hasattr(curves, "CurveInput"):
        pytest.skip("this host has no curves")
    curve = curves.CurveInput.from_raw({"points": [[0, 0.5], [1, 1.0]], "interpolation": "linear"})
    model = interval(toy.model(), limits="percent", ramp=curve)
    assert run(model) == pytest.approx([1 + 3 * (0.5 + 0.5 * i / 4) for i in range(5)])


def test_one_step_inside_is_at_the_left_of_the_ramp():
    model = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=4.0, ramp=Line())
    assert run(model) == [1.0] * 5
    assert run(interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=4.0, ramp=[(0, 1), (1, 0)]))[1] == 4.0


def test_a_ramp_in_heun_is_the_same_for_both_evaluations():
    model = interval(toy.model(), limits="sigma", sigma_high=8.0, sigma_low=0.1, ramp=Line())
    scales = run(model, sampler="heun")
    assert scales[0::2][:4] == scales[1::2][:4]


@pytest.mark.parametrize("ramp", ["up", 3, [1, 2]])
def test_a_ramp_that_is_none(ramp):
    with pytest.raises(ValueError, match="Connect a Curve Editor"):
        interval(toy.model(), ramp=ramp)


# What the user sees


def test_it_tells_what_it_did(caplog):
    caplog.set_level("INFO")
    run(interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.5))
    assert "Guidance interval: 2 of 5 steps guided, 3 evaluations saved." in caplog.text


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (6.0, 5.0), (-1.0, 5.0)])
def test_limits_in_the_wrong_order(low, high):
    message = "Set sigma_low below sigma_high"
    with pytest.raises(ValueError, match=message if low >= 0 else "It is a number from 0 to 1000"):
        interval(toy.model(), limits="sigma", sigma_low=low, sigma_high=high)
    answer = GuidanceInterval.validate_inputs(0.0, 1.0, "sigma", high, low)
    assert message in answer
    assert GuidanceInterval.validate_inputs(0.0, 1.0, "SDXL", high, low) is True
    assert GuidanceInterval.validate_inputs(0.0, 1.0, "sigma", None, low) is True
    assert "It is one of" in GuidanceInterval.validate_inputs(0.0, 1.0, "furlongs", 1.0, 2.0)


def test_the_ramp_is_a_socket_of_the_hosts_curve_type():
    [ramp] = [i for i in GuidanceInterval.define_schema().inputs if i.id == "ramp"]
    assert ramp.get_io_type() == io.Curve.io_type
    assert ramp.optional


def test_a_second_sampler_starts_anew():
    """Hires fix: the same model, another schedule."""
    model = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.1, ramp=Line())
    assert run(model, [5.0, 1.0, 0.1, 0.0])[:3] == pytest.approx([1.0, 4.0, 1.0])
    assert run(model, [8.0, 2.0, 0.5, 0.1, 0.0])[-4:] == pytest.approx([1.0, 1.0, 4.0, 1.0])


def test_nothing_is_evaluated_twice_with_an_ascending_schedule():
    """An inversion: the limits are of sigma, not of time."""
    model = interval(toy.model(), limits="sigma", sigma_high=5.0, sigma_low=0.5)
    assert run(model, [0.1, 0.5, 2.0, 5.0, 8.0]) == [1.0, 1.0, 4.0, 4.0]
    assert math.isfinite(sum(run(model, [0.1, 0.5])))
