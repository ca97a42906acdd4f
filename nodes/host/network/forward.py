"""What the hooks inside one network call need to know about it.

Relies on: APPLY_MODEL wrappers, which run on every model, once per network call, with the latent as the network gets it
(comfy/model_base.py:191); `cond_or_uncond` and `uuids` of a call, one for each chunk of its rows
(comfy/samplers.py:322). A pack that evaluates the chunks one after another by a `model_function_wrapper` may set
`cond_or_uncond` for the part but leave the `uuids` of the whole call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..run import Run, attach_hook, current_run, wrap_run
from ..run.partial_calls import know_rows
from .families import (
    REFERENCES,
    SEQUENCE,
    Block,
    Counts,
    Family,
    Layout,
    family_of,
    fits,
    network_of,
    order_of,
    unet_parts,
)
from .shared_prefix import Prefix, Sharing

_FORWARD = "guidekit_forward"
_REFERENCES = ("reference_latent", "ref_frames")  # Wan's, and NextDiT's from host 0.38 on
_OURS = __name__.split(".nodes.")[0]


@dataclass
class Forward:
    """One network call on latents of `latent_shape`, [rows, C, ...]. `patches`: the patches of all nodes, by kind;
    `prefix`: what branches share with cond in the current evaluation, or None; `references`: the shapes of references
    that the network gets, by the name of its argument."""

    base: BaseModel
    run: Run
    prefix: Prefix | None
    latent_shape: tuple[int, ...]
    patches: dict[str, list[Callable]]
    references: dict[str, list[torch.Size]] = field(default_factory=dict)
    attention_calls: dict[tuple[Block, int], int] = field(default_factory=dict)  # number so far, by block and layer
    left: dict[Block, dict[str, Tensor]] = field(default_factory=dict)  # outputs of blocks that a later block needs
    afterwards: list = field(default_factory=list)  # `Whole` outputs of the current layer (attention/calls.py)
    sequence: Counts | None = None  # tokens that the network passes to its blocks, where it has a hook for them
    patches_of_others: dict[str, list[Callable]] | None = None  # in a UNet: without the hook that runs its layers

    @property
    def rows(self) -> int:
        return self.latent_shape[0]

    @cached_property
    def network(self) -> Any:  # attributes of the host's networks are not typed
        return network_of(self.base)

    @cached_property
    def family(self) -> Family:
        return family_of(self.base)

    @cached_property
    def order(self) -> dict[Block, int]:
        return order_of(self.run)

    @cached_property
    def unet_parts(self) -> dict[str, Sequence[torch.nn.Sequential]]:
        return unet_parts(self.network)

    def layout(self, tokens: int, options: dict, label: str) -> Layout:
        """Where the image tokens are in a sequence of `tokens`. `label`: the technique that asks.

        Raises:
            ValueError: other nodes have changed the sequence, so that it is not known.
        """
        options = {**options, SEQUENCE: self.sequence, REFERENCES: self.references}
        layout = self.family.layout(self.network, self.latent_shape, tokens, options)
        if not fits(layout, tokens, options):
            kind = type(self.network).__name__
            raise ValueError(
                f"{label} cannot tell which of the {tokens} tokens in a block of {kind} are the image's "
                f"{' x '.join(map(str, layout.grid))}: other nodes ({self.other_nodes()}) have changed the sequence. "
                "Take one of them off the model."
            )
        return layout

    def other_nodes(self) -> str:
        """The names of the other nodes that have hooked into attention, as far as they are known."""
        kinds = ("attn1_patch", "attn1_output_patch", "post_input")
        hooks = [getattr(hook, "func", hook) for kind in kinds for hook in self.patches.get(kind, ())]
        named = [hook if hasattr(hook, "__qualname__") else type(hook) for hook in hooks]
        names = {each.__qualname__.split(".")[0]: None for each in named if not each.__module__.startswith(_OURS)}
        return ", ".join(names) or "of unknown names"


def watch_forward(model: ModelPatcher) -> None:
    """Gives each network call of a (cloned) model a `Forward`."""
    know_rows(model)
    attach_hook(model, _hook)


def find_forward(transformer_options: dict) -> Forward | None:
    """The network call that `transformer_options` belongs to; None outside one that `watch_forward` has prepared."""
    return transformer_options.get(_FORWARD)


def current_forward(transformer_options: dict) -> Forward:
    """The network call that `transformer_options` belongs to, for hooks inside it."""
    return transformer_options[_FORWARD]


def check_rows(transformer_options: dict, rows: int) -> None:
    """Checks that a hook inside a network call is given all rows of the call.

    Raises:
        ValueError: `rows` is not a multiple of the rows of the call.
    """
    forward = find_forward(transformer_options)
    if forward is not None and rows % forward.rows:  # inside, the frames of a video may be rows
        raise ValueError(
            f"A hook of Guidekit inside the network sees {rows} of the {forward.rows} rows of a network call: another "
            "node splits the batch there without saying which rows it evaluates. Take that node off the model."
        )


def _hook(run: Run, guider) -> None:
    wrap_run(guider, WrappersMP.APPLY_MODEL, _innermost, outermost=False)


def _innermost(executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
    run, patches = current_run(transformer_options), transformer_options.get("patches", {})
    given = {name: kwargs[name] for name in _REFERENCES if kwargs.get(name) is not None}
    shapes = {name: [z.shape for z in (value if isinstance(value, list) else [value])] for name, value in given.items()}
    forward = Forward(executor.class_obj, run, run.of(Sharing).prefix, tuple(x.shape), patches, shapes)
    return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, _FORWARD: forward}, **kwargs)
