"""Every sampler of the host, on eps, v and flow models, with each node that goes by steps."""

import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType

from guidekit.nodes.host.predictions.corrections import add_correction
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import PRODUCTS

KINDS = {"eps": ("unet", None), "v": ("unet", ModelType.V_PREDICTION), "flow": ("flux", None)}
STEPWISE = [p for p in PRODUCTS if p.name in ("interval", "adaptive", "apg", "pag", "cfgpp", "gfcg_lag")]


class Steps:
    """Writes down the step and the scale of every evaluation."""

    label, idle_reason = "steps", "never"

    def __init__(self):
        self.seen: list[tuple[int, float]] = []

    def __call__(self, run, args):
        run.acted.add(self)
        self.seen.append((run.step, args["cond_scale"]))


def sampled(model, family, sampler):
    return tiny.sample(model, family, sampler=sampler, steps=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_node_runs_and_keeps_to_whole_steps(sampler, kind):
    family, model_type = KINDS[kind]
    plain = sampled(tiny.model(family, model_type), family, sampler)  # the host can, with four steps
    changed = []
    for product in STEPWISE:
        model, steps = product.apply(tiny.model(family, model_type)), Steps()
        add_correction(model, steps)
        if product.name == "cfgpp" and "cfg_pp" in sampler:
            with pytest.raises(ValueError, match="is a CFG\\+\\+ sampler already"):
                sampled(model, family, sampler)
            continue
        found = sampled(model, family, sampler)
        assert torch.isfinite(found).all(), product.name
        assert len(dict(steps.seen)) == len(set(steps.seen)), f"{product.name}: two scales in one step"
        changed += [product.name] if probes.distance(found, plain) > 1e-6 else []
    scales = {"interval", "adaptive", "cfgpp"} if "cfg_pp" in sampler else set()  # which take cfg as lambda
    assert {p.name for p in STEPWISE} - set(changed) <= scales
