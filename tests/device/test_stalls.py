"""Nodes do not make the processor wait for the device: no step has more waits than that of the plain network."""

from collections import Counter
from functools import cache

import comfy.sample
import pytest
import torch

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.host.predictions.corrections import observe
from guidekit.nodes.pag import PAG
from guidekit.nodes.sampler_cfgpp import SamplerCFGPP
from guidekit.tests.device.machine import half, sized
from guidekit.tests.device.stalls import Waits, counted
from guidekit.tests.host import tiny
from guidekit.tests.host.products import PRODUCTS

STEPS = 5
# In a step. Adaptive guidance has to know whether the two predictions agreed before it can leave out the negative; what
# the classifier sees decides what prompt GFCG evaluates: the logits, and the class of each image.
NEEDED = {"adaptive": 1, "gfcg": 1, "gfcg_lag": 1, "gfcg_swap": 1, "gfcg_model": 1}
CASES = [
    pytest.param(product, family, id=f"{product.name}-{family}")
    for product in PRODUCTS
    for family in ("unet", "flux", "lumina2")
    if family in product.families
]


def waits(model, family, **options) -> Waits:
    with counted() as found:
        tiny.sample(model, family, callback=found.after_step, **{"steps": STEPS, **options})
    return found


def new(family):
    return tiny.model(sized(family), kind=half(torch.bfloat16))


@cache
def plain(family, **options) -> Waits:
    return waits(new(family), sized(family), **options)


def beyond(found: Waits, usual: Waits, step: int) -> list[str]:
    """The waits of a step that the plain network has not."""
    mine, host = Counter(found.of_step(step)), len(usual.of_step(step))
    added = len(found.of_step(step)) - host
    ours = list(mine.elements() if "host" not in mine else (mine - Counter({"host": host})).elements())
    return ours[: max(added, 0)]


def check(found: Waits, usual: Waits, allowed: int) -> None:
    steps = {step: beyond(found, usual, step) for step in range(1, STEPS)}
    most = max(map(len, steps.values()))
    assert most <= allowed, f"waits {most} times more than the host in a step, allowed {allowed}: {steps}"


def test_waits_are_seen():
    """A check of the test itself: a reading in every step is found, and where."""
    model = new("flux")
    observe(model, lambda run, args: args["denoised"].sum().item())
    model = run_node(PAG, model=model)
    found = waits(model, sized("flux"))
    assert [len(beyond(found, plain("flux"), step)) for step in range(1, STEPS)] == [1] * (STEPS - 1)


@pytest.mark.parametrize(("product", "family"), CASES)
def test_no_wait_in_a_step(product, family):
    found = waits(product.apply(new(family)), sized(family))
    check(found, plain(family), NEEDED.get(product.name, 0))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "dpm_2", "ddim", "lcm", "res_multistep", "uni_pc"])
def test_no_wait_for_the_noise_level(sampler):
    model = run_node(GuidanceInterval, model=new("unet"), limits="percent", start_percent=0.1, end_percent=0.9)
    check(waits(model, sized("unet"), sampler=sampler), plain("unet", sampler=sampler), 0)


@pytest.mark.parametrize("settings", [{"sampler": "euler"}, {"sampler": "dpmpp 2m"}], ids=str)
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_no_wait_in_our_samplers(family, settings):
    model, name = new(family), sized(family)
    sampler = run_node(SamplerCFGPP, eta=0.0, **settings)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    prompts = tiny.conditioning(name, 11), tiny.conditioning(name, 22)
    x = tiny.noise(name)
    with counted() as found:
        settings = {"callback": found.after_step, "disable_pbar": True, "seed": 3}
        comfy.sample.sample_custom(model, x, 4.0, sampler, sigmas, *prompts, torch.zeros_like(x), **settings)
    check(found, plain(family), 0)
