"""A second text in joint attention: its tokens are the first of the sequence, and the attention is computed twice,
without them and with them in place of the row's own text. So they pass through the blocks like the other tokens.

Relies on: text before image in the sequence; tokens being mixed by attention alone.
"""

import torch
from torch import Tensor

from .context import TextAttention


def split_attention(call: TextAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The output [rows, heads, tokens, dim] of the whole sequence, where the rows' own text ends at the image."""
    return split_around(call, q, k, v, mask, slice(sum(text.count for text in call.texts), call.image.start))


def split_around(
    call: TextAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, text_of_row: slice
) -> Tensor:
    """The output [rows, heads, tokens, dim] of the whole sequence. `text_of_row`: the tokens of the rows' own text; the
    second texts attend to all tokens that are not text."""
    ahead = sum(text.count for text in call.texts)
    others = [slice(ahead, text_of_row.start), slice(text_of_row.stop, None)]
    others = [place for place in others if place.start != place.stop]
    mask = _with_texts(mask, ahead, k.shape[2])
    rest = [slice(ahead, None)]
    first = call.attend(q[:, :, ahead:], k[:, :, ahead:], v[:, :, ahead:], _cut(mask, rest, rest))
    # The memory layout of attention, the heads of a token adjacent, so that they can be merged without a copy.
    out = first.new_zeros(len(q), q.shape[2], q.shape[1], first.shape[3]).transpose(1, 2)
    out[:, :, ahead:] = first
    rows = len(q) // len(call.chunks)
    for i in (i for i, wanted in enumerate(call.steered) if wanted):
        part, begin = slice(i * rows, (i + 1) * rows), 0
        for text in call.texts:
            own = slice(begin, begin + text.count)
            begin = own.stop
            places = [own, *others]
            keys, values = _tokens(k[part], places), _tokens(v[part], places)
            rows_mask = mask if mask is None or len(mask) == 1 else mask[part]
            out[part, :, own] = call.attend(q[part, :, own], keys, values, _cut(rows_mask, [own], places))
            if call.block in text.steering.blocks:
                out[part, :, call.image] = call.steer(
                    text,
                    out[part, :, call.image],
                    q=q[part, :, call.image],
                    k=keys,
                    v=values,
                    count=text.count,
                    mask=_cut(rows_mask, [call.image], places),
                )
    return out


def _tokens(z: Tensor, places: list[slice]) -> Tensor:
    return torch.cat([z[:, :, place] for place in places], 2)


def _cut(mask: Tensor | None, queries: list[slice], keys: list[slice]) -> Tensor | None:
    """The mask [1 or rows, 1 or heads, 1 or queries, keys] for some of the tokens."""
    if mask is None:
        return None
    mask = torch.cat([mask[..., place] for place in keys], -1)
    return mask if mask.shape[-2] == 1 else torch.cat([mask[..., place, :] for place in queries], -2)


def _with_texts(mask: Tensor | None, ahead: int, tokens: int) -> Tensor | None:
    """The mask in four dimensions, over all tokens; a mask of the sequence without the second texts is extended so that
    it does not affect them."""
    if mask is None:
        return None
    while mask.ndim < 4:  # as the host reads them: [q, k] or [rows, q, k]
        mask = mask.unsqueeze(-3)
    if mask.shape[-1] == tokens:
        return mask
    above = ahead if mask.shape[-2] > 1 else 0
    return torch.nn.functional.pad(mask, (ahead, 0, above, 0), value=mask.dtype == torch.bool)
