"""Every node under every guider of core: it acts, or it says why not, and counts what it saved."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_perpneg

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.adaptive_guidance import AdaptiveGuidance
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.pag import PAG
from guidekit.nodes.preference_cfg import MIXTURE, PreferenceCFG
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import PRODUCTS

FAMILY, STEPS, CFG = "unet", 4, 4.0


def prompt(seed):
    return tiny.conditioning(FAMILY, seed)


def cfg_guider(model):
    return nodes_custom_sampler.CFGGuider.execute(model, prompt(11), prompt(22), CFG)[0]


def at_one(model):
    return nodes_custom_sampler.CFGGuider.execute(model, prompt(11), prompt(22), 1.0)[0]


def basic(model):
    return nodes_custom_sampler.BasicGuider.execute(model, prompt(11))[0]


def dual(style):
    def make(model):
        node = nodes_custom_sampler.DualCFGGuider
        return node.execute(model, prompt(11), prompt(12), prompt(22), CFG, 3.0, style)[0]

    return make


def perp_neg(model):
    return nodes_perpneg.PerpNegGuider.execute(model, prompt(11), prompt(22), prompt(44), CFG, 1.0)[0]


def dual_model(model):
    node = getattr(nodes_custom_sampler, "DualModelGuider", None)
    if node is None:
        pytest.skip("this host has no DualModelGuider")
    return node.execute(model, prompt(11), CFG, tiny.worse(tiny.model(FAMILY)), prompt(22))[0]


@dataclass(frozen=True)
class Guider:
    """`silent`: products that cannot act under it, by what they say of it; `prompts`: that it evaluates per step."""

    make: Callable
    prompts: int
    silent: dict[str, str]


NO_NEGATIVE = "no negative prompt was evaluated"
OWN = "evaluates its prompts by itself, so that no node can take the negative's place"
THREE = "combines three predictions; this node needs a positive and a negative"
NOTHING_BEFORE = {"apg_everything": "neither CFG nor another node"}
UNGUIDED = NOTHING_BEFORE | dict.fromkeys(
    (
        "apg",
        "zero_star",
        "frequency",
        "frequency_resized",
        "cache",
        "gfcg_swap",
        "preference_cfg",
        "preference_cfg_model",
        "interval",
        "adaptive",
    ),
    NO_NEGATIVE,
)
REPLACED = {"cache": OWN, "gfcg_swap": OWN, "preference_cfg_model": OWN}
NOT_CFG = dict.fromkeys(("apg", "zero_star", "frequency", "frequency_resized"), "does not guide by CFG")
GUIDERS = {
    "CFG": Guider(cfg_guider, 2, {}),
    "CFG 1": Guider(at_one, 1, UNGUIDED),
    "Basic": Guider(basic, 1, UNGUIDED | {"cfgpp": "no negative prompt (BasicGuider)"}),
    "Dual regular": Guider(dual("regular"), 3, REPLACED | {"cfgpp": THREE, "adaptive": THREE}),
    "Dual nested": Guider(dual("nested"), 3, REPLACED | {"cfgpp": THREE, "adaptive": THREE}),
    "PerpNeg": Guider(perp_neg, 3, REPLACED | NOT_CFG | {"cfgpp": THREE, "adaptive": THREE}),
    "DualModel": Guider(dual_model, 2, REPLACED),
}


def sample(guider, sampler="euler", steps=STEPS):
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "simple", steps)
    x = tiny.noise(FAMILY)
    sampler = comfy.samplers.sampler_object(sampler)
    return guider.sample(x, torch.zeros_like(x), sampler, sigmas, seed=3, disable_pbar=True)


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.parametrize("product", [p for p in PRODUCTS if FAMILY in p.families], ids=lambda p: p.name)
def test_it_acts_or_says_why_not(product, name, caplog):
    guider = GUIDERS[name]
    plain = sample(guider.make(tiny.model(FAMILY)))
    caplog.clear()
    found = sample(guider.make(product.apply(tiny.model(FAMILY))))
    said = [r.getMessage() for r in caplog.records if "had no effect in this run" in r.getMessage()]
    reason = guider.silent.get(product.name)
    if reason is None:
        assert probes.distance(found, plain) > 1e-5
        assert said == []
    else:
        assert torch.equal(found, plain)
        assert len(said) == 1
        assert reason in said[0]


# What a node that leaves out predictions saves: the host is asked as often as it says.


def saved_by(model, name, caplog):
    guider = GUIDERS[name]
    seen = probes.count_evaluations(model)
    predictions = probes.record_predictions(model)
    caplog.set_level("INFO")
    sample(guider.make(model), steps=8)
    told = next(r.getMessage() for r in caplog.records if "evaluations saved" in r.getMessage())
    return 8 * guider.prompts - seen.total, told, predictions


SAVED = {"CFG": 1, "PerpNeg": 2, "Dual regular": 2, "Dual nested": 0, "DualModel": 1}


@pytest.mark.parametrize(("name", "each"), SAVED.items())
def test_the_interval_leaves_the_positive_alone_and_counts(name, each, caplog):
    model = run_node(GuidanceInterval, model=tiny.model(FAMILY), limits="percent", start_percent=0.3, end_percent=0.7)
    saved, told, predictions = saved_by(model, name, caplog)
    assert saved == 5 * each
    assert f"3 of 8 steps guided, {saved} evaluations saved" in told
    plain = [step for step in predictions.steps if torch.equal(step["denoised"], step["cond_denoised"])]
    if name in ("CFG", "PerpNeg"):  # the others guide after the hooks
        assert len(plain) == 5


@pytest.mark.parametrize("name", ["CFG", "DualModel"])
def test_adaptive_guidance_counts(name, caplog):
    model = run_node(AdaptiveGuidance, model=tiny.model(FAMILY), threshold=0.0)
    saved, told, _ = saved_by(model, name, caplog)
    assert saved == 7
    assert "7 evaluations saved" in told


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_outside_the_interval_a_dual_guider_predicts_the_positive(style):
    """All of whose prompts but the positive have no weight there."""
    model = run_node(GuidanceInterval, model=tiny.model(FAMILY), limits="sigma", sigma_high=1e-3, sigma_low=1e-4)
    assert probes.distance(sample(dual(style)(model)), sample(basic(tiny.model(FAMILY)))) < 1e-4


# The weak predictions are those that an ordinary guider makes: with the prompts so that both guiders are CFG.


def test_pag_is_the_same_under_a_guider_that_amounts_to_cfg():
    """Perp-Neg at weight 0 of its negative is CFG between its positive and its empty prompt."""
    model = run_node(PAG, model=tiny.model(FAMILY))
    perp = nodes_perpneg.PerpNegGuider.execute(model, prompt(11), prompt(22), prompt(44), CFG, 0.0)[0]
    plain = nodes_custom_sampler.CFGGuider.execute(model, prompt(11), prompt(44), CFG)[0]
    assert probes.distance(sample(perp), sample(plain)) < 1e-4


def test_the_mixture_is_the_same_under_a_guider_that_amounts_to_cfg():
    from guidekit.tests.host import adapters

    model = tiny.model(FAMILY)
    mixed = run_node(PreferenceCFG, model=model, mode=MIXTURE, other_model=adapters.lora(model))
    perp = nodes_perpneg.PerpNegGuider.execute(mixed, prompt(11), prompt(22), prompt(44), CFG, 0.0)[0]
    plain = nodes_custom_sampler.CFGGuider.execute(mixed, prompt(11), prompt(44), CFG)[0]
    assert probes.distance(sample(perp), sample(plain)) < 1e-4
