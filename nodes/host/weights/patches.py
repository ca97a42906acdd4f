"""Converts the adapter of one module to patches of a model.

Relies on: load_lora (comfy/lora.py:42) for the parts of products, by the names of `samplers/lora/keys.py`;
`add_patches`, which accepts a part of a weight as (key, place, function) (comfy/model_patcher.py:834).
"""

from collections.abc import Mapping
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.lora.keys import ALPHA, BIAS, DOWN, SCALE, UP
from ....samplers.lora.tucker import without_cores
from .adapter_fixes import corrected
from .module_weights import weight_of
from .names import Target

_WHOLE = ("diff", "w_norm", "set_weight")
_OF_BIAS = ("diff_b", "b_norm", BIAS)


def patches_of(model: ModelPatcher, target: Target, parts: Mapping[str, Tensor]) -> dict[Target, Any]:
    """The patches of the weight `target` and its bias. `parts`: the tensors of the adapter, by the names in
    `samplers/lora/keys.py`."""
    parts, found = without_cores(parts), {}
    rescale, magnitude = parts.pop("rescale", None), parts.pop(SCALE, None)
    differences = {part: parts.pop(part) for part in (*_WHOLE, *_OF_BIAS) if part in parts}
    if "reshape_weight" in parts:
        parts["reshape_weight"] = torch.tensor([len(parts[UP]), *parts[DOWN].shape[1:]])
    adapter = comfy.lora.load_lora({f"x.{part}": t for part, t in parts.items()}, {"x": "x"}, False).get("x")
    if adapter is not None:
        found[target] = corrected(adapter, target.shape(model)[0], rescale, magnitude)
    for part, change in differences.items():
        if part == "set_weight":  # as a difference, so that it has a strength
            change = change.float() - target.of(weight_of(model, target.key))
        if part == BIAS and ALPHA in parts:  # scaled by alpha / rank, as the product is
            change = change.float() * (parts[ALPHA].item() / len(parts[DOWN]))
        found[target.bias if part in _OF_BIAS else target] = ("diff", (change,))
    return found
