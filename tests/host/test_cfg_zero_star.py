"""CFG-Zero* in the host: the formula at every step, in the space of the network's outputs; the first steps stand still;
and what core's own node leaves out."""

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_cfg import CFGZeroStar as CoreCFGZeroStar

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.apg import APG
from guidekit.nodes.cfg_zero_star import CFGZeroStar
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.pag import PAG
from guidekit.tests.host import probes, tiny, toy

SCALE = 5.0


def zero_star(model, **settings):
    return run_node(CFGZeroStar, model=model, **{"zero_init": 0.0, **settings})


def zero_init(model, share, **settings):
    return run_node(CFGZeroStar, model=model, zero_init=share, **{"optimized_scale": False, **settings})


def at_zero(x, sigma, parameterisation):
    """The denoised prediction for an output of 0."""
    return x / (1 + sigma**2) if parameterisation in ("v", "edm") else x


def wanted(step, parameterisation, scale=SCALE):
    """The guided prediction from the recorded raw ones: outputs guided as in the paper, sample by sample, in double
    precision."""
    rows = []
    x, sigma = step["input"].double(), step["sigma"].double()
    for b in range(len(x)):
        origin = at_zero(x[b], sigma[b], parameterisation)
        c, u = (step[name][b].double() - origin for name in ("cond_denoised", "uncond_denoised"))
        s = (c * u).sum() / (u * u).sum()
        rows.append(origin + s * u + scale * (c - s * u))
    return torch.stack(rows)


@pytest.mark.parametrize("parameterisation", ["flow", "eps", "v", "edm"])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_every_prediction_is_the_paper_s(rank, parameterisation):
    model = zero_star(toy.model(rank, parameterisation))
    seen = probes.record_predictions(model)
    toy.sample(model, rank, cfg=SCALE, batch=3)
    assert len(seen.steps) == 4
    for step in seen.steps:
        assert probes.distance(step["denoised"].double(), wanted(step, parameterisation)) < 1e-5


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_on_every_family(family):
    model = zero_star(tiny.model(family))
    seen = probes.record_predictions(model)
    [[tokens, extra]] = tiny.conditioning(family, 11)
    tiny.sample(model, family, cfg=40.0, steps=2, positive=[[20 * tokens, extra]])
    changes = []
    for step in seen.steps:
        paper = wanted(step, "eps" if family == "unet" else "flow", 40.0)
        plain = step["uncond_denoised"] + (step["cond_denoised"] - step["uncond_denoised"]) * 40.0
        changes.append(probes.distance(plain, paper))
        assert probes.distance(step["denoised"].double(), paper) < 1e-5
    assert max(changes) > 1e-4


def test_core_s_node_leaves_out_a_term():
    """(1 - s)(1 - w) x, most of the correction; ours does not."""

    def errors(model):
        seen = probes.record_predictions(model)
        toy.sample(model, cfg=SCALE)
        return [probes.distance(step["denoised"].double(), wanted(step, "flow")) for step in seen.steps]

    ours, core = (
        errors(zero_star(toy.model(4, "flow"))),
        errors(CoreCFGZeroStar.execute(toy.model(4, "flow")).result[0]),
    )
    print(f"largest relative error: core {max(core):.2g}, Guidekit {max(ours):.2g}")
    assert max(ours) < 1e-5
    assert max(core) > 0.05


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "res_multistep"])
def test_the_first_steps_stand_still(sampler, cfg):
    """At any cfg; in all evaluations of a step. What comes after is a run that begins where they end."""
    model = zero_init(toy.model(4, "flow"), 0.5)
    latents = {}

    def see(step, denoised, x, total):
        latents[step] = (x.clone(), denoised.clone())

    result = toy.sample(model, cfg=cfg, steps=4, sampler=sampler, callback=see)
    start = latents[0][0]
    for step in (0, 1):
        assert torch.equal(latents[step][0], start)
        assert torch.equal(latents[step][1], start)
    assert probes.distance(latents[2][0], start) < 1e-6
    assert probes.differ(latents[2][1], latents[2][0])
    assert probes.differ(result, start)


def test_nothing_that_other_nodes_add_moves_a_step_that_stands_still():
    """Whatever the order of nodes, other packs' functions too."""

    def other(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 1)
        return run_node(PAG, model=run_node(APG, model=model))

    def first(model):
        seen = []
        tiny.sample(model, "flux", callback=lambda step, denoised, x, total: seen.append((x, denoised)))
        assert probes.differ(*seen[1])
        return seen[0]

    plain = tiny.model("flux")
    for model in (zero_init(other(plain), 0.25), other(zero_init(plain, 0.25))):
        assert torch.equal(*first(model))
    assert probes.differ(*first(other(plain)))


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        ("eps", {}, "zero-init is for flow models, which this one is not."),
        ("flow", {"denoise": 0.5}, "zero-init is for runs that begin in pure noise."),
        ("flow", {"steps": 1}, "zero_init 0.25 of 1 steps is less than half a step."),
        (
            "flow",
            {"sampler": "dpm_adaptive"},
            "it is a share of the steps, and dpm_adaptive decides while sampling how many steps there are.",
        ),
    ],
)
def test_no_zero_init_where_it_would_do_harm(model, options, why, caplog):
    plain = toy.sample(toy.model(4, model), **options)
    assert torch.equal(toy.sample(zero_init(toy.model(4, model), 0.25), **options), plain)
    assert f"had no effect in this run: {why}" in caplog.text
    caplog.set_level("INFO")
    toy.sample(zero_star(toy.model(4, model), zero_init=0.25), **options)
    assert f"No zero-init: {why}" in caplog.text


def test_at_cfg_1_both_reasons_are_given(caplog):
    toy.sample(zero_star(toy.model(4, "eps"), zero_init=0.25), cfg=1.0)
    told = "no negative prompt was evaluated: cfg is 1, or the guider has none. And zero-init is for flow models"
    assert told in caplog.text


def test_rising_levels_have_no_zero_init():
    """An inversion goes through the steps in reverse."""
    model = zero_init(toy.model(4, "flow"), 0.5)

    def run(patcher):
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(toy.conditioning(1.0), toy.conditioning(-1.0))
        guider.set_cfg(2.0)
        x, sigmas = toy.noise(4), torch.tensor([0.995, 0.997, 0.999])
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(torch.zeros_like(x), x, euler, sigmas, disable_pbar=True)

    assert torch.equal(run(model), run(toy.model(4, "flow")))


def test_the_range_holds_for_both():
    model = zero_star(toy.model(4, "flow"), zero_init=0.5, start_percent=0.3, end_percent=0.6)
    seen, latents = probes.record_predictions(model), []
    toy.sample(model, cfg=SCALE, steps=10, callback=lambda step, denoised, x, total: latents.append((x, denoised)))
    for i, (step, (x, denoised)) in enumerate(zip(seen.steps, latents)):
        plain = step["uncond_denoised"] + (step["cond_denoised"] - step["uncond_denoised"]) * SCALE
        assert torch.equal(x, denoised) == (i in (3, 4)), i
        assert torch.equal(step["denoised"], plain) == (i != 5), i


def test_without_a_negative_there_is_nothing_to_scale():
    """An interval that begins in the middle."""
    model = run_node(GuidanceInterval, model=zero_star(toy.model(4, "flow")), limits="percent", start_percent=0.5)
    seen = probes.record_predictions(model)
    toy.sample(model, cfg=SCALE)
    for step in seen.steps[:2]:
        assert torch.equal(step["denoised"], step["cond_denoised"])
    assert all(probes.distance(s["denoised"].double(), wanted(s, "flow")) < 1e-5 for s in seen.steps[2:])


def test_streams_are_scaled_by_themselves():
    """Audio and video in one latent."""
    import comfy.nested_tensor

    def noise(seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(1, *shape, generator=generator) for shape in ((4, 8, 8), (2, 6))]

    def sample(streams):
        model = zero_star(toy.model(3, "flow"))
        model.model.diffusion_model = toy.Elementwise()
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
        guider.set_cfg(4.0)
        nested = comfy.nested_tensor.NestedTensor
        zeros, euler = nested([torch.zeros_like(s) for s in streams]), comfy.samplers.sampler_object("euler")
        return guider.sample(nested(streams), zeros, euler, torch.tensor([1.0, 0.5, 0.0]), disable_pbar=True).unbind()

    video, audio = noise(1)
    first, other = sample([video, audio]), sample([video, 3 * noise(2)[1]])
    assert probes.distance(other[0], first[0]) < 1e-6
    assert probes.differ(other[1], first[1])


def test_it_reports_what_it_found(caplog):
    caplog.set_level("INFO")
    toy.sample(zero_star(toy.model(4, "flow"), zero_init=0.25), cfg=SCALE)
    assert "CFG-Zero*: scales of the negative's output: " in caplog.text
    assert "zero-init: 1 of 4 steps." in caplog.text
    assert "nothing is published" not in caplog.text
    toy.sample(zero_star(toy.model(4, "eps")), cfg=SCALE)
    assert "The method was made for flow models, which this one is not: nothing is published for it." in caplog.text
