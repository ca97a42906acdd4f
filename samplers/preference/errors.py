"""The error of a prediction, in the space in which the network speaks (eps, v, velocity)."""

import torch
from torch import Tensor


def mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over all but the batch, [B, ...] x [B, ...] -> [B], in float32 or wider. The codes of Diffusion-KTO and
    Diffusion-DPO take a mean, no sum: their beta is meant for it."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(wide) - target.to(wide)).square().flatten(1).mean(1)
