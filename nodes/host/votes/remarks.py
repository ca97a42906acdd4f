"""What Load Votes reports: numbers, and warnings about votes from which a model would learn the wrong thing."""

from collections import defaultdict
from collections.abc import Sequence

from ..run.messages import cut, plain
from .vote_set import VoteRow, VoteSet

_PROMPTS = 12  # that a report names
_FEW = 4  # likes or dislikes: trainers refuse less


def groups_of(rows: Sequence[VoteRow]) -> dict[str, list[VoteRow]]:
    """The rows of each prompt."""
    found = defaultdict(list)
    for row in rows:
        found[row.prompt].append(row)
    return found


def summary(found: VoteSet, voted: int) -> list[str]:
    """`voted`: how many votes there were to choose from."""
    rows = [*found.rows, *found.held_out]
    liked = sum(row.label > 0 for row in rows)
    pairs = len({row.pair for row in rows} - {None})
    held = f", {len(found.held_out)} of them held out" if found.held_out else ""
    lines = [f"{liked} likes and {len(rows) - liked} dislikes{held}; {pairs} pairs within a prompt."]
    if len(rows) < voted:
        lines.append(f"{voted - len(rows)} of {voted} votes are not used.")
    groups = sorted(groups_of(rows).values(), key=len, reverse=True)
    for group in groups[:_PROMPTS]:
        likes = sum(row.label > 0 for row in group)
        lines.append(f"{likes} liked, {len(group) - likes} disliked: {plain(cut(group[0].text, 100)) or '(no text)'}")
    if len(groups) > _PROMPTS:
        lines.append(f"... and {len(groups) - _PROMPTS} more prompts.")
    return lines


def warnings(rows: Sequence[VoteRow], empty: list | None) -> list[str]:
    """`empty`: the CONDITIONING of an empty prompt, or None."""
    found: list[str] = []
    likes, dislikes = ({row.prompt for row in rows if row.label == label} for label in (1, -1))
    if likes and dislikes:
        apart = sum(row.prompt not in likes & dislikes for row in rows)
        if 2 * apart > len(rows):
            found.append(
                f"Warning: {apart} of {len(rows)} votes are on prompts of which all images were liked, or all "
                "disliked: the model would learn the prompts and not the taste. Vote on several images of each prompt, "
                "both ways."
            )
    for name, label in (("likes", 1), ("dislikes", -1)):
        if (count := sum(row.label == label for row in rows)) < _FEW:
            found.append(f"Warning: there are {count} {name}; at least {_FEW} are needed, and 30 are better.")
    policies = {row.policy for row in rows}
    if len(policies) > 1:
        found.append(
            f"The images were made by {len(policies)} different models or LoRAs: training can count those of others "
            "less."
        )
    if empty is None:
        found.append("No empty prompt is known, which caption dropout needs: connect the CLIP.")
    return found
