"""CFG++ samplers (Chung et al., ICLR 2025, arXiv 2406.08070), for eps, v and flow models."""

from collections.abc import Callable

import comfy.samplers
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler, default_noise_sampler
from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance import cfgpp
from .host.inputs import checked
from .host.inputs.settings import tell_settings, unused
from .host.predictions.cfgpp import SeparatePredictions, reporter
from .host.run.noise_levels import is_flow
from .host.run.outputs import report_output, with_report


def sample_cfgpp_euler(model, x: Tensor, sigmas: Tensor, **options) -> Tensor:
    return _sample(cfgpp.euler, _independent_noise, model, x, sigmas, **options)


def sample_cfgpp_dpmpp_2m(model, x: Tensor, sigmas: Tensor, **options) -> Tensor:
    return _sample(cfgpp.dpmpp_2m, _brownian_noise, model, x, sigmas, **options)


def sample_cfgpp_dpmpp_2s_ancestral(model, x: Tensor, sigmas: Tensor, **options) -> Tensor:
    return _sample(cfgpp.dpmpp_2s_ancestral, _independent_noise, model, x, sigmas, **options)


# name -> the function, and whether it adds noise
SAMPLERS = {
    "euler": (sample_cfgpp_euler, False),
    "euler ancestral": (sample_cfgpp_euler, True),
    "dpmpp 2m": (sample_cfgpp_dpmpp_2m, False),
    "dpmpp 2m sde": (sample_cfgpp_dpmpp_2m, True),
    "dpmpp 2s ancestral": (sample_cfgpp_dpmpp_2s_ancestral, True),
}


def _independent_noise(x: Tensor, sigmas: Tensor, seed: int | None) -> Callable:
    return default_noise_sampler(x, seed=seed)


def _brownian_noise(x: Tensor, sigmas: Tensor, seed: int | None) -> Callable:
    return BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed, cpu=True)


def _sample(
    solve: Callable,
    noise_sampler: Callable,
    model,
    x: Tensor,
    sigmas: Tensor,
    *,
    extra_args: dict,
    callback,
    disable,
    guidance_lambda: float,
    eta: float,
    s_noise: float,
) -> Tensor:
    if len(sigmas) < 2:
        return x
    model_sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    if eta > 0:
        unit = noise_sampler(x, sigmas, extra_args.get("seed"))
        size = s_noise * getattr(model_sampling, "noise_scale", 1.0)  # some flow models scale their noise
    else:
        unit = size = None

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return unit(sigma, sigma_next) * size

    evaluate = SeparatePredictions(model, extra_args, guidance_lambda)
    return solve(evaluate, x, sigmas, is_flow(model_sampling), eta=eta, noise=noise, report=reporter(callback))


class SamplerCFGPP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitSamplerCFGPP",
            display_name="CFG++ Sampler",
            category="guidekit/sampling",
            description="Samplers in CFG++ form, right for eps, v and flow models: guidance acts on the denoised "
            "image only, the noise is put back without it. Lambda is set here; the cfg of the guider is not used.",
            search_aliases=["CFG++", "cfg_pp", "cfgpp", "euler_cfg_pp", "dpmpp_2m_cfg_pp", "manifold constrained"],
            inputs=[
                io.Combo.Input(
                    "sampler",
                    options=list(SAMPLERS),
                    default="euler",
                    tooltip="The sampler that is put into CFG++ form. 2s evaluates the model twice per step.",
                ),
                io.Float.Input(
                    "guidance_lambda",
                    default=0.6,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Takes the place of cfg: 0 is unguided, the paper uses 0.2 to 1 (0.6 where CFG has about "
                    "7.5 at 50 steps).",
                ),
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Noise added in the ancestral and SDE samplers; 0 is none. Not used by the others.",
                    advanced=True,
                ),
                io.Float.Input(
                    "s_noise",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Factor on that noise.",
                    advanced=True,
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, sampler, guidance_lambda, eta, s_noise) -> io.NodeOutput:
        function, noisy = SAMPLERS[sampler]
        ignored = {} if noisy else {"eta": eta, "s_noise": s_noise}
        report = tell_settings(cls, unused(cls, f"by {sampler}, which adds no noise", **ignored))
        options = {"guidance_lambda": guidance_lambda, "eta": eta if noisy else 0.0, "s_noise": s_noise}
        return with_report(comfy.samplers.KSAMPLER(function, options), report=report)
