"""Decodes denoised estimates to images, inside a run.

Relies on: VAE.decode (comfy/sd.py:1155), which returns [B, H, W, C] or, for videos, [B, T, H, W, C] in 0..1;
`latent_rgb_factors` of latent formats, which map latents in the sampler's scale to images in -1..1
(latent_preview.py:47).
"""

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ....samplers.sending import sent
from ..run import Run


@dataclass(frozen=True, eq=False)
class Decoder:
    """Latents to images, by `vae` or, where that is None, by ComfyUI's preview colours. Of videos the middle frame is
    used."""

    vae: Any | None

    def check(self, run: Run, label: str) -> None:
        """Checks that latents of the run can be decoded, for the technique `label`.

        Raises:
            ValueError: they are not images or videos, or there is neither a VAE nor a preview for them.
        """
        if len(run.latent_shapes) > 1:
            raise ValueError(f"{label} works on images, and this latent holds video and sound together.")
        shape = run.latent_shapes[0]
        if len(shape) not in (4, 5):
            raise ValueError(f"{label} works on images, and this latent (shape {tuple(shape)}) holds something else.")
        if self.vae is None and not getattr(run.latent_format, "latent_rgb_factors", None):
            raise ValueError(
                f"{label}: no VAE is connected, and ComfyUI has no colours for latents of this kind "
                f"({type(run.latent_format).__name__}). Connect a VAE, or a TAESD from VAELoader."
            )

    def __call__(self, run: Run, denoised: Tensor) -> Tensor:
        """RGB images [B, 3, H, W] in 0..1 of latents [B, C, ...] in the sampler's scale."""
        if denoised.ndim == 5:
            middle = denoised.shape[2] // 2
            denoised = denoised[:, :, middle : middle + 1]
        if self.vae is None:
            return by_colour(denoised, run.latent_format)
        images = self.vae.decode(run.process_latent_out(denoised))
        run.reload()  # the VAE may have displaced the network from GPU memory
        if images.ndim == 5:
            images = images[:, images.shape[1] // 2]
        return images[..., :3].movedim(-1, 1)


def by_colour(latent: Tensor, latent_format) -> Tensor:
    """Images [B, 3, H, W] in 0..1 of latents [B, C, ...] in the sampler's scale, as in ComfyUI's previews."""
    if (reshape := getattr(latent_format, "latent_rgb_factors_reshape", None)) is not None:
        latent = reshape(latent)
    if latent.ndim == 5:
        latent = latent[:, :, 0]
    factors = sent(torch.tensor(latent_format.latent_rgb_factors), latent.device, latent.dtype)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    images = torch.einsum("bchw,cr->brhw", latent, factors)
    if bias is not None:
        images = images + sent(torch.tensor(bias), latent.device, latent.dtype).reshape(1, 3, 1, 1)
    return ((images + 1) / 2).clamp(0, 1)


def vae_input() -> io.Vae.Input:
    """The VAE input of a node with a `Decoder`."""
    return io.Vae.Input(
        "vae",
        optional=True,
        tooltip="Makes the images that the classifier sees; a TAESD from VAELoader is fast. Not connected: ComfyUI's "
        "preview colours, fast and rough.",
    )
