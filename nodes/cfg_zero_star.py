"""CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): a scale on the negative's output, and first steps that stand still."""

from dataclasses import dataclass, field

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.cfg_zero_star import cfg_zero_star, zero_init_steps
from .host.inputs import checked
from .host.inputs.settings import tell_settings
from .host.inputs.shared import RangedNode, range_inputs
from .host.predictions.corrections import Result, add_correction, replace_result
from .host.run import Run
from .host.run.guiders import guides_by_cfg
from .host.run.noise_levels import is_flow, is_pure_noise
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .host.run.raw_predictions import raw_direction
from .presets import TYPED, preset_input, resolve


@dataclass
class _Notes:
    """Of one run: how many of its first steps stand still, and the scales found, [B] each, which lie on the device."""

    still: int
    scales: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _ZeroStar(Result):
    optimized_scale: bool
    zero_init: float
    range: Range

    label = "CFG-Zero*"
    idle_reason = "the negative's outputs had their best scale already, or are no outputs of the network."

    def begin(self, run: Run, guider) -> None:
        run.notes[self] = _Notes(0 if self._why_no_zero_init(run) else zero_init_steps(self.zero_init, run.steps))

    def _why_no_zero_init(self, run: Run) -> str | None:
        """Where it would leave an image as it is, or noise of another variance than the next level wants."""
        if not is_flow(run.model_sampling):
            return "zero-init is for flow models, which this one is not."
        if not run.descending or not is_pure_noise(run.sigmas[0], run.model_sampling):
            return "zero-init is for runs that begin in pure noise."
        if run.why_unknown_steps:
            return f"it is a share of the steps, and {run.why_unknown_steps}"
        if zero_init_steps(self.zero_init, run.steps) == 0:
            return f"zero_init {self.zero_init:g} of {run.steps} steps is less than half a step."
        return None

    def why_idle(self, run: Run) -> str | None:
        if self.optimized_scale and run.prompts.has_guided:
            return None if guides_by_cfg(run.guider) else f"{type(run.guider).__name__} does not guide by CFG."
        reasons = [self._why_no_zero_init(run)] if self.zero_init > 0 else []
        if self.optimized_scale:
            reasons.insert(0, "no negative prompt was evaluated: cfg is 1, or the guider has none.")
        return " And ".join(filter(None, reasons)) or super().why_idle(run)

    def _stands_still(self, run: Run) -> bool:
        return run.step < run.notes[self].still and self.range.active(run)

    def result(self, run: Run, args: dict) -> Tensor | None:
        """That of an output of 0: the latent itself."""
        return args["input"] if self._stands_still(run) else None

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        scale = args["cond_scale"]
        if not self.range.active(run) or self._stands_still(run):
            return None
        if args["uncond"] is None or scale == 1 or not guides_by_cfg(run.guider):
            return None
        predictions = args["cond_denoised"], args["uncond_denoised"]
        outputs = (raw_direction(run.model_sampling, args["input"], d, args["sigma"]) for d in predictions)
        changes, scales = zip(*(cfg_zero_star(c, u, scale) for c, u in zip(*map(run.unpack, outputs))))
        run.notes[self].scales += [s.flatten() for s in scales]
        if not is_flow(run.model_sampling):
            run.remark(self, "The method was made for flow models, which this one is not: nothing is published for it.")
        return run.pack(list(changes))

    def summary(self, run: Run) -> str | None:
        notes, found = run.notes[self], []
        if notes.scales:
            scales = torch.cat(notes.scales)
            found.append(f"scales of the negative's output: {scales.min():.3f} to {scales.max():.3f}.")
        if notes.still:
            found.append(f"zero-init: {notes.still} of {run.steps} steps.")
        elif self.zero_init > 0:
            found.append(f"No zero-init: {self._why_no_zero_init(run)}")
        return " ".join(found)


class CFGZeroStar(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitCFGZeroStar",
            display_name="CFG-Zero*",
            category="guidekit/guidance",
            description="CFG for flow models (SD3, Wan, Qwen-Image, Lumina2 and more): scales the negative's output to "
            "fit the positive's, and leaves the latent unchanged in the first steps, whose predictions are the worst. "
            "No extra network evaluations.",
            search_aliases=[
                "CFG-Zero*",
                "CFG Zero Star",
                "zero star",
                "zero init",
                "optimized scale",
                "flow matching cfg",
                "wan cfg",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A flow model (SD3, Flux, Wan, Qwen-Image and more), any latent. Others can use the scale "
                    "too, but nothing is published for them.",
                ),
                io.Boolean.Input(
                    "optimized_scale",
                    default=True,
                    tooltip="Scale the negative's output so that it is as near as possible to the positive's, for each "
                    "sample on its own. Does nothing at cfg 1.",
                ),
                io.Float.Input(
                    "zero_init",
                    default=0.04,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of the steps, counted from the first, that leave the latent unchanged, rounded to a "
                    "whole number of steps: 0.04 (the paper's) is 1 of 20 and 2 of 50. For flow models and runs that "
                    "begin in pure noise; also works at cfg 1. 0 is off.",
                ),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with CFG-Zero*."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, model, optimized_scale, zero_init, start_percent, end_percent, preset=TYPED) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, zero_init=zero_init)
        zero_init, model, report = taken["zero_init"], model.clone(), ""
        if optimized_scale or zero_init > 0:
            report = tell_settings(cls, told)
            technique = _ZeroStar(optimized_scale, zero_init, Range(start_percent, end_percent))
            if optimized_scale:
                add_correction(model, technique)
            if zero_init > 0:
                replace_result(model, technique)
        return with_report(model, report=report)
