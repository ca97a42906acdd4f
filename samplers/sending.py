"""Copies from the CPU to a device, without waiting for work that is queued on the device."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device`, converted to `dtype` there; None keeps its dtype.

    From pageable memory CUDA copies only after all queued work is done, so that the CPU has to wait; from pinned memory
    the copy is queued like any other work."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device, dtype)
    return tensor.pin_memory().to(device, non_blocking=True).to(dtype or tensor.dtype)
