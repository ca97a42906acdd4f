"""What the hooks inside one network call need to know of it.

Relies on: APPLY_MODEL wrappers, which run on every model, once per network call, and see the latent before the network
changes it (comfy/model_base.py:191).
"""

from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .families import Block, Family, family_of, network_of
from .run import KEY

_FORWARD = "guidekit_forward"


@dataclass
class Forward:
    """One network call."""

    family: Family
    network: torch.nn.Module
    latent_shape: tuple[int, ...]
    attention_calls: dict[tuple[Block, int], int] = field(default_factory=dict)  # so far, by block and layer
    left: dict[Block, dict[str, Tensor]] = field(default_factory=dict)  # by blocks that are over, where it is needed


def watch_forward(model: ModelPatcher) -> None:
    """Gives the network calls of a (cloned) model a `Forward` each."""
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _apply_model)


def current_forward(transformer_options: dict) -> Forward | None:
    """The network call that `transformer_options` belongs to; None in networks that were called in another way."""
    return transformer_options.get(_FORWARD)


def _apply_model(executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
    base = executor.class_obj
    forward = Forward(family_of(base), network_of(base), tuple(x.shape))
    return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, _FORWARD: forward}, **kwargs)
