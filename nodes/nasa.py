"""Negative-Away Steer Attention (Nguyen et al. 2024, arXiv 2412.02687) and Normalized Attention Guidance (Chen et al.
2025, arXiv 2505.21179): a negative prompt for models that run without CFG."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..samplers.attention.nasa import nag, nasa
from .host.attention.second_prompt.attach import steer_with_text
from .host.inputs import check_prompt_for, checked
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import RangedNode, blocks_input, range_inputs
from .host.network.block_selection import choose_blocks
from .host.network.families import Block, self_attention_blocks
from .host.run import Run
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve

NAG, SUBTRACT = "NAG", "NASA"
METHODS = [NAG, SUBTRACT]


@dataclass(frozen=True, eq=False)
class _NASA:
    alpha: float
    blocks: frozenset[Block]
    range: Range

    # The paper changes cross-attention; in joint attention, that is what the image takes from the text.
    text_share = True
    label = "Negative-Away Steer Attention (NASA)"
    idle_reason = "its range holds no step, or another node has replaced the attention of its blocks."

    def active(self, run: Run) -> bool:
        return self.range.active(run)

    def combine(self, positive: Tensor, negative: Tensor) -> Tensor:
        return nasa(positive, negative, self.alpha)


@dataclass(frozen=True, eq=False)
class _NAG(_NASA):
    scale: float
    tau: float

    text_share = False
    label = "Normalized Attention Guidance (NAG)"

    def combine(self, positive: Tensor, negative: Tensor) -> Tensor:
        return nag(positive, negative, self.scale, self.tau, self.alpha)


class NASA(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitNASA",
            display_name="Negative Prompt at CFG 1 (NAG, NASA)",
            category="guidekit/attention",
            description="A negative prompt for models that run at cfg 1 (turbo, lightning, schnell, LCM, DMD, video "
            "in 4 steps): inside attention, in the same network call.",
            search_aliases=[
                "NAG",
                "NASA",
                "negative prompt at cfg 1",
                "negative prompt flux",
                "negative prompt wan",
                "negative prompt z-image",
                "negative prompt turbo",
                "negative prompt lightning",
                "normalized attention guidance",
                "negative-away steer attention",
                "SNOOPI",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A UNet (SD1, SD2, SDXL), or SD3, Flux, Chroma, HunyuanVideo, Wan, Qwen-Image, Lumina2 or "
                    "Z-Image.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What shall not be in the image, from a CLIP Text Encode node."
                ),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default=NAG,
                    tooltip="NAG extrapolates away from the negative prompt and keeps tokens at their length, by the "
                    "three nag inputs. NASA subtracts, by nasa_alpha.",
                ),
                io.Float.Input(
                    "nag_scale",
                    default=5.0,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    round=0.01,
                    tooltip="NAG: how far to extrapolate; 1 is off. Published: 3 for SDXL and SD1.5, 5 for Flux and "
                    "SD3.5, 9 for HunyuanVideo, 5 to 11 for Wan.",
                ),
                io.Float.Input(
                    "nag_tau",
                    default=2.5,
                    min=1.0,
                    max=10.0,
                    step=0.05,
                    round=0.01,
                    tooltip="NAG: how many times as long as before a token may become.",
                ),
                io.Float.Input(
                    "nag_alpha",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.001,
                    tooltip="NAG: share of the result; 0 is off. Published: 0.125 for SD3.5 and HunyuanVideo, 0.25 for "
                    "Flux, 0.375 for SD1.5, 0.5 for SDXL, 0.25 to 0.5 for Wan.",
                ),
                io.Float.Input(
                    "nasa_alpha",
                    default=0.5,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    tooltip="NASA: how much of what the negative prompt calls up is taken away; 0 is off. The paper "
                    "uses 0.1 for models made of SD1.5, 0.2 for SD2.1, 0.5 and more for PixArt.",
                ),
                blocks_input(),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with the negative prompt in its attention."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        negative,
        method,
        nag_scale,
        nag_tau,
        nag_alpha,
        nasa_alpha,
        blocks,
        start_percent,
        end_percent,
        preset=TYPED,
    ) -> io.NodeOutput:
        of_nag = {"nag_scale": nag_scale, "nag_tau": nag_tau, "nag_alpha": nag_alpha}
        of_nasa = {"nasa_alpha": nasa_alpha}
        used, rest = (of_nag, of_nasa) if method == NAG else (of_nasa, of_nag)
        taken, told = resolve(cls, model, preset, **used)
        chosen = frozenset(choose_blocks(model, blocks, self_attention_blocks(model)))
        when = Range(start_percent, end_percent)
        steering: _NASA | None = None
        check_prompt_for(model, negative, "negative")
        if method == NAG:
            scale, tau, alpha = taken.values()
            if scale != 1 and alpha != 0:
                steering = _NAG(alpha, chosen, when, scale, tau)
        elif taken["nasa_alpha"] != 0:
            steering = _NASA(taken["nasa_alpha"], chosen, when)
        model, report = model.clone(), ""
        if steering is not None:
            report = tell_settings(cls, told, unused(cls, f"with method {method}", **rest))
            steer_with_text(model, steering, negative)
        return with_report(model, report=report)
