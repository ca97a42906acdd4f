"""Edits as people write them, one per line: `a rose -> a blue rose`, `style of Van Gogh -> art`, and, for a concept
that is to lean somewhere, `a doctor -> + 0.3 a woman - 0.1 a man`. A line may end with its weight: `... * 2`. The arrow
may be an arrow, which sentences to the user take: there `>` would be made something else (run/messages.py).
"""

import re
from dataclasses import dataclass

from ..run.messages import quoted

ARROW = "\u2192"
_WEIGHT = re.compile(r"^(.*?)\s\*\s*(\S+)$")
_TERM = re.compile(r"(?:^|\s)([+-])\s+")
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s+(\S.*)")
_LONGEST = 2000  # lines
_LARGEST = 1e6  # weights, and numbers of added texts


@dataclass(frozen=True)
class Edit:
    """`source` is to become `target`, or, where that is None, itself with `added`, of each so much."""

    source: str
    target: str | None
    added: tuple[tuple[float, str], ...]
    weight: float
    line: str


@dataclass(frozen=True)
class Keep:
    text: str
    weight: float


def read_edits(text: str) -> list[Edit]:
    """Raises ValueError for a line that is none, and where there are none."""
    found = [_edit(line) for line in _lines(text, "edits")]
    if not found:
        raise ValueError(f"There are no edits. Write one per line, such as a rose {ARROW} a blue rose.")
    return found


def read_keeps(text: str) -> list[Keep]:
    """Texts that are to stay as they are, one per line."""
    found = []
    for line in _lines(text, "keep"):
        if ARROW in line:
            raise ValueError(f"The line {quoted(line)} of keep has an arrow. What is to change belongs in edits.")
        kept, weight = _weight(line)
        found.append(Keep(kept, weight))
    return found


def _lines(text: str, name: str) -> list[str]:
    lines = [line.strip().replace("->", ARROW) for line in text.splitlines() if line.strip()]
    if len(lines) > _LONGEST:
        raise ValueError(f"{name} has {len(lines)} lines. It may have up to {_LONGEST}.")
    return lines


def _edit(line: str) -> Edit:
    text, weight = _weight(line)
    source, *rest = (part.strip() for part in text.split(ARROW))
    if len(rest) != 1:
        raise ValueError(
            f"The line {quoted(line)} of edits has {len(rest)} arrows. It has one, such as a rose {ARROW} a blue rose."
        )
    if not source:
        raise ValueError(f"The line {quoted(line)} of edits has nothing before its arrow. Say what is to change.")
    target = rest[0]
    if _TERM.match(target):
        return Edit(source, None, _added(target, line), weight, line)
    return Edit(source, target, (), weight, line)


def _added(text: str, line: str) -> tuple[tuple[float, str], ...]:
    _, *parts = _TERM.split(text)
    found = []
    for sign, term in zip(parts[::2], parts[1::2]):
        number = _NUMBER.fullmatch(term.strip())
        amount, name = (float(number[1]), number[2].strip()) if number else (1.0, term.strip())
        if not name or amount > _LARGEST:
            raise ValueError(
                f"The line {quoted(line)} of edits adds {quoted(term.strip())}. After + or - comes a number of up to "
                f"{_LARGEST:g}, which may be left out, and a text, such as + 0.3 a woman."
            )
        found.append((amount if sign == "+" else -amount, name))
    return tuple(found)


def _weight(line: str) -> tuple[str, float]:
    match = _WEIGHT.fullmatch(line)
    if match is None:
        return line, 1.0
    number = re.fullmatch(r"\d+(?:\.\d*)?|\.\d+", match[2])
    weight = float(match[2]) if number else 0.0
    if not 1 / _LARGEST <= weight <= _LARGEST:
        raise ValueError(
            f"The line {quoted(line)} has the weight {quoted(match[2])}. After * comes a number from {1 / _LARGEST:g} "
            f"to {_LARGEST:g}."
        )
    return match[1].strip(), weight
