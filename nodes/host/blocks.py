"""Whole blocks by role: passed by for the rows of a branch, or not computed again where a branch still equals cond.

Relies on: `patches_replace["dit"]` with ("double_block" | "single_block", number) in DiTs (e.g.
comfy/ldm/flux/model.py:221), whose result the host goes on with; `forward_timestep_embed_patch` in UNets
(comfy/ldm/modules/diffusionmodules/openaimodel.py:37-45), where the first handler whose class fits runs a layer;
`patches["double_block"]` in Lumina2 (comfy/ldm/lumina/model.py:864), called behind each block. Everything that the host
does between blocks (residuals of ControlNets, other patches) it does in a resumed call as in any other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepBlock, UNetModel, forward_timestep_embed
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .branches import Branches, chunks_of
from .families import Block, family_of, self_attention_blocks, transformer_layers, unet_parts
from .forward import check_rows, current_forward, watch_forward
from .prefix import Streams, rows_of
from .run import Run, attach, current_run

_UNET_PATCH = "forward_timestep_embed_patch"


@dataclass(frozen=True, eq=False)
class _Skip:
    """`branch` passes by the blocks that `blocks(run)` names."""

    branch: Any
    blocks: Callable[[Run], frozenset[Block]]

    @property
    def owner(self) -> Any:
        return self.branch

    @property
    def label(self) -> str:
        return self.branch.label

    @property
    def idle_reason(self) -> str:
        return self.branch.idle_reason


def skip_blocks(model: ModelPatcher, branch: Any, blocks: Callable[[Run], frozenset[Block]]) -> None:
    """Lets the rows of `branch` leave the blocks `blocks(run)` as they came; in a UNet, their transformers. The blocks
    are some of `skippable_blocks(model)`.

    Raises:
        ValueError: a model whose blocks cannot be reached.
    """
    reach_blocks(model)
    attach(model, "skips", _Skip(branch, blocks))


def skippable_blocks(model: ModelPatcher) -> list[Block]:
    """The blocks that a branch can pass by; where the host shows them only from behind, not the first.

    Raises:
        ValueError: a UNet in a host that does not let its layers be replaced.
    """
    family = family_of(model)
    if family.name == "UNet" and not reaches_unet_layers():
        raise ValueError(
            "This version of ComfyUI cannot skip blocks of a UNet. Use ComfyUI 0.26 or newer, or a PAG node."
        )
    return self_attention_blocks(model)[0 if family.replaceable else 1 :]


class ReplacedAttention:
    """Of one run: the blocks of a UNet whose self-attention other nodes have replaced, in all layers."""

    def __init__(self, run: Run):
        network = run.network
        replaced = run.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
        self.blocks = frozenset(
            block
            for block, layers in (transformer_layers(network) if isinstance(network, UNetModel) else {}).items()
            if all(tuple(block) in replaced or (*block, layer) in replaced for layer in range(layers))
        )


def can_resume(model: ModelPatcher) -> bool:
    """Whether a branch of this model can start where it begins to differ from cond."""
    family = family_of(model)
    return family.replaceable and (family.name != "UNet" or reaches_unet_layers())


@cache
def reaches_unet_layers() -> bool:
    """Whether the host asks `forward_timestep_embed_patch` before it runs a layer itself, as 0.26 and newer ones do;
    0.18 asks only for layers that it does not know."""

    class Known(TimestepBlock):
        def forward(self, x, emb):
            return False

    options = {"patches": {_UNET_PATCH: [(torch.nn.Module, lambda *_: True)]}}
    return forward_timestep_embed([Known()], None, None, None, options)


def _through(
    block: Block, options: dict, streams: Streams, compute: Callable[[Streams], Streams], whole=True, last=True
) -> Streams:
    """A block, or one layer of a UNet's: `whole` if it can be skipped, `last` if the block ends with it."""
    run, forward, uuids = current_run(options), current_forward(options), options["uuids"]
    check_rows(options, len(streams["img"]))
    prefix = run.of(Branches).prefix
    if prefix is not None:
        ahead = run.order[prefix.first] - run.order[block]
        if ahead > 0:
            if run.order[block] == 0 and forward.family.name != "UNet":
                prefix.count_tokens(uuids, streams)
            states = prefix.states(uuids)
            if states is not None:
                if not (last and all(block in state for state in states)):
                    return streams
                device = streams["img"].device  # with several GPUs, cond may have been on another
                left = states[0][block]
                return {name: torch.cat([state[block][name].to(device) for state in states]) for name in left}
            out = compute(streams)
            # A UNet needs all of them, for its skip connections.
            if last and (forward.family.name == "UNet" or ahead == 1):
                prefix.keep(block, uuids, out)
            return out
    skipping = skipping_chunks(run, block, options) if whole else set()
    if len(skipping) == len(uuids):
        return streams
    came = {name: t.clone() for name, t in streams.items()} if skipping else {}
    return _restored(compute(streams), came, skipping, len(uuids))


def skipping_chunks(run: Run, block: Block, options: dict) -> set[int]:
    """The chunks that pass `block` by."""
    chunks = set()
    for skip in run.techniques.get("skips", ()):
        if block in skip.blocks(run):
            mine = chunks_of(run, skip.branch, options)
            chunks.update(mine)
            run.acted.update([skip] if mine else [])
    return chunks


def _restored(streams: Streams, came: Streams, chunks: set[int], count: int) -> Streams:
    for name, before in came.items():
        for chunk in chunks if name in streams else ():
            rows_of(streams[name], chunk, count).copy_(rows_of(before, chunk, count))
    return streams


@dataclass(frozen=True, eq=False)
class _DiTBlock:
    """In the place of a block; whatever replaced it before still does."""

    block: Block
    inner: Callable | None

    def __call__(self, args: dict, extra: dict) -> dict:
        options = args["transformer_options"]
        if "block_index" not in options or self.block.kind != options["block_type"]:  # SD3
            options = {**options, "block_type": self.block.kind, "block_index": self.block.number}

        def compute(streams: Streams) -> Streams:
            given = {**args, **streams, "transformer_options": options}
            out = self.inner(given, extra) if self.inner is not None else extra["original_block"](given)
            return {name: t for name, t in out.items() if t is not None}  # SD3's last block gives no text

        streams = {name: args[name] for name in ("img", "txt") if args.get(name) is not None}
        out = _through(self.block, options, streams, compute)
        return {"txt": None, **out} if "txt" in args else out


class _UNetLayer:
    """Runs every layer of every block of a UNet, as the host would without it."""

    def __call__(self, layer, x, emb, context, options, output_shape, time_context, frames, image_only) -> Tensor:
        network, block = current_forward(options).network, Block(*options["block"])
        patches = options["patches"]
        others = {**patches, _UNET_PATCH: [p for p in patches[_UNET_PATCH] if p[1] is not self]}
        inner = {**options, "patches": others}

        def compute(streams: Streams) -> Streams:
            settings = (emb, context, inner, output_shape, time_context, frames, image_only)
            return {"img": forward_timestep_embed([layer], streams["img"], *settings)}

        last = layer is unet_parts(network)[block.kind][block.number][-1]
        out = _through(block, options, {"img": x}, compute, isinstance(layer, SpatialTransformer), last)
        if "transformer_index" in inner:
            options["transformer_index"] = inner["transformer_index"]  # the host counts on
        return out["img"]


class _Lumina2Block:
    """Behind every block of a Lumina2 network: gives the rows that pass a block by what the block before it left."""

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
    """Puts the hooks above on a (cloned) model, once."""
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
