"""Negative Token Merging (Singh et al.: "Negative Token Merging: Image-based Adversarial Feature Guidance", 2024, arXiv
2412.01339): each token is pushed away from the reference token that is most similar to it.

    h'_i = (1 + alpha) h_i - alpha r_j,  j = argmax_j cos(h_i, r_j),  where that cosine is above a threshold

Tokens are attention outputs of one network evaluation: [images, tokens, channels].
"""

import torch
from torch import Tensor

from ..kernels.matching import best_match, push, push_away

MATCHINGS = ("source", "official")
REFERENCES = ("first image", "previous image", "all other images")


def negtome(
    tokens: Tensor,
    reference: Tensor,
    alpha: float,
    threshold: float,
    mask: Tensor | None = None,
    matching: str = "source",
) -> Tensor:
    """`tokens` [F, N, C] pushed away from `reference` [F or 1, M, C].

    Args:
        alpha: how far; 1 doubles the distance from the match, a negative value pulls towards it.
        threshold: the cosine that has to be exceeded; tokens without such a match do not change.
        mask: [M], or [F, M] with one for each image: True where a reference token may be matched.
        matching: "source", as in the paper's figure: each token has its own best match. "official", as in the published
            code: the maximum is over the tokens for each reference token, and the index, which is a token's, is used in
            the reference; the two agree only where matching is the identity. This needs N = M, and tokens where `mask`
            is False do not change.

    Raises:
        ValueError: an unknown `matching`, or N != M for "official".
    """
    if matching == "source":
        return push_away(tokens, reference, alpha, threshold, mask).tokens
    if matching != "official":
        raise ValueError(f"matching is {matching!r}. It is one of {', '.join(MATCHINGS)}.")
    if tokens.shape[1] != reference.shape[1]:
        raise ValueError(
            f"Official matching needs as many tokens as the reference has, not {tokens.shape[1]} and "
            f"{reference.shape[1]}. Use matching source."
        )
    reference = reference.expand(len(tokens), -1, -1)
    match = best_match(reference, tokens)
    pushed = push(tokens, reference, alpha, threshold, match).tokens
    return pushed if mask is None else torch.where(mask[:, None], pushed, tokens)


def negtome_among(
    tokens: Tensor,
    among: str,
    alpha: float,
    threshold: float,
    mask: Tensor | None = None,
    matching: str = "source",
) -> Tensor:
    """`negtome` of `tokens` [F, N, C] with references from the batch itself, `among`: the first image or the previous
    one (the first image does not change in either case), or all others. `mask`: [N], for every image. A batch of one
    does not change.

    Raises:
        ValueError: an unknown `among`, or as in `negtome`.
    """
    if len(tokens) < 2:
        return tokens
    if among == "all other images":
        # One reference for all images, in which each has its own tokens masked: no copies of the batch.
        own = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device).repeat_interleave(tokens.shape[1], 1)
        allowed = ~own if mask is None else ~own & mask.repeat(len(tokens))
        return negtome(tokens, tokens.flatten(0, 1)[None], alpha, threshold, allowed, matching)
    before = {"first image": tokens[:1], "previous image": tokens[:-1]}
    if among not in before:
        raise ValueError(f"The reference is {among!r}. It is one of {', '.join(REFERENCES)}.")
    return torch.cat([tokens[:1], negtome(tokens[1:], before[among], alpha, threshold, mask, matching)])
