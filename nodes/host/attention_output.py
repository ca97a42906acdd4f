"""What an attention layer gives, by role: "image tokens of block k, by chunk", on every family.

In UNets after the output projection of self- and cross-attention, elsewhere the self-attention's output before it.

Relies on: `attn1_output_patch` and `attn2_output_patch` of UNets (comfy/ldm/modules/attention.py:946, 986), and on
attention.py for the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .attention import SelfAttention, replace_self_attention
from .families import Block, family_of
from .forward import check_rows, watch_forward
from .rider import Rider, riders
from .run import Run, attach, current_run


@dataclass(frozen=True)
class AttentionOutput:
    """`tokens`: [chunks, rows of a chunk, image tokens, channels]; `grid`: their arrangement, (h, w) or (t, h, w);
    `negative`: of each chunk, whether it is the guider's negative; `riders`: whose rows the first ones of every chunk
    are."""

    tokens: Tensor
    grid: tuple[int, ...]
    block: Block
    run: Run
    negative: tuple[bool, ...]
    riders: tuple[Rider, ...]


Change = Callable[[AttentionOutput], Tensor]


@dataclass(frozen=True, eq=False)
class _SelfAttention:
    change: Change

    @property
    def label(self) -> str:
        return self.change.label

    @property
    def idle_reason(self) -> str:
        return self.change.idle_reason

    def __call__(self, a: SelfAttention) -> Tensor:
        out = a.attend(a.q, a.k, a.v)
        heads = out.shape[1]
        tokens = out[:, :, a.image].transpose(1, 2).flatten(2).unflatten(0, (len(a.negative), -1))
        changed = self.change(AttentionOutput(tokens, a.grid, a.block, a.run, a.negative, a.riders))
        if changed is tokens:
            return out
        a.run.acted.add(self.change)
        changed = changed.flatten(0, 1).unflatten(2, (heads, -1)).transpose(1, 2)
        return torch.cat([out[:, :, : a.image.start], changed, out[:, :, a.image.stop :]], 2)


@dataclass(frozen=True, eq=False)
class _UNetOutput:
    change: Change
    blocks: frozenset[Block]

    def __call__(self, out: Tensor, options: dict) -> Tensor:
        block = Block(*options["block"])
        if block not in self.blocks:
            return out
        check_rows(options, len(out))
        run = current_run(options)
        negative = run.negative_chunks(options)
        tokens = out.unflatten(0, (len(negative), -1))
        grid = tuple(options["activations_shape"][-2:])
        changed = self.change(AttentionOutput(tokens, grid, block, run, negative, riders(options)))
        if changed is tokens:
            return out
        run.acted.add(self.change)
        return changed.flatten(0, 1)


def change_attention_output(model: ModelPatcher, blocks: list[Block], change: Change) -> None:
    """Calls `change` with the attention outputs of `blocks`; what it returns takes their place, `tokens` itself if
    nothing is to change.

    Raises:
        ValueError: a model whose attention cannot be reached.
    """
    attach(model, "attention output", change)
    if family_of(model).name != "UNet":
        replace_self_attention(model, blocks, _SelfAttention(change), last=True)
        return
    watch_forward(model)
    patch = _UNetOutput(change, frozenset(blocks))
    model.set_model_attn1_output_patch(patch)
    model.set_model_attn2_output_patch(patch)
