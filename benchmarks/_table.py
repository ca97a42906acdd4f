"""Rows of the tables that go into the help pages."""

import re

_MEASURED = re.compile(r"[-+]?\d(?:[-+\d.%() /]|to|ms|e)*")


def print_row(row: str) -> None:
    """Prints `| a | b |` immediately."""
    print(unbroken(row), flush=True)


def unbroken(row: str) -> str:
    """A row whose numbers stay together with their units and intervals: ComfyUI's help panel is narrow and wraps cells
    at every space."""
    return "|".join(map(_whole, row.split("|")))


def _whole(cell: str) -> str:
    text = cell.strip()
    return f" {text.replace(' ', chr(0xA0))} " if _MEASURED.fullmatch(text) else cell
