"""Skip-Layer Guidance (Stability AI, Stable Diffusion 3.5 reference code) and its random form (S2-Guidance)."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io

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
from .host.network.block_selection import choose_blocks, usually_skipped
from .host.network.blocks import skip_blocks, skippable_blocks
from .host.network.families import Block
from .host.predictions.weak_branch import Always, add_weak_branch
from .host.run import Run
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve

LABEL = "Skip-Layer Guidance (SLG)"


@dataclass(frozen=True)
class _SomeOf:
    """`count` random blocks, drawn anew at every noise level, the same in all evaluations of a step and in all runs."""

    blocks: tuple[Block, ...]
    count: int
    seed: int

    def __call__(self, run: Run) -> frozenset[Block]:
        generator = torch.Generator().manual_seed(run.seed_of_step(self.seed))
        chosen = torch.randperm(len(self.blocks), generator=generator)[: self.count]
        return frozenset(self.blocks[i] for i in chosen.tolist())


class SLG(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitSLG",
            display_name="Skip-Layer Guidance (SLG)",
            category="guidekit/guidance",
            description="Better structure and anatomy: guides away from a prediction that has left out some of the "
            "network's blocks. Costs the part of a network evaluation from the first of them on.",
            search_aliases=["SLG", "skip layer", "skip block", "S2 guidance", "STG", "anatomy", "weak branch", "hands"],
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1, SD2, SDXL) or transformer (SD3, Flux, Wan and more)."),
                scale_input(2.5),
                blocks_input(),
                io.Int.Input(
                    "random_blocks",
                    default=0,
                    min=0,
                    max=1000,
                    step=1,
                    tooltip="0: the blocks above are skipped. Else as many of them as this number, drawn anew in "
                    "every step; of all blocks, if none are named.",
                    advanced=True,
                ),
                random_seed_input("Of the random blocks; without them it does nothing."),
                rescale_input(),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with SLG."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls, model, scale, blocks, random_blocks, random_seed, rescale, start_percent, end_percent, preset=TYPED
    ) -> io.NodeOutput:
        inputs = {"scale": scale}
        if not random_blocks:  # drawn from all blocks if none are named
            inputs["blocks"] = blocks
        if (start_percent, end_percent) == (0, 1):  # one of them alone need not make a valid range
            inputs |= {"start_percent": start_percent, "end_percent": end_percent}
        taken, told = resolve(cls, model, preset, **inputs)
        scale, blocks = taken["scale"], taken.get("blocks", blocks)
        limits = Range(taken.get("start_percent", start_percent), taken.get("end_percent", end_percent))
        possible = skippable_blocks(model)
        chosen = choose_blocks(model, blocks, possible if random_blocks else usually_skipped(model))
        impossible = [b for b in chosen if b not in possible]
        if impossible:
            raise ValueError(
                f"The block {impossible[0].kind} {impossible[0].number} of this model cannot be skipped: ComfyUI shows "
                f"what comes out of its blocks, not what goes in. Use blocks from {possible[0].number} on."
            )
        model, report = model.clone(), ""
        if scale != 0:
            ignored = "" if random_blocks else unused(cls, "without random_blocks", random_seed=random_seed)
            report = tell_settings(cls, told, ignored)
            which = _SomeOf(tuple(chosen), random_blocks, random_seed) if random_blocks else Always(frozenset(chosen))
            branch = add_weak_branch(model, LABEL, scale=scale, rescale=rescale, range=limits, blocks=which)
            skip_blocks(model, branch, which)
        return with_report(model, report=report)
