"""A second text in the cross-attention of a UNet: its tokens are put before the context, so that the layer's own
projections make their keys and values, and the attention is split after the projections.

Relies on: `attn2_patch`, which may lengthen context and value, and `patches_replace["attn2"]`, which gets queries, keys
and values (comfy/ldm/modules/attention.py:951-975); the rows of chunk i being i * B to (i + 1) * B.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...network.families import Block, transformer_layers
from ...network.forward import check_rows
from ...run import current_run
from .context import SecondText, before, second_texts


def _here(options: dict) -> list[SecondText]:
    block = Block(*options["block"])
    return [text for text in second_texts(options) if block in text.steering.blocks]


@torch.compiler.disable
def _lengthen(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    check_rows(options, len(context))
    if texts := _here(options):
        longer = before(texts, context, options)
        # Another node may have given the layer other values.
        context, value = longer, longer if value is context else before(texts, value, options)
    return n, context, value


@dataclass(eq=False)
class _Split:
    inner: Callable | None  # an earlier replacement of the attention

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        texts, run = _here(options), current_run(options)
        own = sum(text.count for text in texts)
        if self.inner is not None:
            out = self.inner(q, k[:, own:], v[:, own:], options)
        else:
            out = _attend(q, k[:, own:], v[:, own:], options)
        negative = run.prompts.negative_chunks(options)
        rows = len(q) // len(negative)
        for part in (slice(i * rows, (i + 1) * rows) for i, skipped in enumerate(negative) if not skipped):
            start = 0
            for text in texts:
                place = slice(start, start + text.count)
                found = _attend(q[part], k[part, place], v[part, place], options)
                found = text.steering.combine(out[part], found)
                if rows == len(q):
                    out = found
                else:
                    out[part] = found
                run.acted.add(text.technique)
                start = place.stop
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    precision = options["attn_precision"]
    return optimized_attention(q, k, v, options["n_heads"], attn_precision=precision, transformer_options=options)


def split_cross_attention(transformer_options: dict, network: torch.nn.Module) -> None:
    """Puts the hooks of this file into the options of a run, around those of other nodes."""
    transformer_options.setdefault("patches", {}).setdefault("attn2_patch", []).append(_lengthen)
    replaced = transformer_options.setdefault("patches_replace", {}).setdefault("attn2", {})
    for block, layers in transformer_layers(network).items():
        for key in ((*block, layer) for layer in range(layers)):
            replaced[key] = _Split(replaced.get(key, replaced.get(key[:2])))
