"""The plan of FreCaS, as its nodes hand it on."""

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..run.messages import quoted

PlanType = io.Custom("GUIDEKIT_FRECAS_PLAN")


@dataclass(frozen=True, eq=False)
class Stage:
    """`sigmas`: of its sampler; the image that counts is what it predicts in the last step."""

    width: int  # pixels
    height: int
    sigmas: Tensor

    @property
    def size(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass(frozen=True, eq=False)
class Plan:
    """`downscale`: pixels a side of one latent."""

    stages: tuple[Stage, ...]
    downscale: int


def plan(name: str, value: Any, wanted: io.Input) -> Plan:
    if not isinstance(value, Plan):
        raise ValueError(f"{name} is {quoted(value)}. Connect a FreCaS Plan.")
    return value
