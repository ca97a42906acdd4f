"""results.csv: every job of the folder with its settings and results."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .journal import Row
from .names import value_text
from .text import cut

_LONGEST = 30_000  # characters of a cell; spreadsheets end at 32,767
BEFORE = ("number", "state")
AFTER = ("seconds", "files", "text", "told", "node", "error", "server")


def write(path: Path, names: list[str], rows: Iterable[Row]) -> None:
    """`names`: of the settings, which are columns."""
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8-sig") as file:  # with the mark by which Excel knows UTF-8
        table = csv.writer(file)
        table.writerow([*BEFORE, *map(cell, names), *AFTER])
        for row in rows:
            settings = [cell(row.settings[name]) if name in row.settings else "" for name in names]
            seconds = "" if row.seconds is None else f"{row.seconds:.3f}"
            texts = [cell("\n".join(text for _, text in row.texts)), cell(lines(row.told))]
            last = [cell(value or "") for value in (row.node, row.error, row.server)]
            table.writerow(
                [row.number, row.state, *settings, seconds, "\n".join(name for name, _ in row.files), *texts, *last]
            )
    os.replace(part, path)


def lines(told: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{title}: {text}" for title, text in told)


def cell(value: Any) -> str:
    """`value` as text. Texts that a spreadsheet would take for a formula get an apostrophe in front."""
    text = cut(value_text(value).replace("\0", ""), _LONGEST)
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
