"""Adaptive guidance (Castillo et al., AAAI 2025, arXiv 2312.12487): CFG until the two predictions agree."""

from dataclasses import dataclass
from functools import cached_property

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.adaptive_guidance import agreement
from .host.inputs import checked
from .host.inputs.shared import RangedNode, range_inputs
from .host.predictions.corrections import observe
from .host.predictions.scales import ScaleChange, limit_scale, saved
from .host.run import Run
from .host.run.guiders import has_one_scale, why_not_one_scale
from .host.run.ranges import Range
from .host.run.raw_predictions import raw_direction

SPACES = ["x0", "raw"]


class _Seen:
    """What a guided step leaves: the smallest cosine of the batch, and whether it counts. It lies on the device until
    the next step reads it, once per step."""

    def __init__(self, least: Tensor, threshold: float, counts: bool):
        self._least, self._threshold, self._counts = least, threshold, counts

    @cached_property
    def cosine(self) -> float:
        return self._least.item()

    @property
    def crossed(self) -> bool:
        return self._counts and self.cosine >= self._threshold


@dataclass(frozen=True, eq=False)
class _Latch(ScaleChange):
    space: str
    threshold: float
    warm_up: int
    range: Range

    label = "Adaptive guidance"
    idle_reason = "the sampler never asked for a guided prediction."

    def __call__(self, run: Run, scale: float) -> float:
        # The memory holds what earlier steps left: the step that crosses is still guided.
        if scale == 1 or not self.range.active(run) or not self._crossed(run):
            return scale
        return 1.0

    def _crossed(self, run: Run) -> bool:
        """Whether an earlier step has crossed the threshold."""
        seen = run.memory(self).read()
        return seen is not None and seen.crossed

    def look(self, run: Run, args: dict) -> None:
        memory = run.memory(self)
        if args["uncond"] is None or not self.range.active(run) or not has_one_scale(run.guider):
            return
        if self._crossed(run):
            return
        cond, uncond = args["cond_denoised"], args["uncond_denoised"]
        if self.space == "raw":
            cond, uncond = (raw_direction(run.model_sampling, args["input"], d, args["sigma"]) for d in (cond, uncond))
        # Every sample and every stream of a packed latent has to agree.
        each = [agreement(c, u).min() for c, u in zip(run.unpack(cond), run.unpack(uncond))]
        seen = _Seen(torch.stack(each).min(), self.threshold, run.step + 1 >= self.warm_up)
        run.notes.setdefault(self, {}).setdefault(run.step, seen)
        memory.write(seen)

    def _cosines(self, run: Run) -> dict[int, float]:
        """The smallest cosine of the batch in each step."""
        return {step: seen.cosine for step, seen in run.notes.get(self, {}).items()}

    def why_idle(self, run: Run) -> str:
        if has_one_scale(run.guider) and (cosines := self._cosines(run)):
            if max(cosines.values()) < self.threshold:
                return f"the predictions never agreed to {self.threshold:g} ({self.space}). {self._told(run)}"
            if not self._crossed(run):
                return f"the predictions agreed too late to save anything (warm_up {self.warm_up}). {self._told(run)}"
        if run.prompts.has_guided and not has_one_scale(run.guider):
            return why_not_one_scale(run.guider)
        return super().why_idle(run)

    def _told(self, run: Run) -> str:
        return "Cosine by step: " + ", ".join(f"{i + 1}: {value:.4f}" for i, value in self._cosines(run).items()) + "."

    def summary(self, run: Run) -> str:
        crossed = max(self._cosines(run))
        told = (
            f"crossed {self.threshold:g} ({self.space}) in step {crossed + 1} of {run.steps}; "
            f"{saved(run, self)} evaluations saved. {self._told(run)}"
        )
        if crossed == 0 and self.space == "raw":
            return f"If this is an eps model, its outputs agree from the start: use space x0. It {told}"
        return told


class AdaptiveGuidance(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitAdaptiveGuidance",
            display_name="Adaptive Guidance",
            category="guidekit/guidance",
            description="Stops evaluating the negative prompt once it no longer makes a difference: as soon as the "
            "positive and the negative prediction point the same way, the rest of the run uses the positive alone.",
            search_aliases=[
                "adaptive guidance",
                "AG",
                "faster cfg",
                "skip negative",
                "speed",
                "cosine similarity",
                "faster",
                "skip cfg",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model, any latent: image, video or audio."),
                io.Float.Input(
                    "threshold",
                    default=0.995,
                    min=-1.0,
                    max=2.0,
                    step=0.001,
                    round=0.00001,
                    tooltip="Cosine of the two predictions from which on they count as equal, for the worst sample of "
                    "the batch. Higher is closer to CFG, lower is faster. The run tells the cosines of its steps.",
                ),
                io.Combo.Input(
                    "space",
                    options=SPACES,
                    default="x0",
                    tooltip="x0: the denoised image, for every model. raw: what the network puts out, as in the "
                    "paper (0.991), for v and flow models; eps outputs are mostly noise and agree from the start. A "
                    "threshold means something else in each.",
                ),
                io.Int.Input(
                    "warm_up",
                    default=1,
                    min=1,
                    max=1000,
                    step=1,
                    tooltip="Steps that are guided in any case.",
                    advanced=True,
                ),
                *range_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with adaptive guidance.")],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, model, threshold, space, warm_up, start_percent, end_percent) -> io.NodeOutput:
        model = model.clone()
        if threshold <= 1:  # no cosine exceeds it
            latch = _Latch(space, threshold, warm_up, Range(start_percent, end_percent))
            limit_scale(model, latch)
            observe(model, latch.look)
        return io.NodeOutput(model)
