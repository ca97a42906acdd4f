"""The queries of self-attention by role, "image tokens of block k", on every family.

In UNets the input of the query projection, which has no bias, so that a change that is linear over tokens has the same
effect; elsewhere the queries, positions already encoded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..network.families import Block, family_of
from ..network.forward import check_rows
from ..network.shared_prefix import rows_of
from ..run import Part, Run, attach
from ..run.branch_chunks import chunks_of
from .calls import SelfAttention
from .self_attention import check_blocks, reach_attention, replace_self_attention

Change = Callable[[Tensor, tuple[int, ...]], Tensor]
"""`change(queries, grid)`, linear over the tokens. `queries`: [rows, heads, tokens, dim], where heads may be 1; `grid`:
the arrangement of the tokens, (h, w) or (t, h, w), row-major."""


@dataclass(frozen=True, eq=False)
class _InAttention(Part):
    technique: Change

    def __call__(self, a: SelfAttention) -> Tensor:
        image = self.technique(a.q[:, :, a.image], a.grid)
        return a.attend(torch.cat([a.q[:, :, : a.image.start], image, a.q[:, :, a.image.stop :]], 2), a.k, a.v)


@dataclass(frozen=True, eq=False)
class _BeforeProjection(Part):
    technique: Change
    blocks: frozenset[Block]
    branch: Any

    @property
    def owner(self) -> Any:
        return self.branch

    def of_unet(self, n: Tensor, run: Run, options: dict) -> Tensor:
        """[rows, tokens, channels]"""
        if Block(*options["block"]) not in self.blocks:
            return n
        check_rows(options, len(n))
        grid, count = tuple(options["activations_shape"][-2:]), len(options["uuids"])
        mine = chunks_of(run, self.branch, options)
        if mine:
            run.acted.add(self)
            n = n.clone()
        for part in (rows_of(n, i, count) for i in mine):
            part.copy_(self.technique(part[:, None], grid)[:, 0])
        return n


def change_queries(model: ModelPatcher, blocks: list[Block], change: Change, branch: Any) -> None:
    """Replaces the queries of `blocks` by `change(queries, grid)`, for the rows of `branch`.

    Raises:
        ValueError: a model whose attention cannot be reached, or blocks that it does not have.
    """
    if family_of(model).name != "UNet":
        replace_self_attention(model, blocks, _InAttention(change), branch)
        return
    check_blocks(model, blocks)
    reach_attention(model)
    attach(model, "queries", _BeforeProjection(change, frozenset(blocks), branch))
