"""INT, FLOAT and BOOLEAN: finite, and within the bounds of the schema."""

import numbers
from typing import Any

import numpy as np
from comfy_api.latest import io

from ..run.messages import quoted


def number(name: str, value: Any, wanted: io.Float.Input) -> float:
    """A FLOAT within the bounds of the schema. Raises ValueError for anything else."""
    # Refuses NaN, for which every comparison is false, and infinity, since every number of a schema has bounds.
    if not _is_number(value) or not wanted.min <= value <= wanted.max:
        raise ValueError(f"{name} is {_shown(value)}. It is a number from {wanted.min:g} to {wanted.max:g}.")
    return float(value)


def whole_number(name: str, value: Any, wanted: io.Int.Input) -> int:
    """An INT within the bounds of the schema; 2.0 is accepted. Raises ValueError for anything else."""
    if not _is_number(value) or not wanted.min <= value <= wanted.max or value != int(value):
        raise ValueError(f"{name} is {_shown(value)}. It is a whole number from {wanted.min} to {wanted.max}.")
    return int(value)


def switch(name: str, value: Any, wanted: io.Boolean.Input) -> bool:
    """A BOOLEAN; 0 and 1 are accepted. Raises ValueError for anything else."""
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise ValueError(f"{name} is {_shown(value)}. It is true or false.")
    return bool(value)


def _is_number(value: Any) -> bool:
    """Whether `value` is a real number, numpy's included, which other nodes may output."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return quoted(value.item() if isinstance(value, np.generic) else value)
