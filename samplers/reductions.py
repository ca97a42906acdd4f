"""Per-sample reductions over all dimensions but the first, for latents of any rank.

Nothing here mixes the samples of a batch. Sums are in `dtype` (float32 by default) for any precision of the inputs
[B, ...]; results are [B, 1, ..., 1] in `dtype`, which broadcast against the input.
"""

import torch
from torch import Tensor


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else float32 (Apple's MPS has none)."""
    return torch.float32 if device.type == "mps" else torch.float64


def dot(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inner product of each sample of `a` with the same sample of `b`, [B, ...] x [B, ...] -> [B, 1, ..., 1]."""
    product = a.to(dtype) * b.to(dtype)
    return product.sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def norm(a: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """L2 norm of each sample."""
    return torch.linalg.vector_norm(a.to(dtype), dim=tuple(range(1, a.ndim)), keepdim=True)


def rms(a: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Root mean square of each sample: the L2 norm, made independent of the resolution."""
    return norm(a, dtype) / (a[0].numel() ** 0.5)


def std(a: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard deviation within each sample (of the population: divided by n)."""
    return a.to(dtype).std(dim=tuple(range(1, a.ndim)), correction=0, keepdim=True)


def cosine(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosine between the samples of `a` and `b`; 0 where one of them is zero."""
    length = norm(a, dtype) * norm(b, dtype)
    return torch.where(length > 0, dot(a, b, dtype) / length, 0.0)


def parallel_coefficient(a: Tensor, direction: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """c such that c * direction is the projection of `a` onto `direction`, per sample; 0 where direction is zero."""
    square = dot(direction, direction, dtype)
    return torch.where(square > 0, dot(a, direction, dtype) / square, 0.0)
