"""Checks the inputs of every node against its schema, wherever they come from.

The host checks the values of widgets when a prompt is queued (execution.py, validate_inputs). It does not check linked
values, or null and {} in place of a link, and NaN passes its min and max. `checked` checks every input of a node by its
type: number.py (also NaN and infinity), text.py (STRING, COMBO), tensors.py (LATENT, SIGMAS, MASK, IMAGE),
conditioning.py, connected.py (MODEL, GUIDER and other objects, and inputs of any type).

Relies on: `define_schema` of a node, whose inputs have `id`, `optional` and `get_io_type()` (comfy_api/latest/_io.py).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..classifiers.labels import CandidatesType, ClassifierType
from ..run.messages import cut, plain
from ..votes.vote_set import VotesType
from .conditioning import check_prompt_for, conditioning
from .connected import OBJECTS, anything, candidates, connected, curve, votes
from .number import number, switch, whole_number
from .plan import PlanType, plan
from .tensors import fit_latent, images, latent, mask, sigmas
from .text import option, text
from .voted import fit_votes

__all__ = ["CHECKS", "check_prompt_for", "check_sampled", "checked", "fit_latent", "fit_votes"]

# check(name, value, input of the schema): the value, converted to what nodes expect where that is possible.
# Raises ValueError with what was given and what is accepted.
Check = Callable[[str, Any, io.Input], Any]

CHECKS: dict[str, Check] = {
    io.Int.io_type: whole_number,
    io.Float.io_type: number,
    io.Boolean.io_type: switch,
    io.String.io_type: text,
    io.Combo.io_type: option,
    io.Latent.io_type: latent,
    io.Sigmas.io_type: sigmas,
    io.Mask.io_type: mask,
    io.Image.io_type: images,
    io.Conditioning.io_type: conditioning,
    io.Curve.io_type: curve,
    ClassifierType.io_type: connected,
    CandidatesType.io_type: candidates,
    VotesType.io_type: votes,
    PlanType.io_type: plan,
    **dict.fromkeys(OBJECTS, connected),
    io.MatchType.io_type: anything,
    io.AnyType.io_type: anything,
}

_LONGEST = 2000  # characters of an error


def checked(execute: Callable) -> Callable:
    """Decorates `execute` of a node, below `@classmethod`: it is called only with inputs that fit its schema.

    Optional sockets also accept null, as None. In nodes that take lists every entry is checked. The message of a
    ValueError is made one plain line.

    Raises:
        ValueError: an input does not fit the schema.
    """
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def entrance(cls, *args, **given) -> io.NodeOutput:
        values = signature.bind(cls, *args, **given).arguments
        try:
            schema = cls.define_schema()
            for wanted in schema.inputs:
                name = wanted.id
                if name in values and not (wanted.optional and values[name] is None):
                    check = CHECKS[wanted.get_io_type()]
                    if schema.is_input_list:
                        values[name] = _entries(check, name, values[name], wanted)
                    else:
                        values[name] = check(name, values[name], wanted)
            return execute(**values)
        except ValueError as error:
            error.args = (cut(plain(str(error)), _LONGEST),)
            raise

    return entrance


def check_sampled(
    model: ModelPatcher | None, latent: dict | None, positive: list | None, negative: list | None
) -> None:
    """Checks that `latent`, `positive` and `negative` may be a sampler's with `model`, as far as they are connected.

    Raises:
        ValueError: the model does not take them.
    """
    if model is None:
        return
    if latent is not None:
        fit_latent(model, latent["samples"], "samples")
    for name, prompt in (("positive", positive), ("negative", negative)):
        if prompt is not None:
            check_prompt_for(model, prompt, name)


def _entries(check: Check, name: str, values: list, wanted: io.Input) -> list:
    if not values and not wanted.optional:
        raise ValueError(f"{name} is an empty list. It has at least one entry.")
    return [check(name, value, wanted) for value in values]
