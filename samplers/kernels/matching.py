"""Finds for each token its best match in a reference, by cosine, and moves it away from that: in torch, or on a GPU by
fused kernels.

Three versions of one signature, `(tokens, reference, alpha, threshold, mask) -> Pushed`:

`push_dense` is the definition and computes the whole similarity matrix. `push_chunked` computes it in stripes, with
memory proportional to the number of tokens, and is used on a CPU. `push_fused` (matching_triton.py) never stores it.
`push_away` chooses between the last two.

Tokens [B, N, C], reference [B or 1, M, C] in the same dtype, mask [M], [B, M] or None: True where a reference token may
be used. Scores are computed in float32 for any dtype (float64 for float64); of equal ones the lowest index is used.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .choice import fastest

EPSILON = 1e-12  # lower limit of the lengths that cosines are divided by
STRIPE = 1 << 22  # elements of the similarity matrix in one stripe


class Match(NamedTuple):
    """score: cosine with the best reference token, [B, N]; -inf where the mask leaves none. best: its index, [B, N]."""

    score: Tensor
    best: Tensor


class Pushed(NamedTuple):
    """tokens: (1 + alpha) h - alpha r_best where score > threshold, else h, [B, N, C] in the given dtype; score, best:
    those of the match."""

    tokens: Tensor
    score: Tensor
    best: Tensor


def match_dense(tokens: Tensor, reference: Tensor, mask: Tensor | None = None) -> Match:
    """The best matches, from the whole similarity matrix."""
    wide = torch.promote_types(tokens.dtype, torch.float32)
    tokens, reference = tokens.to(wide), reference.to(wide)
    # Divided by the lengths after the product, as in the kernel.
    similarity = tokens @ reference.transpose(1, 2) * lengths_of(reference).reciprocal()[:, None]
    if mask is not None:
        similarity = similarity.masked_fill(~mask.reshape(-1, 1, mask.shape[-1]), -torch.inf)
    # max() does not define which of equal elements it returns; argmax over the comparison returns the first.
    score = similarity.amax(-1)
    index = (similarity == score[..., None]).to(torch.uint8).argmax(-1)
    return Match(score / lengths_of(tokens), index)


def match_chunked(tokens: Tensor, reference: Tensor, mask: Tensor | None = None) -> Match:
    """`match_dense` in stripes of rows."""
    rows = max(1, STRIPE // (len(tokens) * reference.shape[1]))
    parts = [match_dense(part, reference, mask) for part in tokens.split(rows, 1)]
    return Match(*(torch.cat(each, 1) for each in zip(*parts)))


def push_dense(tokens: Tensor, reference: Tensor, alpha: float, threshold: float, mask: Tensor | None = None) -> Pushed:
    """Match and step, from the whole similarity matrix."""
    return push(tokens, reference, alpha, threshold, match_dense(tokens, reference, mask))


def push_chunked(
    tokens: Tensor, reference: Tensor, alpha: float, threshold: float, mask: Tensor | None = None
) -> Pushed:
    """`push_dense` in stripes of rows."""
    return push(tokens, reference, alpha, threshold, match_chunked(tokens, reference, mask))


def push(tokens: Tensor, reference: Tensor, alpha: float, threshold: float, match: Match) -> Pushed:
    """The step away from a given match."""
    wide = torch.promote_types(tokens.dtype, torch.float32)
    index = match.best[..., None].expand(-1, -1, tokens.shape[-1])
    found = reference.expand(len(tokens), -1, -1).gather(1, index)
    away = tokens.to(wide) + alpha * (tokens.to(wide) - found.to(wide))
    return Pushed(torch.where((match.score > threshold)[..., None], away.to(tokens.dtype), tokens), *match)


def push_away(tokens: Tensor, reference: Tensor, alpha: float, threshold: float, mask: Tensor | None = None) -> Pushed:
    """Match and step, by the fastest version for this device."""
    return _fastest("push_fused", push_chunked, tokens, reference, alpha, threshold, mask)


def best_match(tokens: Tensor, reference: Tensor, mask: Tensor | None = None) -> Match:
    """The match alone, by the fastest version for this device."""
    return _fastest("match_fused", match_chunked, tokens, reference, mask)


def _fastest(kernel: str, stripes: Callable, tokens: Tensor, *rest):
    if not _has_matrix_units(tokens) or tokens.dtype == torch.float64:
        return stripes(tokens, *rest)
    return fastest("Token matching", _kernels, kernel, stripes, tokens, *rest)


def _kernels() -> ModuleType:
    from . import matching_triton

    return matching_triton


def _has_matrix_units(tokens: Tensor) -> bool:
    """Whether the kernel is fast on the device: not on NVIDIA before Ampere, where Triton does not use tensor cores and
    runs out of registers. AMD's capabilities start at 9."""
    return tokens.is_cuda and torch.cuda.get_device_capability(tokens.device) >= (8, 0)


def lengths_of(vectors: Tensor) -> Tensor:
    """The lengths [...] of vectors [..., C], at least EPSILON, in float32 or wider, without converting the vectors."""
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=wide).clamp(min=EPSILON)
