"""Gradient-Free Classifier Guidance (Shenoy, Pan, Balakrishnan et al., WACV 2026, arXiv 2411.15393).

From the paper's abstract: a classifier, used for inference only, is evaluated at every step; from its output come a
reference class for the step, which replaces the unconditional prediction, and a guidance scale that grows with the
confusion. The paper's formula for the scale and its choice of the reference class were not accessible to us. The
following is a construction of this pack with those parts:

    p = softmax(logits / temperature)       over the target, at index 0, and N - 1 other candidates
    k = argmax_{j >= 1} logit_j             the most confusing wrong candidate
    strength = scale * confusion(p)         miss: 1 - p_0, margin: p_k / (p_0 + p_k), max: p_k, const: 1
    D = D_cfg + strength (D_c - D_k)

Everything is per sample. `p` is [B, N] in float32 or wider; predictions D are [B, ...] in x0 space.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..sending import sent


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The probabilities [B, N], the target first, of logits [B, N]. A sample with NaN or infinity among its logits (an
    image of NaN) gets probability 1 for its target, so that it is not guided. Minus infinity gives probability 0."""
    logits = logits.float()
    seen = logits.amax(1, keepdim=True).isfinite()  # NaN is the largest
    target = torch.zeros_like(logits)
    target[:, 0] = 1.0
    return torch.where(seen, (torch.where(seen, logits, 0.0) / temperature).softmax(1), target)


def most_confusing(logits: Tensor) -> Tensor:
    """The index k >= 1 of the largest wrong logit, [B]; the first of equal ones. Uses logits [B, N], because the
    probabilities of all wrong candidates may underflow."""
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
    """The confusion of each sample, [B] in 0..1, by one of `MEASURES`; `k` [B]: the wrong candidate."""
    return MEASURES[measure](p, k).clamp(0, 1)


def guidance_update(cond: Tensor, reference: Tensor, strength: Tensor) -> Tensor:
    """strength (D_c - D_k), the term to add to the guided prediction: [B, ...], x0 space; `strength` is [B]."""
    return sent(strength, cond.device, cond.dtype).reshape(-1, *[1] * (cond.ndim - 1)) * (cond - reference)
