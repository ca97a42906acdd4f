"""Objects that come through links: MODEL and the like, checked by the attributes that nodes use, since packs have their
own classes; candidates; votes; curves."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from comfy_api.latest import io

from ..classifiers.labels import Candidates, ClassifierType
from ..run.messages import quoted
from ..votes.vote_set import VoteSet

OBJECTS: dict[str, tuple[str, ...]] = {
    io.Model.io_type: ("clone", "model", "model_options", "get_model_object"),
    io.Guider.io_type: ("sample", "model_patcher", "model_options"),
    io.Sampler.io_type: ("sample",),
    io.Clip.io_type: ("tokenize", "encode_from_tokens_scheduled"),
    io.Vae.io_type: ("decode", "patcher"),
    io.ClipVision.io_type: ("encode_image", "patcher"),
    ClassifierType.io_type: ("among", "patchers"),
}


def connected(name: str, value: Any, wanted: io.Input) -> Any:
    """An object with the attributes in `OBJECTS`. Raises ValueError for anything else."""
    kind = wanted.get_io_type()
    if not all(hasattr(value, used) for used in OBJECTS[kind]):
        raise ValueError(f"{name} is {quoted(value)}. Connect a {kind}.")
    return value


def anything(name: str, value: Any, wanted: io.Input) -> Any:
    """A value that a node passes on unchecked."""
    return value


def candidates(name: str, value: Any, wanted: io.Input) -> Candidates:
    """A `Candidates`. Raises ValueError for anything else."""
    if not isinstance(value, Candidates):
        raise ValueError(f"{name} is {quoted(value)}. Connect Candidates, or a row of Candidate nodes.")
    return value


def votes(name: str, value: Any, wanted: io.Input) -> VoteSet:
    if not isinstance(value, VoteSet):
        raise ValueError(f"{name} is {quoted(value)}. Connect Load Votes.")
    return value


def curve(name: str, value: Any, wanted: io.Input) -> Callable[[float], float]:
    """A curve as a function on 0..1, from the host's curve or, in older hosts, a list of points."""
    try:
        points = [(float(x), float(y)) for x, y in getattr(value, "points", () if hasattr(value, "interp") else value)]
        function = value.interp if hasattr(value, "interp") else partial(_along, sorted(points))
        heights = [function(i / 16) for i in range(17)]
        if all(map(math.isfinite, (*heights, *(number for point in points for number in point)))):
            return function
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} is {quoted(value)}. Connect a Curve Editor, or give a list of finite points [x, y].")


def _along(points: list[tuple[float, float]], position: float) -> float:
    positions, heights = zip(*points)
    return float(np.interp(position, positions, heights))
