"""What an exact inversion leaves, in a LATENT: with it, sampling makes the same picture again."""

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.inversion.edict import Edict, mixing
from ...samplers.inversion.pairs import Method, Pair
from ...samplers.inversion.rex import Rex
from ...samplers.inversion.two_step import Bdia, OBelm
from .schedule import describe_model

_KEY = "guidekit_inversion"
METHODS = ["edict", "edict own level", "bdia", "o-belm", "rex"]


def method_of(name: str, p: float, gamma: float, steps: int) -> Method:
    """`p`: of EDICT, 0 for the one that suits the number of steps; `gamma`: of BDIA."""
    if name in ("edict", "edict own level"):
        return Edict(p or mixing(steps), own_level=name == "edict own level")
    return {"bdia": Bdia(gamma), "o-belm": OBelm(), "rex": Rex()}[name]


@dataclass(frozen=True, eq=False)
class Inverted:
    """`pair`: raw, as the sampler sees latents; `sigmas` of the generation, falling; `method` by name, with `p` and
    `gamma`; `model`: of `describe_model`; `trajectory`: [levels, 2, B, ...] if it was kept, from the noisy end, its
    first entry being `pair`; `picture`: the latent that was inverted, as a VAE gives it, which inpainting models look
    at in both directions; `shown`: the `samples` of the
    LATENT that carries this."""

    pair: Pair
    sigmas: Tensor
    method: str
    p: float
    gamma: float
    model: dict
    trajectory: Tensor | None
    picture: Tensor
    shown: Tensor

    def make_method(self) -> Method:
        return method_of(self.method, self.p, self.gamma, len(self.sigmas) - 1)

    def latent(self) -> dict:
        return {"samples": self.shown, _KEY: self}


def inverted_of(latent: dict, model: ModelPatcher) -> Inverted:
    """What a LATENT carries.

    Raises:
        ValueError: it carries none, or is not as it was, or it was made with another model.
    """
    state = latent.get(_KEY)
    if state is None:
        raise ValueError(
            "The latent carries no inversion. Connect the output of an Exact Inversion node directly: nodes in "
            "between, Save Latent and Load Latent too, keep only what can be seen."
        )
    samples = latent["samples"]
    if samples.shape != state.shown.shape or not torch.equal(samples, state.shown):
        raise ValueError(
            "The latent was changed after its inversion, but what is sampled from is what it was before. Connect the "
            "Exact Inversion node directly."
        )
    given = describe_model(model)
    for what, wanted in state.model.items():
        if given[what] != wanted:
            raise ValueError(f"The latent was inverted with {what} {wanted}, and the guider's model has {given[what]}.")
    return state
