"""Every ordered pair of nodes, ours and core's neighbours, on a UNet and a DiT."""

import pytest
import torch
from comfy_extras import (
    nodes_custom_sampler,
    nodes_easycache,
    nodes_freelunch,
    nodes_model_advanced,
    nodes_pag,
    nodes_sag,
    nodes_slg,
)

from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import PRODUCTS


def _cfg_override(model):
    if not hasattr(nodes_custom_sampler, "CFGOverride"):
        pytest.skip("this host has no CFGOverride")
    return nodes_custom_sampler.CFGOverride.execute(model, 1.0, 0.6, 1.0)[0]


CORE = {
    "RescaleCFG": lambda model: nodes_model_advanced.RescaleCFG().patch(model, 0.7)[0],
    "CFGOverride": _cfg_override,
    "EasyCache": lambda model: nodes_easycache.EasyCacheNode.execute(model, 0.2, 0.1, 0.95, False)[0],
    "SLG": lambda model: nodes_slg.SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "1", "1", 0.0)[0],
    "PAG": lambda model: nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0)[0],
    "SAG": lambda model: nodes_sag.SelfAttentionGuidance.execute(model, 0.5, 2.0)[0],
    "FreeU_V2": lambda model: nodes_freelunch.FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0],
}
UNET_ONLY, DIT_ONLY = {"FreeU_V2", "PAG", "SAG"}, {"SLG"}
FAMILIES = ["unet", "flux"]

OURS = {p.name: p for p in PRODUCTS if p.in_pairs}
PAIRS = [(a, b) for a in [*OURS, *CORE] for b in [*OURS, *CORE] if a in OURS or b in OURS]
# SAG replaces the attention that these work in, the middle block's; they say so in the log.
REPLACED = {("SAG", ours) for ours in ("pag", "seg", "autoguidance")}
# Said on its help page: this node means "before", so its place counts.
ORDERED = {"apg_everything"}


def applied(names, family):
    model = tiny.model(family)
    for name in names:
        if name in (UNET_ONLY if family != "unet" else DIT_ONLY):
            pytest.skip(f"{name} is not for {family}")
        if name in OURS and family not in OURS[name].families:
            pytest.skip(f"{name} is not for {family} on this host")
        model = OURS[name].apply(model) if name in OURS else CORE[name](model)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_nodes_run_together(pair, family):
    model = applied(pair, family)
    first = tiny.sample(model, family, steps=6)
    assert torch.isfinite(first).all()
    assert torch.equal(tiny.sample(model, family, steps=6), first)
    if {pair, pair[::-1]} & REPLACED:
        return
    ours = [name for name in pair if name in OURS]
    rest = [name for name in pair if name not in OURS]
    assert probes.distance(first, tiny.sample(applied(rest, family), family, steps=6)) > 1e-7, f"{ours} did nothing"


FREE = [(a, b) for a, b in PAIRS if a < b and a in OURS and b in OURS and not ORDERED & {a, b}]
FREE += [(a, a) for a in OURS if a not in ORDERED]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", FREE, ids="+".join)
def test_the_order_of_ours_does_not_matter(pair, family):
    one = tiny.sample(applied(pair, family), family)
    other = tiny.sample(applied(pair[::-1], family), family)
    assert probes.distance(one, other) < 1e-4
