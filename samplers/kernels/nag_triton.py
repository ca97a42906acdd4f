"""The bounded extrapolation of NAG (attention/nasa.py) in one kernel that reads both attention outputs once; in torch
it is a dozen operations, each of which reads and writes whole tensors in float32."""

from subprocess import SubprocessError

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from .choice import KernelError

LARGEST = 1 << 14  # channels that a program can hold


@triton.jit
def _nag_kernel(
    positive,
    negative,
    out,
    scale,
    tau,
    alpha,
    tiny,
    n,
    c,
    positive_batch,
    positive_row,
    negative_batch,
    negative_row,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK_C)
    valid = channels < c
    z = tl.load(positive + sample * positive_batch + row * positive_row + channels, valid, 0.0)
    far = tl.load(negative + sample * negative_batch + row * negative_row + channels, valid, 0.0).to(tl.float32)
    wide = z.to(tl.float32)
    pushed = wide + (scale - 1) * (wide - far)
    longest = tau * tl.sum(tl.abs(wide), 0)
    pushed *= tl.minimum(longest / tl.maximum(tl.sum(tl.abs(pushed), 0), tiny), 1.0)
    tl.store(out + (sample * n + row) * c + channels, (wide + alpha * (pushed - wide)).to(z.dtype), valid)


def nag_fused(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """`nag` of [rows, tokens, channels]; not for float64.

    Raises:
        KernelError: there are too many channels, or the kernel cannot run here.
    """
    batch, n, c = positive.shape
    # Rows may have any stride (heads merged in a larger tensor), channels have to be contiguous.
    positive, negative = (t if t.stride(-1) == 1 else t.contiguous() for t in (positive, negative))
    if c > LARGEST:
        raise KernelError(f"{c} channels are more than {LARGEST}")
    out = torch.empty((batch, n, c), dtype=positive.dtype, device=positive.device)
    tiny, strides = torch.finfo(torch.float32).tiny, (*positive.stride()[:2], *negative.stride()[:2])
    try:
        with torch.cuda.device_of(positive):  # Triton starts on the current device
            block = triton.next_power_of_2(c)
            _nag_kernel[(n, batch)](
                positive, negative, out, scale, tau, alpha, tiny, n, c, *strides, BLOCK_C=block, num_warps=4
            )
    except (TritonError, RuntimeError, OSError, SubprocessError) as error:
        raise KernelError(f"{type(error).__name__}: {error}") from error
    return out
