"""Likes and dislikes of one prompt, two by two."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Voted(Protocol):
    label: int


_Some = TypeVar("_Some", bound=Voted)


def pairs_in(votes: Sequence[_Some], names: Sequence[str | None], prompts: Sequence[str]) -> list[tuple[_Some, _Some]]:
    """(liked, disliked), each vote in one pair at most: first those that share a name, which an import has given; then
    those that share a prompt, in the order of the votes."""
    named = defaultdict(list)
    for vote, name in zip(votes, names):
        if name is not None:
            named[name].append(vote)
    pairs = [_sorted(group) for group in named.values() if sorted(vote.label for vote in group) == [-1, 1]]
    taken = {id(vote) for pair in pairs for vote in pair}
    groups = defaultdict(lambda: ([], []))
    for vote, prompt in zip(votes, prompts):
        if id(vote) not in taken:
            groups[prompt][vote.label < 0].append(vote)
    return pairs + [pair for liked, disliked in groups.values() for pair in zip(liked, disliked)]


def _sorted(group: list[_Some]) -> tuple[_Some, _Some]:
    liked, disliked = sorted(group, key=lambda vote: -vote.label)
    return liked, disliked
