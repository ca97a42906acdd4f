"""The values of a setting, as they are written on the command line.

    1..64           whole numbers, both ends included
    1..2..0.25      with a step, in decimal: 1, 1.25, 1.5, 1.75, 2
    3,6,9           a list; an entry with a comma is put in "double quotes"
    *               every choice that the input has
    @prompts.txt    the lines of a file that are not empty, in UTF-8

A text stays whole, commas and all, unless it begins with a double quote: several are written "one","two".
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from .errors import SweepError
from .schema import Spec
from .text import quoted

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})(?:\.\.({_NUMBER}))?\s*")
LARGEST_FILE = 256 * 2**20  # bytes


def parse(text: str, spec: Spec, where: str, limit: int) -> Sequence[Any]:
    """`where` names the input in sentences; more than `limit` values are refused before they are made."""
    if text.startswith("@"):
        given: Iterable[Any] = _lines(Path(text[1:]), where, limit)
    elif spec.kind == "STRING":
        given = _entries(text, where) if text.startswith('"') else [text]
    elif text == "*" and spec.kind == "COMBO" and spec.options:
        given = spec.options
    elif text == "*" and spec.kind == "BOOLEAN":
        given = (False, True)
    else:
        entries = [part for entry in _entries(text, where) for part in _range(entry.strip(), spec, where, limit)]
        if not entries:
            raise SweepError(f"{where} was given no value.")
        given = entries
    return checked(given, spec, where, limit)


def checked(given: Iterable[Any], spec: Spec, where: str, limit: int) -> Sequence[Any]:
    """The given values, from Python or from a text, converted to what the input takes."""
    values = []
    for entry in given:
        values.append(spec.value(entry, where))
        if len(values) > limit:
            raise _too_many(where, limit)
    if not values:
        raise SweepError(f"{where} was given no value.")
    return values


def _range(text: str, spec: Spec, where: str, limit: int) -> Sequence[Any]:
    """The numbers of 1..64, or the text itself if it is no range."""
    if spec.kind not in ("INT", "FLOAT") or not (found := _RANGE.fullmatch(text)):
        if not text:
            raise SweepError(
                f"{where} was given an empty value; in {quoted(',')} something is missing beside the comma."
            )
        return [text]
    first, last, step = (Decimal(part) if part else Decimal(1) for part in found.groups())
    if max(abs(part.adjusted()) for part in (first, last, step)) > 400:
        raise SweepError(f"{where} takes numbers, not {quoted(text)}.")
    if step <= 0 or last < first:
        raise SweepError(f"The range {quoted(text)} of {where} holds no value: write it upwards, with a step above 0.")
    if (last - first) / step >= limit:
        raise _too_many(where, limit)
    count = int((last - first) / step) + 1
    return [str(int(v)) if v == int(v) else str(v) for v in (first + i * step for i in range(count))]


def _entries(text: str, where: str) -> list[str]:
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise SweepError(f"The values {quoted(text)} of {where} cannot be read: {error}.") from None
    return rows[0] if rows else []


def _lines(path: Path, where: str, limit: int) -> list[str]:
    name = f"The file {quoted(str(path))} for {where}"
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SweepError(f"{name} is larger than {LARGEST_FILE // 2**20} MB.")
        content = path.read_bytes()
    except OSError as error:
        raise SweepError(f"{name} cannot be read: {error.strerror}.") from None
    except ValueError:  # a name that holds a zero
        raise SweepError(f"{name} cannot be read: that is no name of a file.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SweepError(f"{name} is not UTF-8 (byte {error.start}); save it in that encoding.") from None
    if "\0" in text:
        raise SweepError(f"{name} is not a text: it holds a zero byte.")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise SweepError(f"{name} holds no line with something in it.")
    if len(lines) > limit:
        raise SweepError(f"{name} has {len(lines)} lines, more than the {limit} jobs of --limit.")
    return lines


def _too_many(where: str, limit: int) -> SweepError:
    return SweepError(f"{where} was given more values than the {limit} jobs of --limit.")
