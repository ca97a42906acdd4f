"""CONDITIONING: a list of [tokens, options], each of which is a prompt that can be evaluated.

Relies on: convert_cond (comfy/sampler_helpers.py:59), which accepts None for tokens; `encode_adm` of the model, which
reads the pooled output where its network needs one (comfy/model_base.py:469).
"""

from collections.abc import Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..run.messages import quoted

_RANKS = {"tokens": (3, "[batch, tokens, channels]"), "pooled output": (2, "[batch, channels]")}


def conditioning(name: str, value: Any, wanted: io.Conditioning.Input) -> Sequence:
    """A CONDITIONING of at least one prompt, with finite tensors. Raises ValueError for anything else."""
    if not isinstance(value, list | tuple) or not all(map(_is_prompt, value)):
        raise ValueError(f"{name} is {quoted(value)}. Connect a CONDITIONING, as CLIP Text Encode gives it.")
    if not value:
        raise ValueError(f"{name} holds no prompt. Connect a CLIP Text Encode node.")
    for tokens, options in value:
        for what, tensor in (("tokens", tokens), ("pooled output", options.get("pooled_output"))):
            if tensor is not None:
                _check(f"The {what} of {name}", tensor, *_RANKS[what])
    return value


def check_prompt_for(model: ModelPatcher, value: list, name: str) -> None:
    """Checks that the prompts have a pooled output if the network needs one; the host would raise a KeyError in the
    first step.

    Raises:
        ValueError: a prompt has none.
    """
    for _, options in value:
        if options.get("pooled_output") is not None or "unclip_conditioning" in options:
            continue
        noise = torch.zeros(1, model.get_model_object("latent_format").latent_channels, 8, 8)
        try:
            model.model.encode_adm(noise=noise, **{**options, "device": noise.device})
        except (KeyError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{name} has no pooled output, and {type(model.model).__name__} takes one. Encode the prompt with this "
                "model's CLIP."
            ) from error


def _is_prompt(entry: Any) -> bool:
    return (
        isinstance(entry, list | tuple)
        and len(entry) == 2
        and isinstance(entry[1], dict)
        and all(tensor is None or isinstance(tensor, Tensor) for tensor in (entry[0], entry[1].get("pooled_output")))
    )


def _check(what: str, tensor: Tensor, rank: int, shape: str) -> None:
    if tensor.ndim != rank or 0 in tensor.shape or not tensor.is_floating_point():
        raise ValueError(f"{what} have shape {tuple(tensor.shape)}. Accepted are floats {shape}, at least one of each.")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{what} hold NaN or infinity. Encode the prompt again.")
