"""Votes that are compared by a model: on images of its own kind.

Relies on: the settings of the host's networks, by the names that each has for the channels of a token
(comfy/model_detection.py).
"""

import dataclasses
from collections.abc import Iterable

from comfy.model_patcher import ModelPatcher

from ..votes.vote_set import VoteRow
from .conditioning import check_prompt_for
from .tensors import fit_latent

_CHANNELS = ("context_dim", "context_in_dim", "text_dim", "joint_attention_dim", "cap_feat_dim")


def fit_votes(model: ModelPatcher, rows: Iterable[VoteRow]) -> tuple[VoteRow, ...]:
    """With latents as the model takes them.

    Raises:
        ValueError: votes on images of another kind of model.
    """
    fitted = tuple(
        dataclasses.replace(row, latent=fit_latent(model, row.latent, "The latent of a vote")) for row in rows
    )
    for prompt in {id(row.positive): row.positive for row in fitted}.values():
        check_prompt_for(model, prompt, "The prompt of a vote")
        _check_channels(model, prompt)
    return fitted


def _check_channels(model: ModelPatcher, prompt: list) -> None:
    settings = model.model.model_config.unet_config
    wanted = next((settings[name] for name in _CHANNELS if isinstance(settings.get(name), int)), None)
    for tokens, _ in prompt:
        if wanted is not None and tokens is not None and tokens.shape[-1] != wanted:
            raise ValueError(
                f"The prompt of a vote has {tokens.shape[-1]} channels per token, and {type(model.model).__name__} "
                f"takes {wanted}: the vote is on an image of another model. Choose votes with model_name or tag."
            )
