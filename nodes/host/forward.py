"""What the hooks inside one network call need to know of it.

Relies on: APPLY_MODEL wrappers, which run on every model, once per network call, and see the latent before the network
changes it (comfy/model_base.py:191); `cond_or_uncond` and `uuids` of a call, one for each chunk of its rows
(comfy/samplers.py:322). A pack that evaluates the chunks one after another by a `model_function_wrapper` may give the
part in `cond_or_uncond` and leave the `uuids` of the whole.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .families import Block, Family, family_of, network_of
from .parts import know_rows
from .run import Run, attach_hook, wrap_run

_FORWARD = "guidekit_forward"


@dataclass
class Forward:
    """One network call, of latents of this shape, rows first."""

    base: BaseModel
    latent_shape: tuple[int, ...]
    attention_calls: dict[tuple[Block, int], int] = field(default_factory=dict)  # so far, by block and layer
    left: dict[Block, dict[str, Tensor]] = field(default_factory=dict)  # by blocks that are over, where it is needed

    @property
    def rows(self) -> int:
        return self.latent_shape[0]

    @cached_property
    def network(self) -> torch.nn.Module:
        return network_of(self.base)

    @cached_property
    def family(self) -> Family:
        return family_of(self.base)


def watch_forward(model: ModelPatcher) -> None:
    """Gives the network calls of a (cloned) model a `Forward` each."""
    know_rows(model)
    attach_hook(model, _hook)


def current_forward(transformer_options: dict) -> Forward | None:
    """The network call that `transformer_options` belongs to; None in networks that were called in another way."""
    return transformer_options.get(_FORWARD)


def check_rows(transformer_options: dict, rows: int) -> None:
    """Raises ValueError where a hook inside a network call sees other rows than the call was made for."""
    forward = current_forward(transformer_options)
    if forward is not None and rows % forward.rows:  # the frames of a video may be rows inside
        raise ValueError(
            f"A hook of Guidekit inside the network sees {rows} of the {forward.rows} rows of a network call: another "
            "node splits the batch there without saying which rows it evaluates. Take that node off the model."
        )


def _hook(run: Run, guider) -> None:
    wrap_run(guider, WrappersMP.APPLY_MODEL, _innermost, outermost=False)


def _innermost(executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
    forward = Forward(executor.class_obj, tuple(x.shape))
    return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, _FORWARD: forward}, **kwargs)
