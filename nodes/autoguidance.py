"""Autoguidance (Karras et al., NeurIPS 2024, arXiv 2406.02507): away from a worse version of the same model."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.attention.autoguidance import add_noise, drop
from .host.attention.calls import SelfAttention
from .host.attention.self_attention import replace_self_attention
from .host.inputs import checked
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import (
    RangedNode,
    blocks_input,
    random_seed_input,
    range_inputs,
    rescale_input,
    scale_input,
)
from .host.models.second_model import with_lora_strength
from .host.models.weak_model import add_weak_model
from .host.network.block_selection import choose_blocks, usually_perturbed
from .host.network.families import order_of
from .host.predictions.weak_branch import Always, add_weak_branch
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range

LABEL = "Autoguidance"
DEGRADE = {"dropout": drop, "token noise": add_noise}
WEAKEN = [*DEGRADE, "LoRA strength", "second model"]
UNCHANGED = {"dropout": 0, "token noise": 0, "LoRA strength": 1}  # the amount at which the model is not weakened


@dataclass(frozen=True, eq=False)
class _Degraded:
    how: str
    amount: float
    seed: int

    label = LABEL
    idle_reason = "another node has replaced the self-attention of its blocks."

    def __call__(self, a: SelfAttention) -> Tensor:
        # New random numbers at every noise level and in every block, but the same in every evaluation of a step and in
        # every run.
        seed = a.run.seed_of_step(self.seed) + order_of(a.run)[a.block]
        out = a.attend(a.q, a.k, a.v).clone()
        image = DEGRADE[self.how](out[:, :, a.image], self.amount, torch.Generator().manual_seed(seed))
        out[:, :, a.image] = image
        return out


class Autoguidance(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitAutoguidance",
            display_name="Autoguidance",
            category="guidekit/guidance",
            description="Better quality without less variety: guides away from a worse version of the model on the "
            "same prompt, be it another model, the model with weaker LoRAs, or the model disturbed.",
            search_aliases=["autoguidance", "auto guidance", "bad model guidance", "weak model", "guide with itself"],
            inputs=[
                io.Model.Input("model", tooltip="The model to improve."),
                scale_input(1.0),
                io.Combo.Input(
                    "weakness",
                    options=WEAKEN,
                    default="dropout",
                    tooltip="What makes the other version worse. dropout, token noise: in the self-attention of the "
                    "blocks below. LoRA strength: the model's LoRAs at another strength. "
                    "second model: the model connected to weak_model.",
                ),
                io.Float.Input(
                    "amount",
                    default=0.1,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="dropout: share of numbers dropped, below 1. token noise: size of the noise beside the "
                    "tokens. LoRA strength: factor on the strength of each LoRA (0 is without). Not used with a second "
                    "model.",
                ),
                io.Model.Input(
                    "weak_model",
                    optional=True,
                    tooltip="A worse model of the same family, with patches of its own: an earlier, smaller or less "
                    "tuned one, or the base model of a LoRA.",
                ),
                blocks_input(),
                random_seed_input("Of dropout and token noise."),
                rescale_input(),
                *range_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with autoguidance."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        scale,
        weakness,
        amount,
        blocks,
        random_seed,
        rescale,
        start_percent,
        end_percent,
        weak_model=None,
    ) -> io.NodeOutput:
        _check(weakness, amount, weak_model)
        when = Range(start_percent, end_percent)
        chosen = choose_blocks(model, blocks, usually_perturbed(model)) if weakness in DEGRADE else []
        model = model.clone()
        if scale == 0 or weakness in UNCHANGED and amount == UNCHANGED[weakness]:
            return with_report(model, report="")
        rest = {} if weakness in DEGRADE else {"blocks": blocks, "random_seed": random_seed}
        rest |= {"amount": amount} if weakness == "second model" else {"weak_model": weak_model}
        report = tell_settings(cls, unused(cls, f"with weakness {weakness}", **rest))
        if weakness in DEGRADE:
            where = Always(frozenset(chosen))
            branch = add_weak_branch(model, LABEL, scale=scale, rescale=rescale, range=when, blocks=where)
            replace_self_attention(model, chosen, _Degraded(weakness, amount, random_seed), branch)
        else:
            weak = weak_model if weakness == "second model" else with_lora_strength(model, amount)
            add_weak_model(model, weak, LABEL, scale=scale, rescale=rescale, range=when)
        return with_report(model, report=report)


def _check(weakness: str, amount: float, weak_model) -> None:
    if weakness == "second model" and weak_model is None:
        raise ValueError("weakness is 'second model', but nothing is connected to weak_model. Connect a worse model.")
    if weakness == "dropout" and not 0 <= amount < 1:
        raise ValueError(f"The amount of dropout is {amount:g}. It is a share of numbers, from 0 to below 1.")
    if weakness == "token noise" and amount < 0:
        raise ValueError(f"The amount of token noise is {amount:g}. It is a size, 0 or more.")
