"""Self-attention by role, "block k, image tokens only", on every family, by one mechanism.

A technique is called instead of the attention of its blocks. It gets queries, keys and values as [rows, heads, tokens,
dim] for any network, with the place of the image tokens and their grid, and does not depend on the family.

Relies on: `optimized_attention_override`, which every backend honours (comfy/ldm/modules/attention.py:148-166); the
block's name and number in `transformer_options` (see families.py and blocks.py). Other nodes may put their override on
top before every evaluation (ON_PREPARE_STATE callbacks, comfy/samplers.py:258, as core's Model Sparse Attention does
from 0.38 on) and answer calls without asking the one below: so ours goes on top in every network call, in the options
of that call. The additional hooks for UNets are in unet.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..network.blocks import reach_blocks
from ..network.families import Block, Counts, family_of, network_of
from ..network.forward import check_rows, current_forward, find_forward, watch_forward
from ..run import Run, attach, attach_hook, current_run, wrap_run
from .calls import (
    USUAL,
    Call,
    Heads,
    Placed,
    PlacedByBlock,
    Technique,
    instead_of,
    through,
)
from .unet import hook_into_unet

_OVERRIDE = "optimized_attention_override"


def replace_self_attention(
    model: ModelPatcher, blocks: list[Block], technique: Technique, branch: Any = None, *, order: int = USUAL
) -> None:
    """Calls `technique` for the self-attention of `blocks`; with `branch`, for that branch's rows only.

    Several techniques on one block nest: the later one's `attend` runs the earlier one. `order`: LAST works on the
    attention's output, also if another technique has replaced it; FIRST changes the attention itself. A technique on
    all rows may have `active(run)`.

    Raises:
        ValueError: a model whose attention cannot be reached, or blocks that it does not have.
    """
    check_blocks(model, blocks)
    reach_attention(model)
    attach(model, "attention", Placed(technique, frozenset(blocks), branch, order))


def check_blocks(model: ModelPatcher, blocks: list[Block]) -> None:
    """Checks that a model has self-attention in `blocks`.

    Raises:
        ValueError: it does not, or there are none given.
    """
    known = family_of(model).blocks(network_of(model))
    missing = [b for b in blocks if b not in known]
    if missing or not blocks:
        wrong, right = (", ".join(f"{b.kind} {b.number}" for b in part) for part in (missing, known))
        raise ValueError(f"The model has no self-attention block {wrong or '(none given)'}. It has: {right}.")


def reach_attention(model: ModelPatcher) -> None:
    """Puts the hooks of this file on a (cloned) model, once.

    Raises:
        ValueError: a model of no known family.
    """
    watch_forward(model)
    if family_of(model).name == "SD3":
        reach_blocks(model)  # SD3's blocks do not put their number into the options
    attach_hook(model, _hook)


def _hook(run: Run, guider) -> None:
    """Takes the host's slot when the run starts, after all nodes, so that their order does not matter."""
    options, family = guider.model_options["transformer_options"], family_of(guider.model_patcher)
    wrap_run(guider, WrappersMP.APPLY_MODEL, _on_top, outermost=False)
    if family.name == "UNet":
        hook_into_unet(options, run)
    else:
        patches = options.setdefault("patches", {})
        patches["post_input"] = [*patches.get("post_input", ()), _note_sequence]


def _on_top(executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
    override = current_run(transformer_options).of(_Overrides).over(transformer_options.get(_OVERRIDE))
    return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, _OVERRIDE: override}, **kwargs)


@torch.compiler.disable
def _note_sequence(args: dict) -> dict:
    """A `post_input` patch: notes how many tokens the blocks will be given (comfy/ldm/flux/model.py:184,
    qwen_image/model.py:509)."""
    forward = current_forward(args["transformer_options"])
    forward.sequence = Counts(args["txt"].shape[1], args["img"].shape[1])
    return args


class _Overrides:
    """Of one run: the same over the same, for a compiled network wants what it has been traced with."""

    def __init__(self, run: Run):
        self._known: dict[int, _Override] = {}  # by the id of what is below, which they keep alive

    def over(self, inner: Callable | None) -> "_Override":
        return self._known.setdefault(id(inner), _Override(inner))


@dataclass(eq=False)
class _Override:
    inner: Callable | None  # the override that was there before

    # Must not be traced: a compiled network would repeat the decisions of the first call in every later one.
    @torch.compiler.disable
    def __call__(self, backend: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, **kwargs) -> Tensor:
        options = kwargs["transformer_options"]

        def host(q: Tensor, k: Tensor, v: Tensor, mask, **kwargs) -> Tensor:
            if self.inner is not None:
                return self.inner(backend, q, k, v, heads, mask=mask, **kwargs)
            return backend(q, k, v, heads, mask=mask, **kwargs)

        forward = find_forward(options)
        place = forward.family.current_block(options) if forward is not None else None
        if forward is None or place is None:
            return host(q, k, v, mask, **kwargs)
        instead = instead_of(options)
        if instead.apart is not None:
            apart = Heads(q, k, v, heads, kwargs)
            return apart.back(instead.apart.attend(apart.attention(host), *apart.qkv))
        call = forward.attention_calls.get(place, 0)
        forward.attention_calls[place] = call + 1
        run, block = forward.run, place[0]
        placed: list[Placed] = []
        below, cross = None, instead.cross
        if call in forward.family.self_attentions:
            placed, below, cross = run.of(PlacedByBlock).on(block), instead.below, None
        elif cross is not None and not cross.looks(forward, call):
            cross = None
        who = placed[0] if placed else below or cross
        if who is None:
            return host(q, k, v, mask, **kwargs)
        check_rows(options, len(q))
        apart = Heads(q, k, v, heads, kwargs)
        q, k, v = apart.qkv
        scale = kwargs.get("scale") or q.shape[-1] ** -0.5
        layout = forward.layout(q.shape[2], options, who.label)
        here = Call(forward, run, options, block, scale, layout, mask, apart.attention(host))
        if cross is not None:
            return apart.back(cross.attend(here, q, k, v))
        return apart.back(through(here, placed, q, k, v, list(range(len(here.chunks)))))
