"""The chunks of a network call: one for each prompt, and copies of these that ride along with other latents.

Relies on: `transformer_options["cond_or_uncond"]` and `["uuids"]`, one entry for each chunk, chunk i being rows i * B
to (i + 1) * B (comfy/samplers.py:322-326). With copies it is still so, for whoever reads them, other packs too.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

_COPIES = "guidekit_copies"


@dataclass(eq=False)
class Copy:
    """A chunk that is chunk `of` in everything but its latents, which are those of `rider`."""

    rider: Any
    of: int


@dataclass(eq=False)
class Chunk:
    """One of the current network call: its number in it, whether its prompt is the guider's negative, and what it is a
    copy of, if it rides along."""

    number: int
    negative: bool
    copy: Copy | None


def copies(transformer_options: dict) -> dict[int, Copy]:
    """The chunks of the current network call that ride along."""
    return transformer_options.get(_COPIES, {})


def with_copies(transformer_options: dict, added: list[Copy], uuids: list[UUID]) -> dict:
    """The options of a call that has `added` behind its chunks. Where it may have some it says so when it has none: a
    compiled network wants the same names in its options in every step."""
    known, places = len(transformer_options["cond_or_uncond"]), transformer_options["cond_or_uncond"]
    return {
        **transformer_options,
        "cond_or_uncond": [*places, *(_aside(places[copy.of]) for copy in added)],
        "uuids": [*transformer_options["uuids"], *uuids],
        _COPIES: {**copies(transformer_options), **{known + i: copy for i, copy in enumerate(added)}},
    }


def prompts(transformer_options: dict) -> list[tuple[int, UUID]]:
    """Of each chunk the place and the uuid of its prompt; of a copy those of the chunk that it is a copy of."""
    known = list(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"]))
    ridden = copies(transformer_options)
    return [known[ridden[i].of] if i in ridden else known[i] for i in range(len(known))]


def _aside(place: int) -> int:
    """The place of a copy. Whoever looks for the positive (0) or the negative (1) does not find it, and whoever has
    something for these two, as [positive, negative][place], finds what its prompt gets."""
    return place - 2 if place in (0, 1) else -1 - place


def chunks(negative: tuple[bool, ...], transformer_options: dict) -> tuple[Chunk, ...]:
    """Those of the current network call, given which of them are negatives."""
    ridden = copies(transformer_options)
    return tuple(Chunk(i, each, ridden.get(i)) for i, each in enumerate(negative))
