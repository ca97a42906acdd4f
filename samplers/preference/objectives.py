"""What a training on votes can minimise, each with its settings.

There are two kinds. `Windowed`: a vote's share in the loss depends on the gains of all votes of a step. `Single`: it
depends on the vote alone. `compares`: whether the reference model is asked.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from . import diffusion_nft, dpo, kto
from .errors import mean_square


class Windowed(Protocol):
    def losses(self, gain: Tensor, liked: Tensor) -> Tensor:
        """Of the votes of a window, [n] -> [n]."""

    def slopes(self, gain: Tensor, liked: Tensor) -> Tensor:
        """Derivatives of the sum of `losses` by the errors of the tuned model, [n]."""


@runtime_checkable
class Single(Protocol):
    @property
    def compares(self) -> bool: ...

    def losses(self, prediction: Tensor, old: Tensor | None, target: Tensor, liked: Tensor) -> Tensor:
        """[B, ...] three times, [B] -> [B]. `old`: the reference's prediction, None if it `compares` nothing."""


@dataclass(frozen=True)
class KTO:
    beta: float
    point: str = "mean"  # of kto.REFERENCE_POINTS

    def losses(self, gain: Tensor, liked: Tensor) -> Tensor:
        return kto.loss(gain, liked, self.beta, kto.reference_point(gain, liked, self.point))

    def slopes(self, gain: Tensor, liked: Tensor) -> Tensor:
        return kto.slope(gain, liked, self.beta, kto.reference_point(gain, liked, self.point))

    def steepness(self, gain: Tensor, liked: Tensor) -> float:
        """Mean h (1 - h), at most 1/4: near 0 all votes are saturated, and nothing is learned from them."""
        h = kto.utility(gain, liked, self.beta, kto.reference_point(gain, liked, self.point))
        return (h * (1 - h)).mean().item()


@dataclass(frozen=True)
class DPO:
    """Votes come in pairs, the better one first. A pair's loss is half of each."""

    beta: float

    def losses(self, gain: Tensor, liked: Tensor) -> Tensor:
        return (dpo.loss(gain[0::2], gain[1::2], self.beta) / 2).repeat_interleave(2)

    def slopes(self, gain: Tensor, liked: Tensor) -> Tensor:
        slope = dpo.slope(gain[0::2], gain[1::2], self.beta)
        return torch.stack([slope, -slope], 1).flatten()

    def steepness(self, gain: Tensor, liked: Tensor) -> float:
        """Of kto.py's kind, of the pairs."""
        h = torch.sigmoid(self.beta / 2 * (gain[0::2] - gain[1::2]))
        return (h * (1 - h)).mean().item()


@dataclass(frozen=True)
class NFT:
    beta: float
    compares: bool = True

    def losses(self, prediction: Tensor, old: Tensor | None, target: Tensor, liked: Tensor) -> Tensor:
        assert old is not None  # it compares
        return diffusion_nft.loss(prediction, old, target, liked.to(target.dtype), self.beta)


@dataclass(frozen=True)
class SFT:
    """Plain training on liked images: the baseline. It copies what it is given, so that it is given no others."""

    compares: bool = False

    def losses(self, prediction: Tensor, old: Tensor | None, target: Tensor, liked: Tensor) -> Tensor:
        return mean_square(prediction, target)


Objective = KTO | DPO | NFT | SFT
