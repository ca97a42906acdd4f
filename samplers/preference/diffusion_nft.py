"""DiffusionNFT (Zheng et al.: "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", ICLR 2026, arXiv
2509.16117): images with a reward r in 0..1, one by one; a vote is 1 or 0.

    v+ = beta v + (1 - beta) v_old          v- = (1 + beta) v_old - beta v
    loss = [ r |v+ - v*|^2 / w+  +  (1 - r) |v- - v*|^2 / w- ] / beta

v is the tuned model's output at a noised image, v_old that of the model that made the image, v* what the image itself
would have been (eps, v or velocity: all that is affine in the output). w± = mean |v± - v*|, without a gradient, of each
image. The authors (NVlabs/DiffusionNFT @ 24af555) have the errors in x0, for which the loss of a flow is multiplied by
t; here they are in the output's space, so that no noise level counts more than in plain training.

Without the weights it is a regression: its gradient is that of beta |v - T|^2 with T = `regression_target`. Liked
images draw towards themselves, disliked ones towards their mirror image about v_old; it is convex, so that nothing runs
away from a disliked image.
"""

import torch
from torch import Tensor

_SMALLEST = 1e-5  # of the weights, as the authors have it


def loss(prediction: Tensor, old: Tensor, target: Tensor, reward: Tensor, beta: float, weighted: bool = True) -> Tensor:
    """[B, ...] three times, reward [B] -> [B], in float32 or wider; a mean over an image's values."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    v, v_old, wanted = (tensor.to(wide) for tensor in (prediction, old, target))
    positive = _part(beta * v + (1 - beta) * v_old - wanted, weighted)
    negative = _part((1 + beta) * v_old - beta * v - wanted, weighted)
    r = reward.to(wide)
    return (r * positive + (1 - r) * negative) / beta


def regression_target(old: Tensor, target: Tensor, reward: Tensor, beta: float) -> Tensor:
    """T, [B, ...]: where the loss without weights has its only minimum."""
    r = reward.to(old.dtype).reshape(-1, *[1] * (old.ndim - 1))
    return old + (2 * r - 1) / beta * (target - old)


def _part(error: Tensor, weighted: bool) -> Tensor:
    square = error.square().flatten(1).mean(1)
    return square / error.detach().abs().flatten(1).mean(1).clamp(min=_SMALLEST) if weighted else square
