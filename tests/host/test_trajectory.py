"""Direct Inversion in the host."""

import comfy.samplers
import pytest
import torch

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.apg import APG
from guidekit.nodes.exact_sample import ExactSample
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.negtome import NegToMe
from guidekit.nodes.trajectory_record import TrajectoryRecord
from guidekit.nodes.trajectory_replay import TrajectoryReplay
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.test_exact import IMPURE, MODELS, guider, image, inverted, sigmas


def recorded(model, family, steps=6, start=0, **settings):
    given = {"guider": guider(model, family, cfg=1.0), "sigmas": sigmas(model, steps, start), **settings}
    return run_node(TrajectoryRecord, **{"latent": {"samples": image(family)}, **given})


def replayed(model, family, state, source_prompt=None, **about):
    """(edited, source)"""
    node = TrajectoryReplay.execute(guider(model, family, **about), state, source_prompt)
    return node[0]["samples"], node[1]["samples"]


def ddim(model, family, state, **about):
    """Plain Euler from the recorded noise."""

    class ScheduleSampler(comfy.samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
            x = noise
            for sigma, target in zip(sigmas.tolist(), sigmas.tolist()[1:]):
                f = (x - guider(x, x.new_full((len(x),), sigma), **extra_args)) / sigma
                x = x + (target - sigma) * f
            return x

    raw, levels = state["guidekit_inversion"].latents[0], state["guidekit_inversion"].sigmas
    return guider(model, family, **about).sample(
        raw, torch.zeros_like(raw), ScheduleSampler(), levels, disable_pbar=True, seed=0
    )


def pulled(model):
    """The second image of a batch takes from the first."""
    return run_node(
        NegToMe, model=model, alpha=-0.6, threshold=-1.0, steps="start to end", end_percent=1.0, blocks="all"
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_source_stays_and_the_other_row_is_ddim(name):
    family, kind = MODELS[name]
    model = tiny.model(family, kind)
    state = recorded(model, family)
    edited, source = replayed(model, family, state, prompt=12, cfg=7.5)
    assert probes.distance(source, image(family)) < 1e-6  # to the host's units and back
    assert torch.equal(state["guidekit_inversion"].latents[-1], model.model.process_latent_in(image(family)))
    assert probes.distance(edited, ddim(model, family, state, prompt=12, cfg=7.5)) < 5e-4
    assert probes.distance(edited, source) > 1e-3


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_recording_is_ddim_inversion(family):
    """By hand, at the level that is stepped to."""
    model = tiny.model(family)
    state = recorded(model, family)["guidekit_inversion"]

    class ScheduleSampler(comfy.samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
            levels, x = sigmas.tolist(), noise
            for sigma, clean in reversed(list(zip(levels, levels[1:]))):
                f = (x - guider(x, x.new_full((len(x),), sigma), **extra_args)) / sigma
                x = x + (sigma - clean) * f
            return x

    raw = model.model.process_latent_in(image(family))
    noise = guider(model, family, cfg=1.0).sample(
        raw, torch.zeros_like(raw), ScheduleSampler(), sigmas(model, 6), disable_pbar=True, seed=0
    )
    assert probes.distance(model.model.process_latent_out(state.latents[0]), noise) < 1e-5


@pytest.mark.parametrize("family", ["unet", "flux", "sd3", "qwen_image"])
def test_another_node_takes_from_the_source(family):
    model = tiny.model(family)
    state = recorded(model, family)
    plain = replayed(model, family, state, prompt=12)
    edited, source = replayed(pulled(model), family, state, prompt=12)
    assert torch.equal(source, plain[1])
    assert probes.distance(edited, plain[0]) > 1e-6


@pytest.mark.parametrize("family", ["unet", "flux", "sd3"])
def test_the_source_has_a_prompt_of_its_own(family):
    """Each row as in a run by itself, and what the other takes is what the source has with its prompt."""
    model = tiny.model(family)
    state = recorded(model, family)
    source = tiny.conditioning(family, 11)
    rows = []

    def seen(args):
        rows.append(args["cond_denoised"].clone())
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(seen)
    edited, _ = replayed(watched, family, state, source, prompt=12)
    both = rows.copy()
    rows.clear()
    same, _ = replayed(watched, family, state, prompt=11)
    assert all(probes.distance(a[:1], b[:1]) < 1e-5 for a, b in zip(both, rows))
    rows.clear()
    alone, _ = replayed(watched, family, state, prompt=12)
    assert all(probes.distance(a[1:], b[1:]) < 1e-5 for a, b in zip(both, rows))
    assert all(probes.distance(a[:1], b[:1]) > 1e-6 for a, b in zip(both, rows))
    assert probes.distance(edited, alone) < 1e-5
    found = [replayed(pulled(model), family, state, prompt, prompt=12)[0] for prompt in (source, None)]
    assert probes.distance(*found) > 1e-7


def test_prompts_that_do_not_fit_together():
    model = tiny.model("unet")
    state = recorded(model, "unet")
    [[tokens, options]] = tiny.conditioning("unet", 11)
    with pytest.raises(ValueError, match="do not fit into one batch: cross_attn"):
        replayed(model, "unet", state, [[tokens.repeat(1, 2, 1), options]])
    with pytest.raises(ValueError, match="2 parts"):
        replayed(model, "unet", state, tiny.conditioning("unet", 11) * 2)
    flux = "pooled_output is none and|no pooled output, and Flux takes one"  # hosts before 0.26 want one
    for family, sentence in (("flux", flux), ("sd3", "no pooled output, and SD3 takes one")):
        model = tiny.model(family)
        state, [[tokens, _]] = recorded(model, family), tiny.conditioning(family, 11)
        with pytest.raises(ValueError, match=sentence):
            replayed(model, family, state, [[tokens, {}]])


def test_the_guider_is_left_as_it_was():
    model = tiny.model("unet")
    state, given = recorded(model, "unet"), guider(model, "unet", 12)
    before = given.original_conds["positive"][0]["cross_attn"]
    TrajectoryReplay.execute(given, state, tiny.conditioning("unet", 11))
    assert given.original_conds["positive"][0]["cross_attn"] is before


@pytest.mark.parametrize("name", IMPURE)
def test_guidance_that_remembers_is_refused_in_the_recording_only(name):
    """The replay is a run like any other."""
    model = IMPURE[name](tiny.model("unet"))
    with pytest.raises(ValueError, match=name):
        recorded(model, "unet", guider=guider(model, "unet"))
    edited, _ = replayed(model, "unet", recorded(tiny.model("unet"), "unet"))
    assert torch.isfinite(edited).all()


def test_momentum_is_that_of_any_run():
    """APG with momentum in the replay: as in Euler from the same noise, for rows that do not see each other."""
    model = run_node(APG, model=tiny.model("unet"), momentum=-0.5)
    state = recorded(tiny.model("unet"), "unet")
    edited, _ = replayed(model, "unet", state, prompt=12)
    raw, levels = state["guidekit_inversion"].latents[0], state["guidekit_inversion"].sigmas
    noise = raw / (1 + levels[0] ** 2).sqrt()  # as the host makes it noise
    euler = comfy.samplers.sampler_object("euler")
    run = guider(model, "unet", 12)
    wanted = run.sample(noise, torch.zeros_like(raw), euler, levels, disable_pbar=True, seed=0)
    assert probes.distance(edited, wanted) < 1e-4


def test_steps_are_those_of_the_schedule():
    """An interval guides the same steps there and back."""
    model = run_node(GuidanceInterval, model=tiny.model("unet"), limits="percent", start_percent=0.3, end_percent=0.7)
    calls = probes.count_evaluations(model)
    state = recorded(model, "unet", 9, guider=guider(model, "unet"))
    there = calls.total
    replayed(model, "unet", state)
    assert 9 < there < 18
    assert calls.total == 2 * there


def test_latents_of_other_nodes():
    model = tiny.model("unet")
    state = recorded(model, "unet")
    with pytest.raises(ValueError, match="carries what Exact Inversion makes. Connect the output of Trajectory Record"):
        replayed(model, "unet", inverted(model, "unet"))
    with pytest.raises(ValueError, match="carries what Trajectory Record makes. Connect the output of Exact Inversion"):
        run_node(ExactSample, guider=guider(model, "unet"), inverted=state)
    with pytest.raises(ValueError, match="carries no inversion"):
        replayed(model, "unet", {"samples": state["samples"]})
    with pytest.raises(ValueError, match="was inverted with model"):
        replayed(tiny.model("flux"), "flux", state)


def test_one_image():
    model = tiny.model("unet")
    with pytest.raises(ValueError, match="has 2 images"):
        recorded(model, "unet", latent={"samples": image("unet", 2)})
    with pytest.raises(ValueError, match="has a mask"):
        recorded(model, "unet", latent={"samples": image("unet"), "noise_mask": torch.ones(1, 8, 8)})
    with pytest.raises(ValueError, match="falling"):
        recorded(model, "unet", sigmas=torch.tensor([0.0, 1.0]))


def test_progress_and_previews(monkeypatch):
    """The edited image is what is shown."""
    seen = []

    def callback(*args):
        return lambda step, x0, x, total: seen.append((step, total, len(x0), len(x)))

    monkeypatch.setattr("latent_preview.prepare_callback", callback)
    model = tiny.model("flux")
    state = recorded(model, "flux", 5)
    replayed(model, "flux", state)
    assert seen == 2 * [(i, 5, 1, 1) for i in range(5)]
