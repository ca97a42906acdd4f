"""A second text in the attention of all rows except the negative's: the same queries attend to it, in the same network
call.

UNets and Wan use cross-attention (cross.py, blocks.py); SD3, Flux, Chroma and Qwen-Image more tokens in joint attention
(joint.py); HunyuanVideo the same after its text refiner (refined.py); Lumina2 and Z-Image their own layers
(layered.py).

Relies on: `extra_conds` of the model, which prepares a prompt (comfy/samplers.py:937); APPLY_MODEL wrappers
(comfy/model_base.py:191); `patches["post_input"]` with the positions of the text tokens (comfy/ldm/flux/model.py:184,
qwen_image/model.py:476).
"""

from dataclasses import dataclass

import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .....samplers.sending import sent
from ...network.families import families_with_second_text, family_of, network_of, self_attention_blocks
from ...network.forward import watch_forward
from ...run import KEY, Part, Run, attach, current_run
from ..calls import with_below, with_cross
from ..self_attention import reach_attention
from .blocks import InCrossAttention
from .context import BesideText, SecondText, Steering, by_row, second_texts, with_texts
from .cross import split_cross_attention
from .joint import split_attention
from .layered import see_refiner, steer_layer, with_layers
from .refined import join_refined_texts, split_refined, with_refined

_KIND = "second text"
_BELOW = {"joint": split_attention, "refined": split_refined, "layers": steer_layer}  # by `Family.second_text`
# Models of known families whose image positions depend on the length of the text, or that cache its keys and values.
_UNFIT = ("LongCatImage", "WAN21_CausalAR")
_NOT_TEXT = {
    "area": "an area",
    "mask": "a mask",
    "hooks": "hooks",
    "start_percent": "a time range",
    "clip_start_percent": "a time range",
    "gligen": "GLIGEN boxes",
}


@dataclass(frozen=True, eq=False)
class _Prompt(Part):
    technique: Steering
    conditioning: list

    def begin(self, run: Run, guider) -> None:
        # When the run starts, after all nodes, so that their order does not matter; once, for all texts.
        model, options = guider.model_patcher, guider.model_options["transformer_options"]
        way = family_of(model).second_text if self is run.techniques[_KIND][0] else None
        if way == "cross":
            split_cross_attention(options, network_of(model))
        if way == "refined":
            join_refined_texts(options, self_attention_blocks(model))

    def for_call(self, run: Run, base: BaseModel, x: Tensor, width: int) -> SecondText:
        known = run.notes.setdefault(self, {})
        if x.device not in known:
            known[x.device] = self._encoded(base, x)
        tokens, mask = known[x.device]
        if tokens.shape[2] != width:
            raise ValueError(
                f"The negative prompt of {self.label} has {tokens.shape[2]} channels per token, and the positive "
                f"prompt {width}. Encode both with the CLIP of this model."
            )
        return SecondText(self, tokens, mask)

    def _encoded(self, base: BaseModel, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, N, C] and mask [B, N] or None; the texts of several entries are concatenated."""
        entries = comfy.sampler_helpers.convert_cond(self.conditioning)
        entries = comfy.samplers.encode_model_conds(base.extra_conds, entries, x, x.device, "negative", latent_image=x)
        found = [entry["model_conds"] for entry in entries]
        tokens = [each["c_crossattn"].cond.to(x.device) for each in found]
        conds = [each.get("attention_mask") for each in found]
        conds = [None if c is None or not _is_of_tokens(c.cond, t) else c.cond for c, t in zip(conds, tokens)]
        masks = [None if mask is None else mask.to(x.device) for mask in conds]
        batch = max(map(len, tokens))
        joined = torch.cat([comfy.utils.repeat_to_batch_size(t, batch) for t in tokens], 1)
        return joined, _side_by_side([(mask, t.shape[1]) for mask, t in zip(masks, tokens)], batch)


def _is_of_tokens(mask: Tensor, tokens: Tensor) -> bool:
    """Whether a mask is [B, N], 1 where a token counts; others are attention masks over text and image."""
    return mask.ndim == 2 and mask.shape[1] == tokens.shape[1]


def _side_by_side(masks: list[tuple[Tensor | None, int]], rows: int) -> Tensor | None:
    """The masks of texts, given with their lengths, as one [rows, N]; None if no text has one."""
    like = next((mask for mask, _ in masks if mask is not None), None)
    if like is None:
        return None
    neutral = 0 if like.is_floating_point() else 1  # the host adds float masks to the logits
    whole = [like.new_full((rows, n), neutral) if mask is None else mask.to(like) for mask, n in masks]
    return torch.cat([comfy.utils.repeat_to_batch_size(mask, rows) for mask in whole], 1)


def steer_with_text(model: ModelPatcher, steering: Steering, conditioning: list) -> None:
    """Lets the rows of the positive, and of branches, attend to `conditioning` too.

    Raises:
        ValueError: a model whose attention does not support it, or a prompt that has more than text.
    """
    family, name = family_of(model), type(model.model).__name__
    if family.second_text is None or name in _UNFIT:
        raise ValueError(
            f"{steering.label} cannot put a second text into {name}. It works on "
            f"{', '.join(families_with_second_text())} and Z-Image."
        )
    _check_text(conditioning, steering.label)
    first = not model.model_options.get(KEY, {}).get(_KIND)
    attach(model, _KIND, _Prompt(steering, conditioning))
    if not first:
        return
    watch_forward(model)
    model.add_wrapper(WrappersMP.APPLY_MODEL, _apply_model)
    if family.second_text == "joint":
        model.set_model_patch(_place_tokens, "post_input")
    if family.second_text == "layers":
        model.set_model_patch(see_refiner, "noise_refiner")
    if family.second_text != "cross":
        reach_attention(model)


def _check_text(conditioning: list, label: str) -> None:
    if not conditioning:
        raise ValueError(f"The negative prompt of {label} is empty. Connect a CLIP Text Encode node.")
    for tokens, options in conditioning:
        extra = next((what for key, what in _NOT_TEXT.items() if options.get(key) is not None), None)
        if tokens is None or extra is not None:
            raise ValueError(
                f"The negative prompt of {label} has {extra or 'no text'}, and only text can be put into attention. "
                "Connect a CLIP Text Encode node to it directly."
            )


def _apply_model(executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
    run, base = current_run(transformer_options), executor.class_obj
    prompts = [prompt for prompt in run.techniques[_KIND] if prompt.technique.active(run)]
    way, texts = family_of(base).second_text, ()
    if prompts:
        texts = tuple(prompt.for_call(run, base, x, c_crossattn.shape[2]) for prompt in prompts)
    # With the same option names in every step, as a compiled network needs.
    options = with_texts(transformer_options, texts)
    if way == "layers":
        options = with_layers(options)
    if way == "refined":
        options = with_refined(options, base, t, kwargs.get("clip_fea"))
    if way in _BELOW:
        options = with_below(options, BesideText(texts, _BELOW[way]) if texts else None)
    if way == "blocks":
        own, image = c_crossattn.shape[1], kwargs.get("clip_fea") is not None
        options = with_cross(options, InCrossAttention(texts, own, image) if texts else None)
    if not texts:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    if way == "layers" and kwargs.get("ref_latents"):
        raise ValueError(
            f"{prompts[0].label} does not work together with reference images in {type(base).__name__}. Take "
            "the reference latents off the positive prompt, or the node off the model."
        )
    if way == "joint":
        c_crossattn = sent(c_crossattn, x.device)  # the host may leave it on another device until the network runs
        own = kwargs.get("attention_mask")
        if own is None or _is_of_tokens(own, c_crossattn):
            masks = [(t.mask if t.mask is None else by_row(t.mask, len(x), options), t.count) for t in texts]
            kwargs["attention_mask"] = _side_by_side([*masks, (own, c_crossattn.shape[1])], len(x))
    if way in ("joint", "blocks"):
        c_crossattn = torch.cat([*(text.by_row(c_crossattn, options) for text in texts), c_crossattn], 1)
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


@torch.compiler.disable
def _place_tokens(args: dict) -> dict:
    """A `post_input` patch: every text of joint attention starts at the same position, as if it were the only one."""
    texts = second_texts(args["transformer_options"])
    if texts:
        ids, counts = args["txt_ids"], [text.count for text in texts]
        counts.append(ids.shape[1] - sum(counts))
        args = {**args, "txt_ids": torch.cat([ids[:, :count] for count in counts], 1)}
    return args
