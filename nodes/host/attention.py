"""Self-attention by role: "block k, image tokens only", on every family, by one mechanism.

A technique is called in place of the attention of the blocks it was given to, sees queries, keys and values as
[rows, heads, tokens, dim] whatever the network's layout, knows which tokens are image tokens and their grid, and never
hears of a family.

Relies on: `optimized_attention_override`, which every backend honours (comfy/ldm/modules/attention.py:148-166); the
block's name and number in `transformer_options` (see families.py and blocks.py); `attn2_patch` being called between the
two attentions of a UNet's layer (attention.py:951).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .blocks import reach_blocks
from .branches import chunks_of
from .families import Block, family_of, network_of
from .forward import Forward, check_rows, current_forward, watch_forward
from .joint_text import split_attention
from .layered_text import attend_beside, beside, steer_layer
from .rider import Rider, riders
from .run import Run, attach, current_run
from .texts import TextAttention, second_texts


@dataclass(frozen=True)
class SelfAttention:
    """One self-attention call, or the rows of it that a technique works on.

    `q`, `k`, `v`: [rows, heads, tokens, dim], positions already encoded; `scale` multiplies q k^T. `image`: the image
    tokens' place in the sequence (text and reference pictures are outside it). `grid`: their arrangement, (h, w) or
    (t, h, w), row-major. `mask`: None, or for the logits, broadcastable to [rows, heads, tokens, tokens], added or
    boolean. `negative`: of each chunk among the rows, whether it is the guider's negative. `riders`: whose rows the
    first ones of every chunk are. `attend(q, k, v)`: the attention that the technique replaces, [rows, heads, tokens,
    dim]; with `queries`, a slice, only the output of those tokens.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    image: slice
    grid: tuple[int, ...]
    block: Block
    run: Run
    mask: Tensor | None
    negative: tuple[bool, ...]
    riders: tuple[Rider, ...]
    attend: Callable[..., Tensor]


Technique = Callable[[SelfAttention], Tensor]


@dataclass(frozen=True, eq=False)
class _Placed:
    technique: Technique
    blocks: frozenset[Block]
    branch: Any  # None: all rows
    last: bool

    @property
    def owner(self) -> Any:
        """Another technique of the same node, that says why if both do nothing."""
        return self.branch or getattr(self.technique, "change", None)

    @property
    def label(self) -> str:
        return self.technique.label

    @property
    def idle_reason(self) -> str:
        return self.technique.idle_reason


def replace_self_attention(
    model: ModelPatcher, blocks: list[Block], technique: Technique, branch: Any = None, *, last: bool = False
) -> None:
    """Calls `technique` for the self-attention of `blocks`; with `branch`, for that branch's rows only.

    Several techniques on one block nest: the later one's `attend` runs the earlier one. One that works on what the
    attention gives, whoever has replaced it, is `last`.

    Raises:
        ValueError: a model whose attention cannot be reached, or blocks that it does not have.
    """
    known = family_of(model).blocks(network_of(model))
    missing = [b for b in blocks if b not in known]
    if missing or not blocks:
        wrong, right = (", ".join(f"{b.kind} {b.number}" for b in part) for part in (missing, known))
        raise ValueError(f"The model has no self-attention block {wrong or '(none given)'}. It has: {right}.")
    reach_attention(model)
    attach(model, "attention", _Placed(technique, frozenset(blocks), branch, last))


def reach_attention(model: ModelPatcher) -> None:
    """Puts the hook on a (cloned) model, once."""
    options = model.model_options["transformer_options"]
    override = options.get("optimized_attention_override")
    if not isinstance(override, _Override):
        watch_forward(model)
        options["optimized_attention_override"] = _Override(override)
        if family_of(model).name == "SD3":
            reach_blocks(model)  # they do not say their number themselves
        if family_of(model).name == "UNet":
            model.set_model_attn2_patch(_before_cross_attention)


def _before_cross_attention(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """The attention calls of a layer are counted, and another node may have replaced the first one, self-attention, by
    something that the override never sees."""
    forward = current_forward(options)
    place = forward.family.current_block(options)
    forward.attention_calls.setdefault(place, 1)
    return n, context, value


@dataclass(frozen=True, eq=False)
class _Override:
    inner: Callable | None  # the override that was there before

    def __call__(self, backend: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, **kwargs) -> Tensor:
        options = kwargs["transformer_options"]

        def host(q: Tensor, k: Tensor, v: Tensor, mask, **kwargs) -> Tensor:
            if self.inner is not None:
                return self.inner(backend, q, k, v, heads, mask=mask, **kwargs)
            return backend(q, k, v, heads, mask=mask, **kwargs)

        forward = current_forward(options)
        place = forward.family.current_block(options) if forward is not None else None
        if place is None:
            return host(q, k, v, mask, **kwargs)
        if beside(options):
            apart = _Heads(q, k, v, heads, kwargs)
            return apart.back(attend_beside(options, apart.attention(host), *apart.qkv))
        call = forward.attention_calls.get(place, 0)
        forward.attention_calls[place] = call + 1
        run, block = current_run(options), place[0]
        placed = [p for p in run.techniques.get("attention", ()) if block in p.blocks]
        placed.sort(key=lambda p: p.last)
        texts = second_texts(options) and forward.family.second_text != "cross"
        if call not in forward.family.self_attentions or not (placed or texts):
            return host(q, k, v, mask, **kwargs)
        check_rows(options, len(q))
        apart = _Heads(q, k, v, heads, kwargs)
        scale = kwargs.get("scale") or apart.qkv[0].shape[-1] ** -0.5
        about = (forward, block, run, options, scale)
        return apart.back(_replaced(placed, *about, *apart.qkv, mask, apart.attention(host)))


class _Heads:
    """Queries, keys and values as [rows, heads, tokens, dim], and the result in the form that the caller wants."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, kwargs: dict):
        self.rest = {
            name: value for name, value in kwargs.items() if name not in ("skip_reshape", "skip_output_reshape")
        }
        self.keep = kwargs.get("skip_output_reshape", False)
        self.qkv = q, k, v
        if not kwargs.get("skip_reshape", False):
            dim = q.shape[-1] // heads
            # SD3 hands over merged queries and keys, but values with their heads apart.
            self.qkv = tuple(t.reshape(*t.shape[:2], -1, dim).transpose(1, 2) for t in (q, k, v))

    def attention(self, host: Callable) -> Callable[..., Tensor]:
        """`host(q, k, v, mask)` in this form."""
        return partial(host, skip_reshape=True, skip_output_reshape=True, **self.rest)

    def back(self, out: Tensor) -> Tensor:
        return out if self.keep else out.transpose(1, 2).flatten(2)


def _replaced(placed, forward: Forward, block, run, options, scale, q, k, v, mask, host) -> Tensor:
    chunks = len(options["uuids"])
    rows = q.shape[0] // chunks
    layout = forward.family.layout(forward.network, forward.latent_shape, q.shape[2], options)
    negative = run.negative_chunks(options)
    # An attention without text tokens (SD3.5's second one) has nothing to look at.
    texts = second_texts(options) if layout.image.start else ()

    def mask_of(part: list[int]) -> Tensor | None:
        if mask is not None and mask.ndim > 2 and mask.shape[0] == rows * chunks > 1:
            return torch.cat([mask[c * rows : (c + 1) * rows] for c in part])
        return mask

    def attend(q: Tensor, k: Tensor, v: Tensor, part: list[int], queries: slice) -> Tensor:
        part_mask = mask_of(part)
        if texts:
            call = TextAttention(texts, block, layout.image, run, options, part, [not negative[c] for c in part], host)
            steer = split_attention if forward.family.second_text == "joint" else steer_layer
            return steer(call, q, k, v, part_mask)[:, :, queries]
        if part_mask is not None and part_mask.shape[-2] == q.shape[2] > 1:
            part_mask = part_mask[..., queries, :]
        return host(q[:, :, queries], k, v, part_mask)

    for p in placed:
        mine = set(range(chunks) if p.branch is None else chunks_of(run, p.branch, options))
        if mine:
            run.acted.add(p)
            about = (scale, *layout, block, run)
            attend = _Layer(p.technique, mine, rows, attend, about, mask_of, negative, riders(options))
    return attend(q, k, v, list(range(chunks)), slice(None))


@dataclass(frozen=True)
class _Layer:
    """A technique over the attention below it, for the chunks in `mine`; the other chunks pass."""

    technique: Technique
    mine: set[int]
    rows: int  # per chunk
    below: Callable[[Tensor, Tensor, Tensor, list[int], slice], Tensor]
    about: tuple  # scale, image, grid, block, run
    mask_of: Callable[[list[int]], Tensor | None]
    negative: tuple[bool, ...]  # by chunk
    riders: tuple[Rider, ...]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, part: list[int], queries: slice) -> Tensor:
        own = [c for c in part if c in self.mine]
        if not own:
            return self.below(q, k, v, part, queries)
        if len(own) == len(part):
            mask = self.mask_of(part)
            while mask is not None and mask.ndim < 4:  # as the host reads them: [q, k] or [rows, q, k]
                mask = mask.unsqueeze(-3)

            def attend(q: Tensor, k: Tensor, v: Tensor, queries: slice = slice(None)) -> Tensor:
                return self.below(q, k, v, part, queries)

            negative = tuple(self.negative[chunk] for chunk in part)
            call = SelfAttention(q, k, v, *self.about, mask, negative, self.riders, attend)
            return self.technique(call)[:, :, queries]
        out = torch.empty_like(q[:, :, queries])
        for group in (own, [c for c in part if c not in self.mine]):
            index = torch.cat([torch.arange(c * self.rows, (c + 1) * self.rows) for c in map(part.index, group)])
            index = index.to(q.device)
            out[index] = self(q[index], k[index], v[index], group, queries)
        return out
