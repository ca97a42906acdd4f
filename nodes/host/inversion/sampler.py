"""Samplers that go through a schedule in either direction and tell the run which step of the generation they are in.

They derive from the host's Sampler, not KSAMPLER, because that scales latents at both ends of a run (a flow's by
1 / (1 - sigma)), in single precision.

Relies on: `guider.sample`, which calls `sampler.sample(guider, ...)` inside the run (comfy/samplers.py:1220, 1274);
predictions in the precision of x (`calculate_denoised` of comfy/model_sampling.py promotes).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..run import find_run

_SAME = 1e-3  # relative; by how much rounding may make two predictions for one input differ


@dataclass
class GuiderDrift:
    """The drift f(x, sigma) = (x - D(x, sigma)) / sigma of a guider's denoised prediction D, for x [B, ...].

    Calls `shown` with the first prediction of every step, for the rows from `first_shown` on, and keeps the last one.

    Raises:
        ValueError: a prediction holds NaN or infinity.
    """

    guider: comfy.samplers.CFGGuider
    extra_args: dict
    shown: Callable | None  # the host's callback
    bar: tqdm
    first_shown: int = 0
    done: int = 0  # steps so far
    new: bool = True
    last: tuple[Tensor, float, Tensor] | None = None

    def enter(self, i: int) -> None:
        """Evaluations from now on belong to step i of the generation."""
        self.new = True
        if (run := find_run(self.extra_args["model_options"])) is not None:
            run.enter_step(i)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = self._denoised(x, sigma)
        if self.new:
            self.new = False
            if self.shown is not None:
                self.shown(
                    self.done, denoised[self.first_shown :].float(), x[self.first_shown :].float(), self.bar.total
                )
            self.done += 1
            self.bar.update(1)
        self.last = x, sigma, denoised
        return (x - denoised) / sigma

    def _denoised(self, x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        denoised = self.guider(x, level, **self.extra_args)
        if not torch.isfinite(denoised).all():
            raise ValueError(
                f"The model's prediction at noise level {sigma:g} holds NaN or infinity. Usual causes are a network in "
                "float16 that overflows (start ComfyUI with --force-fp32 or use bfloat16 weights), a damaged "
                "checkpoint or LoRA, or a very large guidance scale."
            )
        return denoised

    def is_pure(self) -> bool:
        """Whether the last input, evaluated once more, gives the same prediction."""
        if self.last is None:  # nothing was evaluated
            return True
        x, sigma, before = self.last
        return ((self._denoised(x, sigma) - before).norm() <= _SAME * before.norm()).item()


class ScheduleSampler(comfy.samplers.Sampler):
    """A sampler over a schedule that leaves its result in `found`. `undoes`: it inverts steps, or samples from an
    inversion, so that guidance that remembers earlier steps is refused."""

    undoes = False
    found: Any = None

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        levels = sigmas.tolist()
        with comfy.utils.model_trange(self.steps(len(levels) - 1), disable=disable_pbar) as bar:
            return self.sample_levels(GuiderDrift(guider, extra_args, callback, bar), levels, noise.device)

    def steps(self, steps: int) -> int:
        """How many of the schedule's `steps` are taken, for the progress bar."""
        return steps

    def sample_levels(self, drift: GuiderDrift, sigmas: list[float], device: torch.device) -> Tensor:
        """Sets `found` and returns the last latent, [B, ...] on `device`, in the sampler's scale."""
        raise NotImplementedError


def sample_schedule(guider, sampler: ScheduleSampler, sigmas: Tensor, latent: Tensor) -> Any:
    """Runs `sampler` and returns its `found`. `sigmas`: the levels of the generation, falling; `latent`: [B, C, ...] in
    the scale of a VAE, which inpainting models use.

    Raises:
        ValueError: EasyCache or LazyCache is on the model of an inversion.
    """
    if sampler.undoes and "easycache" in guider.model_options.get("transformer_options", {}):
        raise ValueError(
            "EasyCache and LazyCache remember earlier steps, and an inversion goes through them backwards."
        )
    callback = latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1)
    bar = not comfy.utils.PROGRESS_BAR_ENABLED
    guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, callback=callback, disable_pbar=bar, seed=0)
    return sampler.found


def check_unmasked(latent: dict) -> None:
    """Checks that a LATENT can be inverted.

    Raises:
        ValueError: it has a noise mask.
    """
    if latent.get("noise_mask") is not None:
        raise ValueError(
            "The latent has a mask, and an image cannot be inverted in part. Take the mask off; for edits in part "
            "give it to Exact Inversion Sampling."
        )
