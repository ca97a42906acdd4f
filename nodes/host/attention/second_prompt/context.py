"""Second texts in a network call, beside the prompt of a row: what their implementations for the families share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.utils
import torch
from torch import Tensor

from ...network.families import Block
from ...run import Run
from ..calls import Call

_TEXTS = "guidekit_second_texts"
_JOINED = "guidekit_joined_texts"


class Steering(Protocol):
    """A technique that combines the attention outputs for two texts, in `blocks`. `text_share`: where text and image
    share an attention, the second output is only the part that comes from the text tokens; else it is all of it."""

    @property
    def label(self) -> str: ...

    @property
    def idle_reason(self) -> str: ...

    @property
    def blocks(self) -> frozenset[Block]: ...

    @property
    def text_share(self) -> bool: ...

    def active(self, run: Run) -> bool:
        """Whether it acts in this step."""

    def combine(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The output to use instead of `positive`, that for the row's own text; `negative`: that for the second text;
        all [rows, image tokens, channels]."""


@dataclass(frozen=True)
class SecondText:
    """A second text in one network call. `tokens` [B, N, C]: from the text encoder, for one image or each of the batch;
    `mask` [B, N]: 1 where a token counts, None if all do; `technique`: the part that is attached to the model, whose
    technique is `steering`."""

    technique: Any
    tokens: Tensor
    mask: Tensor | None

    @property
    def steering(self) -> Steering:
        return self.technique.technique

    @property
    def count(self) -> int:
        return self.tokens.shape[1]

    def by_row(self, like: Tensor, options: dict) -> Tensor:
        """The tokens [rows, N, C] for all rows of a call, on the device and in the dtype of `like`, [rows, ...]."""
        return by_row(self.tokens.to(like), len(like), options)


def by_row(value: Tensor, rows: int, options: dict) -> Tensor:
    """`value` [1 or B, ...] repeated for all `rows` of a network call: [rows, ...]."""
    chunks = len(options["cond_or_uncond"])
    return comfy.utils.repeat_to_batch_size(value, rows // chunks).repeat(chunks, *[1] * (value.ndim - 1))


@dataclass(frozen=True)
class TextAttention:
    """An attention of `block` in a call with second texts, over the rows of `chunks`. `image`: the place of the image
    tokens; `steered`: for each chunk, whether the texts are used for it; `attend(q, k, v, mask)`: the attention
    itself, [rows, heads, tokens, dim]."""

    texts: tuple[SecondText, ...]
    block: Block
    image: slice
    run: Run
    options: dict
    chunks: list[int]
    steered: list[bool]
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

    def steer(
        self, text: SecondText, positive: Tensor, q: Tensor, k: Tensor, v: Tensor, count: int, mask: Tensor | None
    ) -> Tensor:
        """The combined attention output of the image tokens, [rows, heads, tokens, dim]. `positive`: their output for
        the row's own text; `q`: their queries; `k`, `v`: keys and values, the first `count` of which are the text's."""
        if text.steering.text_share:
            share = torch.zeros_like(v)
            share[:, :, :count] = v[:, :, :count]
            v = share
        negative = self.attend(q, k, v, mask)
        merged = (z.transpose(1, 2).flatten(2) for z in (positive, negative))
        self.run.acted.add(text.technique)
        return text.steering.combine(*merged).unflatten(2, (positive.shape[1], -1)).transpose(1, 2)


@dataclass(frozen=True)
class BesideText:
    """Second texts in self-attention, below all techniques; `steer(call, q, k, v, mask)` computes the output."""

    texts: tuple[SecondText, ...]
    steer: Callable[[TextAttention, Tensor, Tensor, Tensor, Tensor | None], Tensor]

    @property
    def label(self) -> str:
        return self.texts[0].technique.label

    def attends(self, call: Call) -> bool:
        # Not in an attention without text tokens (the second one of SD3.5).
        return call.layout.image.start > 0

    def attend(self, call: Call, q: Tensor, k: Tensor, v: Tensor, part: list[int], mask: Tensor | None) -> Tensor:
        steered = [not call.chunks[i].negative for i in part]
        about = TextAttention(
            self.texts, call.block, call.layout.image, call.run, call.options, part, steered, call.host
        )
        return self.steer(about, q, k, v, mask)


def with_texts(transformer_options: dict, texts: tuple[SecondText, ...]) -> dict:
    """The options of a network call with the second texts `texts`."""
    return {**transformer_options, _TEXTS: texts, _JOINED: {}}


def second_texts(transformer_options: dict) -> tuple[SecondText, ...]:
    """The second texts in the current network call."""
    return transformer_options.get(_TEXTS, ())


def before(texts: list[SecondText], context: Tensor, transformer_options: dict) -> Tensor:
    """The tokens of `texts` followed by the rows' own `context` [rows, N, C]. Made once per network call, since all its
    layers get the same context."""
    known, key = transformer_options[_JOINED], tuple(text.technique for text in texts)
    if key not in known or known[key][0] is not context:
        known[key] = context, torch.cat([*(text.by_row(context, transformer_options) for text in texts), context], 1)
    return known[key][1]
