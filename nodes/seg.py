"""Smoothed Energy Guidance (Hong, NeurIPS 2024, arXiv 2408.00760)."""

import math
from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..samplers.attention.seg import blur_queries
from .host.attention.queries import change_queries
from .host.inputs import checked
from .host.inputs.settings import tell_settings
from .host.inputs.shared import RangedNode, blocks_input, range_inputs, rescale_input, scale_input
from .host.network.block_selection import choose_blocks, usually_perturbed
from .host.predictions.weak_branch import Always, add_weak_branch
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve


@dataclass(frozen=True, eq=False)
class _Blurred:
    sigma: float

    label = "Smoothed Energy Guidance (SEG)"
    idle_reason = "another node has replaced the self-attention of its blocks."

    def __call__(self, queries: Tensor, grid: tuple[int, ...]) -> Tensor:
        return blur_queries(queries, grid, self.sigma)


class SEG(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitSEG",
            display_name="Smoothed Energy Guidance (SEG)",
            category="guidekit/guidance",
            description="Like PAG with a dial: guides away from a prediction whose attention queries were blurred over "
            "the image. Costs the part of a network evaluation from that block on.",
            search_aliases=[
                "SEG",
                "smoothed energy",
                "blurred attention",
                "structure",
                "weak branch",
                "hands",
                "anatomy",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1, SD2, SDXL) or transformer (SD3, Flux, Wan and more)."),
                scale_input(3.0),
                io.Float.Input(
                    "blur",
                    default=10.0,
                    min=-1.0,
                    max=10000.0,
                    step=0.5,
                    round=0.01,
                    tooltip="Standard deviation of the blur, in tokens of the block: larger is a weaker prediction and "
                    "so a stronger effect. -1 is without end: every query becomes the mean of its image. 0 is off.",
                ),
                blocks_input(),
                rescale_input(),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with SEG."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, model, scale, blur, blocks, rescale, start_percent, end_percent, preset=TYPED) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, scale=scale, blur=blur, blocks=blocks)
        scale, blur, blocks = taken.values()
        chosen = choose_blocks(model, blocks, usually_perturbed(model))
        model, report = model.clone(), ""
        if scale != 0 and blur != 0:
            report = tell_settings(cls, told)
            when, where = Range(start_percent, end_percent), Always(frozenset(chosen))
            branch = add_weak_branch(model, _Blurred.label, scale=scale, rescale=rescale, range=when, blocks=where)
            sigma = math.inf if blur < 0 else blur
            change_queries(model, chosen, _Blurred(sigma), branch)
        return with_report(model, report=report)
