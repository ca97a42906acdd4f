"""CFG-Cache in the host: which steps are evaluated, what the others are given, when it stops, and weak branches."""

import re

import comfy.nested_tensor
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_easycache

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.adaptive_guidance import AdaptiveGuidance
from guidekit.nodes.cfg_cache import CFGCache
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.pag import PAG
from guidekit.samplers.guidance.cfg_cache import split_by_disc
from guidekit.tests.host import probes, tiny, toy

STEPS, SCALE = 10, 4.0
EVALUATED = [0, 1, 2, 3, 4, 7, 9]  # of 10, with every 3 behind 4


def cache(model, **settings):
    return run_node(CFGCache, model=model, **{"every": 3, "warm_up": 0.4, "limit": 100.0, **settings})


def raw(step, parameterisation, name):
    """The network's output of a recorded step, in double."""
    x, sigma, d = (
        step["input"].double(),
        step["sigma"].double().reshape(-1, *[1] * (step["input"].ndim - 1)),
        step[name].double(),
    )
    if parameterisation == "v":
        return (x / (1 + sigma**2) - d) * (1 + sigma**2).sqrt() / sigma
    return (x - d) / sigma


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_the_last_difference_is_taken_in_the_space_of_the_outputs(rank, parameterisation):
    model = cache(toy.model(rank, parameterisation))
    counted, seen = probes.count_evaluations(model), probes.record_predictions(model)
    toy.sample(model, rank, cfg=SCALE, steps=STEPS, batch=2)
    assert counted.chunks == [2 if step in EVALUATED else 1 for step in range(STEPS)]
    for i, step in enumerate(seen.steps):
        cond, uncond = (raw(step, parameterisation, name) for name in ("cond_denoised", "uncond_denoised"))
        if i in EVALUATED:
            difference = uncond - cond
        else:
            assert probes.distance(uncond - cond, difference) < 1e-4, i
        plain = step["uncond_denoised"] + (step["cond_denoised"] - step["uncond_denoised"]) * SCALE
        assert torch.equal(step["denoised"], plain)


def test_a_constant_difference_is_not_noticed():
    class Shifted(toy.Network):
        def forward(self, x, timestep, context=None, **kwargs):
            return 0.4 * x.sin() + context.mean((1, 2)).reshape(-1, *[1] * (x.ndim - 1))

    def sample(node):
        model = toy.model(4, "flow")
        model.model.diffusion_model = Shifted()
        return toy.sample(node(model), cfg=SCALE, steps=STEPS)

    assert probes.distance(sample(cache), sample(lambda model: model)) < 1e-5


def test_low_and_high_frequencies_have_strengths():
    """Of step 8, one after it was kept: a low of 1.5, and a high of 0.5."""
    model = cache(toy.model(4, "flow"), low=1.5, high=0.5)
    seen = probes.record_predictions(model)
    toy.sample(model, cfg=SCALE, steps=STEPS)
    kept, reused = (
        raw(seen.steps[i], "flow", "uncond_denoised") - raw(seen.steps[i], "flow", "cond_denoised") for i in (7, 8)
    )
    low, high = split_by_disc(kept, 1)  # a fifth of 6
    assert probes.distance(reused, 1.5 * low + 0.5 * high) < 1e-4


@pytest.mark.parametrize("settings", [{"every": 1}, {"warm_up": 1.0}])
def test_neutral_settings(settings):
    assert "guidekit" not in cache(toy.model(), **settings).model_options


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral"])
def test_all_evaluations_of_a_step_agree(sampler):
    model = cache(toy.model(4, "flow"))
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS, sampler=sampler)
    wanted = [2 if step in EVALUATED else 1 for step in range(STEPS) for _ in range(1 if step == STEPS - 1 else 2)]
    assert counted.chunks == wanted


def test_outside_its_range_all_is_evaluated():
    model = cache(toy.model(4, "flow"), warm_up=0.0, every=100, start_percent=0.2, end_percent=0.6)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    assert counted.chunks == [2, 2, 2, 1, 1, 1, 2, 2, 2, 2]


class Turning(torch.nn.Module):
    """The prompt pushes in another direction below time `turn`."""

    dtype = torch.float32

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        shape = (-1, *[1] * (x.ndim - 1))
        sign = torch.where(timestep / 1000 < self.turn, -1.0, 1.0).reshape(shape)
        return 0.1 * x + sign * context.mean((1, 2)).reshape(shape)


def turning(turn):
    model = toy.model(4, "flow")
    model.model.diffusion_model = Turning(turn)
    return model


@pytest.mark.parametrize("batch", [1, 3])
def test_it_stops_where_an_estimate_would_have_missed_too_much(batch, caplog):
    """The difference turns round in step 5, which is seen in step 7: missed is 2."""
    caplog.set_level("INFO")
    for limit, evaluated in ((1.9, [0, 1, 2, 3, 4, 7, 8, 9]), (2.1, EVALUATED)):
        caplog.clear()
        model = cache(turning(0.55), limit=limit)
        counted = probes.count_evaluations(model)
        toy.sample(model, steps=STEPS, batch=batch)
        assert counted.chunks == [2 if step in evaluated else 1 for step in range(STEPS)]
        assert "by evaluated step: 2: 0.00, 3: 0.00, 4: 0.00, 5: 0.00, 8: 2.00" in caplog.text
        assert ("An estimate missed more than limit 1.9: nothing was reused from there on." in caplog.text) == (
            limit < 2
        )
        assert f"CFG-Cache: {10 - len(evaluated)} evaluations of the negative saved in 10 steps." in caplog.text


@pytest.mark.parametrize(
    ("turn", "evaluated"), [(0.85, EVALUATED), (0.75, EVALUATED), (0.65, [0, 1, 2, 3, 4, 5, 7, 9])]
)
def test_what_misses_too_much_from_one_step_to_the_next_waits(turn, evaluated):
    """It turns in an evaluated step: nothing was relied on it. Before a step that would be reused one more is
    evaluated, and then all is well."""
    model = cache(turning(turn), limit=1.0)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    assert counted.chunks == [2 if step in evaluated else 1 for step in range(STEPS)]


def test_what_the_last_step_missed_ends_nothing(caplog):
    """It turns in step 8, which is reused; the last one shows it."""
    caplog.set_level("INFO")
    toy.sample(cache(turning(0.25), limit=1.0), steps=STEPS)
    assert "8: 0.00, 10: 2.00." in caplog.text
    assert "An estimate missed more" not in caplog.text


def test_it_says_that_it_never_began(caplog):
    """The difference turns round in every step."""

    class Always(Turning):
        def forward(self, x, timestep, context=None, **kwargs):
            shape = (-1, *[1] * (x.ndim - 1))
            sign = 1 - 2 * ((timestep / 100).round() % 2)
            return 0.1 * x + sign.reshape(shape) * context.mean((1, 2)).reshape(shape)

    model = turning(0.5)
    model.model.diffusion_model = Always(0.5)
    model = cache(model, limit=1.0)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    assert counted.chunks == [2] * STEPS
    told = "had no effect in this run: estimates missed more of the guidance than limit 1. By step: 2: 2.00, 3: 2.00"
    assert told in caplog.text


def test_it_says_that_a_sampler_has_no_number_of_steps(caplog):
    caplog.set_level("INFO")
    toy.sample(cache(toy.model(4, "flow")), steps=STEPS, sampler="dpm_adaptive")
    told = "each step might be the last, which is evaluated: dpm_adaptive decides while sampling how many"
    assert told in caplog.text


def test_one_sample_stops_all():
    """Of a batch the worst sample counts: here the loud one, the only one that turns."""

    class One(Turning):
        def forward(self, x, timestep, context=None, **kwargs):
            steady = 0.1 * x + context.mean((1, 2)).reshape(-1, 1, 1, 1)
            loud = x.abs().amax((1, 2, 3), keepdim=True) > 20
            return torch.where(loud, super().forward(x, timestep, context, **kwargs), steady)

    for loudness, evaluated in ((1.0, EVALUATED), (100.0, [0, 1, 2, 3, 4, 7, 8, 9])):
        model = turning(0.55)
        model.model.diffusion_model = One(0.55)
        model = cache(model, limit=1.0)
        counted = probes.count_evaluations(model)
        x = toy.noise(4, 3) * torch.tensor([1.0, loudness, 1.0]).reshape(3, 1, 1, 1)
        prompts = toy.conditioning(2.0), toy.conditioning(-1.5)
        settings = (STEPS, SCALE, "euler", "simple", *prompts, torch.zeros_like(x))
        comfy.sample.sample(model, x, *settings, seed=3, disable_pbar=True)
        assert counted.chunks == [2 if step in evaluated else 1 for step in range(STEPS)]


def test_after_a_run_nothing_is_left():
    model = cache(toy.model(4, "flow"))
    counted = probes.count_evaluations(model)
    first = toy.sample(model, steps=STEPS)
    chunks, counted.chunks = counted.chunks, []
    assert torch.equal(toy.sample(model, steps=STEPS), first)
    assert counted.chunks == chunks


def test_where_the_negative_is_not_wanted_it_is_not_estimated():
    for other, settings in ((GuidanceInterval, {"limits": "percent", "start_percent": 0.5}),):
        model = run_node(other, model=cache(toy.model(4, "flow"), warm_up=0.0, every=100), **settings)
        counted, seen = probes.count_evaluations(model), probes.record_predictions(model)
        toy.sample(model, steps=STEPS)
        assert counted.chunks == [1] * 5 + [2] + [1] * 3 + [2]
        assert [step["uncond"] is None for step in seen.steps] == [True] * 5 + [False] * 5
    model = run_node(AdaptiveGuidance, model=cache(toy.model(4, "flow"), warm_up=0.0), threshold=-1.0, warm_up=5)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    assert counted.chunks == [2, 1, 1, 2, 1, 1, 1, 1, 1, 1]


def test_streams_have_differences_of_their_own():
    def sample(model):
        model.model.diffusion_model = toy.Elementwise()
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
        guider.set_cfg(4.0)
        nested, generator = comfy.nested_tensor.NestedTensor, torch.Generator().manual_seed(1)
        streams = [torch.randn(1, *shape, generator=generator) for shape in ((4, 8, 8), (2, 6))]
        zeros, euler = nested([torch.zeros_like(s) for s in streams]), comfy.samplers.sampler_object("euler")
        return guider.sample(nested(streams), zeros, euler, torch.linspace(1, 0, 11), disable_pbar=True).unbind()

    model = cache(toy.model(3, "flow"), low=1.2)
    counted = probes.count_evaluations(model)
    found = sample(model)
    assert [tuple(s.shape) for s in found] == [(1, 4, 8, 8), (1, 2, 6)]
    assert counted.chunks == [2 if step in EVALUATED else 1 for step in range(STEPS)]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("family", ["toy", "flux"])
def test_another_cache_s_estimate_is_no_evaluation(family, order, caplog):
    """One that reuses every other step from step 4 on, beside one from step 8 on: the second knows what the first left
    to be evaluated, and in step 8 both are able, of which one gives way."""
    caplog.set_level("INFO")
    model = toy.model(4, "flow") if family == "toy" else run_node(PAG, model=tiny.model("flux"))
    for settings in ({"every": 2}, {"every": 2, "warm_up": 0.7})[:: 1 - 2 * order]:
        model = cache(model, **settings)
    if family == "toy":
        toy.sample(model, steps=STEPS)
    else:
        tiny.sample(model, family, steps=STEPS)
    checks = re.findall(r"by evaluated step: ((?:\d+: [\d.]+(?:, )?)+)", caplog.text)
    assert len(checks) > (family == "flux")
    for each in checks:
        assert set(re.findall(r"(\d+): ", each)) <= {"2", "3", "4", "5", "7", "9", "10"}


# Weak branches


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_weak_branch_is_reused_too(cfg, order, caplog):
    caplog.set_level("INFO")
    model = tiny.model("flux")
    for node in (lambda m: run_node(PAG, model=m), cache)[:: 1 - 2 * order]:
        model = node(model)
    counted = probes.count_evaluations(model)
    tiny.sample(model, "flux", cfg=cfg, steps=STEPS)
    guided = cfg != 1
    assert counted.total == STEPS + len(EVALUATED) * (1 + guided)
    assert ("3 evaluations of the negative saved" in caplog.text) == guided
    told = caplog.text.partition("3 evaluations of the weak prediction of Perturbed-Attention Guidance (PAG) saved")[2]
    checks = re.search(r"by evaluated step: ((?:\d+: [\d.]+(?:, )?)+)", told)[1]
    assert re.findall(r"(\d+): ", checks) == ["2", "3", "4", "5", "8", "10"]  # none of an estimate


def test_the_weak_difference_is_that_of_the_last_evaluated_step():
    """PAG's correction, s (c - weak), is the same in the flow's outputs."""
    model = cache(run_node(PAG, model=tiny.model("flux"), scale=2.0, preset="as typed"))
    seen = probes.record_predictions(model)
    tiny.sample(model, "flux", cfg=1.0, steps=STEPS)
    changes = [(s["denoised"] - s["cond_denoised"]).double() / s["sigma"].double() for s in seen.steps]
    for reused, last in ((5, 4), (6, 4), (8, 7)):
        assert probes.distance(changes[reused], changes[last]) < 1e-3
    assert probes.distance(changes[7], changes[4]) > 1e-3


def test_weak_branches_can_be_left_alone():
    model = cache(run_node(PAG, model=tiny.model("flux")), weak_too=False)
    counted = probes.count_evaluations(model)
    tiny.sample(model, "flux", steps=STEPS)
    assert counted.total == 2 * STEPS + len(EVALUATED)


def test_beside_a_cache_that_answers_for_the_network():
    """EasyCache gives PAG's second call the positive's own answer; a difference of ours is none of that."""
    model = cache(run_node(PAG, model=tiny.model("flux")))
    both = nodes_easycache.EasyCacheNode.execute(model, 1.0, 0.1, 0.95, False)[0]
    assert torch.isfinite(tiny.sample(both, "flux", steps=STEPS)).all()
