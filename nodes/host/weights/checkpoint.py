"""A whole tuned network as its difference from the model: in full, or as low-rank products.

Relies on: unet_to_diffusers for the names of diffusers (comfy/utils.py); the order of LoRAAdapter's weights
(comfy/weight_adapter/lora.py:206).
"""

import math
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter

from ....samplers.lora import layouts
from ....samplers.lora.low_rank import low_rank
from ..files.safetensors_header import Header
from ..files.tensors import FLOATS, read_tensors
from .metadata import about_itself, name_of, other_kind
from .module_weights import weight_of

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")


def names_of_network(model: ModelPatcher, header: Header) -> dict[str, str]:
    """{name in a file of a whole network: key of the model's weight}; other names are left out."""
    state = model.model.state_dict()
    diffusers = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    found: dict[str, str] = {}
    for name in header.tensors:
        bare = name.removeprefix(next(prefix for prefix in _PREFIXES if name.startswith(prefix)))
        key = f"diffusion_model.{diffusers.get(bare, bare)}"
        if key in state:
            found[name] = key
    return found


def read_difference(
    model: ModelPatcher, path: Path, header: Header, whole: dict[str, str], rank: int
) -> tuple[dict, list[str]]:
    """The patches W_file - W_model, so that strength 1 is the file and 0 the model; as products of `rank` where these
    are smaller, 0 for never. `whole`: from `names_of_network`. Returns (patches, sentences of the report).

    Raises:
        ValueError: the file is of another network, or has the model's own weights.
    """
    state = model.model.state_dict()
    wrong = [
        name
        for name, key in whole.items()
        if header.tensors[name].dtype not in FLOATS or not _is_same_layer(header.tensors[name].shape, state[key].shape)
    ]
    parameters = {f"diffusion_model.{name}" for name, _ in model.model.diffusion_model.named_parameters()}
    missing = parameters - {*whole.values()}
    if wrong or missing:
        raise ValueError(
            f"{path.name} is another network than {name_of(model)}{other_kind(header)}: of the model's "
            f"{len(parameters)} weights {len(missing)} are not in it and {len(wrong)} have another shape. A whole "
            "network has to be of the same architecture to be applied as a difference."
        )
    patches, missed, total = {}, 0.0, 0.0
    progress = comfy.utils.ProgressBar(len(whole))
    for name, key in whole.items():
        target = read_tensors(path, {key: name})[key]
        change = target.float().reshape(state[key].shape) - weight_of(model, key)
        kept = target.dtype if target.element_size() > 1 else torch.float16  # 8 bits are too coarse for differences
        progress.update(1)
        if change.count_nonzero() == 0:
            continue
        if rank and rank * (len(change) + change[0].numel()) < change.numel():
            found = low_rank(change.to(comfy.model_management.get_torch_device()), rank)
            missed, total = missed + found.missing, total + found.size
            factors = (t.cpu().to(kept) for t in (found.up, found.down))
            patches[key] = LoRAAdapter(set(), (*factors, None, None, None, None))
        else:
            total += change.square().sum().item()
            patches[key] = ("diff", (change.to(kept),))
    if not patches:
        raise ValueError(f"{path.name} has the weights of the model itself, so that there is no difference to apply.")
    report = [
        f"{path.name}: a whole network; {layouts.layout_of(header.tensors)}.",
        f"{len(patches)} of its {len(whole)} weights differ from the model's; strength 1 is the file, 0 the model.",
    ]
    if rank:
        report.append(
            f"Stored as products of rank {rank} where they are smaller, which keeps {1 - missed / total:.2%} of the "
            f"squared difference, a relative error of {math.sqrt(missed / total):.4f}."
        )
    return patches, report + about_itself(model, header)


def _is_same_layer(one: tuple[int, ...], other: torch.Size) -> bool:
    """Whether two shapes are equal, where a linear layer and a 1x1 convolution count as the same."""

    def bare(shape) -> tuple[int, ...]:
        shape = tuple(shape)
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        return shape

    return bare(one) == bare(other)
