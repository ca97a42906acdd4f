"""The output of an attention layer by role, "image tokens of block k, by chunk", on every family.

In UNets the outputs of self- and cross-attention after their projection; elsewhere that of self-attention before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..network.families import Block, family_of
from ..network.forward import check_rows
from ..run import Part, Run, attach
from ..run.chunks import Chunk, chunks
from .calls import LAST, SelfAttention
from .self_attention import check_blocks, reach_attention, replace_self_attention


@dataclass(frozen=True)
class AttentionOutput:
    """The output of one attention layer. `tokens`: [chunks, rows of a chunk, image tokens, channels]; `grid`: their
    arrangement, (h, w) or (t, h, w), row-major; `chunks`: those along the first axis."""

    tokens: Tensor
    grid: tuple[int, ...]
    block: Block
    run: Run
    chunks: tuple[Chunk, ...]

    def riding(self, rider: Any, chunk: Chunk) -> Tensor:
        """The tokens of the reference row `rider` in its copy of `chunk`, which has to exist: [rows of a chunk, image
        tokens, channels]."""
        return next(
            tokens
            for tokens, other in zip(self.tokens, self.chunks)
            if other.copy is not None and other.copy.rider is rider and other.copy.of == chunk.number
        )


Change = Callable[[AttentionOutput], Tensor]


@dataclass(frozen=True, eq=False)
class _InAttention(Part):
    technique: Change

    @property
    def owner(self) -> Change:
        return self.technique

    def __call__(self, a: SelfAttention) -> Tensor:
        out = a.attend(a.q, a.k, a.v)
        heads = out.shape[1]
        tokens = out[:, :, a.image].transpose(1, 2).flatten(2).unflatten(0, (len(a.chunks), -1))
        changed = _changed(self.technique, AttentionOutput(tokens, a.grid, a.block, a.run, a.chunks))
        if changed is tokens:
            return out
        # The memory layout of attention, the heads of a token adjacent, so that they can be merged without a copy.
        whole = out.new_empty(len(out), out.shape[2], heads, out.shape[3]).transpose(1, 2)
        for place in (slice(0, a.image.start), slice(a.image.stop, None)):
            whole[:, :, place] = out[:, :, place]
        whole[:, :, a.image] = changed.flatten(0, 1).unflatten(2, (heads, -1)).transpose(1, 2)
        return whole


@dataclass(frozen=True, eq=False)
class _BehindProjection(Part):
    technique: Change
    blocks: frozenset[Block]

    @property
    def owner(self) -> Change:
        return self.technique

    def of_unet(self, out: Tensor, run: Run, options: dict) -> Tensor:
        """[rows, tokens, channels]"""
        block = Block(*options["block"])
        if block not in self.blocks:
            return out
        check_rows(options, len(out))
        all_chunks = chunks(run.prompts.negative_chunks(options), options)
        tokens = out.unflatten(0, (len(all_chunks), -1))
        grid = tuple(options["activations_shape"][-2:])
        changed = _changed(self.technique, AttentionOutput(tokens, grid, block, run, all_chunks))
        run.acted.add(self)
        return out if changed is tokens else changed.flatten(0, 1)


def _changed(change: Change, a: AttentionOutput) -> Tensor:
    changed = change(a)
    if changed is not a.tokens:
        a.run.acted.add(change)
    return changed


def change_attention_output(model: ModelPatcher, blocks: list[Block], change: Change) -> None:
    """Calls `change` with the attention outputs of `blocks` and replaces them by what it returns; it returns `tokens`
    itself where nothing changes.

    Raises:
        ValueError: a model whose attention cannot be reached.
    """
    attach(model, "attention output", change)
    if family_of(model).name != "UNet":
        replace_self_attention(model, blocks, _InAttention(change), order=LAST)
        return
    check_blocks(model, blocks)
    reach_attention(model)
    attach(model, "layer output", _BehindProjection(change, frozenset(blocks)))
