"""Filters: a choice among the stored images."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

VOTES = {"liked": (1,), "disliked": (-1,), "undecided": (0,), "decided": (1, -1), "all": (1, 0, -1)}
_LONGEST = 500  # characters
NAMES = ("votes", "model", "lora", "tag", "from_date", "to_date")  # in requests
_EARLIEST, _LATEST = datetime(1971, 1, 1), datetime(2900, 1, 1)  # systems know the local time of no other years


@dataclass(frozen=True)
class Filter:
    """`votes`: a key of VOTES. `model`, `lora`: a part of the file's name, in any case; `tag`: the whole tag; ""
    accepts any. `since`, `until`: the time of the vote, or of being shown if there is no vote, in seconds since
    1970; `until` itself is not among them."""

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
        since=beginning_of(given.get("from_date", ""), "from_date"),
        until=end_of(given.get("to_date", ""), "to_date"),
    )


def beginning_of(date: str, name: str) -> float | None:
    """The first moment of a day such as 2026-03-01, as this server's clock has it, in seconds since 1970; None for "".
    `name`: what the message calls the date.

    Raises:
        ValueError: it is no date.
    """
    return day.timestamp() if (day := _day(date, name)) else None


def end_of(date: str, name: str) -> float | None:
    """The first moment of the day after, otherwise as `beginning_of`."""
    return (day + timedelta(days=1)).timestamp() if (day := _day(date, name)) else None


def _day(date: str, name: str) -> datetime | None:
    if not (date := date.strip()):
        return None
    try:
        day = datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise ValueError(f"{name} is {date[:50]!r}. It is a date such as 2026-03-01, or empty.") from None
    return min(max(day, _EARLIEST), _LATEST)
