"""From the processor to a device, without waiting for what the device has been asked to do before."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device`, where it is in `dtype`.

    Out of ordinary memory CUDA copies only once all that was queued before is done, so that the processor falls behind;
    out of pinned memory the copy is queued like everything else."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device, dtype)
    return tensor.pin_memory().to(device, non_blocking=True).to(dtype or tensor.dtype)
