"""Two nodes on one model. Nodes meet in what they hang into it: each is paired with one node for every mechanism, and
with core's neighbours, so that the tests grow with the number of nodes, not with its square."""

from functools import cache

import pytest
import torch
from comfy_extras import (
    nodes_cfg,
    nodes_custom_sampler,
    nodes_easycache,
    nodes_freelunch,
    nodes_model_advanced,
    nodes_pag,
    nodes_perpneg,
    nodes_sag,
    nodes_slg,
)

from guidekit.nodes.host.run import Run
from guidekit.tests.host import adapters, probes, tiny
from guidekit.tests.host.mechanisms import REPRESENTATIVES, attached
from guidekit.tests.host.products import PRODUCTS

CORE = {
    "LoRA": adapters.lora,
    "RescaleCFG": lambda model: nodes_model_advanced.RescaleCFG().patch(model, 0.7)[0],
    "CFGOverride": lambda model: nodes_custom_sampler.CFGOverride.execute(model, 1.0, 0.6, 1.0)[0],
    "EasyCache": lambda model: nodes_easycache.EasyCacheNode.execute(model, 1.0, 0.1, 0.95, False)[0],
    "SLG": lambda model: nodes_slg.SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "1", "1", 0.0)[0],
    "PAG": lambda model: nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0)[0],
    "SAG": lambda model: nodes_sag.SelfAttentionGuidance.execute(model, 0.5, 2.0)[0],
    "FreeU_V2": lambda model: nodes_freelunch.FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0],
}
CORE |= {
    "SLG simple": lambda model: nodes_slg.SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "1", "")[0],
    "CFGNorm": lambda model: nodes_cfg.CFGNorm.execute(model, 0.5)[0],
    "PerpNeg": lambda model: nodes_perpneg.PerpNeg.execute(model, tiny.conditioning(tiny.family_of(model), 44), 1.0)[0],
    "LazyCache": lambda model: nodes_easycache.LazyCacheNode.execute(model, 3.0, 0.0, 1.0, False)[0],
}
if not hasattr(nodes_custom_sampler, "CFGOverride"):
    del CORE["CFGOverride"]  # in hosts before 0.26
UNET_ONLY, DIT_ONLY = {"FreeU_V2", "PAG", "SAG"}, {"SLG", "SLG simple"}

OURS = {p.name: p for p in PRODUCTS}
STANDING = list(dict.fromkeys(REPRESENTATIVES.values()))
# What has nothing left to do beside the other: SLG simple weakens the negative, which is not evaluated beside these;
# CFG++ sets the scale, whatever others have set it to; the predictions agree before CFGOverride begins.
IDLE = {("gfcg_swap", "SLG simple"), ("preference_cfg_model", "SLG simple")}
IDLE |= {("cfgpp", "CFGOverride"), ("adaptive", "CFGOverride")}
# SAG blurs by the attention of the negative, which another model predicts.
REFUSED = {("preference_cfg_model", "SAG")}
# NAG shortens what the steering before it has left, as the help page says.
IN_THEIR_ORDER = {("nag", "nasa")}


# There is one negative to stand in for: the first node does, and the other one says so.
ONE_PLACE = {("gfcg_swap", "gfcg_swap"), ("gfcg_swap", "preference_cfg_model"), ("cache", "cache")}
# What is done cannot be done again; and a LoRA for the negative is on nothing where another model predicts it.
ONLY_ONE = {(name, name): name for name in ("cfgpp", "interval", "adaptive", "zero_init")}
# In four steps the one leaves out what the other would have estimated.
LEFT_OUT = {("adaptive", "cache"), ("cache", "interval")}
ONLY_ONE |= {pair: next(name for name in pair if name != "cache") for pair in LEFT_OUT}
ONLY_ONE |= {("preference_cfg", "preference_cfg_model"): "preference_cfg_model"}


def _on(family, names):
    return all(family in OURS[name].families for name in names if name in OURS)


def _cases(pairs):
    """On a DiT; on a UNet those that stand for something and those that are for nothing else."""
    for pair in dict.fromkeys(tuple(sorted(pair, key=lambda name: (name in CORE, name))) for pair in pairs):
        if _on("flux", pair) and not UNET_ONLY & {*pair}:
            yield pytest.param(pair, "flux", id="+".join(pair) + "-flux")
        if _on("unet", pair) and not DIT_ONLY & {*pair} and (UNET_ONLY & {*pair} or {*pair} <= {*STANDING, *CORE}):
            yield pytest.param(pair, "unet", id="+".join(pair) + "-unet")


def applied(names, family):
    model = tiny.model(family)
    for name in names:
        model = OURS[name].apply(model) if name in OURS else CORE[name](model)
    return model


@cache
def alone(name, family):
    return tiny.sample(applied([name], family), family)


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: p.name)
def test_a_node_attaches_what_it_says(product, monkeypatch):
    """By which it is known with whom it has to be tried."""
    remembering, memory = [], Run.memory

    def watched(run, owner):
        remembering.append(owner)
        return memory(run, owner)

    monkeypatch.setattr(Run, "memory", watched)
    model = product.apply(tiny.model("flux"))
    tiny.sample(model, "flux")
    assert attached(model) | ({"memory"} if remembering else set()) == product.attaches


def test_every_mechanism_has_somebody_who_stands_for_it():
    assert {mechanism for product in PRODUCTS for mechanism in product.attaches} == set(REPRESENTATIVES)
    assert [m for m, name in REPRESENTATIVES.items() if m not in OURS[name].attaches] == []


@pytest.mark.parametrize(("pair", "family"), _cases((a, b) for a in OURS for b in STANDING))
def test_two_of_ours_act_whatever_their_order(pair, family, caplog):
    model = applied(pair, family)
    one, other = tiny.sample(model, family), tiny.sample(applied(pair[::-1], family), family)
    assert torch.isfinite(one).all()
    assert torch.equal(tiny.sample(model, family), one)
    if pair in ONE_PLACE:
        assert torch.equal(one, alone(pair[0], family))
        assert torch.equal(other, alone(pair[1], family))
        assert "another node before it stands in for the negative" in caplog.text
        return
    if pair in ONLY_ONE:
        assert not probes.differ(one, alone(ONLY_ONE[pair], family))
        assert not probes.differ(other, alone(ONLY_ONE[pair], family))
        if pair in LEFT_OUT:
            assert "where the negative could have been reused, another node had brought the scale to 1." in caplog.text
        elif "interval" in pair or "adaptive" in pair:
            assert "had no effect in this run: another node had brought the scale to 1 before it." in caplog.text
        if "zero_init" in pair:
            assert "had no effect in this run: another node had put a result in the place of its own." in caplog.text
        return
    for name, rest in (pair, pair[::-1]):
        for both in (one, other):
            assert probes.differ(both, alone(rest, family)), f"{name} did nothing"
    if pair not in IN_THEIR_ORDER and not any(OURS[name].ordered for name in pair):
        assert not probes.differ(one, other)


@pytest.mark.parametrize(("pair", "family"), _cases((a, b) for a in OURS for b in CORE))
def test_beside_core_s_nodes(pair, family, caplog):
    ours, core = pair
    model = applied(pair, family)
    orders = [model, applied(pair[::-1], family)]
    if pair in REFUSED:
        for each in orders:
            with pytest.raises(ValueError, match=f"{core}.* off the model"):
                tiny.sample(each, family)
        return
    counts = [probes.count_evaluations(each) for each in orders]
    both = [tiny.sample(each, family) for each in orders]
    assert counts[0].total == counts[1].total
    assert torch.equal(tiny.sample(model, family), both[0])
    for found in both:
        assert torch.isfinite(found).all()
        assert probes.differ(found, alone(core, family)), f"{ours} did nothing"
        if pair not in IDLE:
            assert probes.differ(found, alone(ours, family)), f"{core} did nothing"
    assert "had no effect in this run" not in caplog.text
