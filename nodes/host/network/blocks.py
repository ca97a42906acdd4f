"""Whole blocks: skipped for the rows of a branch, or not computed again where a branch still equals cond.

Relies on: `patches_replace["dit"]` with ("double_block" | "single_block", number) in DiTs (e.g.
comfy/ldm/flux/model.py:221), whose result is the block's output; `forward_timestep_embed_patch` in UNets
(comfy/ldm/modules/diffusionmodules/openaimodel.py:37-45), where the first handler whose class matches runs a layer;
`patches["double_block"]` in Lumina2 (comfy/ldm/lumina/model.py:864), called after each block. What the host does
between blocks (residuals of ControlNets, other patches) also happens in a resumed call.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepBlock, forward_timestep_embed
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..run import Part, Run, attach, current_run
from ..run.branch_chunks import chunks_of
from .families import Block, family_of, self_attention_blocks
from .forward import Forward, check_rows, current_forward, watch_forward
from .shared_prefix import Prefix, Streams, rows_of

_UNET_PATCH = "forward_timestep_embed_patch"


@dataclass(frozen=True, eq=False)
class _Skip(Part):
    """The branch `technique` skips the blocks that `blocks(run)` returns."""

    technique: Any
    blocks: Callable[[Run], frozenset[Block]]

    @property
    def owner(self) -> Any:
        return self.technique


def skip_blocks(model: ModelPatcher, branch: Any, blocks: Callable[[Run], frozenset[Block]]) -> None:
    """Makes the rows of `branch` skip the blocks `blocks(run)` (in a UNet, the transformers in them): their output is
    their input. The blocks are some of `skippable_blocks(model)`.

    Raises:
        ValueError: a model whose blocks cannot be reached.
    """
    reach_blocks(model)
    attach(model, "skips", _Skip(branch, blocks))


def skippable_blocks(model: ModelPatcher) -> list[Block]:
    """The blocks that a branch can skip; without the first where the host has hooks only after a block.

    Raises:
        ValueError: a UNet in a host that does not let its layers be replaced.
    """
    family = family_of(model)
    if family.name == "UNet" and not reaches_unet_layers():
        raise ValueError(
            "This version of ComfyUI cannot skip blocks of a UNet. Use ComfyUI 0.26 or newer, or a PAG node."
        )
    return self_attention_blocks(model)[0 if family.replaceable else 1 :]


def can_resume(model: ModelPatcher) -> bool:
    """Whether a branch of this model can start at the first block in which it differs from cond."""
    family = family_of(model)
    return family.replaceable and (family.name != "UNet" or reaches_unet_layers())


@cache
def reaches_unet_layers() -> bool:
    """Whether the host calls `forward_timestep_embed_patch` before it runs a layer itself, as 0.26 and newer do; 0.18
    calls it only for layers of unknown classes."""

    class Known(TimestepBlock):
        def forward(self, x, emb):
            return False

    options = {"patches": {_UNET_PATCH: [(torch.nn.Module, lambda *_: True)]}}
    return forward_timestep_embed([Known()], None, None, None, options)


@dataclass(eq=False)
class _Passing:
    """A block, or one layer of a block of a UNet, in one network call. `out`: its output, where nothing has to be
    computed; `given`: the arguments to compute it with; `came`: copies of the input, for the chunks in `skipping`;
    `keeper`: stores the output for branches that resume from there."""

    block: Block
    options: dict
    given: dict
    out: Any = None
    came: Streams = field(default_factory=dict)
    skipping: set[int] = field(default_factory=set)
    keeper: Prefix | None = None

    def enter(self, forward: Forward, streams: Streams, whole: bool = True, last: bool = True) -> Streams | None:
        """The output, if it is known without computing it; else None. `streams`: the input; `whole`: whether it can be
        skipped; `last`: whether the block ends with it."""
        prefix, uuids = forward.prefix, self.options["uuids"]
        if prefix is not None:
            order, unet = forward.order, forward.family.name == "UNet"
            ahead = order[prefix.first] - order[self.block]
            if ahead > 0:
                check_rows(self.options, len(streams["img"]))
                if order[self.block] == 0 and not unet:
                    prefix.count_tokens(uuids, streams)
                states = prefix.states(uuids)
                if states is not None:
                    return _left(states, self.block, streams) if last else streams
                if last and (unet or ahead == 1):  # a UNet needs all of them, for its skip connections
                    self.keeper = prefix
                return None
        if not whole or "skips" not in forward.run.techniques:
            return None
        check_rows(self.options, len(streams["img"]))
        self.skipping = skipping_chunks(forward.run, self.block, self.options)
        if len(self.skipping) == len(uuids):
            return streams
        self.came = {name: t.clone() for name, t in streams.items()} if self.skipping else {}
        return None

    def leave(self, streams: Streams) -> Streams:
        """The output, from the computed one: stored for branches, with the rows that skip it restored."""
        uuids = self.options["uuids"]
        if self.keeper is not None:
            self.keeper.keep(self.block, uuids, streams)
        return _restored(streams, self.came, self.skipping, len(uuids))


def _left(states: list[dict[Block, Streams]], block: Block, streams: Streams) -> Streams:
    """The output of cond after a block, for the chunks that resume from it."""
    if not all(block in state for state in states):
        return streams
    device = streams["img"].device  # with several GPUs, cond may have been on another
    return {name: torch.cat([state[block][name].to(device) for state in states]) for name in states[0][block]}


def skipping_chunks(run: Run, block: Block, options: dict) -> set[int]:
    """The chunks of the current network call that skip `block`."""
    chunks = set()
    for skip in run.techniques.get("skips", ()):
        if block in skip.blocks(run):
            mine = chunks_of(run, skip.technique, options)
            chunks.update(mine)
            run.acted.update([skip] if mine else [])
    return chunks


def _restored(streams: Streams, came: Streams, chunks: set[int], count: int) -> Streams:
    for name, before in came.items():
        for chunk in chunks if name in streams else ():
            rows_of(streams[name], chunk, count).copy_(rows_of(before, chunk, count))
    return streams


# A compiled network traces __call__, but not enter and leave, which are decided anew in each call.


@dataclass(eq=False)
class _DiTBlock:
    """Replaces a block of a DiT; calls `inner`, an earlier replacement, if there is one."""

    block: Block
    inner: Callable | None

    def __call__(self, args: dict, extra: dict) -> dict:
        passing = self.enter(args)
        if passing.out is not None:
            return passing.out
        if self.inner is not None:
            return self.leave(passing, self.inner(passing.given, extra))
        return self.leave(passing, extra["original_block"](passing.given))

    @torch.compiler.disable
    def enter(self, args: dict) -> _Passing:
        options = args["transformer_options"]
        if "block_index" not in options or self.block.kind != options["block_type"]:  # SD3
            options = {**options, "block_type": self.block.kind, "block_index": self.block.number}
        streams = {name: args[name] for name in ("img", "txt") if args.get(name) is not None}
        passing = _Passing(self.block, options, {**args, "transformer_options": options})
        out = passing.enter(current_forward(options), streams)
        passing.out = None if out is None else self._all(args, out)
        return passing

    @torch.compiler.disable
    def leave(self, passing: _Passing, out: dict) -> dict:
        if passing.keeper is None and not passing.skipping:
            return out
        streams = {name: t for name, t in out.items() if t is not None}  # SD3's last block gives no text
        return self._all(passing.given, passing.leave(streams))

    def _all(self, args: dict, streams: Streams) -> dict:
        return {"txt": None, **streams} if "txt" in args else streams


class _UNetLayer:
    """Runs every layer of every block of a UNet, as the host would without it."""

    def __call__(self, layer, x, emb, context, options, output_shape, time_context, frames, image_only) -> Tensor:
        passing = self.enter(layer, x, options)
        if passing.out is not None:
            return passing.out
        out = forward_timestep_embed(
            [layer], x, emb, context, passing.given, output_shape, time_context, frames, image_only
        )
        return self.leave(passing, out)

    @torch.compiler.disable
    def enter(self, layer: torch.nn.Module, x: Tensor, options: dict) -> _Passing:
        forward, block, patches = current_forward(options), Block(*options["block"]), options["patches"]
        if forward.patches is not patches or forward.patches_of_others is None:
            forward.patches = patches
            forward.patches_of_others = {**patches, _UNET_PATCH: [p for p in patches[_UNET_PATCH] if p[1] is not self]}
        passing = _Passing(block, options, {**options, "patches": forward.patches_of_others})
        last = layer is forward.unet_parts[block.kind][block.number][-1]
        out = passing.enter(forward, {"img": x}, isinstance(layer, SpatialTransformer), last)
        passing.out = None if out is None else out["img"]
        return passing

    @torch.compiler.disable
    def leave(self, passing: _Passing, out: Tensor) -> Tensor:
        if "transformer_index" in passing.given:
            passing.options["transformer_index"] = passing.given["transformer_index"]  # the host counts on
        if passing.keeper is None and not passing.skipping:
            return out
        return passing.leave({"img": out})["img"]


class _Lumina2Block:
    """Runs after every block of a Lumina2 network: gives rows that skip the block the output of the block before."""

    @torch.compiler.disable
    def __call__(self, args: dict) -> dict:
        options, number = args["transformer_options"], args["block_index"]
        run, forward, uuids = current_run(options), current_forward(options), options["uuids"]
        streams = {name: args[name] for name in ("img", "txt")}
        skipping = skipping_chunks(run, Block("double", number), options)
        before = forward.left.pop(Block("double", number - 1), {})
        streams = _restored(streams, before, skipping, len(uuids))
        if skipping_chunks(run, Block("double", number + 1), options):
            forward.left[Block("double", number)] = {name: t.clone() for name, t in streams.items()}
        return streams


def reach_blocks(model: ModelPatcher) -> None:
    """Puts the hooks of this file on a (cloned) model, once.

    Raises:
        ValueError: a model of no known family.
    """
    watch_forward(model)
    options, family = model.model_options["transformer_options"], family_of(model)
    if family.name == "UNet":
        handlers = options.setdefault("patches", {}).setdefault(_UNET_PATCH, [])
        if not any(isinstance(handler, _UNetLayer) for _, handler in handlers):
            handlers.insert(0, (torch.nn.Module, _UNetLayer()))
    elif not family.replaceable:
        after = options.setdefault("patches", {}).setdefault("double_block", [])
        if not any(isinstance(patch, _Lumina2Block) for patch in after):
            after.append(_Lumina2Block())
    else:
        replaced = options.get("patches_replace", {}).get("dit", {})
        for block in self_attention_blocks(model):
            inner = replaced.get((f"{block.kind}_block", block.number))
            if not isinstance(inner, _DiTBlock):
                model.set_model_patch_replace(_DiTBlock(block, inner), "dit", f"{block.kind}_block", block.number)
