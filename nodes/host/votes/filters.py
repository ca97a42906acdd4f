"""Which of the stored images are meant."""

from collections.abc import Mapping
from dataclasses import dataclass

VOTES = {"liked": (1,), "disliked": (-1,), "undecided": (0,), "decided": (1, -1), "all": (1, 0, -1)}
_LONGEST = 500  # characters


@dataclass(frozen=True)
class Filter:
    """`model`, `lora`: a part of the file's name, whatever its case; `tag`: the whole; "" is any. `since`, `until`:
    seconds since 1970, of the vote, or of being shown where there is none."""

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
    """Of a request's query. Raises ValueError."""
    texts = {name: given[name][:_LONGEST] for name in ("votes", "model", "lora", "tag") if given.get(name)}
    times = {}
    for name in ("since", "until"):
        if text := given.get(name):
            try:
                times[name] = float(text)
            except ValueError:
                raise ValueError(f"{name} is {text[:50]!r}. It is a time in seconds since 1970.") from None
    return Filter(**texts, **times)
