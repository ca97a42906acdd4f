"""The gradient of a classifier's logits with respect to a denoised estimate.

The host runs graphs in inference mode, and weights that were loaded in that mode cannot be saved for a backward pass.
So a run uses copies of them, made outside that mode; on the device, so that the host does not bring them there itself,
to a place that was made in that mode (dynamic VRAM) or that the next layer's weights take (streams).

Relies on: VAE.first_stage_model with `decode`, and `process_output` (comfy/sd.py:1176); `process_latent_out` of latent
formats being affine, element by element (comfy/latent_formats.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..run import Run
from .decode import Decoder, by_colour
from .image import ImageClassifier


class _Decode(nn.Module):
    def __init__(self, vae: Any):
        super().__init__()
        self.vae, self.network = vae, vae.first_stage_model

    def forward(self, latent: Tensor) -> Tensor:
        return self.network.decode(latent)


def _copied(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        named = [*module.named_parameters(), *module.named_buffers()]
        return {name: value.detach().to(device, copy=True) for name, value in named}


class ImageGradient:
    """The gradient in one run, with copies of the weights of classifier and decoder."""

    def __init__(self, run: Run, decoder: Decoder, classifier: ImageClassifier):
        self._run, self._classifier = run, classifier
        self._network = _copied(classifier.network, classifier.patcher.load_device)
        self._decode = _Decode(decoder.vae) if decoder.vae is not None else None
        self._decoder = {} if self._decode is None else _copied(self._decode, self._decode.vae.device)

    def __call__(self, denoised: Tensor, beta: float | None, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """d sum(objective(logits)) / d `denoised`, [B, C, ...] in the sampler's scale. `objective`: from logits [B,
        classes] to [B]; `beta`: that of the classifier's Softplus, None for ReLU."""
        start, scale = self._start(denoised)
        with torch.inference_mode(False), torch.enable_grad():
            latent = start.clone().requires_grad_()
            prepared = self._classifier.prepared(self._images(latent))
            logits = torch.func.functional_call(self._classifier.network, self._network, (prepared, beta))
            [gradient] = torch.autograd.grad(objective(logits).sum(), latent)
        return gradient.to(denoised) * scale

    def _start(self, denoised: Tensor) -> tuple[Tensor, Tensor | float]:
        """The latents that are decoded, and their derivative with respect to `denoised`."""
        if self._decode is None:
            return denoised, 1.0
        ones = torch.ones_like(denoised)
        out = self._run.process_latent_out
        return out(denoised), out(ones) - out(torch.zeros_like(ones))

    def _images(self, latent: Tensor) -> Tensor:
        if self._decode is None:
            return by_colour(latent, self._run.latent_format)
        vae = self._decode.vae
        given = latent.to(vae.device, vae.vae_dtype)
        images = torch.func.functional_call(self._decode, self._decoder, (given,)).float()
        return vae.process_output(images.clone())[:, :3]
