"""The kernels of matching.py. The first multiplies tiles of tokens with tiles of reference tokens over all channels, in
float32, divides by the reference's lengths and keeps the best of each row: score and index in one integer, of which an
atomic maximum over all tiles is taken, so that their order does not matter. The similarity matrix is never written. The
second divides by the tokens' own lengths, which do not change the maximum, and steps away from the match.

The tiles divide both tokens and reference tokens, so that even one image occupies the whole device.
"""

from subprocess import SubprocessError
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from .choice import KernelError
from .matching import EPSILON, Match, Pushed, lengths_of

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4
    TensorDescriptor = None

# Tokens, reference tokens and channels of a tile, by the bits of the dtype.
TILES = {
    16: {"BLOCK_N": 128, "BLOCK_M": 128, "BLOCK_C": 64, "num_warps": 8, "num_stages": 3},
    32: {"BLOCK_N": 64, "BLOCK_M": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 3},
}
# For devices with as much shared memory per program as an A100 or H100.
LARGE_TILES = TILES | {16: {"BLOCK_N": 128, "BLOCK_M": 256, "BLOCK_C": 64, "num_warps": 8, "num_stages": 3}}
LARGE = 160 << 10  # bytes of shared memory

_PUSH = {"ROWS": 4, "BLOCK_C": 1024, "num_warps": 4}
_ALIGNED = 16  # bytes; alignment of rows that the hardware's tile copies need


@triton.jit
def _match_kernel(
    tokens,
    reference,
    inverse,
    allowed,
    keys,
    n,
    m,
    c,
    tokens_batch,
    tokens_row,
    reference_batch,
    reference_row,
    inverse_batch,
    allowed_batch,
    MASKED: tl.constexpr,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr = 8,
):
    """`keys`: score and index of the best match so far. `inverse`: 1 / length of the reference tokens. `EVEN`: the
    channels are whole tiles. `DESCRIPTORS`: `tokens` and `reference` are tensor descriptors of matrices with all
    samples as rows; `tokens_batch` and `reference_batch` are then numbers of rows."""
    sample = tl.program_id(1)
    # Neighbouring programs share rows and columns, which stay in the cache.
    across = tl.cdiv(m, BLOCK_M)
    group = tl.program_id(0) // (GROUP * across)
    height = tl.minimum(tl.cdiv(n, BLOCK_N) - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    row = (group * GROUP + within % height) * BLOCK_N
    column = (within // height) * BLOCK_M
    rows = row + tl.arange(0, BLOCK_N)
    columns = column + tl.arange(0, BLOCK_M)
    usable = columns < m

    products = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if DESCRIPTORS:
        first_row = sample * tokens_batch + row
        first_column = sample * reference_batch + column
        for first in range(0, c, BLOCK_C):
            h = tokens.load([first_row, first])
            r = reference.load([first_column, first])
            products = tl.dot(h, r.T, products)
    else:
        # Rows outside are replaced by the last row, and their results not used.
        own = tokens + sample.to(tl.int64) * tokens_batch + tl.minimum(rows, n - 1).to(tl.int64)[:, None] * tokens_row
        theirs = reference + sample.to(tl.int64) * reference_batch
        theirs += tl.minimum(columns, m - 1).to(tl.int64)[None, :] * reference_row
        for first in range(0, c, BLOCK_C):
            channels = first + tl.arange(0, BLOCK_C)
            if EVEN:
                h = tl.load(own + channels[None, :])
                r = tl.load(theirs + channels[:, None])
            else:
                h = tl.load(own + channels[None, :], (channels < c)[None, :], 0.0)
                r = tl.load(theirs + channels[:, None], (channels < c)[:, None], 0.0)
            products = tl.dot(h, r, products, input_precision="ieee")  # the default for float32 is tf32

    if MASKED:
        usable = usable & (tl.load(allowed + sample.to(tl.int64) * allowed_batch + columns, columns < m, 0) != 0)
    length = tl.load(inverse + sample.to(tl.int64) * inverse_batch + columns, columns < m, 0.0)
    similarity = tl.where(usable[None, :], products * length[None, :], float("-inf"))
    best, at = tl.max(similarity, 1, return_indices=True)
    tl.atomic_max(keys + sample.to(tl.int64) * n + rows, _key(best, column + at), rows < n, sem="relaxed")


@triton.jit
def _key(score, index):
    """An integer that is greater for a greater score, and among equal scores for a lower index."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # no -0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _push_kernel(
    tokens,
    reference,
    keys,
    out,
    score,
    index,
    alpha,
    threshold,
    epsilon,
    n,
    c,
    tokens_batch,
    tokens_row,
    reference_batch,
    reference_row,
    PUSH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    own = tokens + sample * tokens_batch + rows.to(tl.int64)[:, None] * tokens_row
    key = tl.load(keys + sample * n + rows, inside, 0)
    ordered = (key >> 32).to(tl.int32)
    best = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
    place = 0x7FFFFFFF - (key & 0x7FFFFFFF)

    square = tl.zeros((ROWS,), tl.float32)
    for first in range(0, c, BLOCK_C):
        channels = first + tl.arange(0, BLOCK_C)
        h = tl.load(own + channels[None, :], inside[:, None] & (channels < c)[None, :], 0.0).to(tl.float32)
        square += tl.sum(h * h, 1)
    best = best / tl.maximum(tl.sqrt(square), epsilon)
    tl.store(score + sample * n + rows, best, inside)
    tl.store(index + sample * n + rows, place, inside)

    if PUSH:
        away = best > threshold
        matched = reference + sample * reference_batch + place[:, None] * reference_row
        target = out + (sample * n + rows.to(tl.int64))[:, None] * c
        for first in range(0, c, BLOCK_C):
            channels = first + tl.arange(0, BLOCK_C)
            valid = inside[:, None] & (channels < c)[None, :]
            h = tl.load(own + channels[None, :], valid, 0.0)
            r = tl.load(matched + channels[None, :], valid & away[:, None], 0.0)
            wide = h.to(tl.float32)
            moved = (wide + alpha * (wide - r.to(tl.float32))).to(h.dtype)
            tl.store(target + channels[None, :], tl.where(away[:, None], moved, h), valid)


def match_fused(tokens: Tensor, reference: Tensor, mask: Tensor | None = None) -> Match:
    """`match_dense` without the similarity matrix; not for float64.

    Raises:
        KernelError: the kernel cannot run here.
    """
    _, score, index = _launch(tokens, reference, 0.0, 0.0, mask, push=False)
    return Match(score, index)


def push_fused(tokens: Tensor, reference: Tensor, alpha: float, threshold: float, mask: Tensor | None = None) -> Pushed:
    """`push_dense` without the similarity matrix; not for float64.

    Raises:
        KernelError: the kernel cannot run here.
    """
    return Pushed(*_launch(tokens, reference, alpha, threshold, mask, push=True))


def _launch(tokens: Tensor, reference: Tensor, alpha: float, threshold: float, mask: Tensor | None, *, push: bool):
    # Rows may have any stride (heads merged in a larger tensor), channels have to be contiguous.
    tokens, reference = (t if t.stride(-1) == 1 else t.contiguous() for t in (tokens, reference))
    batch, n, c = tokens.shape
    try:
        with torch.cuda.device_of(tokens):  # Triton starts on the current device
            match = match_call(tokens, reference, mask)
            _match_kernel[match.grid](*match.arguments, **match.constants)
            score = torch.empty((batch, n), dtype=torch.float32, device=tokens.device)
            index = torch.empty((batch, n), dtype=torch.int64, device=tokens.device)
            out = torch.empty((batch, n, c), dtype=tokens.dtype, device=tokens.device) if push else score
            _push_kernel[(triton.cdiv(n, _PUSH["ROWS"]), batch)](
                tokens,
                reference,
                match.keys,
                out,
                score,
                index,
                alpha,
                threshold,
                EPSILON,
                n,
                c,
                tokens.stride(0),
                tokens.stride(1),
                0 if len(reference) == 1 else reference.stride(0),
                reference.stride(1),
                PUSH=push,
                **_PUSH,
            )
    except (TritonError, RuntimeError, OSError, SubprocessError) as error:
        raise KernelError(f"{type(error).__name__}: {error}") from error
    return out, score, index


class MatchCall(NamedTuple):
    """The launch of the first kernel; `keys` [B, N] is its result."""

    grid: tuple[int, int]
    arguments: tuple
    constants: dict[str, Any]
    keys: Tensor


def match_call(
    tokens: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    tiles: dict[str, int] | None = None,
    descriptors: bool | None = None,
) -> MatchCall:
    """The launch of the first kernel. `tiles`, `descriptors`: by default those for the device."""
    (batch, n, c), m, shared = tokens.shape, reference.shape[1], len(reference) == 1
    inverse = lengths_of(reference).reciprocal_().contiguous()
    allowed = inverse if mask is None else mask.to(tokens.device, torch.uint8).contiguous()
    keys = torch.full((batch, n), torch.iinfo(torch.int64).min, device=tokens.device)
    tiles = tiles or tiles_for(tokens)
    rows, columns, channels = tiles["BLOCK_N"], tiles["BLOCK_M"], tiles["BLOCK_C"]
    if descriptors is None:
        descriptors = (
            _copies_tiles(tokens) and tokens.element_size() == 2 and _is_matrix(tokens) and _is_matrix(reference)
        )
    if descriptors:
        apart = [0 if len(t) == 1 else t.stride(0) // t.stride(1) for t in (tokens, reference)]
        operands = [
            TensorDescriptor(t, [(len(t) - 1) * each + t.shape[1], c], [t.stride(1), 1], [block, channels])
            for t, each, block in ((tokens, apart[0], rows), (reference, apart[1], columns))
        ]
        strides = apart[0], 0, apart[1], 0
    else:
        operands = [tokens, reference]
        strides = tokens.stride(0), tokens.stride(1), 0 if shared else reference.stride(0), reference.stride(1)
    masks = 0 if mask is None or mask.ndim == 1 else m
    return MatchCall(
        (triton.cdiv(n, rows) * triton.cdiv(m, columns), batch),
        (*operands, inverse, allowed, keys, n, m, c, *strides, 0 if shared else m, masks),
        {"MASKED": mask is not None, "EVEN": c % channels == 0, "DESCRIPTORS": descriptors, **tiles},
        keys,
    )


def tiles_for(tokens: Tensor) -> dict:
    """The tiles for the dtype and device of `tokens`."""
    shared = 0
    if tokens.is_cuda:
        shared = getattr(torch.cuda.get_device_properties(tokens.device), "shared_memory_per_block_optin", 0)
    return (LARGE_TILES if shared >= LARGE else TILES)[8 * tokens.element_size()]


def _copies_tiles(tokens: Tensor) -> bool:
    """Whether the hardware copies tiles by descriptors: NVIDIA from Hopper on."""
    if TensorDescriptor is None or not tokens.is_cuda or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(tokens.device) >= (9, 0)


def _is_matrix(t: Tensor) -> bool:
    """Whether all samples are rows of one matrix, as descriptors need; other rows may lie between them."""
    even = t.data_ptr() % _ALIGNED == 0 and t.stride(1) * t.element_size() % _ALIGNED == 0
    return even and (len(t) == 1 or t.stride(0) % t.stride(1) == 0)
