"""FreCaS (Zhang et al., ICLR 2025, arXiv 2410.18410): from one stage to the next, larger one."""

import hashlib

import comfy.sample
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from .host.inputs import checked, fit_latent
from .host.inputs.plan import Plan, PlanType, Stage
from .host.inputs.shared import random_seed_input
from .host.run.messages import NAN_OF_VAE, tell
from .host.run.outputs import report_output, with_report

_OVERLAP = 8  # of a tile, the part that lies under the next one


class FreCaSUp(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitFreCaSUp",
            display_name="FreCaS Up",
            category="guidekit/sampling",
            description="Takes the image that a FreCaS stage predicts in its last step, enlarges it in pixel space, "
            "and adds the noise that the next stage begins with. Follow it with SamplerCustomAdvanced and "
            "DisableNoise.",
            search_aliases=["FreCaS", "2K", "4K", "hires fix", "upscale latent", "high resolution"],
            inputs=[
                io.Model.Input("model", tooltip="The model that samples."),
                PlanType.Input("plan", tooltip="From FreCaS Plan."),
                io.Latent.Input("denoised", tooltip="denoised_output of the previous stage's sampler."),
                io.Vae.Input("vae", tooltip="The model's VAE: the image is enlarged, not the latent."),
                random_seed_input(
                    "Seed for the added noise, which differs from the noise that samplers make from the same number."
                ),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    step=64,
                    tooltip="Decodes and encodes in tiles of this many pixels, 256 or more, for images that do not fit "
                    "into memory. 0: the whole image at once.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The enlarged, noisy latent that the next stage begins with."
                ),
                io.Sigmas.Output(display_name="sigmas", tooltip="Sigmas of the next stage."),
                io.Float.Output(
                    display_name="size_factor",
                    tooltip="How many times larger the image has become, for size_factor of Frequency Guidance.",
                ),
                report_output(),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, plan, denoised, vae, random_seed, tile) -> io.NodeOutput:
        if 0 < tile < 256:
            raise ValueError(f"tile is {tile}. It is 0, or a number of pixels from 256 on.")
        if denoised.get("noise_mask") is not None:
            raise ValueError("denoised has a mask, and FreCaS makes a whole image. Take the mask off.")
        samples = fit_latent(model, denoised["samples"], "denoised")
        if samples.ndim == 5 and samples.shape[2] != 1:
            raise ValueError(f"denoised is a video of {samples.shape[2]} frames in latents. FreCaS is for images.")
        before, after = _stages(plan, samples)
        larger = torch.cat([_larger(vae, samples[i : i + 1], after, plan.downscale, tile) for i in range(len(samples))])
        larger = larger.reshape(*samples.shape[:-2], *larger.shape[-2:]).to(samples)
        latent = {**denoised, "samples": _noisy(model, larger, after.sigmas[0], random_seed)}
        factor = max(after.width / before.width, after.height / before.height)
        told = f"{before.size} to {after.size}, at noise level {after.sigmas[0]:.3g}."
        report = tell(cls.define_schema().display_name, told)
        return with_report(latent, after.sigmas, factor, report=report)


def _stages(plan: Plan, samples: Tensor) -> tuple[Stage, Stage]:
    """That which has made the samples, by their size, and the next one."""
    height, width = (side * plan.downscale for side in samples.shape[-2:])
    for before, after in zip(plan.stages, plan.stages[1:]):
        if (before.width, before.height) == (width, height):
            return before, after
    sizes = ", ".join(stage.size for stage in plan.stages[:-1])
    raise ValueError(f"denoised is of {width} x {height} pixels. The stages of the plan that have a next one: {sizes}.")


def _larger(vae, samples: Tensor, stage: Stage, downscale: int, tile: int) -> Tensor:
    """Of one image, as the VAE gives it."""
    tiles = {"tile_x": tile // downscale, "tile_y": tile // downscale, "overlap": tile // downscale // _OVERLAP}
    image = vae.decode_tiled(samples, **tiles) if tile else vae.decode(samples)
    image = image.reshape(-1, *image.shape[-3:]).clamp(0, 1).movedim(-1, 1)
    image = comfy.utils.common_upscale(image, stage.width, stage.height, "nearest-exact", "disabled").movedim(1, -1)
    tiles = {"tile_x": tile, "tile_y": tile, "overlap": tile // _OVERLAP}
    found = vae.encode_tiled(image, **tiles) if tile else vae.encode(image)
    wanted = (stage.height // downscale, stage.width // downscale)
    if found.shape[1] != samples.shape[1] or tuple(found.shape[-2:]) != wanted:
        raise ValueError(
            f"The VAE makes latents of shape {tuple(found.shape)} of an image of {stage.size} pixels, and the model "
            f"takes {samples.shape[1]} channels of {wanted[1]} x {wanted[0]}. Connect the model's own VAE."
        )
    if not torch.isfinite(found).all():
        raise ValueError(f"The VAE makes NaN of the image of {stage.size} pixels. {NAN_OF_VAE}")
    return found


def _noisy(model, latent: Tensor, sigma: Tensor, seed: int) -> Tensor:
    """With new noise at `sigma`, as the host's samplers take it over from each other."""
    sampling = model.get_model_object("model_sampling")
    # Not the seed's own: the stage before has most likely begun with that.
    own = hashlib.sha256(f"FreCaS {seed} {tuple(latent.shape[1:])}".encode()).digest()[:7]
    noise = comfy.sample.prepare_noise(latent, int.from_bytes(own, "big"))
    x = sampling.noise_scaling(sigma, noise.to(latent), model.model.process_latent_in(latent.clone()))
    return model.model.process_latent_out(sampling.inverse_noise_scaling(sigma, x))
