"""Pairs of a liked and a disliked image of one prompt."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Voted(Generic[_Item]):
    """A vote that may be paired. `label`: positive is liked; `name`: that of the pair that an import gave it, or None;
    `prompt`: the same for votes on one prompt."""

    item: _Item
    label: int
    name: str | None
    prompt: str


def pairs_in(votes: Sequence[Voted[_Item]]) -> list[tuple[Voted[_Item], Voted[_Item]]]:
    """Pairs (liked, disliked), each vote in at most one: first those that share a name, then those that share a prompt,
    in the order of the votes."""
    pairs: list[tuple[Voted[_Item], Voted[_Item]]] = []
    taken: set[int] = set()
    for group in _grouped([(vote.name, vote) for vote in votes if vote.name is not None]):
        liked, disliked = _sides(group)
        if len(liked) == len(disliked) == 1:
            pairs.append((liked[0], disliked[0]))
            taken.update(map(id, group))
    for group in _grouped([(vote.prompt, vote) for vote in votes if id(vote) not in taken]):
        pairs.extend(zip(*_sides(group)))
    return pairs


def _grouped(named: Sequence[tuple[str, Voted[_Item]]]) -> list[list[Voted[_Item]]]:
    groups: dict[str, list[Voted[_Item]]] = defaultdict(list)
    for name, vote in named:
        groups[name].append(vote)
    return list(groups.values())


def _sides(group: Sequence[Voted[_Item]]) -> tuple[list[Voted[_Item]], list[Voted[_Item]]]:
    return [vote for vote in group if vote.label > 0], [vote for vote in group if vote.label <= 0]
