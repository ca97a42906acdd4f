"""A model's weights as they were loaded, or with the patches of a patcher.

Relies on: get_key_weight, which also returns the conversion of a weight's stored form, and the backups of a patcher,
which its clones share (comfy/model_patcher.py:216, 458). get_key_patches, which uses both, fails on quantised layers.
Patches are applied by calculate_weight (comfy/lora.py:429).
"""

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from torch import Tensor


def stored_weight(model: ModelPatcher, key: str) -> Tensor:
    """The weight `key` as it is kept, without the patches that are on it at the moment; of the host's own class where
    it is quantised."""
    if key in model.hook_backup:
        return model.hook_backup[key][0]
    return model.backup[key].weight if key in model.backup else get_key_weight(model.model, key)[0]


def weight_of(model: ModelPatcher, key: str) -> Tensor:
    """A copy of the weight `key` in float32 on the CPU, without the patches that are on it at the moment."""
    weight, convert = stored_weight(model, key), get_key_weight(model.model, key)[2]
    weight = comfy.model_management.cast_to_device(weight, torch.device("cpu"), torch.float32, copy=True)
    return weight if convert is None else convert(weight, inplace=True)


def patched_weight(model: ModelPatcher, key: str) -> Tensor:
    """A copy in float32, with the patches of `model`: merged LoRAs, whoever has put them there."""
    return comfy.lora.calculate_weight(model.patches.get(key, []), weight_of(model, key), key)
