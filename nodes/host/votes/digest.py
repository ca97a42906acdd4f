"""Names of models by their weights: which network made an image, whatever loaded it and whatever its file is called.

Of each tensor a few numbers in fixed places are looked at, which tells trained weights apart and takes milliseconds; it
does not protect from somebody who wants two models to have one name. The same weights in another precision are another
model.

Relies on: get_key_patches (comfy/model_patcher.py), which gives weights as they are without patches, whether they are
loaded or not, and then each patch (strength, adapter or tensors, strength of the model, offset, function).
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

_TENSORS = 48  # of the weights
_NUMBERS = 64  # of each
_LENGTH = 32  # of a digest, in hexadecimal


def model_digest(model: ModelPatcher) -> str:
    """Of the weights without patches."""
    digest = hashlib.sha256(type(model.model).__name__.encode())
    _add_weights(digest, model)
    return digest.hexdigest()[:_LENGTH]


def policy_digest(model: ModelPatcher) -> str:
    """Of the weights with their patches, at their strengths: the same for a LoRA from any loader. Without patches it is
    `model_digest`. LoRAs that act on one side of guidance only (Preference LoRA Loader) are no patches of the model."""
    digest = hashlib.sha256(type(model.model).__name__.encode())
    _add_weights(digest, model)
    for key, patches in sorted(model.patches.items(), key=lambda each: str(each[0])):
        for strength, patch, strength_model, *where in patches:
            digest.update(f"{key} {strength!r} {strength_model!r} {_place(where)}".encode())
            for part in _tensors(patch):
                _add_tensor(digest, part)
    return digest.hexdigest()[:_LENGTH]


def _add_weights(digest: Any, model: ModelPatcher) -> None:
    weights = sorted(model.get_key_patches("diffusion_model.").items())
    digest.update(f"{len(weights)}".encode())
    for key, [(weight, _), *_] in weights[:: max(1, len(weights) // _TENSORS)]:
        digest.update(key.encode())
        _add_tensor(digest, weight)


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    flat = tensor.detach().reshape(-1)
    step = max(1, len(flat) // _NUMBERS)
    digest.update(f"{list(tensor.shape)}".encode())
    digest.update(flat[::step][:_NUMBERS].float().cpu().numpy().tobytes())


def _tensors(patch: Any) -> Iterator[Tensor]:
    """Of an adapter, or of a tuple like ("diff", (tensor,))."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, WeightAdapterBase):
        yield from _tensors(patch.weights)
    elif isinstance(patch, tuple | list):
        for part in patch:
            yield from _tensors(part)


def _place(where: list) -> str:
    """The offset, if a patch is of a part of a weight."""
    return repr([each for each in where if isinstance(each, tuple)])
