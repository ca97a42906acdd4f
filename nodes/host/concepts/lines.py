"""Edits as people write them, one per line: `a rose -> a blue rose`, `style of Van Gogh -> art`, and, for a concept
that is to lean somewhere, `a doctor -> + 0.3 a woman - 0.1 a man`. A line may end with its weight: `... * 2`. The arrow
may be an arrow, which sentences to the user take: there `>` would be made something else (run/messages.py).
"""

import re
from dataclasses import dataclass

from ..run.messages import quoted

ARROW = "\u2192"
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_WEIGHT = re.compile(r"^(.*?)(?:\s\*\s*(\S+)|\*\s*([\d.][^\s*]*))$")
# A sign at the beginning; behind that, one by itself or before a number.
_TERM = re.compile(r"(?:^([+-])|\s([+-])(?=\s|$|\.?\d))\s*")
_AMOUNT = re.compile(rf"({_NUMBER})\s+(\S.*)")
_NO_AMOUNT = re.compile(r"[.,/%]*\d[\d.,/%]*\s.*")  # 0,3 a woman
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
    signs = [*_TERM.finditer(text)]
    found = []
    for sign, end in zip(signs, [*(after.start() for after in signs[1:]), len(text)]):
        term = text[sign.end() : end].strip()
        number = _AMOUNT.fullmatch(term)
        amount, name = (float(number[1]), number[2].strip()) if number else (1.0, term)
        if not name or amount > _LARGEST or not number and _NO_AMOUNT.fullmatch(term):
            raise ValueError(
                f"The line {quoted(line)} of edits adds {quoted(term)}. After + or - comes a number of up to "
                f"{_LARGEST:g}, which may be left out, and a text, such as + 0.3 a woman."
            )
        found.append((amount if "+" in sign[0] else -amount, name))
    return tuple(found)


def _weight(line: str) -> tuple[str, float]:
    match = _WEIGHT.fullmatch(line)
    if match is None:
        return line, 1.0
    text = match[2] or match[3]
    weight = float(text) if re.fullmatch(_NUMBER, text) else 0.0
    if not 1 / _LARGEST <= weight <= _LARGEST:
        raise ValueError(
            f"The line {quoted(line)} has the weight {quoted(text)}. After * comes a number from {1 / _LARGEST:g} "
            f"to {_LARGEST:g}."
        )
    return match[1].strip(), weight
