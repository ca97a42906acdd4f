"""The result of an exact inversion, from which sampling makes the same image again."""

from dataclasses import dataclass
from reprlib import repr as shown
from typing import ClassVar

from torch import Tensor

from ....samplers.inversion.bdia import Bdia
from ....samplers.inversion.edict import Edict, mixing
from ....samplers.inversion.o_belm import OBelm
from ....samplers.inversion.reversible import Method, Pair
from ....samplers.inversion.rex import Rex
from .latent_state import InversionState, check_file, check_shape, number

METHODS = ["edict", "edict own level", "bdia", "o-belm", "rex"]


def method_of(name: str, p: float, gamma: float, steps: int) -> Method:
    """The method of this name (one of `METHODS`). `p`: EDICT's, 0 for `mixing(steps)`; `gamma`: BDIA's.

    Raises:
        ValueError: `p` or `gamma` is out of range.
    """
    if name in ("edict", "edict own level"):
        return Edict(p or mixing(steps), own_level=name == "edict own level")
    others: dict[str, Method] = {"bdia": Bdia(gamma), "o-belm": OBelm(), "rex": Rex()}
    return others[name]


@dataclass(frozen=True, eq=False)
class Inverted(InversionState):
    """The state after an exact inversion. `pair`: latents [B, ...] at the noisy end, in the sampler's scale; `method`:
    its name, with `p` and `gamma`; `trajectory`: [levels, 2, B, ...] if it was recorded, from the noisy end, so that
    its first entry is `pair`."""

    pair: Pair
    method: str
    p: float
    gamma: float
    trajectory: Tensor | None

    maker: ClassVar[str] = "Exact Inversion"
    tensors: ClassVar[tuple[str, ...]] = (*InversionState.tensors, "x", "y")
    optional: ClassVar[tuple[str, ...]] = ("trajectory",)

    def make_method(self) -> Method:
        return method_of(self.method, self.p, self.gamma, len(self.sigmas) - 1)

    def to_file(self) -> tuple[dict[str, Tensor], dict]:
        tensors, description = super().to_file()
        tensors |= {"x": self.pair.x, "y": self.pair.y}
        if self.trajectory is not None:
            tensors["trajectory"] = self.trajectory
        return tensors, description | {"method": self.method, "p": self.p, "gamma": self.gamma}

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], description: dict) -> "Inverted":
        common = check_file(tensors, description)
        method, p, gamma = description.get("method"), number(description, "p"), number(description, "gamma")
        if method not in METHODS:
            raise ValueError(f"its method is {shown(method)}, not one of {', '.join(METHODS)}")
        steps, trajectory = len(common["sigmas"]) - 1, tensors.get("trajectory")
        first = method_of(method, p, gamma, steps).first
        if steps <= first:
            raise ValueError(f"{method} needs more steps than its {steps}")
        for name in ("x", "y"):
            check_shape(name, tensors[name], common["shown"].shape)
        if trajectory is not None:
            check_shape("trajectory", trajectory, (steps + 1 - first, 2, *common["shown"].shape))
        pair = Pair(tensors["x"], tensors["y"])
        return cls(**common, pair=pair, method=method, p=p, gamma=gamma, trajectory=trajectory)
