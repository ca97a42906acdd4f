"""A sampler in whose network calls there is room for the positive alone."""

import comfy.samplers
import comfy.supported_models as supported
import pytest
import torch

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.apg import APG
from guidekit.nodes.cfgpp import CFGPP
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.negtome import GIVEN, NegToMe
from guidekit.nodes.pag import PAG
from guidekit.tests.host import probes, tiny

if not hasattr(supported, "WAN21_CausalAR_T2V"):
    pytest.skip("this host does not sample frame after frame", allow_module_level=True)


def causal():
    return tiny.build(tiny.FAMILIES["wan"].network, "wan", config=supported.WAN21_CausalAR_T2V)


def sample(model, sampler):
    sampling = model.get_model_object("model_sampling")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning("wan", 11), tiny.conditioning("wan", 22))
    guider.set_cfg(1.0)
    noise, sigmas = tiny.noise("wan"), comfy.samplers.calculate_sigmas(sampling, "simple", 3)
    kind = comfy.samplers.ksampler(sampler)
    return guider.sample(noise, torch.zeros_like(noise), kind, sigmas, disable_pbar=True, seed=3)


LATENT = {"samples": tiny.noise("wan", seed=60)}
NODES = {
    "PAG": lambda m: run_node(PAG, model=m),
    "NegToMe": lambda m: run_node(NegToMe, model=m, reference=GIVEN, threshold=-1.0, latent=LATENT),
    "CFG++": lambda m: run_node(CFGPP, model=m),
}


@pytest.mark.parametrize("name", NODES)
def test_what_needs_more_says_so(name):
    """The host would stop inside the network: its caches of keys and values have the rows of the latent."""
    with pytest.raises(ValueError, match=r"The sampler ar_video keeps .* and .* has another one evaluated"):
        sample(NODES[name](causal()), "ar_video")


@pytest.mark.parametrize("name", NODES)
def test_elsewhere_the_model_is_as_any_other(name):
    assert probes.differ(sample(NODES[name](causal()), "euler"), sample(causal(), "euler"))


@pytest.mark.parametrize("node", [APG, GuidanceInterval])
def test_what_needs_no_more_is_fine(node):
    found = sample(run_node(node, model=causal()), "ar_video")
    assert torch.equal(found, sample(causal(), "ar_video"))
