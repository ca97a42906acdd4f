"""Frequency guidance in the host: each band of every step's prediction has the scale that it should."""

import comfy.nested_tensor
import comfy.samplers
import pytest
import torch

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.frequency_guidance import PYRAMID, RESIZE, FrequencyGuidance
from guidekit.samplers.guidance.pyramid import collapse, high_and_low, laplacian_pyramid
from guidekit.tests.host import probes, tiny, toy

SCALE = 5.0


def by_frequency(model, **settings):
    return run_node(FrequencyGuidance, model=model, **settings)


def bands(step, split, number):
    """Of the positive and the negative prediction, and of the guided one."""
    for name in ("cond_denoised", "uncond_denoised", "denoised"):
        x = step[name].double()
        yield laplacian_pyramid(x, number) if split == PYRAMID else high_and_low(x, 2.0)


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, (2.0, 1.0)),
        ({"high": 1.0, "low": 0.4}, (1.0, 0.4)),
        ({"between": "1.6, 1.3"}, (2.0, 1.6, 1.3, 1.0)),
        ({"split": RESIZE, "high": 35 / 7.5}, (35 / 7.5, 1.0)),
    ],
)
@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_every_band_has_its_scale(rank, parameterisation, settings, factors):
    model = by_frequency(toy.model(rank, parameterisation), preset="as typed", **settings)
    seen = probes.record_predictions(model)
    toy.sample(model, rank, cfg=SCALE, batch=2)
    assert len(seen.steps) == 4
    split = settings.get("split", PYRAMID)
    for step in seen.steps:
        cond, uncond, _ = bands(step, split, len(factors))
        guided = [u + factor * SCALE * (c - u) for factor, c, u in zip(factors, cond, uncond)]
        wanted = collapse(guided) if split == PYRAMID else sum(guided)
        assert probes.distance(step["denoised"].double(), wanted) < 1e-5


def test_the_sampler_s_cfg_is_what_is_multiplied(caplog):
    """So that scales of other nodes apply to it: at cfg 1 no band is guided."""
    for cfg in (0.0, 1.0):
        plain = toy.sample(toy.model(), cfg=cfg)
        assert torch.equal(toy.sample(by_frequency(toy.model()), cfg=cfg), plain)
        assert ("its scales are multiples of the sampler's cfg, which is 0." in caplog.text) == (cfg == 0)
        caplog.clear()


def test_two_nodes_with_ranges_are_ranges_of_bands():
    first = by_frequency(toy.model(), high=3.0, end_percent=0.5)
    both = by_frequency(first, high=1.0, low=0.5, start_percent=0.5)
    seen = probes.record_predictions(both)
    toy.sample(both, cfg=SCALE)
    for i, step in enumerate(seen.steps):
        cond, uncond, _ = bands(step, PYRAMID, 2)
        factors = (3.0, 1.0) if i < 2 else (1.0, 0.5)
        wanted = collapse([u + factor * SCALE * (c - u) for factor, c, u in zip(factors, cond, uncond)])
        assert probes.distance(step["denoised"].double(), wanted) < 1e-5


def test_streams_are_split_by_themselves():
    def noise(seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(1, *shape, generator=generator) for shape in ((4, 8, 8), (2, 6))]

    def sample(model, streams, cfg):
        model.model.diffusion_model = toy.Elementwise()
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
        guider.set_cfg(cfg)
        nested = comfy.nested_tensor.NestedTensor
        zeros, euler = nested([torch.zeros_like(s) for s in streams]), comfy.samplers.sampler_object("euler")
        return guider.sample(nested(streams), zeros, euler, torch.tensor([1.0, 0.5, 0.0]), disable_pbar=True).unbind()

    streams = noise(1)
    both = sample(by_frequency(toy.model(3, "flow"), parallel=0.5), streams, 4.0)
    assert [tuple(s.shape) for s in both] == [(1, 4, 8, 8), (1, 2, 6)]
    other = sample(by_frequency(toy.model(3, "flow"), parallel=0.5), [streams[0], noise(2)[1]], 4.0)
    assert probes.distance(other[0], both[0]) < 1e-6
    assert probes.differ(other[1], both[1])


@pytest.mark.parametrize(
    ("between", "sentence"),
    [
        ("1.5, x", r"between has 'x'. Give numbers from 0 to 20, separated by commas."),
        ("1.5,,2", r"between has ''. Give numbers"),
        ("nan", r"between has 'nan'. Give numbers"),
        ("-1", r"between has '-1'. Give numbers"),
        ("1," * 8 + "1", "between has 9 numbers. There may be up to 8."),
    ],
)
def test_wrong_numbers(between, sentence):
    with pytest.raises(ValueError, match=sentence):
        by_frequency(toy.model(), between=between)


def test_a_band_for_every_size():
    """Latents smaller than the number of bands would halve."""
    model = by_frequency(tiny.model("flux"), between="1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8")
    assert torch.isfinite(tiny.sample(model, "flux")).all()
