"""Fitting the coefficients of LinearAG (Castillo et al., AAAI 2025, arXiv 2312.12487) on trajectories of one's own."""

import math
from dataclasses import dataclass, field
from functools import partial

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance import linear_ag
from .host.files import folders as files
from .host.inputs import check_prompt_for, checked, fit_latent
from .host.predictions.negative import Negative, watch_negative
from .host.run import Run
from .host.run.fingerprint import describe
from .host.run.messages import tell
from .host.run.outputs import report_output, with_report
from .host.run.raw_predictions import to_raw

LABEL = "LinearAG Fit"


@dataclass(eq=False)
class _Recorder(Negative):
    """Records the network's outputs of one run."""

    cond: list[Tensor] = field(default_factory=list)
    uncond: list[Tensor] = field(default_factory=list)
    description: dict = field(default_factory=dict)

    label, idle_reason = LABEL, ""

    def begin(self, run: Run, guider) -> None:
        run.acted.add(self)
        self.description = describe(run, guider)

    def see(self, run: Run, args: dict, cond: Tensor, uncond: Tensor | None) -> None:
        if uncond is None:
            raise ValueError(
                f"In step {run.step + 1} the negative was not evaluated, so there is nothing to fit. Take nodes that "
                "limit guidance (guidance interval, adaptive guidance, CFGOverride) off the model for the fit."
            )
        for kept, denoised in ((self.cond, cond), (self.uncond, uncond)):
            kept.append(to_raw(run.model_sampling, args["input"], denoised, args["sigma"]))


def trajectory(model, conds: tuple, cfg: float, sampler, sigmas: Tensor, latent: Tensor, seed: int, callback):
    """One run with CFG in every step. Returns (inner products, description of the run)."""
    model, recorder = model.clone(), _Recorder()
    watch_negative(model, recorder)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(cfg)
    noise = comfy.sample.prepare_noise(latent, seed)
    guider.sample(noise, latent, sampler, sigmas, callback=callback, disable_pbar=True, seed=seed)
    if len(recorder.cond) != len(sigmas) - 1:
        raise ValueError(
            f"This sampler evaluates the model {len(recorder.cond)} times in {len(sigmas) - 1} steps. LinearAG needs "
            "one with one evaluation per step, such as euler or dpmpp_2m."
        )
    return linear_ag.gram(recorder.cond, recorder.uncond), recorder.description


def _progress(bar: comfy.utils.ProgressBar, done: int, step: int, *_) -> None:
    bar.update_absolute(done + step + 1)


class LinearAGFit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitLinearAGFit",
            display_name=LABEL,
            category="guidekit/guidance",
            description="Learns, from a few runs with full CFG, how the negative prediction follows from what is "
            "already known, and saves it in models/guidekit for the LinearAG node. Once per model, schedule, cfg and "
            "negative prompt.",
            search_aliases=["LinearAG", "linear adaptive guidance", "fit", "calibrate"],
            inputs=[
                io.Model.Input("model", tooltip="The model as it will be used, with its LoRAs."),
                io.Clip.Input("clip", tooltip="Its text encoder, for the prompts below."),
                io.Conditioning.Input("negative", tooltip="The negative prompt of later runs; it may be empty."),
                io.Sampler.Input(
                    "sampler", tooltip="The sampler of later runs, with one evaluation per step (euler, dpmpp_2m)."
                ),
                io.Sigmas.Input("sigmas", tooltip="The schedule of later runs, as from BasicScheduler."),
                io.Latent.Input("latent", tooltip="An empty latent; a batch gives several trajectories in one run."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="Positive prompts of the kind that will be used, one per line. They are taken in turn.",
                ),
                io.Float.Input(
                    "cfg", default=7.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="The cfg of later runs."
                ),
                io.Int.Input(
                    "trajectories",
                    default=32,
                    min=1,
                    max=10000,
                    step=1,
                    tooltip="Images to sample for the fit. The paper takes 200.",
                ),
                io.String.Input(
                    "name", default="linear_ag", tooltip="Name of the file in models/guidekit; an old one is replaced."
                ),
                io.Int.Input(
                    "random_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    step=1,
                    tooltip="Of the first run's noise; the next take the following numbers.",
                    advanced=True,
                ),
                io.Float.Input(
                    "ridge",
                    default=1e-6,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="Weight against large coefficients, in units of the mean square of the outputs.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Combo.Output(display_name="file", tooltip="For the LinearAG node's input of that name."),
                report_output("How much of the guidance the estimate misses in each step, 0 to 1."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        clip,
        negative,
        sampler,
        sigmas,
        latent,
        prompts,
        cfg,
        trajectories,
        name,
        random_seed,
        ridge,
    ) -> io.NodeOutput:
        files.MODELS.check(name)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise ValueError("There are no prompts. Give positive prompts of the kind that will be used, one per line.")
        if cfg == 1:
            raise ValueError("cfg is 1: no negative is evaluated then, and there is nothing to save.")
        if len(sigmas) < 2:
            raise ValueError(f"The schedule has {max(len(sigmas) - 1, 0)} steps. Give at least one.")
        check_prompt_for(model, negative, "negative")
        samples = fit_latent(model, latent["samples"], "latent")
        runs = math.ceil(trajectories / len(samples))
        bar = comfy.utils.ProgressBar(runs * (len(sigmas) - 1))
        products = torch.zeros(())
        description: dict = {}
        for i in range(runs):
            tokens = clip.tokenize(lines[i % len(lines)])
            conds = clip.encode_from_tokens_scheduled(tokens), negative

            inner, description = trajectory(
                model,
                conds,
                cfg,
                sampler,
                sigmas,
                samples,
                (random_seed + i) % 2**64,
                partial(_progress, bar, i * (len(sigmas) - 1)),
            )
            products = products + inner
        coefficients = linear_ag.fit(products, ridge)
        tensors = {"cond": coefficients.cond, "uncond": coefficients.uncond}
        file = files.MODELS.save(name, tensors, description)
        left = linear_ag.unexplained(products, coefficients).tolist()
        steps = ", ".join(f"{i + 1}: {value:.4f}" for i, value in enumerate(left))
        report = (
            f"{file}: {runs * len(samples)} trajectories of {len(left)} steps. What the estimate leaves, by step, of "
            f"what lies between the positive and the negative prediction: {steps}."
        )
        return with_report(file, report=tell(LABEL, report))
