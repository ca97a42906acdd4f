"""Reads tensors of safetensors files, which were chosen by the header."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_PART = 2**22  # numbers that are checked at a time


def read_tensors(path: Path, wanted: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by new names, on the CPU. `wanted`: {new name: name in the file}.

    Raises:
        ValueError: a tensor holds NaN or infinity, or the file cannot be read.
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
    """Whether all numbers are finite in float32, in which they are used; checked in parts, without a copy of all."""
    return all(torch.isfinite(part.float()).all() for part in tensor.flatten().split(_PART))
