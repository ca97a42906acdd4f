"""Adapters as patches, corrected where the host's implementation differs from the papers.

- DoRA with magnitudes per output: core divides by the norms of the unchanged weight (weight_decompose,
  comfy/weight_adapter/base.py:284); the paper, PEFT and LyCORIS by those of the changed weight.
- OFT and BOFT: core multiplies by the strength twice (comfy/weight_adapter/oft.py:230, 251), so that 0.5 acts like 0.25
  and -1 like 1. In OFT it ignores LyCORIS's rescale of the rows, and uses alpha as the limit, which in LyCORIS is alpha
  times the number of rows (lycoris/modules/diag_oft.py:67).

Relies on: calculate_weight of a WeightAdapterBase, which changes the weight it is given (comfy/lora.py:459); adapters
being created as type(adapter)(loaded_keys, weights), with weights a tuple of tensors and adapters (comfy/lora.py:504).
"""

import comfy.model_management
import torch
from comfy.weight_adapter import BOFTAdapter, OFTAdapter, WeightAdapterBase
from torch import Tensor

from ....samplers.lora.dora import decomposed


class Interpolated(WeightAdapterBase):
    """W + s (W' - W) at strength s, where W' is W with the adapter at strength 1, then with its rows multiplied by the
    rescale and normalised to the magnitudes, if there are any. `weights`: (adapter, rescale or None, magnitudes or
    None)."""

    name = "interpolated"

    def __init__(self, loaded_keys: set[str], weights: tuple):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self, weight: Tensor, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32,
        original_weight=None,
    ) -> Tensor:  # fmt: skip
        inner, rescale, magnitude = self.weights
        merged = weight.to(intermediate_dtype, copy=True)
        merged = inner.calculate_weight(merged, key, 1.0, 1.0, offset, function, intermediate_dtype)
        if rescale is not None:
            merged = merged * _cast(rescale, merged).reshape(-1, *[1] * (merged.ndim - 1))
        if magnitude is not None:
            magnitude = _cast(magnitude, merged)
            if magnitude.ndim != weight.ndim:
                magnitude = magnitude.reshape(-1, *[1] * (weight.ndim - 1))
            merged = decomposed(merged, magnitude)
        weight += (strength * (merged - weight)).to(weight.dtype)
        return weight


def corrected(
    adapter: WeightAdapterBase, rows: int, rescale: Tensor | None, magnitude: Tensor | None
) -> WeightAdapterBase:
    """`adapter`, or where the host differs from the paper a corrected one. `rows`: those of the weight; `rescale`,
    `magnitude`: those of the file, which `adapter` was made without."""
    if isinstance(adapter, (OFTAdapter, BOFTAdapter)):
        blocks, _, alpha, _ = adapter.weights
        limit = 0.0 if alpha is None else rows * alpha  # 0 is no limit; core's BOFT does not accept None
        adapter = type(adapter)(adapter.loaded_keys, (blocks, None, limit, None))
    elif magnitude is None:
        return adapter
    return Interpolated(set(), (adapter, rescale, magnitude))


def _cast(tensor: Tensor, like: Tensor) -> Tensor:
    return comfy.model_management.cast_to_device(tensor, like.device, like.dtype)
