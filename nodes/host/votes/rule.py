"""Votes by scores, or by a list of booleans."""

from collections.abc import Sequence
from typing import Any

from .offers import Shown
from .vote import DISLIKED, LIKED, UNDECIDED

ABOVE, BELOW = "above the threshold", "below the threshold"


def listed(
    images: Sequence, samples: Any, model: Any, positive: Any, negative: Any, tag: str, hidden: Any
) -> list[Shown]:
    """The inputs of a node that takes lists, entry by entry. The last entry of a shorter list also stands for the
    missing ones, as in the host."""

    def at(values: Sequence | None, index: int) -> Any:
        return values[min(index, len(values) - 1)] if values else None

    return [
        Shown(each, at(samples, i), at(model, i), at(positive, i), at(negative, i), tag, hidden, len(images) == 1)
        for i, each in enumerate(images)
    ]


def labels_of(
    count: int,
    scores: Sequence[float] | None,
    liked: Sequence[bool] | None,
    threshold: float,
    likes: str,
    margin: float,
) -> list[int]:
    """The label of each of `count` images. A score at the threshold is a dislike.

    Raises:
        ValueError: there is no rule or there are two, or not one value for each image.
    """
    if scores is not None and liked is None:
        _check_count(count, len(scores), "scores")
        side = 1 if likes == ABOVE else -1
        distances = [side * (score - threshold) for score in scores]
        return [UNDECIDED if margin and abs(each) <= margin else LIKED if each > 0 else DISLIKED for each in distances]
    if liked is not None and scores is None:
        _check_count(count, len(liked), "answers")
        return [LIKED if each else DISLIKED for each in liked]
    raise ValueError("Connect score or liked: one of them decides the votes.")


def _check_count(images: int, given: int, what: str) -> None:
    if given != images:
        raise ValueError(f"There are {images} images and {given} {what}. Give one for each.")
