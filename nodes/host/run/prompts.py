"""The prompts of a run: which of them are evaluated, and which chunks of a network call are for a negative.

Relies on: `conds` of a running guider by role (comfy/samplers.py:1299), entries with a uuid each; CALC_COND_BATCH
wrappers, which see the prompts that are evaluated (samplers.py:214).
"""

from functools import cached_property
from uuid import UUID

from .chunks import prompts

OURS = "guidekit_"  # begins the names of prompts that techniques give to a guider


def is_ours(name: str) -> bool:
    """Whether a technique has given the guider the prompt of this name."""
    return name.startswith(OURS)


class Prompts:
    """Those of one run. `evaluated_now`, `evaluated`: the names of the guider's prompts that were asked for in the
    current evaluation, and so far."""

    def __init__(self, guider):
        self._guider = guider
        self.evaluated_now: set[str] = set()
        self.evaluated: set[str] = set()
        self._in_its_place: set[UUID] = set()

    @property
    def by_name(self) -> dict[str, list[dict]]:
        """As the host has prepared them for this run."""
        return self._guider.conds

    @cached_property
    def _uuids(self) -> dict[str, set[UUID]]:
        """By name. Known once the run samples. The host gives a prompt the areas of the positive in entries with the
        same uuid, which are left out of it."""
        found = {name: {entry["uuid"] for entry in entries or ()} for name, entries in self.by_name.items()}
        positive = found.get("positive", set())
        return {name: uuids - positive if name != "positive" else uuids for name, uuids in found.items()}

    @cached_property
    def _negatives(self) -> tuple[set[UUID], set[UUID]]:
        """Of the guider's negative prompts, however it calls them, and of the others. Known once the run samples."""
        negative: set[UUID] = set()
        others: set[UUID] = set()
        for name, entries in self.by_name.items():
            (negative if "negative" in name else others).update(entry["uuid"] for entry in entries)
        return negative, others

    def begin_evaluation(self) -> None:
        self.evaluated_now = set()

    def see(self, conds: list) -> None:
        """The prompts of a call of the host's `calc_cond_batch`."""
        asked = {entry["uuid"] for entries in conds for entry in entries or ()}
        self.evaluated_now |= {name for name, uuids in self._uuids.items() if uuids & asked}
        self.evaluated |= self.evaluated_now

    @property
    def has_guided(self) -> bool:
        """Whether any other prompt than the positive has been evaluated so far."""
        return any(name != "positive" and not is_ours(name) for name in self.evaluated)

    def take_for_negative(self, entries: list[dict]) -> None:
        """What is evaluated in the negative's place counts as a negative prompt of the guider's."""
        self._in_its_place.update(entry["uuid"] for entry in entries)

    def negative_chunks(self, options: dict) -> tuple[bool, ...]:
        """Of each chunk of the current network call, whether it is for a negative prompt of the guider's."""
        negative, others = self._negatives
        # Entries with the areas of the positive have its uuid; these go by their place.
        return tuple(
            uuid in self._in_its_place or uuid in negative and (uuid not in others or place == 1)
            for place, uuid in prompts(options)
        )
