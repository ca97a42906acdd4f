"""DoRA (Liu et al., ICML 2024, arXiv 2402.09353): a weight as magnitudes and directions."""

import torch
from torch import Tensor


def decomposed(merged: Tensor, magnitude: Tensor) -> Tensor:
    """m (W + dW) / |W + dW| (equation 5 of the paper, without the gradient).

    Args:
        merged: W + dW, [out, in, ...].
        magnitude: m, [out, 1, ...], a norm for each output as in PEFT, or [1, in, 1, ...], for each input as in kohya.
    """
    over_inputs = len(magnitude) == len(merged)
    dims = [d for d in range(merged.ndim) if d != (0 if over_inputs else 1)]
    norm = torch.linalg.vector_norm(merged, dim=dims, keepdim=True)
    return merged * (magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny))
