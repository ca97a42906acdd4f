"""The difference between two patchers of one network, where they differ in LoRAs only.

Relies on: patches of a patcher being tuples (strength, what, strength of the weight, offset, function), shared with its
clones and applied in order (comfy/model_patcher.py:834, comfy/lora.py:429).
"""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import nn

from .row_lora import KEY, Difference, Product, Unmerged, is_linear, unmerged

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NOT_ADDED = {LoRAAdapter: (4, 5), LoHaAdapter: (7,), LoKrAdapter: (8,)}  # weights[i]: DoRA's magnitudes, a new shape


def shared_difference(model: ModelPatcher, other: ModelPatcher) -> Difference | None:
    """The LoRAs that `other` has in addition to those of `model`, and those that it lacks, if both are one network and
    differ only in LoRAs that are products on one layer; else None."""
    if other.model is not model.model or not _is_bare(other, model):
        return None
    mine, theirs = own_patches(model), own_patches(other)
    known = {id(each.patch): each for each in unmerged(model)}
    adds, lacks = [], []
    for key in {**mine, **theirs}:
        lacked, added = _beyond(mine, theirs, key), _beyond(theirs, mine, key)
        if lacked is None or added is None:
            return None
        patches = [*lacked, *added]
        products = [found for patch in patches if (found := _product(model.model, key, patch)) is not None]
        if len(products) < len(patches):
            return None
        for patch, product in zip(lacked, products):
            lacks.append(known.get(id(patch)) or Unmerged(key, patch, product, patch))
        adds += [product for product in products[len(lacked) :] if product.scale]
    return Difference(tuple(adds), tuple(lacks))


def own_patches(model: ModelPatcher) -> dict[str, list[tuple]]:
    """All patches of a model by weight, first those that are merged, then those that are not."""
    found = {key: [*patches] for key, patches in model.patches.items()}
    for each in unmerged(model):
        found.setdefault(each.key, []).append(each.patch)
    return found


def _beyond(some: dict[str, list], others: dict[str, list], key: str) -> list[tuple] | None:
    """The patches of a weight that are not among the others. None if a later patch depends on the weight, so that they
    cannot be added at the end instead."""
    patches = some.get(key, [])
    found = [i for i, patch in enumerate(patches) if all(patch is not other for other in others.get(key, []))]
    if found and not all(map(_is_added, patches[found[0] + 1 :])):
        return None
    return [patches[i] for i in found]


def _is_added(patch: tuple) -> bool:
    """Whether a patch adds the same change to any weight."""
    what = patch[1]
    if patch[2] != 1.0:
        return False
    if isinstance(what, tuple):
        return len(what) == 1 or what[0] == "diff" and len(what[1]) == 1
    return type(what) in _NOT_ADDED and all(what.weights[i] is None for i in _NOT_ADDED[type(what)])


def _product(base: nn.Module, key: str, patch: tuple) -> Product | None:
    """A patch as a product of two matrices on a layer, or a constant on a bias; None if it is neither."""
    strength, what, of_weight, offset, function = patch
    path, _, part = key.rpartition(".")
    module = base.get_submodule(path)
    layer = is_linear(module) or isinstance(module, _CONVOLUTIONS) and module.groups == 1
    if not layer or of_weight != 1.0 or function is not None:
        return None
    if offset is not None and offset[0] != 0:
        return None
    place = offset and (offset[1], offset[2])
    if part == "bias" and isinstance(what, tuple) and what[0] == "diff" and len(what[1]) == 1:
        return Product(path, what[1][0], None, strength, place)
    if part != "weight" or type(what) is not LoRAAdapter:
        return None
    up, down, alpha, mid, dora_scale, reshape = what.weights
    if any(each is not None for each in (mid, dora_scale, reshape)):
        return None
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    shape = getattr(module, "kernel_size", None)
    if shape is None:
        up, down = up.flatten(1), down.flatten(1)
    elif down.ndim == 2:
        down = down.reshape(len(down), -1, *shape)
    return Product(path, up, down, strength * scale, place)


def _is_bare(other: ModelPatcher, model: ModelPatcher) -> bool:
    """Whether `other` has nothing except weight patches that `model` does not have."""
    names = ("model_options", "object_patches", "callbacks", "injections", "hook_patches")
    return (
        all(_within(getattr(other, name), getattr(model, name)) for name in names)
        and _within(_wrappers(other), _wrappers(model))
        and not other.additional_models.keys() - model.additional_models.keys()
    )


def _wrappers(model: ModelPatcher) -> dict:
    """The wrappers of a model, without that of unmerged LoRAs, which are compared separately."""
    return {kind: {key: each for key, each in by_key.items() if key != KEY} for kind, by_key in model.wrappers.items()}


def _within(some: Any, all_: Any) -> bool:
    if isinstance(some, dict) and isinstance(all_, dict):
        return all(_within(value, all_.get(key, _empty(value))) for key, value in some.items())
    if isinstance(some, list) and isinstance(all_, list):
        return all(any(_within(one, another) for another in all_) for one in some)
    return some is all_ or isinstance(some, (int, float, str)) and some == all_


def _empty(value: Any) -> Any:
    """The value that is equivalent to a missing one."""
    return type(value)() if isinstance(value, (dict, list)) else None
