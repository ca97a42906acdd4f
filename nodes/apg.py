"""Adaptive Projected Guidance (Sadat et al., ICLR 2025, arXiv 2410.02416) as a correction of CFG."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.apg import apg
from ..samplers.guidance.cfg import cfg
from .host.inputs import checked
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import RangedNode, range_inputs
from .host.predictions.corrections import add_correction
from .host.run import Run
from .host.run.guiders import guides_by_cfg
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve

SCOPES = ["cfg", "everything before"]
UNITS = ["rms", "l2"]


@dataclass(frozen=True, eq=False)
class _Correction:
    eta: float
    norm_threshold: float
    norm_unit: str
    momentum: float
    scope: str
    range: Range

    label = "Adaptive Projected Guidance (APG)"

    @property
    def needs_negative(self) -> bool:
        return self.scope == "cfg"

    @property
    def idle_reason(self) -> str:
        if self.scope == "cfg":
            return "the guidance was zero."
        return "neither CFG nor another node before it has added anything to the positive prediction."

    def why_idle(self, run: Run) -> str | None:
        if self.scope == "cfg" and run.prompts.has_guided and not guides_by_cfg(run.guider):
            return f"{type(run.guider).__name__} does not guide by CFG. Set scope to 'everything before'."
        return None

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        scale, uncond = args["cond_scale"], args["uncond"]
        if not self.range.active(run):
            return None
        if self.scope == "cfg" and (uncond is None or scale == 1 or not guides_by_cfg(run.guider)):
            return None
        cond, denoised = args["cond_denoised"], args["denoised"]
        if self.scope == "cfg":
            reference = args["uncond_denoised"]
            unprojected = cfg(cond, reference, scale)
        else:
            # The whole update so far, written as plain CFG from a reference that gives the same result.
            strength = scale - 1 if uncond is not None and scale != 1 else 1.0
            scale, reference, unprojected = strength + 1, cond - (denoised - cond) / strength, denoised
        return run.pack(self._guided(run, run.unpack(cond), run.unpack(reference), scale)) - unprojected

    def _guided(self, run: Run, cond: list[Tensor], uncond: list[Tensor], scale: float) -> list[Tensor]:
        """Each stream of a packed latent by itself: audio has another norm than video."""
        memory = run.memory(self) if self.momentum != 0 else None
        running = (memory.read() if memory else None) or [None] * len(cond)
        out = []
        for c, u, previous in zip(cond, uncond, running):
            threshold = self.norm_threshold * (c[0].numel() ** 0.5 if self.norm_unit == "rms" else 1)
            settings = {"eta": self.eta, "norm_threshold": threshold, "momentum": self.momentum}
            out.append(apg(c, u, scale, **settings, running=previous))
        if memory is not None:
            memory.write([buffer for _, buffer in out])
        return [guided for guided, _ in out]


class APG(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitAPG",
            display_name="Adaptive Projected Guidance (APG)",
            category="guidekit/guidance",
            description="Keeps the detail of a high CFG scale without its oversaturation: removes the part of the "
            "guidance that only makes the image stronger. No extra network evaluations.",
            search_aliases=[
                "APG",
                "adaptive projected guidance",
                "oversaturation",
                "burnt",
                "high cfg",
                "saturation",
                "overcooked",
                "fried",
                "contrast",
                "prompt adherence",
                "perpendicular",
                "perp",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model, any latent: image, video or audio."),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much of the saturating part stays: 0 removes it (the paper's choice), 1 keeps it as "
                    "plain CFG does, below 0 turns it round.",
                ),
                io.Float.Input(
                    "momentum",
                    default=-0.5,
                    min=-0.95,
                    max=0.95,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of the previous steps' guidance. Negative (paper: -0.75 to -0.25) damps what "
                    "repeats from step to step and so also lowers the effective scale; 0 is off.",
                ),
                io.Float.Input(
                    "norm_threshold",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="Largest size of the guidance before the scale, in the unit below; 0 is no limit. The "
                    "paper's values in rms: 0.02 (EDM2), 0.06 (SDXL).",
                ),
                io.Combo.Input(
                    "norm_unit",
                    options=UNITS,
                    default="rms",
                    tooltip="rms: per element, the same at every resolution and length. l2: the whole norm, as in the "
                    "paper (SDXL 15, EDM2 2.5).",
                    advanced=True,
                ),
                io.Combo.Input(
                    "scope",
                    options=SCOPES,
                    default="cfg",
                    tooltip="cfg: projects what CFG adds; order among nodes does not matter. everything before: "
                    "projects all that the nodes before this one have added to the positive prediction, such as "
                    "CFG + PAG.",
                    advanced=True,
                ),
                *range_inputs(),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with APG."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls, model, eta, momentum, norm_threshold, norm_unit, scope, start_percent, end_percent, preset=TYPED
    ) -> io.NodeOutput:
        inputs = {"eta": eta, "momentum": momentum}
        if norm_unit == "rms":  # as in the table of presets
            inputs["norm_threshold"] = norm_threshold
        taken, told = resolve(cls, model, preset, **inputs)
        eta, momentum, norm_threshold = taken["eta"], taken["momentum"], taken.get("norm_threshold", norm_threshold)
        model, report = model.clone(), ""
        if (eta, momentum, norm_threshold) != (1, 0, 0):
            ignored = unused(cls, "without a norm_threshold", norm_unit=norm_unit) if norm_threshold == 0 else ""
            report = tell_settings(cls, told, ignored)
            correction = _Correction(
                eta=eta,
                norm_threshold=norm_threshold,
                norm_unit=norm_unit,
                momentum=momentum,
                scope=scope,
                range=Range(start_percent, end_percent),
            )
            add_correction(model, correction)
        return with_report(model, report=report)
