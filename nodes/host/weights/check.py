"""Checks that patches change their weights: the host only logs a patch that it cannot apply, and skips it.

Relies on: calculate_weight (comfy/lora.py:429), which is given a copy of the weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase

from .adapter_fixes import Interpolated
from .module_weights import weight_of
from .names import Target

_TRIED = 3  # patches of each kind


@dataclass(frozen=True)
class Patched:
    """A patch of the weight `target`, from the module `module` of a file."""

    module: str
    target: Target
    patch: Any
    shape: tuple[int, ...]  # of the whole weight

    @property
    def kind(self) -> tuple:
        """Patches of the same kind are applied by the same code."""
        return _kind(self.patch), len(self.shape), self.target.place is None, self.target.function is None

    def changes(self, model: ModelPatcher) -> bool:
        """Whether the patch, at strength 1, changes the model's weight."""
        weight, target = weight_of(model, self.target.key), self.target
        entry = 1.0, self.patch, 1.0, target.place, target.function
        changed = comfy.lora.calculate_weight([entry], weight.clone(), target.key)
        return changed.shape != weight.shape or not torch.equal(changed, weight)


def without_effect(model: ModelPatcher, patches: Iterable[Patched]) -> set[str]:
    """The modules with a patch of a kind that changes no weight; of each kind the smallest weights are tried."""
    kinds: dict[tuple, list[Patched]] = {}
    for each in patches:
        kinds.setdefault(each.kind, []).append(each)
    for of_kind in kinds.values():
        of_kind.sort(key=lambda each: torch.Size(each.shape).numel())
    idle = (k for k in kinds.values() if not any(each.changes(model) for each in k[:_TRIED]))
    return {each.module for of_kind in idle for each in of_kind}


def _kind(patch: Any) -> tuple:
    if isinstance(patch, Interpolated):
        return Interpolated, _kind(patch.weights[0]), *(each is None for each in patch.weights[1:])
    if isinstance(patch, WeightAdapterBase):
        return type(patch), *(each is None for each in patch.weights)
    return (patch[0],)
