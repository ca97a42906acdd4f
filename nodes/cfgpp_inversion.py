"""The inversion that belongs to CFG++ sampling (Chung et al., ICLR 2025, arXiv 2406.08070, Algorithm 3)."""

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance import cfgpp
from .host.inputs import checked
from .host.predictions.cfgpp import SeparatePredictions, reporter
from .host.run.noise_levels import is_flow

# The host divides a flow's result by 1 - sigma, and multiplies by it when sampling starts from there without noise.
_LARGEST_FLOW_SIGMA = 1 - 1e-4


def sample_cfgpp_inversion(
    model, x: Tensor, sigmas: Tensor, *, extra_args: dict, callback, disable, guidance_lambda: float
) -> Tensor:
    model_sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    evaluate = SeparatePredictions(model, extra_args, guidance_lambda)
    return cfgpp.invert(evaluate, x, sigmas, is_flow(model_sampling), report=reporter(callback))


def schedules(sigmas: Tensor, model_sampling) -> tuple[Tensor, Tensor]:
    """(rising, falling): from the image to noise and back, for a schedule that falls to 0.

    The image counts as the latent at the smallest noise level that the model knows.
    """
    if len(sigmas) < 2 or (sigmas.diff() >= 0).any():
        raise ValueError(
            f"The sigmas are {[round(s, 4) for s in sigmas.tolist()]}. Give those with which the image is to be "
            "sampled: at least two, falling, such as BasicScheduler's."
        )
    falling = sigmas.clone()
    if is_flow(model_sampling):
        falling = falling.clamp(max=_LARGEST_FLOW_SIGMA)
    rising = falling[falling > 0].flip(0)
    smallest = float(model_sampling.sigma_min)
    if rising[0] > smallest * (1 + 1e-4):
        rising = torch.cat([rising.new_tensor([smallest]), rising])
    return rising, falling


class CFGPPInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitCFGPPInversion",
            display_name="CFG++ Inversion",
            category="guidekit/inversion",
            description="Turns an image into the noise from which CFG++ sampling makes it again: two "
            "SamplerCustomAdvanced without noise, the first with the sampler and the rising sigmas of this node, the "
            "second with the CFG++ Sampler (euler, same lambda) and its falling sigmas.",
            search_aliases=[
                "CFG++ inversion",
                "DDIM inversion",
                "unsampler",
                "noise an image",
                "invert",
                "editing",
                "unsample",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model of the guider: it decides the form of the noise levels."),
                io.Sigmas.Input("sigmas", tooltip="The schedule for sampling, falling, as from BasicScheduler."),
                io.Float.Input(
                    "guidance_lambda",
                    default=0.6,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    tooltip="The lambda with which the noise will be sampled.",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="inversion_sampler", tooltip="The sampler for the first run."),
                io.Sigmas.Output(display_name="rising_sigmas", tooltip="From the image to noise, for the first run."),
                io.Sigmas.Output(display_name="falling_sigmas", tooltip="From the noise back, for the second run."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, sigmas, guidance_lambda) -> io.NodeOutput:
        sampler = comfy.samplers.KSAMPLER(sample_cfgpp_inversion, {"guidance_lambda": guidance_lambda})
        return io.NodeOutput(sampler, *schedules(sigmas, model.get_model_object("model_sampling")))
