"""The chunks of a network call: one for each prompt, and copies of these with reference latents in place of x.

Relies on: `transformer_options["cond_or_uncond"]` and `["uuids"]`, one entry for each chunk, chunk i being rows i * B
to (i + 1) * B (comfy/samplers.py:322-326). Calls with copies keep this form, so that other packs can read them too.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

_COPIES = "guidekit_copies"


@dataclass(eq=False)
class Copy:
    """A copy of chunk `of` that differs only in its latents, which come from `rider`."""

    rider: Any
    of: int


@dataclass(eq=False)
class Chunk:
    """A chunk of the current network call: its number, whether its prompt is a negative of the guider's, and, if it is
    a copy, of which chunk."""

    number: int
    negative: bool
    copy: Copy | None


def copies(transformer_options: dict) -> dict[int, Copy]:
    """The copies among the chunks of the current network call, by number."""
    return transformer_options.get(_COPIES, {})


def with_copies(transformer_options: dict, added: list[Copy], uuids: list[UUID]) -> dict:
    """The options of a call with the copies `added`, which have the `uuids`, behind its chunks. A call that has none in
    this step is given an empty list: a compiled network needs the same option names in every step."""
    known, places = len(transformer_options["cond_or_uncond"]), transformer_options["cond_or_uncond"]
    return {
        **transformer_options,
        "cond_or_uncond": [*places, *(_aside(places[copy.of]) for copy in added)],
        "uuids": [*transformer_options["uuids"], *uuids],
        _COPIES: {**copies(transformer_options), **{known + i: copy for i, copy in enumerate(added)}},
    }


def prompts(transformer_options: dict) -> list[tuple[int, UUID]]:
    """For each chunk, the place (`cond_or_uncond`) and uuid of its prompt; a copy has those of its original."""
    known = list(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"]))
    ridden = copies(transformer_options)
    return [known[ridden[i].of] if i in ridden else known[i] for i in range(len(known))]


def _aside(place: int) -> int:
    """The place of a copy: -2 for the positive (0), -1 for the negative (1). Code that searches for 0 or 1 does not
    find it, and code that indexes [positive, negative][place] gets what belongs to its prompt."""
    return place - 2 if place in (0, 1) else -1 - place


def chunks(negative: tuple[bool, ...], transformer_options: dict) -> tuple[Chunk, ...]:
    """The chunks of the current network call. `negative`: for each, whether its prompt is a negative."""
    ridden = copies(transformer_options)
    return tuple(Chunk(i, each, ridden.get(i)) for i, each in enumerate(negative))
