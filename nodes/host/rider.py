"""A latent that rides through the network as a further row of every chunk, so that its features can be looked at.

Relies on: APPLY_MODEL wrappers, which see all rows of a network call and everything that goes with them
(comfy/model_base.py:191); `process_latent_in` of the model, `noise_scaling` and `calculate_input` of its sampling
object (comfy/model_sampling.py), the latter being a factor.
"""

from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .parts import know_rows
from .run import Run, current_run

_RIDERS = "guidekit_riders"


@dataclass(frozen=True, eq=False)
class Rider:
    """`latent`: [1, C, ...] as a VAE gives it. `noisy`: at the noise level of the step, with one noise per run, else
    what the network sees is the clean latent. `active(run)`: whether it rides in this step."""

    latent: Tensor
    noisy: bool
    active: Any

    def _at(self, run: Run, base, x: Tensor, sigma: Tensor) -> Tensor:
        """[1, ...] of the shape of a row of x."""
        known = run.notes.setdefault(self, {})
        if x.shape[1:] not in known:
            latent = _fitted(base.process_latent_in(self.latent.to(x.device, torch.float32)), x)
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
            known[x.shape[1:]] = latent, noise.to(x.device)
        latent, noise = known[x.shape[1:]]
        sampling = base.model_sampling
        if self.noisy:
            latent = sampling.noise_scaling(sigma[:1], noise, latent)
        else:  # as the network's input: models of x0 + sigma n scale theirs down, at high noise to nothing
            latent = latent / sampling.calculate_input(sigma[:1], torch.ones_like(latent))
        return latent.to(x.dtype)

    def __call__(self, executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
        run, base = current_run(transformer_options), executor.class_obj
        if not self.active(run):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        rows, chunks = len(x), len(transformer_options["cond_or_uncond"])
        riding = self._at(run, base, x, t).expand(chunks, *x.shape[1:])
        options = {**transformer_options, _RIDERS: (self, *riders(transformer_options))}

        def longer(value: Any) -> Any:
            return _longer(value, rows, chunks)

        x = torch.cat([riding[:, None], x.unflatten(0, (chunks, -1))], 1).flatten(0, 1)
        rest = (longer(value) for value in (t, c_concat, c_crossattn, control))
        out = executor(x, *rest, options, **{name: longer(value) for name, value in kwargs.items()})
        return out.unflatten(0, (chunks, -1))[:, 1:].flatten(0, 1)


def riders(transformer_options: dict) -> tuple[Rider, ...]:
    """Those that ride in the current network call, in the order of their rows, which are the first of every chunk."""
    return transformer_options.get(_RIDERS, ())


def add_rider(model: ModelPatcher, rider: Rider) -> None:
    """Lets a latent ride for a technique that is attached to the model as well.

    Raises:
        ValueError: it has another number of channels than the model's latents.
    """
    wanted = model.get_model_object("latent_format").latent_channels
    if rider.latent.shape[1] != wanted:
        raise ValueError(
            f"The reference latent has {rider.latent.shape[1]} channels (shape {tuple(rider.latent.shape)}), but "
            f"{type(model.model).__name__} takes {wanted}. Encode the picture with this model's VAE."
        )
    know_rows(model)
    model.add_wrapper(WrappersMP.APPLY_MODEL, rider)


def _longer(value: Any, rows: int, chunks: int) -> Any:
    """With the first row of every chunk twice, wherever there are rows in it."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] != rows:
            return value
        by_chunk = value.unflatten(0, (chunks, -1))
        return torch.cat([by_chunk[:, :1], by_chunk], 1).flatten(0, 1)
    if isinstance(value, dict):
        return {key: _longer(each, rows, chunks) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_longer(each, rows, chunks) for each in value)
    return value


def _fitted(latent: Tensor, x: Tensor) -> Tensor:
    """In the shape of a row of x: a picture in every frame of a video, scaled to its height and width."""
    while latent.ndim < x.ndim:
        latent = latent.unsqueeze(2)
    if latent.shape[-2:] != x.shape[-2:]:
        frames = latent.movedim(1, 2).flatten(0, 1) if latent.ndim == 5 else latent
        frames = torch.nn.functional.interpolate(frames, x.shape[-2:], mode="bilinear", antialias=True)
        latent = frames.unflatten(0, (1, -1)).movedim(2, 1) if latent.ndim == 5 else frames
    if latent.ndim == 5 and latent.shape[2] != x.shape[2]:
        latent = latent[:, :, :1].expand(-1, -1, x.shape[2], -1, -1)
    return latent
