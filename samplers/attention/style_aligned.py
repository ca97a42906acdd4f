"""Attention that is shared with a reference image: StyleAligned (Hertz et al.: "Style Aligned Image Generation via
Shared Attention", CVPR 2024, arXiv 2312.02133), and reference attention, which is the same without the first step.

With queries, keys and values of an image and of its reference, in every self-attention layer

    Q~ = AdaIN(Q, Q_ref),  K~ = AdaIN(K, K_ref)
    out = softmax([Q~ K~^T, Q~ K_ref^T + share] / ...) [V ; V_ref]

Tokens are [rows, heads, tokens, dim] of one network evaluation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_EPSILON = 1e-5  # added to variances, as in the authors' code


def adain(tokens: Tensor, reference: Tensor) -> Tensor:
    """`tokens` [rows, heads, N, dim] with the mean and the variance over tokens that `reference` [rows, heads, M, dim]
    has, for each row, head and channel by itself (Huang and Belongie, ICCV 2017, arXiv 1703.06868).

    In float32 at least: variances of half precision would not be the reference's.
    """
    wide = torch.promote_types(tokens.dtype, torch.float32)
    (mean, deviation), (wanted_mean, wanted_deviation) = (_statistics(t.to(wide)) for t in (tokens, reference))
    return ((tokens.to(wide) - mean) / deviation * wanted_deviation + wanted_mean).to(tokens.dtype)


def _statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    # The authors divide by N - 1. Of a single token, all that the innermost blocks have of a small image, it is 0.
    variance, mean = torch.var_mean(tokens, dim=2, keepdim=True, correction=min(1, tokens.shape[2] - 1))
    return mean, (variance + _EPSILON).sqrt()


def share_bias(own: int, theirs: Tensor, share: float, visible: Tensor | None, following: Tensor) -> Tensor:
    """What is added to the logits of [own keys, the reference's], [rows, 1, 1, keys].

    Args:
        own: how many own keys there are.
        theirs: the reference's, [rows, heads, M, dim].
        share: for them, in nats: their weight is multiplied by e^share.
        visible: [M], True where the reference may be looked at; None: everywhere.
        following: [rows], True for those that have a reference; the others look at themselves alone.
    """
    seen = theirs.new_full((len(following), theirs.shape[2]), share).masked_fill(~following[:, None], -torch.inf)
    if visible is not None:
        seen = seen.masked_fill(~visible, -torch.inf)
    return torch.nn.functional.pad(seen, (own, 0))[:, None, None]


def fused(plain: Tensor, shared: Sequence[Tensor], strength: float = 1.0) -> Tensor:
    """The attention's output with several references at once (BootPIG, Purushwalkam et al. 2024, arXiv 2401.13974): at
    each token those count for more that would change it more,

        o + strength sum_i p_i (o_i - o),  p_i = softmax_i |o_i - o|

    the length being that of all heads together. With one reference it is o + strength (o_1 - o).

    Args:
        plain: o, [rows, heads, tokens, dim].
        shared: o_i, with reference i alone.
    """
    changes = torch.stack(list(shared)) - plain
    if len(shared) == 1:
        return plain + strength * changes[0]
    lengths = torch.linalg.vector_norm(changes.float(), dim=(2, 4), keepdim=True)
    return plain + strength * (lengths.softmax(0).to(plain.dtype) * changes).sum(0)
