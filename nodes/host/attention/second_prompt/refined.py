"""A second text in networks that refine their text before they join it with the video (HunyuanVideo): the network's own
refiner is called for it alone, and its output is put before the text of the first block. The rest is as in joint.py.

Relies on: `patches_replace["dit"]`, whose blocks get text, positions and mask (comfy/ldm/hunyuan_video/model.py:403);
`txt_in` and `cond_type_embedding`; all text tokens, and those of an image before them, having the same position;
timesteps made from sigmas as in BaseModel._apply_model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.model_base import BaseModel
from torch import Tensor

from ...network.families import Block
from ...network.forward import current_forward
from .context import SecondText, TextAttention, by_row, second_texts
from .joint import split_around

_STATE = "guidekit_refined_texts"
_PLACE = ("block_type", "block_index")  # not set in the options of the refiner's attentions


@dataclass(eq=False)
class RefinedTexts:
    """State of one network call. `timesteps` [rows]; `vision`: the number of image tokens before the rows' own text;
    `end`: the end of that text in the sequence with the second texts; `places`: the rotary factors of that sequence."""

    timesteps: Tensor
    vision: int
    end: int = 0
    places: Tensor | None = None


def with_refined(transformer_options: dict, base: BaseModel, sigmas: Tensor, vision: Tensor | None) -> dict:
    """The options of a network call whose second texts are refined. `sigmas` [rows]; `vision`: the image tokens of the
    prompts, [rows, N, C], or None."""
    state = RefinedTexts(base.model_sampling.timestep(sigmas).float(), 0 if vision is None else vision.shape[1])
    return {**transformer_options, _STATE: state}


@dataclass(eq=False)
class _WithTexts:
    """Replaces a block, around `inner`, an earlier replacement, if there is one."""

    block: Block
    inner: Callable | None

    def __call__(self, args: dict, extra: dict) -> dict:
        args = self.longer(args)
        return extra["original_block"](args) if self.inner is None else self.inner(args, extra)

    @torch.compiler.disable
    def longer(self, args: dict) -> dict:
        options = args["transformer_options"]
        texts = second_texts(options)
        if not texts:
            return args
        state, ahead, tokens = options[_STATE], sum(text.count for text in texts), args["pe"].shape[2]
        mask = _longer_mask(args["attention_mask"], texts, tokens, args["img"], options)
        args = {**args, "pe": _longer_places(state, args["pe"], ahead), "attention_mask": mask}
        if self.block == ("double", 0):
            refined = [_refined(text, state, args["txt"], options) for text in texts]
            args["txt"] = torch.cat([*refined, args["txt"]], 1)
            state.end = args["txt"].shape[1]
        if args.get("modulation_dims"):  # of single blocks: ranges of the whole sequence
            moved = [(start and start + ahead, end and end + ahead, i) for start, end, i in args["modulation_dims"]]
            args["modulation_dims"] = moved
        return args


def _refined(text: SecondText, state: RefinedTexts, like: Tensor, options: dict) -> Tensor:
    """The text [rows, N, C] in the network's width, made as the network makes the row's own."""
    network, rows = current_forward(options).network, len(like)
    outside = {name: value for name, value in options.items() if name not in _PLACE}
    mask = None if text.mask is None else _added(by_row(text.mask, rows, options), like)
    tokens = network.txt_in(text.by_row(like, options), state.timesteps, mask, transformer_options=outside)
    kinds = network.cond_type_embedding
    return tokens if kinds is None else tokens + kinds.weight[0].to(tokens)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of tokens in the form that is added to logits."""
    return mask.to(like) if mask.is_floating_point() else (mask - 1).to(like) * torch.finfo(like.dtype).max


def _longer_places(state: RefinedTexts, places: Tensor, ahead: int) -> Tensor:
    """The rotary factors [rows, 1, tokens, ...] with the second texts. Made once per network call, since all its blocks
    get the same."""
    if state.places is None:
        text = places[:, :, :1].expand(-1, -1, ahead, *places.shape[3:])
        state.places = torch.cat([text, places], 2)
    return state.places


def _longer_mask(
    mask: Tensor | None, texts: tuple[SecondText, ...], tokens: int, like: Tensor, options: dict
) -> Tensor | None:
    """The mask [1 or rows, 1, tokens], added to logits, with the second texts; None if all tokens count. `tokens`: the
    length without them."""
    if mask is None and all(text.mask is None for text in texts):
        return None
    rows = len(like)
    own = like.new_zeros(1, 1, tokens) if mask is None else mask
    parts = []
    for text in texts:
        bare = like.new_zeros(1, text.count)
        parts.append((bare if text.mask is None else _added(by_row(text.mask, rows, options), like))[:, None])
    longest = max(map(len, (*parts, own)))
    return torch.cat([part.expand(longest, -1, -1) for part in (*parts, own)], 2)


def split_refined(call: TextAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The output [rows, heads, tokens, dim] of the whole sequence. Image tokens come before the rows' own text, and
    others may come between it and the video."""
    state, ahead = call.options[_STATE], sum(text.count for text in call.texts)
    return split_around(call, q, k, v, mask, slice(ahead + state.vision, state.end))


def join_refined_texts(transformer_options: dict, blocks: list[Block]) -> None:
    """Puts the hooks of this file into the options of a run, around those of other nodes."""
    replaced = transformer_options.setdefault("patches_replace", {}).setdefault("dit", {})
    for block in blocks:
        key = (f"{block.kind}_block", block.number)
        replaced[key] = _WithTexts(block, replaced.get(key))
