"""Samplers that walk a schedule in either direction, and say which step of the generation they are in.

Of their own, because the host's wrapper scales latents at both ends of a run (a flow's by 1 / (1 - sigma)), and in
single precision.

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

_SAME = 1e-3  # relative; what rounding may do to two answers to one question


@dataclass
class GuiderDrift:
    """f(x, sigma) = (x - D(x, sigma)) / sigma of a guider's D; it shows the first answer of every step, for the rows
    from `first_shown` on, and keeps the last one."""

    guider: comfy.samplers.CFGGuider
    extra_args: dict
    shown: Callable | None  # the host's callback
    bar: tqdm
    first_shown: int = 0
    done: int = 0  # steps
    new: bool = True
    last: tuple[Tensor, float, Tensor] | None = None

    def enter(self, i: int) -> None:
        """What is asked from now on belongs to step i of the generation."""
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
        """Whether the last question gets the same answer again."""
        if self.last is None:  # there was none
            return True
        x, sigma, before = self.last
        return ((self._denoised(x, sigma) - before).norm() <= _SAME * before.norm()).item()


class ScheduleSampler(comfy.samplers.Sampler):
    """Leaves in `found` what it was sent for. `undoes`: guidance that remembers earlier steps is refused."""

    undoes = False
    found: Any = None

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        levels = sigmas.tolist()
        with comfy.utils.model_trange(self.steps(len(levels) - 1), disable=disable_pbar) as bar:
            return self.sample_levels(GuiderDrift(guider, extra_args, callback, bar), levels, noise.device)

    def steps(self, steps: int) -> int:
        """How many of a schedule's steps are made, for the progress bar."""
        return steps

    def sample_levels(self, drift: GuiderDrift, sigmas: list[float], device: torch.device) -> Tensor:
        """Sets `found` and returns the latent that the run ends with."""
        raise NotImplementedError


def sample_schedule(guider, sampler: ScheduleSampler, sigmas: Tensor, latent: Tensor) -> Any:
    """`sampler.found`. `latent`: an image as a VAE gives it, which inpainting models look at."""
    if sampler.undoes and "easycache" in guider.model_options.get("transformer_options", {}):
        raise ValueError(
            "EasyCache and LazyCache remember earlier steps, and an inversion goes through them backwards."
        )
    callback = latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1)
    bar = not comfy.utils.PROGRESS_BAR_ENABLED
    guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, callback=callback, disable_pbar=bar, seed=0)
    return sampler.found


def check_unmasked(latent: dict) -> None:
    """Raises ValueError for latents that cannot be inverted."""
    if latent.get("noise_mask") is not None:
        raise ValueError(
            "The latent has a mask, and an image cannot be inverted in part. Take the mask off; for edits in part "
            "give it to Exact Inversion Sampling."
        )
