"""Inversions recorded step by step, and runs that replay them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....samplers.inversion.direct_inversion import record, replay
from .latent_state import InversionState, check_file, check_shape
from .sampler import GuiderDrift, ScheduleSampler


@dataclass(frozen=True, eq=False)
class Trajectory(InversionState):
    """A recorded inversion. `latents`: [levels, 1, ...], in the sampler's scale, from the noisy end to the image."""

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
    """Inverts `image`, [1, ...] in the sampler's scale; `found` is `Trajectory.latents`."""

    undoes = True

    def __init__(self, image: Tensor):
        self.image = image

    def sample_levels(self, drift: GuiderDrift, sigmas: list[float], device: torch.device) -> Tensor:
        latents = torch.stack(record(drift, self.image.to(device), sigmas, drift.enter))
        self.found = latents.cpu()
        return latents[0]


class Replayer(ScheduleSampler):
    """Samples a batch [source, target] along the recorded `latents`; `found` is the last batch, [2, ...]."""

    def __init__(self, latents: Tensor):
        self.latents = latents

    def sample_levels(self, drift: GuiderDrift, sigmas: list[float], device: torch.device) -> Tensor:
        drift.first_shown = 1
        batch = replay(drift, self.latents.to(device).unbind(), sigmas, drift.enter)
        self.found = batch.cpu()
        return batch
