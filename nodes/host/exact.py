"""Runs of the exact inverters in the host, with latents in double precision.

A sampler of their own, because the host's wrapper scales latents at both ends of a run (a flow's by 1 / (1 - sigma)),
and in single precision.

Relies on: `guider.sample`, which calls `sampler.sample(guider, ...)` inside the run (comfy/samplers.py:1220, 1274);
predictions in the precision of x (`calculate_denoised` of comfy/model_sampling.py promotes).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...samplers.inversion.pairs import After, Levels, Method, Pair, invert, sample
from .run import find_run

log = logging.getLogger(__name__)
_SAME = 1e-3  # relative; what rounding may do to two answers to one question
_UNIT = 2.0**-36  # of latents in double precision, which are below 2^12, so that their rounding is 2^-41 and less


def precision(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that do not have it."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        log.warning("%s has no float64: exact inversion works in float32 there, with errors of about 1e-5.", device)
        return torch.float32
    return torch.float64


@dataclass
class _Asked:
    """The drift of a guider in a run; it shows the first answer of every step, and keeps the last one."""

    guider: comfy.samplers.CFGGuider
    extra_args: dict
    shown: Callable | None  # the host's callback
    bar: tqdm
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
                self.shown(self.done, denoised.float(), x.float(), self.bar.total)
            self.done += 1
            self.bar.update(1)
        self.last = x, sigma, denoised
        return (x - denoised) / sigma

    def _denoised(self, x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        return self.guider(x, level, **self.extra_args)

    def is_pure(self) -> bool:
        """Whether the last question gets the same answer again."""
        x, sigma, before = self.last
        return ((self._denoised(x, sigma) - before).norm() <= _SAME * before.norm()).item()


class _Exact(comfy.samplers.Sampler):
    """Walks from `start`, and leaves `pair`."""

    exact = True  # guidance that remembers earlier steps cannot be undone

    def __init__(self, method: Method, start: tuple[Tensor, ...], after: After = lambda i, pair: pair):
        self.method, self.start, self.after = method, start, after
        self.pair: Pair | None = None

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        dtype = precision(noise.device)
        unit = _UNIT if dtype == torch.float64 else 0.0
        levels = Levels(tuple(sigmas.tolist()), partial(_input_scale, model_sampling), unit)
        with comfy.utils.model_trange(self.steps(levels), disable=disable_pbar) as bar:
            drift = _Asked(guider, extra_args, callback, bar)
            start = [part.to(dtype).to(noise.device) for part in self.start]
            self.pair = self.walk(drift, levels, *start)
        return self.pair.x

    def steps(self, levels: Levels) -> int:
        raise NotImplementedError

    def walk(self, drift: _Asked, levels: Levels, *start: Tensor) -> Pair:
        raise NotImplementedError


class ToNoise(_Exact):
    """From a picture's latent, the only part of `start`, to the pair that it comes from."""

    def steps(self, levels: Levels) -> int:
        return levels.steps

    def walk(self, drift: _Asked, levels: Levels, *start: Tensor) -> Pair:
        pair = invert(self.method, drift, *start, levels, self.after, drift.enter)
        if not drift.is_pure():
            raise ValueError(
                "The model gives two answers to one question, so that its steps cannot be undone. Take nodes off it "
                "that cache, or draw random numbers, or remember earlier steps."
            )
        return pair


class FromNoise(_Exact):
    """From a pair, `start`, to the latent of a picture."""

    def steps(self, levels: Levels) -> int:
        return levels.steps - self.method.first

    def walk(self, drift: _Asked, levels: Levels, *start: Tensor) -> Pair:
        return sample(self.method, drift, Pair(*start), levels, self.after, drift.enter)


def run_exact(guider, sampler: _Exact, sigmas: Tensor, latent: Tensor) -> Pair:
    """The pair that the run ends with, raw (as the sampler sees latents), on the processor."""
    if "easycache" in guider.model_options.get("transformer_options", {}):
        raise ValueError("EasyCache and LazyCache remember earlier steps, so that exact inversion cannot undo them.")
    callback = latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1)
    bar = not comfy.utils.PROGRESS_BAR_ENABLED
    guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, callback=callback, disable_pbar=bar, seed=0)
    return Pair(*(part.cpu() for part in sampler.pair))


def _input_scale(model_sampling, sigma: float) -> float:
    one = torch.ones((1, 1), dtype=torch.float64)
    return model_sampling.calculate_input(torch.full((1,), sigma, dtype=torch.float64), one).item()
