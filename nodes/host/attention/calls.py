"""One attention call of the network and the techniques around it: each works on its own chunks of the rows and calls
the attention below it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..network.families import Block, Layout
from ..network.forward import Forward
from ..network.shared_prefix import rows_of
from ..run import Part, Run
from ..run.branch_chunks import chunks_of
from ..run.chunks import Chunk, chunks

_INSTEAD = "guidekit_instead"  # key of the `Instead` in the options


# In which order techniques are over the attention, whatever the order of nodes.
FIRST, USUAL, LAST = -1, 0, 1


@dataclass(frozen=True, eq=False)
class Further:
    """Keys and values behind a call's own: how many, and what is added to the logits of all keys, [rows, 1 or heads,
    1 or queries, keys]; None: nothing. The call's own mask does not cover them."""

    count: int = 0
    bias: Tensor | None = None


@dataclass(frozen=True)
class SelfAttention:
    """One self-attention call, or the rows of it that a technique works on.

    `q`, `k`, `v`: [rows, heads, tokens, dim], positions already encoded; `scale` multiplies q k^T. `image`: the place
    of the image tokens in the sequence (text and reference images are outside it). `grid`: their arrangement, (h, w) or
    (t, h, w), row-major. `mask`: None, or broadcastable to [rows, heads, tokens, tokens], added to the logits or
    boolean. `chunks`: those of the rows, in order. `attend(q, k, v)`: the attention that the technique replaces, [rows,
    heads, tokens, dim]; with `queries`, a slice, only the output of those tokens; with `more`, a `Further`, for keys
    and values with further ones behind them.

    `afterwards`: None, except where another node has merged queries or cut them into tiles, so that they are not the
    tokens of `grid`. A technique that knows the output of each token of `v` passes it to `afterwards`, which inserts it
    after the other node has restored the tokens, and returns what `afterwards` returns.
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
    chunks: tuple[Chunk, ...]
    attend: Callable[..., Tensor]
    afterwards: Callable[[Tensor], Tensor] | None


Technique = Callable[[SelfAttention], Tensor]


@dataclass(frozen=True, eq=False)
class Placed(Part):
    """A technique on the attention of `blocks`. `branch`: the branch whose rows it works on, None for all rows.
    `order`: FIRST is next to the attention itself, LAST works on the attention's output, also if another technique has
    replaced it."""

    technique: Technique
    blocks: frozenset[Block]
    branch: Any
    order: int

    @property
    def owner(self) -> Any:
        """Another technique of the same node, which reports for both if both do nothing."""
        return self.branch or getattr(self.technique, "owner", None)

    @property
    def range(self) -> Any:
        return getattr(self.technique, "range", None)

    def why_idle(self, run: Run) -> str | None:
        return getattr(self.technique, "why_idle", lambda run: None)(run)

    def chunks(self, run: Run, options: dict) -> set[int]:
        """The numbers of its chunks in the current network call; none while a technique with `active(run)` is not."""
        if self.branch is not None:
            return set(chunks_of(run, self.branch, options))
        active = getattr(self.technique, "active", None)
        return set(range(len(options["uuids"]))) if active is None or active(run) else set()


class PlacedByBlock:
    """State of one run: the techniques on each block."""

    def __init__(self, run: Run):
        self._by_block: dict[Block, list[Placed]] = {}
        for placed in sorted(run.techniques.get("attention", ()), key=lambda p: p.order):
            for block in placed.blocks:
                self._by_block.setdefault(block, []).append(placed)

    def on(self, block: Block) -> list[Placed]:
        """The techniques on `block`, the outermost last."""
        return self._by_block.get(block, [])


class Heads:
    """Queries, keys and values as [rows, heads, tokens, dim], and the result in the layout that the caller asked for.

    `kwargs`: those of the host's attention functions, with `skip_reshape` and `skip_output_reshape`.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, kwargs: dict):
        self.rest = {
            name: value for name, value in kwargs.items() if name not in ("skip_reshape", "skip_output_reshape")
        }
        self.keep = kwargs.get("skip_output_reshape", False)
        if not kwargs.get("skip_reshape", False):
            dim = q.shape[-1] // heads
            # SD3 passes queries and keys with merged heads, but values as [rows, tokens, heads, dim].
            q, k, v = (t.reshape(*t.shape[:2], -1, dim).transpose(1, 2) for t in (q, k, v))
        self.qkv = q, k, v

    def attention(self, host: Callable) -> Callable[..., Tensor]:
        """`host` as a function of (q, k, v, mask), [rows, heads, tokens, dim] in and out."""

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            k, v = (as_cut(t, len(q)) for t in (k, v))
            return host(q, k, v, mask, skip_reshape=True, skip_output_reshape=True, **self.rest)

        return attend

    def back(self, out: Tensor) -> Tensor:
        return out if self.keep else out.transpose(1, 2).flatten(2)


def as_cut(t: Tensor, rows: int) -> Tensor:
    """Keys or values [rows of them, heads, tokens, dim] for queries that another node has cut into tiles, more rows of
    them: cut as they lie in memory."""
    return t if len(t) == rows else t.transpose(1, 2).reshape(rows, -1, *t.shape[1::2]).transpose(1, 2)


@dataclass(eq=False)
class Call:
    """One attention call of the network. `layout`: that of its queries; `scale` multiplies q k^T; `host(q, k, v,
    mask)`: the network's own attention, for any of the rows, [rows, heads, tokens, dim]."""

    forward: Forward
    run: Run
    options: dict
    block: Block
    scale: float
    layout: Layout
    mask: Tensor | None
    host: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        return chunks(self.run.prompts.negative_chunks(self.options), self.options)

    def mask_of(self, part: list[int]) -> Tensor | None:
        """The mask for the rows of the chunks in `part`."""
        count = len(self.chunks)
        if self.mask is None or self.mask.ndim < 3 or self.mask.shape[0] == 1 or self.mask.shape[0] % count:
            return self.mask
        return _rows(self.mask, part, count)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        part: list[int],
        queries: slice = slice(None),
        further: Further = Further(),  # noqa: B008  immutable
    ) -> Tensor:
        """The attention below all techniques, for the rows of the chunks in `part`."""
        mask = _with_further(self.mask_of(part), further)
        below = instead_of(self.options).below
        if below is not None and below.attends(self):
            return below.attend(self, q, k, v, part, mask)[:, :, queries]
        if mask is not None and mask.shape[-2] == q.shape[2] > 1:
            mask = mask[..., queries, :]
        return self.host(q[:, :, queries], k, v, mask)


class Below(Protocol):
    """Replaces the network's own attention in a network call, below all techniques."""

    @property
    def label(self) -> str: ...

    def attends(self, call: Call) -> bool:
        """Whether it replaces this attention call."""

    def attend(self, call: Call, q: Tensor, k: Tensor, v: Tensor, part: list[int], mask: Tensor | None) -> Tensor:
        """The output [rows, heads, tokens, dim] for the chunks in `part`, computed with `call.host`."""


def with_below(transformer_options: dict, below: Below | None) -> dict:
    """The options of a network call with `below`."""
    return {**transformer_options, _INSTEAD: replace(instead_of(transformer_options), below=below)}


class Cross(Protocol):
    """Replaces the cross-attention to the text in the blocks of a network call."""

    @property
    def label(self) -> str: ...

    def looks(self, forward: Forward, call: int) -> bool:
        """Whether the call-th attention of a block is the one to the text."""

    def attend(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output [rows, heads, tokens, dim], computed with `call.host`."""


def with_cross(transformer_options: dict, cross: Cross | None) -> dict:
    """The options of a network call with `cross`."""
    return {**transformer_options, _INSTEAD: replace(instead_of(transformer_options), cross=cross)}


class Apart(Protocol):
    """Replaces the attention of a layer that is called separately, with other tokens than the network's."""

    def attend(self, host: Callable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output [rows, heads, tokens, dim], computed with `host(q, k, v, mask)`."""


def with_apart(transformer_options: dict, apart: Apart) -> dict:
    """The options for calling a layer separately, with `apart`."""
    return {**transformer_options, _INSTEAD: replace(instead_of(transformer_options), apart=apart)}


@dataclass(frozen=True)
class Instead:
    """The replacements of attention in a network call, or in a layer that is called separately."""

    below: Below | None = None
    cross: Cross | None = None
    apart: Apart | None = None


_NOTHING = Instead()


def instead_of(transformer_options: dict) -> Instead:
    """The replacements of attention in a network call with these options."""
    return transformer_options.get(_INSTEAD, _NOTHING)


class _Attend(Protocol):
    """The attention below a technique, for the rows of the chunks in `part` and the queries of a slice."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, part: list[int], queries: slice, further: Further = ..., /
    ) -> Tensor: ...


def through(call: Call, placed: list[Placed], q: Tensor, k: Tensor, v: Tensor, part: list[int]) -> Tensor:
    """The output [rows, heads, tokens, dim] of the techniques `placed` around the attention. `q`, `k`, `v`: the rows of
    the chunks in `part`."""
    attend: _Attend = call.attend
    for p in placed:
        mine = p.chunks(call.run, call.options)
        if mine:
            call.run.acted.add(p)
            attend = _Layer(p.technique, mine, call, attend)
    return attend(q, k, v, part, slice(None))


@dataclass(frozen=True)
class _Layer:
    """A technique around the attention below it, for the chunks in `mine`; the others go to `below` directly."""

    technique: Technique
    mine: set[int]
    call: Call
    below: _Attend

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        part: list[int],
        queries: slice,
        further: Further = Further(),  # noqa: B008  immutable
    ) -> Tensor:
        own = [c for c in part if c in self.mine]
        if not own:
            return self.below(q, k, v, part, queries, further)
        if len(own) == len(part):
            return self._replaced(q, k, v, part, further)[:, :, queries]
        out = torch.empty_like(q[:, :, queries])
        for group in (own, [c for c in part if c not in self.mine]):
            places = [part.index(c) for c in group]
            own_q, own_k, own_v = (_rows(t, places, len(part)) for t in (q, k, v))
            bias = None if further.bias is None else _rows(further.bias, places, len(part))
            found = self(own_q, own_k, own_v, group, queries, Further(further.count, bias))
            for i, place in enumerate(places):
                rows_of(out, place, len(part)).copy_(rows_of(found, i, len(places)))
        return out

    def _replaced(self, q: Tensor, k: Tensor, v: Tensor, part: list[int], further: Further) -> Tensor:
        call, mask = self.call, self.call.mask_of(part)
        while mask is not None and mask.ndim < 4:  # as the host reads them: [q, k] or [rows, q, k]
            mask = mask.unsqueeze(-3)

        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            queries: slice = slice(None),
            more: Further = Further(),  # noqa: B008  immutable
        ) -> Tensor:
            return self.below(q, k, v, part, queries, _joined(further, more))

        here = SelfAttention(
            q,
            k,
            v,
            scale=call.scale,
            image=call.layout.image,
            grid=call.layout.grid,
            block=call.block,
            run=call.run,
            mask=mask,
            chunks=tuple(call.chunks[i] for i in part),
            attend=attend,
            afterwards=None if call.layout.whole else _Afterwards(call.forward.afterwards, part, q),
        )
        return self.technique(here)


@dataclass(frozen=True)
class Whole:
    """The output of the chunks `part`, [rows, heads, tokens, dim], to be inserted after another node has restored the
    tokens of a layer."""

    values: Tensor
    part: list[int]


@dataclass(frozen=True)
class _Afterwards:
    left: list[Whole]
    part: list[int]
    like: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        self.left.append(Whole(values, self.part))
        return torch.zeros_like(self.like)


def _joined(some: Further, more: Further) -> Further:
    """Further keys of a technique, and those of another one behind them."""
    biases = [None if some.bias is None else torch.nn.functional.pad(some.bias, (0, more.count)), more.bias]
    known = [bias for bias in biases if bias is not None]
    return Further(some.count + more.count, sum(known[1:], known[0]) if known else None)


def _with_further(mask: Tensor | None, further: Further) -> Tensor | None:
    if mask is not None and mask.shape[-1] > 1:
        mask = torch.nn.functional.pad(mask, (0, further.count), value=mask.dtype == torch.bool)
    if mask is None or further.bias is None:
        return mask if further.bias is None else further.bias
    while mask.ndim < 4:  # as the host reads them: [q, k] or [rows, q, k]
        mask = mask.unsqueeze(-3)
    return further.bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else further.bias + mask


def _rows(tensor: Tensor, places: list[int], count: int) -> Tensor:
    """The rows of some of `count` chunks."""
    return torch.cat([rows_of(tensor, place, count) for place in places])
