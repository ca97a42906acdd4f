"""Self-attention by role: "block k, image tokens only", on every family, by one mechanism.

A technique is called in place of the attention of the blocks it was given to, sees queries, keys and values as
[rows, heads, tokens, dim] whatever the network's layout, knows which tokens are image tokens and their grid, and never
hears of a family.

Relies on: `optimized_attention_override`, which every backend honours (comfy/ldm/modules/attention.py:148-166); the
block's name and number in `transformer_options` (see families.py); APPLY_MODEL wrappers, which run on every model and
see the latent (comfy/model_base.py:191).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .branches import chunks_of
from .families import Block, Family, family_of, mark_blocks, network_of
from .run import KEY, Run, attach, current_run

_FORWARD = "guidekit_forward"


@dataclass(frozen=True)
class SelfAttention:
    """One self-attention call, or the rows of it that a technique works on.

    `q`, `k`, `v`: [rows, heads, tokens, dim], positions already encoded; `scale` multiplies q k^T. `image`: the image
    tokens' place in the sequence (text and reference pictures are outside it). `grid`: their arrangement, (h, w) or
    (t, h, w), row-major. `attend(q, k, v)`: the attention that the technique replaces, [rows, heads, tokens, dim].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    image: slice
    grid: tuple[int, ...]
    block: Block
    run: Run
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]


Technique = Callable[[SelfAttention], Tensor]


@dataclass(frozen=True, eq=False)
class _Placed:
    technique: Technique
    blocks: frozenset[Block]
    branch: Any  # None: all rows

    @property
    def label(self) -> str:
        return self.technique.label

    @property
    def idle_reason(self) -> str:
        return self.technique.idle_reason


@dataclass
class _Forward:
    """What the attention inside one network call needs to know; a new one for each call."""

    family: Family
    network: torch.nn.Module
    latent_shape: tuple[int, ...]
    calls: dict[tuple[Block, int], int]  # attention calls so far, by block and layer


def replace_self_attention(model: ModelPatcher, blocks: list[Block], technique: Technique, branch: Any = None) -> None:
    """Calls `technique` for the self-attention of `blocks`; with `branch`, for that branch's rows only.

    Several techniques on one block nest: the later one's `attend` runs the earlier one.

    Raises:
        ValueError: a model whose attention cannot be reached, or blocks that it does not have.
    """
    known = family_of(model).blocks(network_of(model))
    missing = [b for b in blocks if b not in known]
    if missing or not blocks:
        wrong, right = (", ".join(f"{b.kind} {b.number}" for b in part) for part in (missing, known))
        raise ValueError(f"The model has no self-attention block {wrong or '(none given)'}. It has: {right}.")
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        options = model.model_options["transformer_options"]
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _apply_model)
        options["optimized_attention_override"] = _Override(options.get("optimized_attention_override"))
        mark_blocks(model)
    attach(model, "attention", _Placed(technique, frozenset(blocks), branch))


def _apply_model(executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
    base = executor.class_obj
    forward = _Forward(family_of(base), network_of(base), tuple(x.shape), {})
    return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, _FORWARD: forward}, **kwargs)


@dataclass(frozen=True, eq=False)
class _Override:
    inner: Callable | None  # the override that was there before

    def __call__(self, backend: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, **kwargs) -> Tensor:
        options = kwargs["transformer_options"]

        def host(q: Tensor, k: Tensor, v: Tensor, mask, **kwargs) -> Tensor:
            if self.inner is not None:
                return self.inner(backend, q, k, v, heads, mask=mask, **kwargs)
            return backend(q, k, v, heads, mask=mask, **kwargs)

        forward: _Forward | None = options.get(_FORWARD)
        place = forward.family.current_block(options) if forward is not None else None
        if place is None:
            return host(q, k, v, mask, **kwargs)
        call = forward.calls.get(place, 0)
        forward.calls[place] = call + 1
        run, block = current_run(options), place[0]
        placed = [p for p in run.techniques.get("attention", ()) if block in p.blocks]
        if call not in forward.family.self_attentions or not placed:
            return host(q, k, v, mask, **kwargs)
        return _replaced(placed, forward, block, run, options, q, k, v, heads, mask, host, kwargs)


def _replaced(placed, forward, block, run, options, q, k, v, heads, mask, host, kwargs) -> Tensor:
    merged = not kwargs.pop("skip_reshape", False)  # [rows, tokens, heads * dim] instead of [rows, heads, tokens, dim]
    keep_heads = kwargs.pop("skip_output_reshape", False)
    if merged:
        dim = q.shape[-1] // heads
        # SD3 hands over merged queries and keys, but values with their heads apart.
        q, k, v = (t.reshape(*t.shape[:2], -1, dim).transpose(1, 2) for t in (q, k, v))
    chunks = len(options["uuids"])
    rows = q.shape[0] // chunks

    def attend(q: Tensor, k: Tensor, v: Tensor, part: list[int]) -> Tensor:
        part_mask = mask
        if mask is not None and mask.ndim > 2 and mask.shape[0] == rows * chunks > 1:
            part_mask = torch.cat([mask[c * rows : (c + 1) * rows] for c in part])
        return host(q, k, v, part_mask, skip_reshape=True, skip_output_reshape=True, **kwargs)

    layout = forward.family.layout(forward.network, forward.latent_shape, q.shape[2], options)
    scale = kwargs.get("scale") or q.shape[-1] ** -0.5
    for p in placed:
        mine = set(range(chunks) if p.branch is None else chunks_of(run, p.branch, options))
        if mine:
            run.acted.add(p)
            attend = _Layer(p.technique, mine, rows, attend, (scale, *layout, block, run))
    out = attend(q, k, v, list(range(chunks)))
    return out if keep_heads else out.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _Layer:
    """A technique over the attention below it, for the chunks in `mine`; the other chunks pass."""

    technique: Technique
    mine: set[int]
    rows: int  # per chunk
    below: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]
    about: tuple  # scale, image, grid, block, run

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, part: list[int]) -> Tensor:
        own = [c for c in part if c in self.mine]
        if len(own) == len(part):
            return self.technique(SelfAttention(q, k, v, *self.about, lambda q, k, v: self.below(q, k, v, part)))
        if not own:
            return self.below(q, k, v, part)
        out = torch.empty_like(q)
        for group in (own, [c for c in part if c not in self.mine]):
            index = torch.cat([torch.arange(c * self.rows, (c + 1) * self.rows) for c in map(part.index, group)])
            index = index.to(q.device)
            out[index] = self(q[index], k[index], v[index], group)
        return out
