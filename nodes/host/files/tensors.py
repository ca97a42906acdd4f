"""Tensors of safetensors files, once their header has said that they are wanted."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_PART = 2**22  # numbers that are looked at together


def read_tensors(path: Path, wanted: Mapping[str, str]) -> dict[str, Tensor]:
    """By new names, `wanted` from these to the names in the file.

    Raises:
        ValueError: numbers that are not finite, or a file that cannot be read.
    """
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for new, old in wanted.items():
                tensor = file.get_tensor(old)
                if tensor.is_floating_point() and not is_finite(tensor):
                    raise ValueError(
                        f"{path.name} holds NaN or infinity in {old[:200]}. Get it again, or train it anew."
                    )
                found[new] = tensor
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: {str(error)[:300]}. Get it again.") from error
    return found


def is_finite(tensor: Tensor) -> bool:
    """In float32, as which everything is used; part by part, so that no copy of the whole is made."""
    return all(torch.isfinite(part.float()).all() for part in tensor.flatten().split(_PART))
