"""Identity self-attention, the perturbation of PAG (Ahn et al., ECCV 2024, arXiv 2403.17377), also for attention that
text and image share."""

import torch
from torch import Tensor


def identity_attention(
    q: Tensor, k: Tensor, v: Tensor, image: slice, scale: float, mask: Tensor | None = None
) -> Tensor:
    """The output of the image tokens when the image-to-image part of the attention map is the identity.

    Each image token attends to itself and to all tokens outside `image` (text, reference images), but to no other image
    token: softmax over [q_i k_i, q_i k_outside], as if all other image logits were -inf. Without tokens outside, this
    is v. No tokens x tokens matrix is made: work and memory are linear in the number of image tokens.

    `q`, `k`, `v`: [rows, heads, tokens, dim]; `image`: a range of tokens; `scale` multiplies q k^T; `mask`: added to
    the logits, or boolean, False where a token is masked, broadcastable to [rows, heads, tokens, tokens].
    Returns [rows, heads, image tokens, dim].
    """
    start, stop, _ = image.indices(k.shape[2])
    if stop - start == k.shape[2]:
        return v
    queries, own_v = q[:, :, start:stop], v[:, :, start:stop]
    outside_k, outside_v = (torch.cat([t[:, :, :start], t[:, :, stop:]], 2) for t in (k, v))
    own = (queries.float() * k[:, :, start:stop].float()).sum(-1, keepdim=True) * scale
    out = torch.empty_like(own_v)
    # In parts, so that the logits of a part are at most half as large as q.
    at_once = max(1, q.shape[3] * q.shape[2] // (2 * (1 + outside_k.shape[2])))
    for i in range(0, stop - start, at_once):
        part = slice(i, i + at_once)
        logits = (queries[:, :, part] @ outside_k.transpose(-1, -2)).float() * scale
        logits = torch.cat([own[:, :, part], logits], -1)
        if mask is not None:
            logits = _masked(logits, mask, range(start, stop)[part], start, stop)
        share = logits.softmax(-1).to(v.dtype)
        out[:, :, part] = share[..., :1] * own_v[:, :, part] + share[..., 1:] @ outside_v
    return out


def _masked(logits: Tensor, mask: Tensor, tokens: range, start: int, stop: int) -> Tensor:
    """The logits [..., (self, outside)] of `tokens` with `mask` applied."""
    index = torch.arange(tokens.start, tokens.stop, device=mask.device)
    rows = mask[..., index, :] if mask.shape[-2] > 1 else mask.expand(*mask.shape[:-2], len(index), -1)
    own = rows.gather(-1, index.expand(rows.shape[:-1])[..., None])
    rows = torch.cat([own, rows[..., :start], rows[..., stop:]], -1)
    return logits.masked_fill(~rows, -torch.inf) if rows.dtype == torch.bool else logits + rows
