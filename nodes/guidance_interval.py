"""Guidance in a limited interval of noise levels (Kynkäänniemi et al., NeurIPS 2024, arXiv 2404.07724)."""

from collections.abc import Callable
from dataclasses import dataclass

from comfy_api.latest import io

from .host.inputs import checked
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import range_inputs, validate_range
from .host.predictions.scales import ScaleChange, limit_scale, saved
from .host.run import Run
from .host.run.messages import quoted
from .host.run.noise_levels import from_ratio
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range, above
from .presets import TYPED, preset_input, resolve

# (low, high] as noise-to-signal ratios: the paper's for SDXL, and for EDM2 by FID and by FDD (its code's indices 17 to
# 22 and 13 to 19 of 32 steps).
PRESETS = {"SDXL": (0.28, 5.42), "EDM2 FID": (0.19, 1.61), "EDM2 FDD": (0.60, 5.00)}
LIMITS = [*PRESETS, "sigma", "percent"]


@dataclass(frozen=True, eq=False)
class _Interval(ScaleChange):
    """(low, high] in noise-to-signal ratios if `ratios`, else in the model's sigma; None: only `percent` limits."""

    limits: tuple[float, float] | None
    ratios: bool
    ramp: Callable[[float], float] | None
    percent: Range

    label = "Guidance interval"
    idle_reason = "all steps of this run lie inside the interval, and are guided as without the node."

    def __call__(self, run: Run, scale: float) -> float:
        if not self._holds(run.step_sigma, run):
            return 1.0
        return scale if self.ramp is None else 1 + (scale - 1) * self.ramp(self._position(run))

    def _holds(self, sigma: float, run: Run) -> bool:
        if not self.percent.contains(sigma, run):
            return False
        if self.limits is None:
            return True
        low, high = (from_ratio(s, run.model_sampling) if self.ratios else s for s in self.limits)
        return above(sigma, low) and not above(sigma, high)

    def _position(self, run: Run) -> float:
        """Position of the current step among those inside the interval: 0 for the first, 1 for the last."""
        inside = [i for i, sigma in enumerate(run.sigmas[:-1]) if self._holds(sigma, run)]
        return min(max((run.clock.place - inside[0]) / max(inside[-1] - inside[0], 1), 0.0), 1.0) if inside else 0.0

    def summary(self, run: Run) -> str:
        inside = sum(self._holds(sigma, run) for sigma in run.began.values())
        return f"{inside} of {len(run.began)} steps guided, {saved(run, self)} evaluations saved."


class GuidanceInterval(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitGuidanceInterval",
            display_name="Guidance Interval",
            category="guidekit/guidance",
            description="CFG only at the noise levels where it helps; elsewhere the negative prompt is not evaluated "
            "at all, so it is faster too. Lets you use a higher cfg without loss of variety.",
            search_aliases=[
                "guidance interval",
                "limited interval guidance",
                "cfg range",
                "cfg schedule",
                "faster cfg",
                "faster",
                "skip cfg",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model, any latent: image, video or audio."),
                io.Combo.Input(
                    "limits",
                    options=LIMITS,
                    default="SDXL",
                    tooltip="SDXL: the paper's (0.28, 5.42]; EDM2 FID: (0.19, 1.61]; EDM2 FDD: (0.60, 5.00]. They are "
                    "noise-to-signal ratios; for flow models the same ratio is used. sigma: the two below. percent: "
                    "start and end alone.",
                ),
                io.Float.Input(
                    "sigma_high",
                    default=5.42,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="With limits sigma: guided at and below this, in the model's own sigma (for flow models a "
                    "time between 0 and 1).",
                    advanced=True,
                ),
                io.Float.Input(
                    "sigma_low",
                    default=0.28,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="With limits sigma: guided above this.",
                    advanced=True,
                ),
                *range_inputs(),
                io.Custom("CURVE").Input(
                    "ramp",
                    optional=True,
                    tooltip="From ComfyUI's Curve Editor: the scale across the interval, from its first step on the "
                    "left to its last on the right. Height 1 is the sampler's cfg, 0 is no guidance.",
                    extra_dict={"forceInput": True},
                ),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with the guidance interval."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(cls, start_percent, end_percent, limits, sigma_high, sigma_low) -> bool | str:
        if limits is not None and limits not in LIMITS:
            return f"limits is {quoted(limits)}. It is one of {', '.join(LIMITS)}."
        if limits == "sigma" and None not in (sigma_high, sigma_low):
            try:
                _check_sigmas(sigma_high, sigma_low)
            except ValueError as error:
                return str(error)
        return validate_range(start_percent, end_percent)

    @classmethod
    @checked
    def execute(
        cls, model, limits, sigma_high, sigma_low, start_percent, end_percent, ramp=None, preset=TYPED
    ) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, limits=limits)
        limits = taken["limits"]
        model, report = model.clone(), ""
        if limits == "sigma":
            _check_sigmas(sigma_high, sigma_low)
        bounds = (sigma_low, sigma_high) if limits == "sigma" else PRESETS.get(limits)
        if bounds is not None or ramp is not None or (start_percent, end_percent) != (0, 1):
            sigmas = {} if limits == "sigma" else {"sigma_high": sigma_high, "sigma_low": sigma_low}
            report = tell_settings(cls, told, unused(cls, f"with limits {limits}", **sigmas))
            percent = Range(start_percent, end_percent)
            limit_scale(model, _Interval(limits=bounds, ratios=limits in PRESETS, ramp=ramp, percent=percent))
        return with_report(model, report=report)


def _check_sigmas(high: float, low: float) -> None:
    if not 0 <= low < high:
        raise ValueError(f"sigma_low is {low:g} and sigma_high {high:g}. Set sigma_low below sigma_high.")
