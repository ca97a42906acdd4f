"""A checksum of tensors and their description."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def checksum(description: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the name, dtype, shape and bytes of each tensor (on the CPU), sorted by name, and of `description`.
    Contiguous tensors are not copied."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content = tensor.contiguous().flatten().view(torch.uint8).numpy()
        digest.update(f"{name!r} {tensor.dtype} {list(tensor.shape)} {len(content)}\n".encode())
        digest.update(content.data)
    digest.update(description.encode())
    return digest.hexdigest()
