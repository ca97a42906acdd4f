"""Untrusted JSON: standard, with unique names and numbers that fit into a float."""

import json
import sys
from typing import Any, TypeGuard


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, names something twice, holds NaN or Infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that is finite as a float; not for bool."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names something twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")
