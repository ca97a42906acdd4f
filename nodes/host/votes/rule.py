"""Votes of many images at once, by their scores."""

from collections.abc import Sequence
from typing import Any

from .offers import Shown
from .vote import DISLIKED, LIKED, UNDECIDED

ABOVE, BELOW = "above the threshold", "below the threshold"


def listed(
    images: Sequence, samples: Any, model: Any, positive: Any, negative: Any, tag: str, hidden: Any
) -> list[Shown]:
    """Of a node that takes lists: the last entry of the shorter ones holds for the rest, as the host has it."""

    def at(values: Sequence | None, index: int) -> Any:
        return values[min(index, len(values) - 1)] if values else None

    return [
        Shown(each, at(samples, i), at(model, i), at(positive, i), at(negative, i), tag, hidden, len(images) == 1)
        for i, each in enumerate(images)
    ]


def labels_of(
    count: int, scores: Sequence | None, liked: Sequence | None, threshold: float, likes: str, margin: float
) -> list[int]:
    """Of each of `count` images. Raises ValueError where there is no rule, or none for each."""
    if not (scores is None) ^ (liked is None):
        raise ValueError("Connect score or liked: one of them says what is liked.")
    given = scores if liked is None else liked
    if len(given) != count:
        raise ValueError(
            f"There are {count} images and {len(given)} {'scores' if liked is None else 'answers'}. Give one for each."
        )
    if liked is not None:
        return [LIKED if each else DISLIKED for each in liked]
    side = 1 if likes == ABOVE else -1
    distances = [side * (score - threshold) for score in scores]
    return [UNDECIDED if margin and abs(each) <= margin else LIKED if each > 0 else DISLIKED for each in distances]
