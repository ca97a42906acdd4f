"""The exact inverters as samplers of the host, with latents in double precision."""

import logging
from functools import partial

import torch
from torch import Tensor

from ....samplers.inversion.reversible import After, Levels, Method, Pair, invert, sample, unchanged
from .sampler import GuiderDrift, ScheduleSampler

log = logging.getLogger(__name__)
_QUANTUM = 2.0**-36  # of latents in double precision: they are below 2^12, so their rounding is at most 2^-41


def precision(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that do not have it."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        log.warning("%s has no float64: exact inversion works in float32 there, with errors of about 1e-5.", device)
        return torch.float32
    return torch.float64


class _Exact(ScheduleSampler):
    """Runs `method` from `start`; `found` is the last `Pair`: in the sampler's scale, on the CPU. `after(i, pair)`: may
    change the state at level i."""

    undoes = True

    def __init__(self, method: Method, start: tuple[Tensor, ...], after: After = unchanged):
        self.method, self.start, self.after = method, start, after

    def sample_levels(self, drift: GuiderDrift, sigmas: list[float], device: torch.device) -> Tensor:
        dtype = precision(device)
        quantum = _QUANTUM if dtype == torch.float64 else 0.0
        model_sampling = drift.guider.model_patcher.get_model_object("model_sampling")
        levels = Levels(tuple(sigmas), partial(_input_scale, model_sampling), quantum)
        pair = self.go(drift, levels, [part.to(dtype).to(device) for part in self.start])
        self.found = Pair(*(part.cpu() for part in pair))
        return pair.x

    def go(self, drift: GuiderDrift, levels: Levels, start: list[Tensor]) -> Pair:
        """The pair at the other end of the schedule. `start`: latents [B, ...] on the device."""
        raise NotImplementedError


class ToNoise(_Exact):
    """Inversion from an image's latent, the only part of `start`, to the pair at the noisy end.

    Raises:
        ValueError: the model is not deterministic.
    """

    def go(self, drift: GuiderDrift, levels: Levels, start: list[Tensor]) -> Pair:
        [image] = start
        pair = invert(self.method, drift, image, levels, self.after, drift.enter)
        if not drift.is_pure():
            raise ValueError(
                "The model is not deterministic: one input gave two predictions, so its steps cannot be undone. Take "
                "nodes off it that cache, draw random numbers or remember earlier steps."
            )
        return pair


class FromNoise(_Exact):
    """Sampling from a pair, `start`, to the latent of an image."""

    def steps(self, steps: int) -> int:
        return steps - self.method.first

    def go(self, drift: GuiderDrift, levels: Levels, start: list[Tensor]) -> Pair:
        return sample(self.method, drift, Pair(*start), levels, self.after, drift.enter)


def _input_scale(model_sampling, sigma: float) -> float:
    one = torch.ones((1, 1), dtype=torch.float64)
    return model_sampling.calculate_input(torch.full((1,), sigma, dtype=torch.float64), one).item()
