"""Autoguidance in the host: a second model beside the first, LoRAs at another strength, and random weakening."""

from types import SimpleNamespace

import comfy.model_management
import comfy.nested_tensor
import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.autoguidance import Autoguidance, _Degraded
from guidekit.nodes.host.attention.calls import SelfAttention
from guidekit.nodes.host.models.second_model import Guests
from guidekit.nodes.host.network.families import Block
from guidekit.nodes.host.predictions.corrections import add_correction
from guidekit.nodes.host.run import current_run
from guidekit.nodes.pag import PAG
from guidekit.samplers.guidance.cfg import cfg
from guidekit.tests.host import probes, tiny, toy


def other(family, model_type=None):
    """A second network of a family, with other weights."""
    if model_type is None:
        return tiny.worse(tiny.model(family))
    return tiny.build({**tiny.FAMILIES[family].network, "model_channels": 64}, family, model_type)


def guided(model, weak, **settings):
    return run_node(Autoguidance, model=model, weakness="second model", weak_model=weak, **settings)


def steps_of(model, family, **options):
    seen = probes.record_predictions(model)
    tiny.sample(model, family, **options)
    return seen.steps


def alone(model, family, step, **options):
    """What `model` predicts for the positive at a recorded x and sigma, in a run of its own."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": options.get("positive") or tiny.conditioning(family, 11)})

    class Once:
        def sample(self, guider, sigmas, extra_args, *rest, **kwargs):
            return guider(step["input"], step["sigma"], **extra_args)

    prediction = []

    def keep(args):
        prediction.append(args["denoised"])
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(keep)
    zeros = torch.zeros_like(step["input"])
    guider.sample(zeros, zeros, Once(), torch.tensor([1.0, 0.0]), disable_pbar=True, seed=3)
    return prediction[0]


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_is_cfg_and_the_difference_to_the_second_model(family, cfg_scale):
    model = guided(tiny.model(family), other(family), scale=1.5)
    for step in steps_of(model, family, cfg=cfg_scale, batch=2):
        weak = alone(other(family), family, step)
        plain = step["cond_denoised"]
        if step["uncond"] is not None:
            plain = cfg(step["cond_denoised"], step["uncond_denoised"], cfg_scale)
        wanted = plain + 1.5 * (step["cond_denoised"] - weak)
        assert probes.distance(step["denoised"], wanted) < 1e-5
        assert probes.distance(weak, step["cond_denoised"]) > 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_one_scale_shared_with_cfg(alpha):
    """D = D_m + (w_u - 1)(D_m - D_u) + (w_c - 1)(D_m - D_weak)."""
    w, s = (1 - alpha) * 4 + 1, alpha * 4
    model = guided(tiny.model("flux"), other("flux"), scale=s) if s else tiny.model("flux")
    for step in steps_of(model, "flux", cfg=w):
        strong, weak = step["cond_denoised"], alone(other("flux"), "flux", step)
        w_u, w_c = (1 - alpha) * 4 + 1, alpha * 4 + 1
        paper = strong + (w_u - 1) * (strong - step["uncond_denoised"]) * (w_u > 1) + (w_c - 1) * (strong - weak)
        assert probes.distance(step["denoised"], paper) < 1e-5


def test_each_model_in_its_own_parameterisation():
    """An eps model guided by a v model of the same latents: compared as denoised predictions."""
    weak = other("unet", model_type=ModelType.V_PREDICTION)
    (step,) = steps_of(guided(tiny.model("unet"), weak, scale=2.0), "unet", steps=1)
    expected = alone(other("unet", model_type=ModelType.V_PREDICTION), "unet", step)
    wanted = cfg(step["cond_denoised"], step["uncond_denoised"], 4.0) + 2.0 * (step["cond_denoised"] - expected)
    assert probes.distance(step["denoised"], wanted) < 1e-5


def test_the_second_model_has_its_own_patches_and_not_those_of_the_first():
    """PAG on either side stays on that side."""
    weak_with_pag = run_node(PAG, model=other("flux"), scale=2.0)
    (step,) = steps_of(guided(tiny.model("flux"), weak_with_pag, scale=1.0), "flux", steps=1, cfg=1.0)
    expected = alone(run_node(PAG, model=other("flux"), scale=2.0), "flux", step)
    assert probes.distance(2 * step["cond_denoised"] - step["denoised"], expected) < 1e-5

    strong_with_pag = run_node(PAG, model=tiny.model("flux"), scale=2.0)
    (both,) = steps_of(guided(strong_with_pag, other("flux"), scale=1.0), "flux", steps=1, cfg=1.0)
    (only,) = steps_of(strong_with_pag, "flux", steps=1, cfg=1.0)
    plain = alone(other("flux"), "flux", both)
    assert probes.distance(both["denoised"] - only["denoised"], both["cond_denoised"] - plain) < 1e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_costs_one_evaluation_of_each(family):
    weak = other(family)
    calls_of_weak = probes.count_evaluations(weak)
    model = guided(tiny.model(family), weak, start_percent=0.5)
    calls, seen = probes.count_evaluations(model), probes.record_predictions(model)
    tiny.sample(model, family, steps=4)
    halfway = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    late = sum(probes.at_or_below(step, halfway) for step in seen.steps)
    assert 0 < late < 4
    assert calls.chunks == [2] * 4
    assert calls_of_weak.chunks == [1] * late


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_repeats_also_after_an_interruption(family):
    model = guided(tiny.model(family), other(family))
    first = tiny.sample(model, family)

    def stop(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(model, family, callback=stop)
    assert torch.equal(tiny.sample(model, family), first)
    assert torch.equal(tiny.sample(model.clone(), family), first)
    assert probes.distance(first, tiny.sample(tiny.model(family), family)) > 1e-4


def test_both_models_are_loaded_together_and_stay(monkeypatch):
    loads = []
    load = comfy.model_management.load_models_gpu

    def watched(models, *args, **kwargs):
        beside = [other for m in models for other in m.model_patches_models()]  # which the host loads too
        loads.append([type(m.model).__name__ for m in [*models, *beside]])
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watched)
    tiny.sample(guided(tiny.model("flux"), other("flux")), "flux", steps=2)
    assert loads[-1] == ["Flux", "Flux"]
    assert len(loads) == 2  # the second model's own, then both; none while sampling


def test_the_same_model_with_other_nodes_can_be_the_second():
    """It shares its weights: nothing is loaded twice, and the difference is that of the nodes."""
    weak = run_node(PAG, model=tiny.model("flux"), scale=3.0)
    (step,) = steps_of(guided(tiny.model("flux"), weak, scale=1.0), "flux", steps=1, cfg=1.0)
    expected = alone(run_node(PAG, model=tiny.model("flux"), scale=3.0), "flux", step)
    assert probes.distance(2 * step["cond_denoised"] - step["denoised"], expected) < 1e-5


def test_masks_areas_and_batches():
    left = tiny.conditioning("flux", 1)
    left[0][1]["area"] = (8, 4, 0, 0)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :5] = 1
    options = {
        "positive": left + tiny.conditioning("flux", 2),
        "noise_mask": mask,
        "latent": tiny.noise("flux", seed=9),
    }
    plain = tiny.sample(tiny.model("flux"), "flux", **options)
    found = tiny.sample(guided(tiny.model("flux"), other("flux")), "flux", **options)
    assert probes.distance(found, plain) > 1e-4
    batch = tiny.sample(guided(tiny.model("flux"), other("flux")), "flux", batch=2)
    assert probes.distance(batch[:1], tiny.sample(guided(tiny.model("flux"), other("flux")), "flux")) < 1e-3


def lora(family, strength=1.0):
    """A patch on one weight, as a LoRA loader adds it, and the weight it lands on."""
    model = tiny.model(family)
    key = next(k for k in model.model.state_dict() if k.endswith(("attn1.to_q.weight", "img_attn.qkv.weight")))
    weight = model.model.state_dict()[key]
    change = 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    model = model.clone()
    model.add_patches({key: ("diff", (change,))}, strength)
    return model


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_loras_at_another_strength(family, factor):
    model = run_node(Autoguidance, model=lora(family, 0.8), weakness="LoRA strength", amount=factor, scale=1.0)
    (step,) = steps_of(model, family, steps=1, cfg=1.0)
    expected = alone(lora(family, 0.8 * factor) if factor else tiny.model(family), family, step)
    assert probes.distance(2 * step["cond_denoised"] - step["denoised"], expected) < 1e-5
    strong = alone(lora(family, 0.8), family, step)
    assert probes.distance(step["cond_denoised"], strong) < 1e-5
    assert probes.distance(expected, strong) > 1e-5


def test_the_weights_of_the_model_are_as_they_were():
    comfy.model_management.unload_all_models()
    before = {k: v.clone() for k, v in tiny.model("flux").model.state_dict().items()}
    model = run_node(Autoguidance, model=lora("flux"), weakness="LoRA strength", amount=0.2)
    first = tiny.sample(model, "flux")
    assert torch.equal(tiny.sample(model, "flux"), first)
    comfy.model_management.unload_all_models()
    for key, value in tiny.model("flux").model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_dropout_changes_from_step_to_step_and_with_the_seed():
    runs = [
        tiny.sample(run_node(Autoguidance, model=tiny.model("flux"), amount=0.5, random_seed=seed), "flux")
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert probes.distance(runs[0], runs[2]) > 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weakness": "second model"}, "nothing is connected to weak_model"),
        ({"weakness": "LoRA strength", "amount": 0.5}, "no LoRA whose strength"),
        ({"weakness": "dropout", "amount": 1.0}, "dropout is 1. It is a fraction"),
        ({"weakness": "token noise", "amount": -0.5}, "token noise is -0.5"),
        ({"blocks": "77"}, "name 77, which this model does not have"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message):
        run_node(Autoguidance, model=tiny.model("flux"), **settings)


@pytest.mark.parametrize(("one", "two"), [("flux", "wan"), ("flux", "unet")])
def test_models_that_share_no_latents_or_noise_are_refused(one, two):
    with pytest.raises(ValueError, match="cannot be compared.*same family"):
        guided(tiny.model(one), tiny.model(two))


def test_a_straight_path_and_added_noise_do_not_mix():
    with pytest.raises(ValueError, match="different noise.*data plus noise.*straight path"):
        guided(tiny.model("unet"), other("unet", model_type=ModelType.FLOW))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2s_ancestral"])
def test_both_models_count_the_same_steps(sampler):
    steps = {"first": [], "second": []}

    class Note:
        label, idle_reason = "note", "never"

        def __init__(self, name):
            self.name = name

        def __call__(self, run, args):
            run.acted.add(self)
            steps[self.name].append(run.step)

    def watched(model, name):
        model = model.clone()
        add_correction(model, Note(name))
        return model

    model = guided(watched(tiny.model("flux"), "first"), watched(other("flux"), "second"))
    tiny.sample(model, "flux", sampler=sampler, steps=5)
    assert steps["first"] == steps["second"]
    assert set(steps["first"]) == set(range(5))


def test_degradation_is_another_in_every_step_and_block():
    def noise(step, block, seed=1):
        tokens = torch.ones(2, 3, 8, 4)
        order = {Block("double", 0): 0, Block("double", 1): 1}
        run = SimpleNamespace(seed_of_step=lambda seed: 1000 * seed + 10 * step, of=lambda kind: order)
        place = (slice(2, 8), (2, 3), Block("double", block), run, None)
        attention = SelfAttention(tokens, tokens, tokens, 1.0, *place, (), lambda q, k, v: v, None)
        out = _Degraded("dropout", 0.5, seed)(attention)
        assert torch.equal(out[:, :, :2], tokens[:, :, :2])  # the text
        return out

    assert torch.equal(noise(0, 0), noise(0, 0))
    for step, block, seed in ((1, 0, 1), (0, 1, 1), (0, 0, 2)):
        assert not torch.equal(noise(step, block, seed), noise(0, 0))


def elementwise(strength, rank=5):
    model = toy.model(rank, "flow")
    model.model.diffusion_model = toy.Elementwise(strength)
    return model


def sampled(model, latent, mask=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
    guider.set_cfg(3.0)
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0])
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(latent, latent * 0, euler, sigmas, denoise_mask=mask, disable_pbar=True)


@pytest.mark.parametrize("rescale", ["off", "partial", "full"])
@pytest.mark.parametrize("masked", [False, True])
def test_streams_of_a_packed_latent_do_not_meet(masked, rescale):
    """Video and audio in one latent, which the host packs: the video comes out as it does alone, whatever the audio."""
    video, audio = torch.randn(1, 4, 2, 4, 6), torch.randn(1, 4, 24)
    mask = torch.ones(1, 1, 2, 4, 6)
    mask[..., :3] = 0
    mask = mask if masked else None
    weak, shapes = elementwise(0.6), []

    def extra_conds(**kwargs):
        shapes.append(kwargs["latent_shapes"])
        return type(weak.model).extra_conds(weak.model, **kwargs)

    weak.model.extra_conds = extra_conds
    model = guided(elementwise(1.0), weak, scale=2.0, rescale=rescale)
    alone = sampled(model, video, mask)
    assert probes.distance(alone, sampled(elementwise(1.0), video, mask)) > 1e-3
    for loud in (1.0, 30.0):
        nested = comfy.nested_tensor.NestedTensor
        together = sampled(model, nested([video, audio * loud]), nested([mask]) if masked else None)
        assert probes.distance(together.unbind()[0], alone) < 1e-5
        assert [tuple(shape) for shape in shapes[-1]] == [(1, 4, 2, 4, 6), (1, 4, 24)]


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_latents_of_any_rank(rank):
    model = guided(elementwise(1.0, rank), elementwise(0.6, rank), scale=2.0)
    seen = probes.record_predictions(model)
    sampled(model, toy.noise(rank, batch=2))
    for step in seen.steps:
        x, sigma = step["input"], step["sigma"].reshape(-1, *[1] * (rank - 1))
        weak = x - sigma * (0.4 * x + 0.6 * torch.tanh(2.0 * x))
        wanted = cfg(step["cond_denoised"], step["uncond_denoised"], 3.0) + 2.0 * (step["cond_denoised"] - weak)
        assert probes.distance(step["denoised"], wanted) < 1e-5


def test_the_second_model_is_let_go_of_with_the_run():
    """Also when the run is interrupted."""
    model, runs = guided(tiny.model("unet"), other("unet")), []

    def post_cfg(args):
        runs.append(current_run(args["model_options"]))
        assert len(runs[-1].of(Guests)) == 1
        if len(runs) == 4:
            raise RuntimeError("broken off")
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(post_cfg)
    tiny.sample(model, "unet", steps=2)
    assert runs[0].of(Guests) == {}
    with pytest.raises(RuntimeError, match="broken off"):
        tiny.sample(model, "unet", steps=2)
    assert runs[-1].of(Guests) == {}
