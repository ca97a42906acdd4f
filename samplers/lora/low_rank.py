"""The nearest weight change of low rank (Eckart and Young, 1936)."""

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """Two factors of a weight change dW, and the squared norms of the error and of dW."""

    up: Tensor  # [out, rank]
    down: Tensor  # [rank, in, ...]
    missing: float  # |dW - up down|^2
    size: float  # |dW|^2


def low_rank(change: Tensor, rank: int) -> LowRank:
    """The best approximation of `change` [out, in, ...] by two factors of `rank`, or of full rank if that is smaller;
    in float32.

    The projection onto the first `rank` eigenvectors of the smaller Gram matrix, in float64, is the truncated SVD.
    """
    where = "cpu" if change.device.type == "mps" else change.device  # MPS has no float64
    matrix = change.flatten(1).to(where).double()
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    kept = vectors[:, -rank:].flip(1)
    rest = kept.T @ wide
    up, down = (rest.T, kept.T) if tall else (kept, rest)
    missing = values[: max(0, len(values) - rank)].clamp_min(0).sum()
    down = down.reshape(down.shape[0], *change.shape[1:])
    return LowRank(up.float(), down.float(), missing.item(), values.clamp_min(0).sum().item())
