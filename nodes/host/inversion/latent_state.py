"""The result of an inversion, carried by a LATENT beside its `samples`, and saved in files."""

from dataclasses import dataclass
from reprlib import repr as shown
from typing import ClassVar, TypeVar

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.inversion.reversible import check_falling
from ....samplers.strict_json import is_number
from ..run.fingerprint import describe_model

KEY = "guidekit_inversion"
_LONGEST = 200  # characters of a word in a description
_Some = TypeVar("_Some", bound="InversionState")


@dataclass(frozen=True, eq=False)
class InversionState:
    """The result of an inversion. `sigmas`: the levels of the generation, falling; `model`: from `describe_model`;
    `image`: the latent that was inverted, in the scale of a VAE, which inpainting models use in both directions;
    `shown`: the `samples` of the LATENT that carries this.

    `maker`: the node that makes it; `tensors`, `optional`: the names of its tensors in a file.
    """

    sigmas: Tensor
    model: dict
    image: Tensor
    shown: Tensor

    maker: ClassVar[str] = "Exact Inversion or Trajectory Record"
    tensors: ClassVar[tuple[str, ...]] = ("sigmas", "image", "shown")
    optional: ClassVar[tuple[str, ...]] = ()

    def latent(self) -> dict:
        """A LATENT that shows `shown` and carries this state."""
        return {"samples": self.shown, KEY: self}

    @classmethod
    def of(cls: type[_Some], latent: dict, model: ModelPatcher) -> _Some:
        """The state that a LATENT carries.

        Raises:
            ValueError: it carries none, or another kind; its samples have changed since the inversion; or the inversion
                was made with another model.
        """
        state = carried(latent, wanted=cls)
        samples = latent["samples"]
        if samples.shape != state.shown.shape or not torch.equal(samples, state.shown):
            raise ValueError(
                "The latent was changed after its inversion, but sampling would start from the inversion and ignore "
                f"the change. Connect {cls.maker} directly."
            )
        given = describe_model(model)
        for what, wanted in state.model.items():
            if given[what] != wanted:
                raise ValueError(
                    f"The latent was inverted with {what} {wanted}, and the guider's model has {given[what]}."
                )
        return state

    def to_file(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors by name, description for JSON)"""
        tensors = {"sigmas": self.sigmas, "image": self.image, "shown": self.shown}
        return tensors, {"made by": self.maker, "model": self.model}

    @classmethod
    def from_file(cls: type[_Some], tensors: dict[str, Tensor], description: dict) -> _Some:
        """Inverse of `to_file`. The caller has checked that all of `tensors` are present.

        Raises:
            ValueError: `to_file` does not make such tensors or such a description.
        """
        raise NotImplementedError


def carried(latent: dict, wanted: type[_Some]) -> _Some:
    """The state that a LATENT carries, unchecked.

    Raises:
        ValueError: it carries none, or another kind.
    """
    state = latent.get(KEY)
    if isinstance(state, wanted):
        return state
    carries = "no inversion" if state is None else f"what {state.maker} makes"
    raise ValueError(
        f"The latent carries {carries}. Connect the output of {wanted.maker}, or of Load Inversion, directly: nodes in "
        "between, core's Save Latent and Load Latent too, drop the inversion."
    )


def check_file(tensors: dict[str, Tensor], description: dict) -> dict:
    """The arguments of `InversionState` from a file, checked.

    Raises:
        ValueError: `to_file` does not make such tensors or such a description.
    """
    sigmas, image, latent, model = *(tensors[name] for name in InversionState.tensors), description.get("model")
    if sigmas.ndim != 1:
        raise ValueError(f"sigmas has shape {tuple(sigmas.shape)}, and is a list")
    sigmas = sigmas.float()
    check_falling(sigmas.tolist())
    if not isinstance(model, dict) or set(model) != {"model", "network", "parameterisation"} or not _texts(model):
        raise ValueError("it does not say which model it was made with")
    if not 3 <= latent.ndim <= 5 or 0 in latent.shape:
        raise ValueError(f"shown has shape {tuple(latent.shape)[:10]}, which no latent has")
    check_shape("image", image, latent.shape)
    return {"sigmas": sigmas, "model": model, "image": image, "shown": latent}


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError where the tensor `name` of a file does not have this shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)[:10]}, not {tuple(shape)}")


def number(description: dict, name: str) -> float:
    """The number `name` in the description of a file. Raises ValueError where it is none."""
    value = description.get(name)
    if not is_number(value):
        raise ValueError(f"its {name} is {shown(value)}, not a number")
    return float(value)


def _texts(model: dict) -> bool:
    return all(isinstance(value, str) and len(value) <= _LONGEST for value in model.values())
