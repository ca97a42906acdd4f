"""CFG++ (Chung et al., ICLR 2025, arXiv 2406.08070) as a schedule of the CFG scale, for any sampler."""

from dataclasses import dataclass

from comfy_api.latest import io

from ..samplers.guidance.cfgpp import equivalent_scale
from .host.inputs import checked
from .host.inputs.settings import tell_settings
from .host.inputs.shared import RangedNode, range_inputs
from .host.predictions.scales import set_scale
from .host.run import Run
from .host.run.guiders import has_one_scale, why_not_one_scale
from .host.run.noise_levels import is_flow
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve


@dataclass(frozen=True, eq=False)
class _Schedule:
    guidance_lambda: float
    range: Range

    label = "CFG++"
    idle_reason = "the sampler never asked for a guided prediction."

    def begin(self, run: Run, guider) -> None:
        if run.scale_is_lambda:
            raise ValueError(
                f"The sampler {run.sampler_name} is a CFG++ sampler already and takes cfg as lambda. With the CFG++ "
                "node use the plain sampler (euler, ddim, dpmpp_2m, ...)."
            )

    def why_idle(self, run: Run) -> str | None:
        return None if has_one_scale(run.guider) else why_not_one_scale(run.guider)

    def summary(self, run: Run) -> str | None:
        steps = run.notes.get(self)
        if not steps:
            return None
        return (
            f"the negative prompt was evaluated in {steps} more evaluations, which cfg 1 would have left out. Models "
            "that are made for cfg 1 need no CFG++."
        )

    def __call__(self, run: Run, scale: float) -> float:
        if not self.range.active(run):
            return scale
        run.acted.add(self)
        if scale == 1:
            run.notes[self] = run.notes.get(self, 0) + 1
        return equivalent_scale(self.guidance_lambda, run.step_sigma, run.next_sigma, is_flow(run.model_sampling))


class CFGPP(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitCFGPP",
            display_name="CFG++",
            category="guidekit/guidance",
            description="CFG++ with the sampler and the KSampler you have: sets the scale of each step to the one that "
            "amounts to CFG++. Exact for euler and ddim, an approximation for other samplers. Replaces cfg.",
            search_aliases=["CFG++", "cfgpp", "cfg_pp", "manifold constrained", "cfg schedule", "dynamic cfg"],
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model, any latent: image, video or audio."),
                io.Float.Input(
                    "guidance_lambda",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Takes the place of the sampler's cfg: 0 is unguided, the paper uses 0.2 to 1 (0.6 where "
                    "CFG has about 7.5 at 50 steps).",
                ),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with CFG++."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, model, guidance_lambda, start_percent, end_percent, preset=TYPED) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, guidance_lambda=guidance_lambda)
        guidance_lambda = taken["guidance_lambda"]
        report = tell_settings(cls, told)
        model = model.clone()
        set_scale(model, _Schedule(guidance_lambda, Range(start_percent, end_percent)))
        return with_report(model, report=report)
