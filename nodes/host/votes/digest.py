"""Digests of models by their weights: which network made an image, independent of its loader and its file name.

A digest reads a few numbers at fixed places of some tensors. That distinguishes trained weights and takes milliseconds,
but is no protection against somebody who constructs two models with one digest. The same weights in another precision
have another digest.

Relies on: patches of a patcher by key, as tuples (strength, adapter or tensors, strength of the model, offset,
function).
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor
from torch.nn import Parameter

from ..weights.module_weights import stored_weight, weight_of

_TENSORS = 48  # that are read, about
_NUMBERS = 64  # that are read of each
_LENGTH = 32  # hexadecimal digits of a digest


def model_digest(model: ModelPatcher) -> str:
    """The digest of the weights without patches."""
    digest = hashlib.sha256(type(model.model).__name__.encode())
    _add_weights(digest, model)
    return digest.hexdigest()[:_LENGTH]


def policy_digest(model: ModelPatcher) -> str:
    """The digest of the weights with their patches and strengths: the same for a LoRA from any loader, and equal to
    `model_digest` without patches. LoRAs on one side of guidance only (Preference LoRA Loader) are not patches of the
    model and do not change it."""
    digest = hashlib.sha256(type(model.model).__name__.encode())
    _add_weights(digest, model)
    for key, patches in sorted(model.patches.items(), key=lambda each: str(each[0])):
        for strength, patch, strength_model, *where in patches:
            digest.update(f"{key} {strength!r} {strength_model!r} {_place(where)}".encode())
            for part in _tensors(patch):
                _add_tensor(digest, part)
    return digest.hexdigest()[:_LENGTH]


def _add_weights(digest: Any, model: ModelPatcher) -> None:
    network = model.model.diffusion_model
    # The state of a quantised layer also has entries that are no tensors of the layer.
    tensors = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    keys = sorted(f"diffusion_model.{name}" for name in network.state_dict() if name in tensors)
    digest.update(f"{len(keys)}".encode())
    for key in keys[:: max(1, len(keys) // _TENSORS)]:
        digest.update(key.encode())
        weight = stored_weight(model, key)
        _add_tensor(digest, weight if type(weight) in (Tensor, Parameter) else weight_of(model, key))


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    flat = tensor.detach().reshape(-1)
    step = max(1, len(flat) // _NUMBERS)
    digest.update(f"{list(tensor.shape)}".encode())
    digest.update(flat[::step][:_NUMBERS].float().cpu().numpy().tobytes())


def _tensors(patch: Any) -> Iterator[Tensor]:
    """The tensors of an adapter, or of a tuple like ("diff", (tensor,))."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, WeightAdapterBase):
        yield from _tensors(patch.weights)
    elif isinstance(patch, tuple | list):
        for part in patch:
            yield from _tensors(part)


def _place(where: list) -> str:
    """The offset of a patch that changes a part of a weight."""
    return repr([each for each in where if isinstance(each, tuple)])
