"""FreCaS (Zhang et al., ICLR 2025, arXiv 2410.18410): sizes and noise levels of its stages."""

import re
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..samplers.frecas import next_sigma, next_time, stage_levels
from .host.inputs import checked
from .host.inputs.numbers import listed_numbers
from .host.inputs.plan import Plan, PlanType, Stage
from .host.inputs.settings import tell_settings, unused
from .host.run.messages import quoted
from .host.run.noise_levels import is_flow
from .host.run.outputs import report_output, with_report
from .presets import TYPED, preset_input, resolve

_FINE = 1000  # levels of the schedule that stages are cut out of
_MOST = 4  # stages: the paper has up to three
_LARGEST = 16384  # pixels a side, as the host has it


class FreCaSPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitFreCaSPlan",
            display_name="FreCaS Plan",
            category="guidekit/sampling",
            description="Makes a large image (2K, 4K) in stages: the first at the size that the model was trained for, "
            "each further one larger and in few steps. Outputs what the first sampler needs; FreCaS Up leads from one "
            "stage to the next.",
            search_aliases=[
                "FreCaS",
                "2K",
                "4K",
                "high resolution",
                "hires fix",
                "highres fix",
                "upscale",
                "large image",
                "cascade",
            ],
            inputs=[
                io.Model.Input("model", tooltip="An image model: a UNet or a flow model."),
                io.String.Input(
                    "sizes",
                    default="1024, 2048",
                    tooltip="Sizes of the stages in pixels, the smallest first, which is the one that the model was "
                    "trained for: 1024, 2048 for squares, 832x1216, 1664x2432 for others (width x height). Two to "
                    "four sizes.",
                ),
                io.String.Input(
                    "steps",
                    default="40, 10",
                    tooltip="Steps of each stage, most of them in the first. The authors use 40, 10 for 2048 and 30, "
                    "5, 15 for 1024, 2048, 4096 (SDXL).",
                ),
                io.String.Input(
                    "ends",
                    default="0.2",
                    tooltip="How much of the noise schedule is left when a stage ends, for all stages but the last, "
                    "which ends without noise: 0.2 for two stages, 0.4, 0.2 for three (the authors' values for SDXL). "
                    "0.2 is timestep 200 of 1000; for flow models it is the time t.",
                ),
                io.Float.Input(
                    "gamma",
                    default=1.5,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How much more noise a larger stage begins with: the noise level times ratio^(gamma / 2). "
                    "More noise changes more of the image. Not used for flow models, which have one rule.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="normal",
                    tooltip="How steps are spaced within a stage. normal: equal timesteps, as in the authors' code.",
                    advanced=True,
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=4096, step=1, tooltip="Number of images.", advanced=True
                ),
                preset_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the first size."),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="Sigmas of the first stage, for SamplerCustomAdvanced."
                ),
                PlanType.Output(display_name="plan", tooltip="For FreCaS Up."),
                report_output(),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, sizes, steps, ends, gamma, scheduler, batch_size, preset=TYPED) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, steps=steps, ends=ends, gamma=gamma)
        plan = planned(model, sizes, taken["steps"], taken["ends"], taken["gamma"], scheduler)
        flow = is_flow(model.get_model_object("model_sampling"))
        ignored = unused(cls, "with flow models", gamma=gamma) if flow else ""
        report = tell_settings(cls, told, ignored, " ".join(map(_told, plan.stages)))
        latent = {"samples": _empty(model, plan, batch_size)}
        return with_report(latent, plan.stages[0].sigmas, plan, report=report)


def planned(model: ModelPatcher, sizes: str, steps: str, ends: str, gamma: float, scheduler: str) -> Plan:
    """Raises ValueError for sizes and numbers that make no stages."""
    sampling, form = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
    downscale = getattr(form, "spacial_downscale_ratio", 8)
    _check_model(model, form)
    pixels = _sizes(sizes, downscale)
    counts = [int(n) for n in listed_numbers("steps", steps, 2, 10000, _MOST, whole=True)]
    lasts = listed_numbers("ends", ends, 0.001, 0.999, _MOST - 1)
    if len(counts) != len(pixels) or len(lasts) != len(pixels) - 1:
        raise ValueError(
            f"There are {len(pixels)} sizes, {len(counts)} numbers of steps and {len(lasts)} ends. Give as many steps "
            "as sizes, and one end less: the last stage ends without noise."
        )
    fine = comfy.samplers.calculate_sigmas(sampling, scheduler, _FINE)
    curve = [sigma for sigma in fine.tolist() if sigma > 0]
    stages, start = [], curve[0]
    for i, ((width, height), count) in enumerate(zip(pixels, counts)):
        end = 0.0 if i == len(lasts) else _level(lasts[i], sampling)
        if 0 < end < curve[-1]:
            raise ValueError(
                f"Stage {i + 1} would end at noise level {end:.4g}, and the last one of {scheduler} is "
                f"{curve[-1]:.4g}. Give it a larger end."
            )
        if end >= start:
            raise ValueError(
                f"Stage {i + 1} would begin at noise level {start:.4g} and end above it, at {end:.4g}. Give it a "
                "smaller end."
            )
        levels = [*_levels(curve, start, end, count, is_flow(sampling)), 0.0]
        stages.append(Stage(width, height, torch.tensor(levels)))
        if i < len(lasts):
            ratio = max(after / before for after, before in zip(pixels[i + 1], pixels[i]))
            start = next_time(end, ratio) if is_flow(sampling) else next_sigma(end, ratio, gamma)
            start = min(start, curve[0])
    return Plan(tuple(stages), downscale)


def _check_model(model: ModelPatcher, form: LatentFormat) -> None:
    name = type(model.model).__name__
    if form.latent_dimensions == 1:
        raise ValueError(f"{name} makes sound, which has no width and height. FreCaS is for image models.")


_SIZE = re.compile(r"\s*(\d{1,6})\s*(?:[xX*×]\s*(\d{1,6})\s*)?")


def _sizes(text: str, downscale: int) -> list[tuple[int, int]]:
    """(width, height) of each."""
    parts = text.split(",") if text.strip() else []
    if not 2 <= len(parts) <= _MOST:
        raise ValueError(f"sizes has {len(parts)} sizes. Give two to {_MOST}, such as 1024, 2048.")
    found: list[tuple[int, int]] = []
    for part in parts:
        match = _SIZE.fullmatch(part)
        if match is None:
            raise ValueError(f"sizes has {quoted(part.strip())}. A size is a number of pixels, or width x height.")
        size = int(match[1]), int(match[2] or match[1])
        if any(side % downscale or not downscale <= side <= _LARGEST for side in size):
            raise ValueError(
                f"sizes has {quoted(part.strip())}. Sides are multiples of {downscale} for this model, from "
                f"{downscale} to {_LARGEST}."
            )
        if found and not all(after > before for after, before in zip(size, found[-1])):
            raise ValueError("A stage is not larger than the one before it. Give the smallest size first.")
        found.append(size)
    return found


def _level(end: float, sampling: Any) -> float:
    """The model's sigma where `end` of the schedule is left: of flows, the time itself."""
    return end if is_flow(sampling) else float(sampling.percent_to_sigma(1 - end))


def _levels(curve: list[float], start: float, end: float, steps: int, flow: bool) -> list[float]:
    """A flow has no noise at its last timestep: a step there would do nothing."""
    if end == 0 and flow:
        return stage_levels(curve, start, end, steps + 1)[:-1]
    return stage_levels(curve, start, end, steps)


def _empty(model: ModelPatcher, plan: Plan, batch: int) -> torch.Tensor:
    form, first = model.get_model_object("latent_format"), plan.stages[0]
    sides = (first.height // plan.downscale, first.width // plan.downscale)
    frames = (1,) if form.latent_dimensions == 3 else ()
    shape = (batch, form.latent_channels, *frames, *sides)
    return torch.zeros(shape, device=comfy.model_management.intermediate_device())


def _told(stage: Stage) -> str:
    levels = stage.sigmas.tolist()
    return f"{stage.size}: {len(levels) - 1} steps, sigma {levels[0]:.3g} to {levels[-2]:.3g}."
