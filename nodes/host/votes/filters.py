"""Filters: a choice among the stored images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

VOTES = {"liked": (1,), "disliked": (-1,), "undecided": (0,), "decided": (1, -1), "all": (1, 0, -1)}
_LONGEST = 500  # characters


@dataclass(frozen=True)
class Filter:
    """`votes`: a key of VOTES. `model`, `lora`: a part of the file's name, in any case; `tag`: the whole tag; ""
    accepts any. `since`, `until`: the time of the vote, or of being shown if there is no vote, in seconds since
    1970."""

    votes: str = "all"
    model: str = ""
    lora: str = ""
    tag: str = ""
    since: float | None = None
    until: float | None = None

    def __post_init__(self):
        if self.votes not in VOTES:
            raise ValueError(f"votes is {self.votes[:_LONGEST]!r}. It is one of {', '.join(VOTES)}.")


def filter_of(given: Mapping[str, str]) -> Filter:
    """The filter that a request names. Raises ValueError."""

    def text(name: str) -> str:
        return given.get(name, "")[:_LONGEST]

    return Filter(
        votes=text("votes") or "all",
        model=text("model"),
        lora=text("lora"),
        tag=text("tag"),
        since=_time(given, "since"),
        until=_time(given, "until"),
    )


def _time(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {text[:50]!r}. It is a time in seconds since 1970.")
    return seconds
