"""Gradient-Free Classifier Guidance (Shenoy, Pan, Balakrishnan et al., WACV 2026, arXiv 2411.15393).

The paper's, from its abstract: a classifier that is used in inference only looks at every step; from what it says come
a reference class, adapted to the step, that takes the place of the unconditional prediction, and a guidance scale that
grows with the confusion. Its closed formula for the scale, and which class exactly is the reference, could not be
read. What follows is a construction of this pack with those parts:

    p = softmax(logits / temperature)       over the target, at index 0, and N - 1 other candidates
    k = argmax_{j >= 1} logit_j             the most confusing wrong one
    strength = scale * confusion(p)         miss: 1 - p_0, margin: p_k / (p_0 + p_k), max: p_k, const: 1
    D = D_cfg + strength (D_c - D_k)

All is per sample. `p` is [B, N] in float32 or wider.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..sending import sent


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """[B, N], the target first. A sample with NaN or infinity among its logits (an image of NaN) counts as its target:
    a classifier that cannot see it says nothing about it. Minus infinity is a probability of 0."""
    logits = logits.float()
    seen = logits.amax(1, keepdim=True).isfinite()  # NaN is the largest
    target = torch.zeros_like(logits)
    target[:, 0] = 1.0
    return torch.where(seen, (torch.where(seen, logits, 0.0) / temperature).softmax(1), target)


def most_confusing(logits: Tensor) -> Tensor:
    """[B] of indices from 1 on; among equals the first. Of logits, because the probabilities of all wrong candidates
    may be too small for their format."""
    return logits[:, 1:].nan_to_num(-torch.inf).argmax(1) + 1


def _of(p: Tensor, k: Tensor) -> Tensor:
    return p.gather(1, k[:, None])[:, 0]


def _margin(p: Tensor, k: Tensor) -> Tensor:
    wrong = _of(p, k)
    both = p[:, 0] + wrong
    return torch.where(both > 0, wrong / both, 0.0)


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "miss": lambda p, k: 1 - p[:, 0],
    "margin": _margin,
    "max": _of,
    "const": lambda p, k: torch.ones_like(p[:, 0]),
}


def confusion(p: Tensor, k: Tensor, measure: str = "miss") -> Tensor:
    """[B] in 0..1: how far the classifier is from the target, with `k` as the wrong candidate."""
    return MEASURES[measure](p, k).clamp(0, 1)


def guidance_update(cond: Tensor, reference: Tensor, strength: Tensor) -> Tensor:
    """strength (D_c - D_k): what is added to the guided prediction; `strength` is [B]."""
    return sent(strength, cond.device, cond.dtype).reshape(-1, *[1] * (cond.ndim - 1)) * (cond - reference)
