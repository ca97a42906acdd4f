"""The names of a model's modules in all spellings that the host knows, and the host's converters of names.

Relies on: model_lora_keys_unet (comfy/lora.py:203) and flux_to_diffusers (comfy/utils.py:639), whose values are a key
of the model's state, or (key, (dimension, first, number)), or (key, None, function of the change); the functions of
comfy/lora_convert.py, which rename tensors and use only their shapes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
from comfy.model_base import WAN21, HunyuanVideo, Lumina2
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.lora import diffusers_paths
from ..files.safetensors_header import Header

_PROCESSORS = (".processor.qkv_lora", ".processor.proj_lora")


@dataclass(frozen=True)
class Target:
    """A weight of the model, or a part of it, `place`: (dimension, first, number). `function`: applied to a change
    before it is added."""

    key: str
    place: tuple[int, int, int] | None = None
    function: Callable | None = None

    @property
    def name(self) -> Any:
        """The target as a key for `add_patches` of a patcher."""
        if self.place is None and self.function is None:
            return self.key
        return self.key, self.place, self.function

    @property
    def bias(self) -> "Target":
        return replace(self, key=self.key.removesuffix("weight") + "bias")

    @property
    def whole(self) -> "Target":
        return replace(self, place=None, function=None)

    def of(self, weight: Tensor) -> Tensor:
        """The part of the whole weight `weight` that this target is."""
        return weight if self.place is None else weight.narrow(*self.place)

    def shape(self, model: ModelPatcher) -> tuple[int, ...]:
        """The shape of the target; for quantised weights, that before quantisation."""
        shape = list(comfy.utils.get_attr(model.model, self.key).shape)
        if self.place is not None:
            shape[self.place[0]] = self.place[2]
        return tuple(shape)


def modules_of(model: ModelPatcher) -> dict[str, Target]:
    """The model's weights, by the paths that files may use for their modules."""
    state = model.model.state_dict()
    known = {**_more(model, state), **comfy.lora.model_lora_keys_unet(model.model, {})}
    found: dict[str, Target] = {}
    for path, named in known.items():
        target = Target(named) if isinstance(named, str) else Target(*named)
        if target.key in state:  # the host's list is for the largest network of a family
            if isinstance(model.model, Lumina2):
                target = _by_heads(model, path, target)
            if (within := _within(model, target)) is not None:
                found[path] = within
    return found


def _more(model: ModelPatcher, state: Mapping[str, Any]) -> dict[str, Any]:
    """The names in diffusers that the host's list does not have, with values of the same form."""
    prefix = "diffusion_model."
    found: dict[str, Any] = {}
    if isinstance(model.model, HunyuanVideo):
        as_in_flux = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config, output_prefix=prefix)
        found |= {k.removesuffix(".weight"): target for k, target in as_in_flux.items() if k.endswith(".weight")}
        table = diffusers_paths.HUNYUAN_VIDEO
    elif isinstance(model.model, WAN21):
        table = diffusers_paths.WAN
    else:
        return {}
    for key in state:
        if key.startswith(prefix) and key.endswith(".weight"):
            for alias in diffusers_paths.aliases(key.removeprefix(prefix).removesuffix(".weight"), table):
                third = len(state[key]) // 3
                found[alias.path] = key if alias.third is None else (key, (0, third * alias.third, third))
    return found


def _by_heads(model: ModelPatcher, path: str, target: Target) -> Target:
    """Corrects the place in a fused qkv weight: the host's list assumes as many heads of keys and values as of queries,
    as in Z-Image; Lumina has fewer."""
    if target.place is None or not target.key.endswith(".qkv.weight"):
        return target
    attention = comfy.utils.get_attr(model.model, target.key.removesuffix(".qkv.weight"))
    sizes = [attention.head_dim * n for n in (attention.n_local_heads, *2 * (attention.n_local_kv_heads,))]
    part = "qkv".index(path[-1])  # to_q, to_k, to_v
    return replace(target, place=(0, sum(sizes[:part]), sizes[part]))


def _within(model: ModelPatcher, target: Target) -> Target | None:
    """Limits the place in a fused weight to its size, since the host's list assumes the usual width of a network; None
    if nothing is left."""
    if target.place is None:
        return target
    dimension, first, number = target.place
    number = min(number, target.whole.shape(model)[dimension] - first)
    return replace(target, place=(dimension, first, number)) if number > 0 else None


@dataclass(frozen=True)
class _Shaped:
    """Stands for a tensor that is not read yet."""

    name: str
    shape: tuple[int, ...]


def converted(header: Header) -> dict[str, str | None]:
    """{name after the host's converters: name in the file}; None for tensors that they add (the shape of a layer that
    is enlarged)."""
    tensors = {name: _Shaped(name, entry.shape) for name, entry in header.tensors.items()}
    if any(part in name for name in tensors for part in _PROCESSORS):
        tensors = comfy.lora_convert.convert_uso_lora(tensors)
    elif {"img_in.lora_A.weight", "img_in.lora_B.weight"} <= tensors.keys() and any(
        name.endswith("_norm.scale") for name in tensors
    ):
        tensors = comfy.lora_convert.convert_lora_bfl_control(tensors)
    return {new: tensor.name if isinstance(tensor, _Shaped) else None for new, tensor in tensors.items()}
