"""The prompts of a run: which of them are evaluated, and which chunks of a network call are for a negative.

Relies on: `conds` of a running guider by role (comfy/samplers.py:1299), entries with a uuid each; CALC_COND_BATCH
wrappers, which see the prompts that are evaluated (samplers.py:214).
"""

from functools import cached_property
from uuid import UUID

from .chunks import prompts

OURS = "guidekit_"  # prefix of the names of prompts that techniques add to a guider


def is_ours(name: str) -> bool:
    """Whether the prompt of this name was added to the guider by a technique."""
    return name.startswith(OURS)


class Prompts:
    """The prompts of one run. `evaluated_now`, `evaluated`: the names of the guider's prompts that were evaluated in
    the current evaluation, and so far in the run."""

    def __init__(self, guider):
        self._guider = guider
        self.evaluated_now: set[str] = set()
        self.evaluated: set[str] = set()
        self._in_its_place: set[UUID] = set()

    @property
    def by_name(self) -> dict[str, list[dict]]:
        """The guider's prompts as the host has prepared them for this run."""
        return self._guider.conds

    @cached_property
    def _uuids(self) -> dict[str, set[UUID]]:
        """The uuids of each prompt, by name; known once the run samples. For areas of the positive the host adds
        entries with the positive's uuid to other prompts; these are left out."""
        found = {name: {entry["uuid"] for entry in entries or ()} for name, entries in self.by_name.items()}
        positive = found.get("positive", set())
        return {name: uuids - positive if name != "positive" else uuids for name, uuids in found.items()}

    @cached_property
    def _negatives(self) -> tuple[set[UUID], set[UUID]]:
        """The uuids of the guider's negative prompts (all whose names contain "negative"), and those of the others;
        known once the run samples."""
        negative: set[UUID] = set()
        others: set[UUID] = set()
        for name, entries in self.by_name.items():
            (negative if "negative" in name else others).update(entry["uuid"] for entry in entries)
        return negative, others

    def begin_evaluation(self) -> None:
        self.evaluated_now = set()

    def see(self, conds: list) -> None:
        """Notes the prompts of a call of the host's `calc_cond_batch`."""
        asked = {entry["uuid"] for entries in conds for entry in entries or ()}
        self.evaluated_now |= {name for name, uuids in self._uuids.items() if uuids & asked}
        self.evaluated |= self.evaluated_now

    @property
    def has_guided(self) -> bool:
        """Whether a prompt of the guider's other than the positive has been evaluated so far."""
        return any(name != "positive" and not is_ours(name) for name in self.evaluated)

    def take_for_negative(self, entries: list[dict]) -> None:
        """Makes `entries`, which are evaluated in the negative's place, count as a negative prompt of the guider's."""
        self._in_its_place.update(entry["uuid"] for entry in entries)

    def negative_chunks(self, options: dict) -> tuple[bool, ...]:
        """For each chunk of the current network call, whether it is for a negative prompt of the guider's."""
        negative, others = self._negatives
        # Entries added for areas have the positive's uuid; for these the place decides.
        return tuple(
            uuid in self._in_its_place or uuid in negative and (uuid not in others or place == 1)
            for place, uuid in prompts(options)
        )
