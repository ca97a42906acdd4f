"""Numbers in a row, as users type them into a text field."""

import math

from ..run.messages import quoted


def listed_numbers(
    name: str, text: str, low: float, high: float, most: int, *, whole: bool = False
) -> tuple[float, ...]:
    """Of "1.6, 1.3", separated by commas; () of an empty text. `whole`: they have no parts.

    Raises:
        ValueError: something that is no number, one out of bounds, or more than `most`.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(parts) > most:
        raise ValueError(f"{name} has {len(parts)} numbers. There may be up to {most}.")
    return tuple(_number(name, part, low, high, whole) for part in parts)


def _number(name: str, part: str, low: float, high: float, whole: bool) -> float:
    try:
        found = float(part)
    except ValueError:
        found = math.nan
    if not low <= found <= high or whole and found != int(found):  # NaN is not within
        what = "whole numbers" if whole else "numbers"
        raise ValueError(f"{name} has {quoted(part)}. Give {what} from {low:g} to {high:g}, separated by commas.")
    return found
