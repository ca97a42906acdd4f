"""Names of files, made of settings, titles and names that a server gives: data, which leads nowhere.

A name begins with the number of its job, so that it is the same in every call, no two are equal where letters' case
does not count, and none is one that a system keeps for itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_SETTING = 40  # bytes of one setting in a name
_NAME = 150  # bytes of a name before its ending
# What a browser would run, if a page leads to it.
_ACTIVE = {"htm", "html", "xhtml", "shtml", "svg", "xml", "js", "mjs", "hta", "mht", "mhtml"}


def safe(text: str, length: int = _SETTING) -> str:
    """Letters and digits of any script, and - + = , . inside; at most `length` bytes."""
    text = unicodedata.normalize("NFC", text)
    kept = "".join(c if c.isalnum() or c in "-+=,." else "_" for c in text)
    kept = re.sub(r"\.{2,}|_{2,}", "_", kept)
    return kept.encode("utf-8", "ignore")[:length].decode("utf-8", "ignore").strip("._ ")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Short names of settings: the input alone where no other setting has an input of this name."""
    inputs = [name.rpartition(".")[2] for name in names]
    return {name: part if inputs.count(part) == 1 else name for name, part in zip(names, inputs)}


def label(settings: Mapping[str, Any]) -> str:
    """All settings of a job as a part of a name."""
    short = short_names(list(settings))
    parts = [f"{safe(short[name])}={safe(value_text(value))}" for name, value in settings.items()]
    return "_".join(parts)


def value_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def stem(filename: str) -> str:
    """What a workflow calls an image: the server's name for the file, without its counter, which differs from call to
    call."""
    base = filename.replace("\\", "/").rpartition("/")[2]
    base = base.rpartition(".")[0] or base
    return safe(re.sub(r"_\d{5,}_?$", "", base)) or "output"


def extension(filename: str) -> str:
    found = re.search(r"\.([A-Za-z0-9]{1,12})$", filename)
    if not found:
        return "bin"
    ending = found.group(1).lower()
    return f"{ending}.txt" if ending in _ACTIVE else ending


def file_name(number: int, settings: Mapping[str, Any], of: str, count: int, ending: str) -> str:
    """`of`: a stem; `count`: the how manieth of this job and stem it is, from 1."""
    start = f"{number:05}"
    room = _NAME - len(start) - len(of.encode()) - 12
    middle = safe(label(settings), room)
    return "_".join(part for part in (start, middle, of, str(count)) if part) + f".{ending}"
