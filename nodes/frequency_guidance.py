"""Frequency-Decoupled Guidance (arXiv 2506.19713) and the frequency-aware CFG of FreCaS (arXiv 2410.18410)."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.frequency_guidance import pyramid_guidance, resize_guidance
from .host.inputs import checked
from .host.inputs.numbers import listed_numbers
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import RangedNode, range_inputs
from .host.predictions.corrections import add_correction
from .host.run import Run
from .host.run.guiders import guides_by_cfg
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve

PYRAMID, RESIZE = "pyramid (FDG)", "resize (FreCaS)"
SPLITS = [PYRAMID, RESIZE]
_MOST = 10  # bands: a side of 512 latents is then 1


@dataclass(frozen=True, eq=False)
class _ByBand:
    """`factors`: of the sampler's cfg, by band, the finest first; `size`: of the resizing split."""

    factors: tuple[float, ...]
    split: str
    size: float
    parallel: float
    range: Range

    label = "Frequency Guidance"
    needs_negative = True
    idle_reason = "the two predictions did not differ in the bands that it changes."

    def why_idle(self, run: Run) -> str | None:
        if run.prompts.has_guided and not guides_by_cfg(run.guider):
            return f"{type(run.guider).__name__} does not guide by CFG."
        if getattr(run.guider, "cfg", None) == 0:
            return "its scales are multiples of the sampler's cfg, which is 0."
        return None

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        if args["uncond"] is None or args["cond_scale"] == 1:
            return None
        if not self.range.active(run) or not guides_by_cfg(run.guider):
            return None
        streams = zip(*(run.unpack(args[name]) for name in ("cond_denoised", "uncond_denoised")))
        return run.pack([self._change(c, u, args["cond_scale"]) for c, u in streams])

    def _change(self, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        if self.split == RESIZE:
            high, low = self.factors
            return resize_guidance(cond, uncond, scale, high, low, self.size)
        return pyramid_guidance(cond, uncond, scale, self.factors, self.parallel)


class FrequencyGuidance(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitFrequencyGuidance",
            display_name="Frequency Guidance (FDG)",
            category="guidekit/guidance",
            description="Separate CFG scales for fine detail and for composition and colour: more detail without burnt "
            "colours, for example. Also the guidance of FreCaS for large images. No extra network evaluations.",
            search_aliases=[
                "FDG",
                "frequency decoupled guidance",
                "frequency guidance",
                "FA-CFG",
                "detail",
                "sharper",
                "fine detail",
                "high frequency",
                "low cfg",
                "Laplacian pyramid",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any diffusion model, any latent: image, video (frame by frame), audio."
                ),
                io.Float.Input(
                    "high",
                    default=2.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Scale of the finest band, in multiples of the sampler's cfg: 2 with cfg 5 is the paper's "
                    "10 and 5. Values above 1 add detail and edge contrast.",
                ),
                io.Float.Input(
                    "low",
                    default=1.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Scale of the coarsest band (composition, colour), in multiples of the sampler's cfg. "
                    "Values below 1 reduce saturation and bring back variety.",
                ),
                io.Combo.Input(
                    "split",
                    options=SPLITS,
                    default=PYRAMID,
                    tooltip="pyramid (FDG): bands of one octave each. resize (FreCaS): the detail that is lost when "
                    "the image is reduced by size_factor, and the rest; for large images that were begun at a smaller "
                    "size.",
                ),
                io.String.Input(
                    "between",
                    default="",
                    tooltip="pyramid only: multiples of cfg for further bands between the finest and the coarsest, "
                    "finest first, such as 1.6, 1.3. Empty: two bands, as in the paper.",
                    advanced=True,
                ),
                io.Float.Input(
                    "size_factor",
                    default=2.0,
                    min=1.0,
                    max=64.0,
                    step=0.1,
                    round=0.0001,
                    tooltip="resize only: the size of the image divided by the size it was begun at. FreCaS Up outputs "
                    "it.",
                    advanced=True,
                ),
                io.Float.Input(
                    "parallel",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="pyramid only: how much to keep of the part of the guidance that only amplifies a band, "
                    "like eta of APG but band by band. 1 keeps all of it.",
                    advanced=True,
                ),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with guidance by frequency."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        high,
        low,
        split,
        between,
        size_factor,
        parallel,
        start_percent,
        end_percent,
        preset=TYPED,
    ) -> io.NodeOutput:
        resizes = split == RESIZE
        taken, told = (
            resolve(cls, model, preset, high=high, low=low) if not resizes else ({"high": high, "low": low}, "")
        )
        middle = () if resizes else listed_numbers("between", between, 0.0, 20.0, _MOST - 2)
        factors = (taken["high"], *middle, taken["low"])
        model, report = model.clone(), ""
        if any(factor != 1 for factor in factors) or parallel != 1 and not resizes:
            ignored = (
                unused(cls, f"with split '{split}'", between=between, parallel=parallel)
                if resizes
                else unused(cls, f"with split '{split}'", size_factor=size_factor)
            )
            report = tell_settings(cls, told, ignored)
            add_correction(model, _ByBand(factors, split, size_factor, parallel, Range(start_percent, end_percent)))
        return with_report(model, report=report)
