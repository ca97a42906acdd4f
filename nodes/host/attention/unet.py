"""The attention layers of a UNet, from the input of the query projection to the output of the output projection.

Relies on: `attn1_patch`, `attn1_output_patch`, `attn2_patch`, `attn2_output_patch` and `patches_replace["attn1"]`
(comfy/ldm/modules/attention.py:918-988): the first `attn1_patch` runs before another node merges tokens or cuts them
into tiles, the last `attn1_output_patch` after that node has restored them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from torch import Tensor, nn

from ..models.row_lora import only_chunks
from ..network.families import Block, unet_parts
from ..network.forward import check_rows, current_forward
from ..network.shared_prefix import rows_of
from ..run import Run, current_run
from .calls import Call, Heads, PlacedByBlock, Whole, through


def hook_into_unet(transformer_options: dict, run: Run) -> None:
    """Puts the hooks that this run needs into its options, around those of other nodes."""
    patches = transformer_options.setdefault("patches", {})
    replaced = transformer_options.get("patches_replace", {}).get("attn1", {})
    others = any(patches.get(kind) for kind in ("attn1_patch", "attn1_output_patch"))  # that may merge tokens
    if "queries" in run.techniques:
        patches["attn1_patch"] = [_queries, *patches.get("attn1_patch", ())]
    if replaced:
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), _before_cross_attention]
    if others or replaced:
        patches["attn1_output_patch"] = [*patches.get("attn1_output_patch", ()), _put_in]
    if "layer output" in run.techniques:
        for kind in ("attn1_output_patch", "attn2_output_patch"):
            patches[kind] = [*patches.get(kind, ()), _output]
    for key, inner in list(replaced.items()):
        replaced[key] = _Replaced(inner)


@torch.compiler.disable
def _queries(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    run = current_run(options)
    for each in run.techniques.get("queries", ()):
        n = each.of_unet(n, run, options)
    return n, context, value


@torch.compiler.disable
def _before_cross_attention(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Corrects the count of a layer's attention calls where another node has replaced the first one, self-attention, by
    something that does not call the override."""
    place = Block(*options["block"]), options["block_index"]
    current_forward(options).attention_calls.setdefault(place, 1)
    return n, context, value


@torch.compiler.disable
def _output(out: Tensor, options: dict) -> Tensor:
    run = current_run(options)
    for each in run.techniques.get("layer output", ()):
        out = each.of_unet(out, run, options)
    return out


@torch.compiler.disable
def _put_in(out: Tensor, options: dict) -> Tensor:
    """Inserts the outputs that techniques have left for tokens that another node had merged or cut into tiles."""
    forward = current_forward(options)
    left, forward.afterwards = forward.afterwards, []
    for whole in left:
        out = _with(out, whole, options)
    return out


def _with(out: Tensor, whole: Whole, options: dict) -> Tensor:
    forward, count = current_forward(options), len(options["uuids"])
    with only_chunks(options, tuple(whole.part)):
        values = _attention_of(forward.network, options).to_out(whole.values.transpose(1, 2).flatten(2))
    out = out.clone()
    for i, number in enumerate(whole.part):
        rows_of(out, number, count).copy_(rows_of(values, i, len(whole.part)))
    return out


def _attention_of(network: nn.Module, options: dict) -> Any:
    """The self-attention of the current layer."""
    kind, number = options["block"]
    transformer = next(layer for layer in unet_parts(network)[kind][number] if isinstance(layer, SpatialTransformer))
    return transformer.transformer_blocks[options["block_index"]].attn1


@dataclass(eq=False)
class _Replaced:
    """Around the replacement `inner` of a self-attention by another node: it is called with all rows, as the options
    describe them, and then the rows of branches are overwritten by their techniques over the network's own attention.
    If all rows are of branches, it is not called."""

    inner: Callable

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        run, forward, block = current_run(options), current_forward(options), Block(*options["block"])
        check_rows(options, len(q))
        count = len(options["uuids"])
        placed = [p for p in run.of(PlacedByBlock).on(block) if p.branch is not None]
        mine = sorted(set().union(*(p.chunks(run, options) for p in placed)))
        if not mine:
            return self.inner(q, k, v, options)
        heads = options["n_heads"]
        apart = Heads(q, k, v, heads, {})
        layout = forward.layout(apart.qkv[0].shape[2], options, placed[0].label)
        call = Call(forward, run, options, block, apart.qkv[0].shape[-1] ** -0.5, layout, None, _Plain(heads, options))
        own_q, own_k, own_v = (torch.cat([rows_of(t, i, count) for i in mine]) for t in apart.qkv)
        found = apart.back(through(call, placed, own_q, own_k, own_v, mine))
        if len(mine) == count:
            return found
        out = self.inner(q, k, v, options).clone()
        for i, number in enumerate(mine):
            rows_of(out, number, count).copy_(rows_of(found, i, len(mine)))
        return out


@dataclass(frozen=True)
class _Plain:
    """The host's attention on [rows, heads, tokens, dim]."""

    heads: int
    options: dict

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        precision = self.options["attn_precision"]
        return optimized_attention(
            q, k, v, self.heads, mask=mask, attn_precision=precision, skip_reshape=True, skip_output_reshape=True
        )
