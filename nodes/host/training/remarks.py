"""What is to be said of a training when it is over."""

import math
from collections.abc import Sequence

from .trainer import Point, Trainer

_SATURATED = 0.05  # mean h (1 - h), which is 0.25 at the start
_LAST = 0.25  # share of the steps that is looked at


def remarks(trainer: Trainer) -> list[str]:
    curve, settings, votes = trainer.curve, trainer.settings, trainer.votes
    last = curve[-max(1, round(_LAST * len(curve))) :]
    found = []
    liked, disliked = _mean(last, "liked"), _mean(last, "disliked")
    if not math.isnan(liked - disliked):
        found.append(
            f"Gain over the reference in the last steps: likes {liked:+.4g}, dislikes {disliked:+.4g}, a margin of "
            f"{liked - disliked:.4g}."
        )
    right = next((point for point in reversed(curve) if not math.isnan(point.right)), None)
    if right is not None:
        found.append(
            f"Of {len(votes.held_out)} votes that were held out, {right.right:.0%} of the pairs of a like and a "
            "dislike are told apart (50 % is chance)."
        )
    steepness = _mean(last, "steepness")
    if steepness < _SATURATED:
        found.append(
            f"Warning: most votes are saturated (h(1 - h) is {steepness:.3f} of 0.25), so that little more is learned. "
            "Lower beta, or take fewer steps."
        )
    if liked < 0 and disliked < 0 and disliked < 4 * liked:
        found.append(
            "Warning: likes are predicted worse than before, and dislikes much worse: images may break. Take fewer "
            "steps, a lower learning_rate, or a larger liked_share."
        )
    if settings.checkpointing and not trainer.checkpointing:
        found.append("checkpointing was off: other Guidekit nodes on the model act inside its network calls.")
    if settings.dropout and votes.empty is None:
        found.append("No image was shown without its prompt: connect the CLIP to Load Votes.")
    return found


def _mean(points: Sequence[Point], name: str) -> float:
    """NaN where it is known of none."""
    values = [value for point in points if not math.isnan(value := getattr(point, name))]
    return sum(values) / len(values) if values else math.nan
