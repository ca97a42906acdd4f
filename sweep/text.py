"""Titles, prompts and file names are data: they are shortened and quoted, and cannot control a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_QUOTE = 80  # characters


def plain(text: str) -> str:
    """One line of printable characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else _escaped(c) for c in " ".join(text.splitlines()))


def cut(text: str, length: int) -> str:
    """`text`, cut off if it is longer."""
    return text if len(text) <= length else text[: length - 3] + "..."


def quoted(text: str) -> str:
    return repr(cut(plain(text), LONGEST_QUOTE))


def near(wanted: str, names: Iterable[str]) -> str:
    """The end of a sentence that says what there is instead: names that are spelled alike, or else the first ones."""
    names = list(dict.fromkeys(names))
    lower = {name.lower(): name for name in reversed(names)}
    alike = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=5, cutoff=0.5)]
    shown = alike or names[:10]
    if not shown:
        return "there is none"
    more = "" if alike or len(names) <= len(shown) else f" and {len(names) - len(shown)} more"
    return f"{'similar ones are' if alike else 'there are'} {', '.join(map(quoted, shown))}{more}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
