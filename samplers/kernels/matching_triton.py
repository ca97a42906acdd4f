"""The kernel of matching.py: streams the reference past a tile of tokens, keeps the best score and its index in
registers, and steps away from it in the same pass. The similarity matrix is never written.

Each program owns BLOCK_N tokens of one sample. For every tile of BLOCK_M reference tokens it accumulates their inner
products over C in float32, divides by the reference's lengths and updates the running maximum (a later tile has to be
greater, so that of equal scores the lowest index stays). The tokens' own lengths do not move the maximum and are
divided by at the end.
"""

from subprocess import SubprocessError

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from .matching import EPSILON, KernelError, Match, Pushed, lengths_of

# Tokens, reference tokens and channels of a tile.
TILES = {
    16: {"BLOCK_N": 128, "BLOCK_M": 128, "BLOCK_C": 64, "num_warps": 8},
    32: {"BLOCK_N": 64, "BLOCK_M": 64, "BLOCK_C": 32, "num_warps": 4},
}


@triton.jit
def _match_kernel(
    tokens,
    reference,
    lengths,
    allowed,
    out,
    score,
    index,
    alpha,
    threshold,
    epsilon,
    n,
    m,
    c,
    tokens_batch,
    tokens_row,
    reference_batch,
    reference_row,
    lengths_batch,
    allowed_batch,
    MASKED: tl.constexpr,
    PUSH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    own = tokens + sample * tokens_batch + rows.to(tl.int64)[:, None] * tokens_row
    theirs = reference + sample * reference_batch
    inside = rows < n
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK_N,), tl.int32)

    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        usable = columns < m
        products = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for first in range(0, c, BLOCK_C):
            channels = first + tl.arange(0, BLOCK_C)
            h = tl.load(own + channels[None, :], inside[:, None] & (channels < c)[None, :], 0.0)
            r = tl.load(
                theirs + columns.to(tl.int64)[None, :] * reference_row + channels[:, None],
                usable[None, :] & (channels < c)[:, None],
                0.0,
            )
            products = tl.dot(h, r, products, input_precision="ieee")  # not tf32, which float32 would get
        if MASKED:
            usable = usable & (tl.load(allowed + sample * allowed_batch + columns, columns < m, 0) != 0)
        length = tl.load(lengths + sample * lengths_batch + columns, columns < m, 1.0)
        similarity = tl.where(usable[None, :], products / length[None, :], float("-inf"))
        top, at = tl.max(similarity, 1, return_indices=True)
        better = top > best
        best = tl.where(better, top, best)
        place = tl.where(better, start + at, place)

    square = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, c, BLOCK_C):
        channels = first + tl.arange(0, BLOCK_C)
        h = tl.load(own + channels[None, :], inside[:, None] & (channels < c)[None, :], 0.0).to(tl.float32)
        square += tl.sum(h * h, 1)
    best = best / tl.maximum(tl.sqrt(square), epsilon)
    tl.store(score + sample * n + rows, best, inside)
    tl.store(index + sample * n + rows, place.to(tl.int64), inside)

    if PUSH:
        away = best > threshold
        matched = theirs + place.to(tl.int64)[:, None] * reference_row
        target = out + (sample * n + rows.to(tl.int64))[:, None] * c
        for first in range(0, c, BLOCK_C):
            channels = first + tl.arange(0, BLOCK_C)
            valid = inside[:, None] & (channels < c)[None, :]
            h = tl.load(own + channels[None, :], valid, 0.0)
            r = tl.load(matched + channels[None, :], valid, 0.0)
            wide = h.to(tl.float32)
            moved = (wide + alpha * (wide - r.to(tl.float32))).to(h.dtype)
            tl.store(target + channels[None, :], tl.where(away[:, None], moved, h), valid)


def match_fused(tokens: Tensor, reference: Tensor, mask: Tensor | None = None) -> Match:
    """`match_dense` in one kernel; float64 is not for it."""
    _, score, index = _launch(tokens, reference, 0.0, 0.0, mask, push=False)
    return Match(score, index)


def push_fused(tokens: Tensor, reference: Tensor, alpha: float, threshold: float, mask: Tensor | None = None) -> Pushed:
    """`push_dense` in one kernel; float64 is not for it."""
    return Pushed(*_launch(tokens, reference, alpha, threshold, mask, push=True))


def _launch(tokens: Tensor, reference: Tensor, alpha: float, threshold: float, mask: Tensor | None, *, push: bool):
    batch, n, c = tokens.shape
    m = reference.shape[1]
    # Rows may lie apart (heads merged out of a larger tensor), channels may not.
    tokens, reference = (t if t.stride(-1) == 1 else t.contiguous() for t in (tokens, reference))
    lengths = lengths_of(reference).contiguous()
    score = torch.empty((batch, n), dtype=torch.float32, device=tokens.device)
    index = torch.empty((batch, n), dtype=torch.int64, device=tokens.device)
    out = torch.empty((batch, n, c), dtype=tokens.dtype, device=tokens.device) if push else score
    shared = len(reference) == 1
    tiles = TILES[8 * tokens.element_size()]
    allowed = lengths if mask is None else mask.to(tokens.device, torch.uint8).contiguous()
    try:
        with torch.cuda.device_of(tokens):  # Triton starts on the current device
            _match_kernel[(triton.cdiv(n, tiles["BLOCK_N"]), batch)](
                tokens,
                reference,
                lengths,
                allowed,
                out,
                score,
                index,
                alpha,
                threshold,
                EPSILON,
                n,
                m,
                c,
                tokens.stride(0),
                tokens.stride(1),
                0 if shared else reference.stride(0),
                reference.stride(1),
                0 if shared else m,
                0 if mask is None or mask.ndim == 1 else m,
                MASKED=mask is not None,
                PUSH=push,
                **tiles,
            )
    except (TritonError, RuntimeError, OSError, SubprocessError) as error:
        raise KernelError(f"{type(error).__name__}: {error}") from error
    return out, score, index
