"""Core's nodes that use the same slots as ours: in both orders of the graph, a node acts or says why not."""

import comfy.samplers
import comfy.supported_models as supported
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_easycache, nodes_flux, nodes_sag, nodes_slg

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.adaptive_guidance import AdaptiveGuidance
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.cfgpp import CFGPP
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.host.network.blocks import reaches_unet_layers
from guidekit.nodes.host.predictions.branches import Branches
from guidekit.nodes.host.predictions.corrections import add_correction
from guidekit.nodes.pag import PAG
from guidekit.nodes.seg import SEG
from guidekit.nodes.slg import SLG
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import PRODUCTS

ORDERS = [(0, 1), (1, 0)]


def in_order(order, ours, core, family):
    model = tiny.model(family)
    for i in order:
        model = (ours, core)[i](model)
    return model


# CFGOverride sets the scale; what limits or sets it comes after, whatever the order.


@pytest.mark.skipif(not hasattr(nodes_custom_sampler, "CFGOverride"), reason="this host has no CFGOverride")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "ours",
    [
        lambda model: run_node(GuidanceInterval, model=model, limits="percent", start_percent=0.3),
        lambda model: run_node(AdaptiveGuidance, model=model, threshold=0.0),
        lambda model: run_node(CFGPP, model=model),
    ],
    ids=["interval", "adaptive", "cfgpp"],
)
def test_cfg_override_is_limited_or_replaced(ours, order):
    def override(model):
        return nodes_custom_sampler.CFGOverride.execute(model, 2.0, 0.0, 1.0)[0]

    model, wanted = in_order(order, ours, override, "unet"), ours(tiny.model("unet"))
    seen, expected = probes.count_evaluations(model), probes.count_evaluations(wanted)
    assert probes.distance(tiny.sample(model, "unet"), tiny.sample(wanted, "unet", cfg=2.0)) < 1e-5
    assert seen.total == expected.total


# SkipLayerGuidanceDiTSimple takes the slot in which extra predictions are evaluated, and knows two prompts.


def simple(model):
    return nodes_slg.SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "1", "")[0]


WEAK = {
    "PAG double 1": lambda model: run_node(PAG, model=model, blocks="double 1"),
    "PAG double 0": lambda model: run_node(PAG, model=model, blocks="double 0"),
    "SLG double 0": lambda model: run_node(SLG, model=model, blocks="double 0"),
}


@pytest.mark.skipif(not hasattr(nodes_slg, "SkipLayerGuidanceDiTSimple"), reason="this host has it not")
@pytest.mark.parametrize("weak", ["PAG double 1", "PAG double 0", "SLG double 0"])
def test_simple_skip_layer_guidance_in_both_orders(weak):
    one, other = (tiny.sample(in_order(order, WEAK[weak], simple, "flux"), "flux") for order in ORDERS)
    assert probes.distance(one, other) < 1e-4
    assert probes.distance(one, tiny.sample(simple(tiny.model("flux")), "flux")) > 1e-4
    assert probes.distance(one, tiny.sample(WEAK[weak](tiny.model("flux")), "flux")) > 1e-4


# SAG replaces the self-attention of the middle block's first layer.


def sag(model):
    return nodes_sag.SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("node", [PAG, SEG, Autoguidance])
def test_the_block_that_sag_has_taken_is_weakened_all_the_same(node, order, caplog):
    """For the rows of the weak prediction alone, which SAG is not shown (test_core_attention.py)."""
    model, alone = in_order(order, lambda m: run_node(node, model=m), sag, "unet"), sag(tiny.model("unet"))
    seen, expected = probes.count_evaluations(model), probes.count_evaluations(alone)
    assert probes.distance(tiny.sample(model, "unet"), tiny.sample(alone, "unet")) > 1e-5
    assert seen.total == expected.total + 4
    assert "had no effect" not in caplog.text


# Reports of nodes that change the scale.


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_samplers_that_take_cfg_as_lambda(sampler, caplog):
    model = run_node(GuidanceInterval, model=tiny.model("unet"), limits="percent", start_percent=0.3)
    tiny.sample(model, "unet", sampler=sampler, cfg=0.6)
    [said] = [r.getMessage() for r in caplog.records if "Guidance interval" in r.getMessage()]
    assert f"the sampler sample_{sampler} takes cfg as CFG++'s lambda" in said


def test_a_stage_that_lies_inside_the_interval(caplog):
    model = run_node(GuidanceInterval, model=tiny.model("unet"), limits="percent", start_percent=0.5)
    tiny.sample(model, "unet", steps=8, start_step=6)
    assert "all steps of this run lie inside the interval, and are guided as without the node" in caplog.text


def test_the_line_names_the_sampler(caplog):
    """A graph may have several."""
    from comfy_execution.utils import CurrentNodeContext

    caplog.set_level("INFO")
    model = run_node(AdaptiveGuidance, model=tiny.model("unet"), threshold=0.0)
    with CurrentNodeContext("prompt", "17"):
        tiny.sample(model, "unet")
    assert "Adaptive guidance (sampler node 17): crossed 0" in caplog.text


# Steps: those of the run.


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive", "heunpp2", "sa_solver_pece"])
def test_irregular_samplers_are_limited_by_whole_steps(sampler, caplog):
    """Each evaluation of a step is guided, or none is."""
    model = run_node(GuidanceInterval, model=tiny.model("unet"), limits="sigma", sigma_high=5.0, sigma_low=0.6)
    seen = probes.record_predictions(model)
    owners = []

    class Owner:
        label, idle_reason = "owner", "never"

        def __call__(self, run, args):
            run.acted.add(self)
            owners.append((run.step, run.step_sigma))

    add_correction(model, Owner())
    caplog.set_level("INFO")
    tiny.sample(model, "unet", sampler=sampler, steps=9)
    for (_, sigma), step in zip(owners, seen.steps):
        assert (step["cond_scale"] != 1) == (0.6 < sigma <= 5.0)
    assert {step["cond_scale"] for step in seen.steps} == {1.0, 4.0}
    guided = len({step for step, sigma in owners if 0.6 < sigma <= 5.0})
    assert f"{guided} of {len(dict(owners))} steps guided" in caplog.text


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_adaptive_guidance_stops_in_samplers_with_steps_of_their_own(sampler):
    model = run_node(AdaptiveGuidance, model=tiny.model("unet"), threshold=0.0)
    seen, plain = probes.count_evaluations(model), tiny.model("unet")
    all_of_them = probes.count_evaluations(plain)
    tiny.sample(model, "unet", sampler=sampler, steps=9)
    tiny.sample(plain, "unet", sampler=sampler, steps=9)
    assert seen.total < all_of_them.total


def test_a_run_in_two_parts_skips_the_same_blocks():
    """Random blocks are drawn by the noise level: 4 + 4 steps are 8."""
    model = run_node(SLG, model=tiny.model("flux"), random_blocks=1, random_seed=7)
    whole = tiny.sample(model, "flux", steps=8)
    half = tiny.sample(model, "flux", steps=8, last_step=4)
    x = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)[4:]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning("flux", 11), tiny.conditioning("flux", 22))
    guider.set_cfg(4.0)
    rest = guider.sample(torch.zeros_like(half), half, comfy.samplers.sampler_object("euler"), x, disable_pbar=True)
    assert probes.distance(rest, whole) < 1e-3


# Flux KV Cache cuts the reference images off the sequence from the second network call on.


FLUX2 = {
    **tiny.FAMILIES["flux"].network,
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "axes_dim": [4, 4, 4, 4],
    "theta": 2000,
    "mlp_ratio": 3.0,
    "global_modulation": True,
    "mlp_silu_act": True,
    "qkv_bias": False,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
    "guidance_embed": False,
    "vec_in_dim": None,
}


@pytest.mark.skipif(not hasattr(nodes_flux, "FluxKVCache"), reason="this host has no FluxKVCache")
@pytest.mark.skipif(not reaches_unet_layers(), reason="this host's FluxKVCache fails in calls of another batch size")
@pytest.mark.parametrize("node", [PAG, SLG])
def test_flux_kv_cache(node, monkeypatch):
    monkeypatch.setitem(tiny.FAMILIES, "flux2", tiny.Tiny(supported.Flux2, FLUX2, (128, 6, 6), 12, 8))

    def cached():
        return nodes_flux.FluxKVCache.execute(tiny.build(FLUX2, "flux2"))[0]

    def prompt(seed):
        [[tokens, options]] = tiny.conditioning("flux2", seed)
        return [[tokens, {**options, "reference_latents": [tiny.noise("flux2", seed=70)[..., :4, :4]]}]]

    def sample(model):
        return tiny.sample(model, "flux2", positive=prompt(11), negative=prompt(22))

    settings = {"blocks": "double 1", "scale": 100.0}
    found = sample(run_node(node, model=cached(), **settings))
    effect = probes.distance(found, sample(cached()))
    assert effect > 1e-3
    never = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(Branches, "shares_blocks", never, raising=False)
    assert probes.distance(found, sample(run_node(node, model=cached(), **settings))) < effect / 5


# EasyCache replaces network calls: a prediction in a separate call would be fresh beside cached ones.


def test_a_candidate_beside_easycache_is_that_of_the_step_before():
    [gfcg] = [p for p in PRODUCTS if p.name == "gfcg"]

    def sample(cache, **settings):
        model = gfcg.apply(cache(tiny.model("unet")), **settings)
        seen = probes.count_evaluations(model)
        return tiny.sample(model, "unet", steps=8), seen.total

    def easy(model):
        return nodes_easycache.EasyCacheNode.execute(model, 3.0, 0.1, 0.95, False)[0]

    found, cost = sample(easy)
    lagged, same_cost = sample(easy, use_previous_step=True)
    assert torch.equal(found, lagged)
    assert cost == same_cost
    plain = tiny.sample(easy(tiny.model("unet")), "unet", steps=8)
    alone, reference = sample(lambda model: model)[0], tiny.sample(tiny.model("unet"), "unet", steps=8)
    assert 1e-4 < probes.distance(found, plain) < 3 * probes.distance(alone, reference)
