"""Which chunks of a network call belong to a branch (an extra prediction of ours).

Relies on: `transformer_options["uuids"]`, one per chunk, aligned with `cond_or_uncond` (comfy/samplers.py:322-326).
Chunks are recognised by uuid and never by index, because guiders pass different lists of prompts. The uuids are made
once per run, for caches that key on them.
"""

import uuid
from typing import Any

from .chunks import prompts
from .run import Run


class _Uuids:
    """State of one run, by branch: {uuid of the original entry: uuid of its copy on the branch}."""

    def __init__(self, run: Run):
        self.of: dict[Any, dict[uuid.UUID, uuid.UUID]] = {}


def branch_uuid(run: Run, branch: Any, original: uuid.UUID) -> uuid.UUID:
    """The uuid of a cond entry on `branch`, the same one throughout the run."""
    known = run.of(_Uuids).of.setdefault(branch, {})
    return known.setdefault(original, uuid.uuid4())


def chunks_of(run: Run, branch: Any, transformer_options: dict) -> list[int]:
    """The numbers of the chunks of the current network call that belong to `branch`, copies with reference latents
    included; chunk i is rows i * B to (i + 1) * B."""
    mine = set(run.of(_Uuids).of.get(branch, {}).values())
    return [i for i, (_, chunk) in enumerate(prompts(transformer_options)) if chunk in mine]
