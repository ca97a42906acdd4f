"""Inversions that are kept step by step, and runs that go along them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....samplers.inversion.direct_inversion import record, replay
from .latent_state import InversionState, check_file, check_shape
from .sampler import GuiderDrift, ScheduleSampler


@dataclass(frozen=True, eq=False)
class Trajectory(InversionState):
    """`latents`: [levels, 1, ...], raw (as the sampler sees them), from the noisy end to the image."""

    latents: Tensor

    maker: ClassVar[str] = "Trajectory Record"
    tensors: ClassVar[tuple[str, ...]] = (*InversionState.tensors, "latents")

    def to_file(self) -> tuple[dict[str, Tensor], dict]:
        tensors, description = super().to_file()
        return tensors | {"latents": self.latents}, description

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], description: dict) -> "Trajectory":
        common, latents = check_file(tensors, description), tensors["latents"]
        check_shape("latents", latents, (len(common["sigmas"]), *common["shown"].shape))
        return cls(**common, latents=latents)


class Recorder(ScheduleSampler):
    """From `image`, raw, to noise; finds what `Trajectory.latents` is."""

    undoes = True

    def __init__(self, image: Tensor):
        self.image = image

    def sample_levels(self, drift: GuiderDrift, sigmas: list[float], device: torch.device) -> Tensor:
        latents = torch.stack(record(drift, self.image.to(device), sigmas, drift.enter))
        self.found = latents.cpu()
        return latents[0]


class Replayer(ScheduleSampler):
    """Goes along `latents` with a batch [source, target], and finds that batch."""

    def __init__(self, latents: Tensor):
        self.latents = latents

    def sample_levels(self, drift: GuiderDrift, sigmas: list[float], device: torch.device) -> Tensor:
        drift.first_shown = 1
        batch = replay(drift, self.latents.to(device).unbind(), sigmas, drift.enter)
        self.found = batch.cpu()
        return batch
