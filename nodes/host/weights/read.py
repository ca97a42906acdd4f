"""Files of tuned weights, adapters or whole networks, as patches of a model. The header shows what a file is and
whether it fits; weights are read only if it does."""

from dataclasses import dataclass
from pathlib import Path

from comfy.model_patcher import ModelPatcher

from ....samplers.lora import keys as lora_keys
from ....samplers.lora import layouts
from ..files.safetensors_header import read_header
from .adapter import Adapter
from .checkpoint import names_of_network, read_difference
from .metadata import name_of, other_kind
from .names import converted, modules_of


@dataclass(frozen=True)
class Tuned:
    """What was read from a file. `patches`: for `add_patches`; `report`: sentences for the user."""

    patches: dict
    report: list[str]


def read_tuned(model: ModelPatcher, path: Path, rank: int) -> Tuned:
    """The patches in a file for a model. `rank`: that of the products in which a whole network's difference is stored;
    0 stores it in full.

    Raises:
        ValueError: no part of the file can be applied to the model, with the reason.
    """
    header = read_header(path)
    names, known = converted(header), modules_of(model)
    renamed = lora_keys.rename(names, known)
    if renamed.parts:
        return Tuned(*Adapter(model, path, header, names, known, renamed).read())
    whole = names_of_network(model, header)
    if whole:
        return Tuned(*read_difference(model, path, header, whole, rank))
    raise ValueError(
        f"{path.name} holds {layouts.layout_of(header.tensors)}, and none of its {len(header.tensors)} names belongs "
        f"to {name_of(model)}{other_kind(header)}. Accepted: {layouts.ACCEPTED}."
    )
