"""Perturbed-Attention Guidance (Ahn et al., ECCV 2024, arXiv 2403.17377)."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.attention.pag import identity_attention
from .host.attention.calls import SelfAttention
from .host.attention.self_attention import replace_self_attention
from .host.inputs import checked
from .host.inputs.settings import tell_settings
from .host.inputs.shared import RangedNode, blocks_input, range_inputs, rescale_input, scale_input
from .host.network.block_selection import choose_blocks, usually_perturbed
from .host.predictions.weak_branch import Always, add_weak_branch
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve


@dataclass(frozen=True, eq=False)
class _Identity:
    label = "Perturbed-Attention Guidance (PAG)"
    idle_reason = "another node has replaced the self-attention of its blocks."

    def __call__(self, a: SelfAttention) -> Tensor:
        if a.afterwards is not None:  # in a UNet, whose self-attention has image tokens only
            return a.afterwards(a.v)
        own = identity_attention(a.q, a.k, a.v, a.image, a.scale, a.mask)
        if own.shape == a.v.shape:
            return own
        parts = [slice(0, a.image.start), slice(a.image.stop, a.q.shape[2])]
        before, after = (a.attend(a.q, a.k, a.v, p) if p.start < p.stop else own[:, :, :0] for p in parts)
        return torch.cat([before, own, after], 2)


class PAG(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitPAG",
            display_name="Perturbed-Attention Guidance (PAG)",
            category="guidekit/guidance",
            description="Better structure, with or without CFG: guides away from a prediction whose self-attention was "
            "made blind in a block. Costs the part of a network evaluation from that block on.",
            search_aliases=[
                "PAG",
                "perturbed attention",
                "identity attention",
                "structure",
                "weak branch",
                "hands",
                "anatomy",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1, SD2, SDXL) or transformer (SD3, Flux, Wan and more)."),
                scale_input(3.0),
                blocks_input(),
                rescale_input(),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with PAG."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, model, scale, blocks, rescale, start_percent, end_percent, preset=TYPED) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, scale=scale, blocks=blocks)
        scale, blocks = taken.values()
        chosen = choose_blocks(model, blocks, usually_perturbed(model))
        model, report = model.clone(), ""
        if scale != 0:
            report = tell_settings(cls, told)
            when, where = Range(start_percent, end_percent), Always(frozenset(chosen))
            branch = add_weak_branch(model, _Identity.label, scale=scale, rescale=rescale, range=when, blocks=where)
            replace_self_attention(model, chosen, _Identity(), branch)
        return with_report(model, report=report)
