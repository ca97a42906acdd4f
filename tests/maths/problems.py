"""Inputs that the maths tests share, and the way they compare: numpy, float64, one sample at a time."""

import numpy as np
import torch
from torch import Tensor

SHAPES = {"audio": (3, 4, 10), "image": (3, 4, 6, 5), "video": (3, 4, 3, 5, 2)}  # ranks 3, 4 and 5; three samples
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def latents(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers. The samples differ in size and mean, so that mixing them is noticed."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    ramp = torch.arange(1, shape[0] + 1, dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    return (values * ramp + 0.5 * ramp - 1).to(dtype)


def exact(tensor: Tensor) -> np.ndarray:
    """The very same numbers in float64."""
    return tensor.to(torch.float64).numpy()


def samples(tensor: Tensor) -> list[np.ndarray]:
    """Each sample of a batch as a flat vector in float64."""
    return [sample.ravel() for sample in exact(tensor)]


def rounding(dtype: torch.dtype) -> float:
    """Largest relative error of storing one number in `dtype`."""
    return torch.finfo(dtype).eps / 2


def non_contiguous(tensor: Tensor) -> dict[str, Tensor]:
    """The same numbers in other memory layouts."""
    padded = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan, dtype=tensor.dtype)
    padded[..., ::2] = tensor
    last_first = tensor.movedim(-1, 0).contiguous().movedim(0, -1)
    batch_last = tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    views = {"every other": padded[..., ::2], "last dimension first": last_first, "batch last": batch_last}
    assert not any(view.is_contiguous() for view in views.values())
    return views
