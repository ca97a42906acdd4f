"""Additional prompts in a run, one of which is chosen for each image of the batch.

Relies on: `guider.conds` by name, all prepared by the host when a run starts (process_conds, comfy/samplers.py:773), of
which a guider evaluates only those it knows; `model_conds` of a prepared entry, whose tensors belong to the images row
by row where they have as many rows as the batch (comfy/conds.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..run import Run
from ..run.branch_chunks import branch_uuid

_Evaluate = Callable[[list[list[dict]]], list[Tensor]]  # prompts to their predictions


@dataclass(frozen=True, eq=False)
class References:
    """The prompts to choose from. `conditionings`: lists in the host's form, numbered from 1; number 0 is the guider's
    own prompt `zero`, "negative" or "positive"."""

    conditionings: tuple[list, ...]
    zero: str = "negative"

    def prompts(self, positive: list[dict]) -> dict[str, list[dict]]:
        """The prompts by name, to be added to a guider's before its run prepares them. `positive`: the guider's.

        Raises:
            ValueError: a prompt is encoded for another network than the positive.
        """
        converted = [comfy.sampler_helpers.convert_cond(each) for each in self.conditionings]
        wanted = _widths(positive)
        for width in set().union(*map(_widths, converted)) if wanted else ():
            if width not in wanted:
                raise ValueError(
                    f"A prompt to compare with has {width} channels per token, and the positive prompt {min(wanted)}. "
                    "Encode both with the CLIP of this model."
                )
        return {self._name(i): entries for i, entries in enumerate(converted, 1)}

    def _name(self, i: int) -> str:
        return f"guidekit_{id(self)}_{i}" if i else self.zero

    def together(self, run: Run, conds: dict[str, list[dict]], chosen: list[int]) -> list[dict] | None:
        """One prompt that is number `chosen[b]` for image b, from a running guider's `conds`; None where they cannot be
        joined in one."""
        prompts = {i: conds[self._name(i)] for i in set(chosen)}
        if len(prompts) == 1:
            return prompts[chosen[0]]
        if any(len(entries) != 1 for entries in prompts.values()):
            return None
        entry = joined([prompts[i][0] for i in chosen])
        return None if entry is None else [{**entry, "uuid": branch_uuid(run, (self, *chosen), entry["uuid"])}]

    def pick(
        self, run: Run, conds: dict[str, list[dict]], chosen: list[int], evaluate: _Evaluate
    ) -> tuple[Tensor, int]:
        """(predictions [B, ...], that of image b with prompt `chosen[b]`; number of evaluations): 1 where the prompts
        can be joined, else one for each different prompt."""
        one = self.together(run, conds, chosen)
        if one is not None:
            return evaluate([one])[0], 1
        kinds = sorted(set(chosen))
        found = evaluate([conds[self._name(i)] for i in kinds])
        return torch.stack([found[kinds.index(i)][b] for b, i in enumerate(chosen)]), len(kinds)

    def predict(self, run: Run, args: dict, chosen: list[int], place: int = 0) -> tuple[Tensor, int]:
        """`pick` by the run's own network. `args`: those of the host's post-CFG functions. For patches, the prompts
        count as the positive (`place` 0) or the negative (1)."""

        def evaluate(prompts: list[list[dict]]) -> list[Tensor]:
            if place:
                run.prompts.take_for_negative([entry for prompt in prompts for entry in prompt])
            conds, x, sigma, options = [None] * place + prompts, args["input"], args["sigma"], args["model_options"]
            return comfy.samplers.calc_cond_batch(args["model"], conds, x, sigma, options)[place:]

        return self.pick(run, run.prompts.by_name, chosen, evaluate)


def joined(entries: list[dict]) -> dict | None:
    """One prepared entry that is `entries[b]` for sample b of a batch; None where they do not fit into one."""
    conds = _joined([entry["model_conds"] for entry in entries])
    if conds is None or any(_rest(entry) != _rest(entries[0]) for entry in entries):
        return None
    return {**entries[0], "model_conds": conds}


def _widths(entries: list[dict]) -> set[int]:
    """Channels per token of the texts."""
    return {tokens.shape[-1] for entry in entries if (tokens := entry.get("cross_attn")) is not None}


def _joined(each: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The `model_conds` of a batch, from those of a prepared prompt for each image; None where they differ in shape."""
    if any(conds.keys() != each[0].keys() for conds in each):
        return None
    found = {}
    for name, first in each[0].items():
        values = [conds[name] for conds in each]
        if type(first) in (comfy.conds.CONDRegular, comfy.conds.CONDCrossAttn):
            if any(type(v) is not type(first) or v.cond.shape[1:] != first.cond.shape[1:] for v in values):
                return None
            found[name] = first._copy_with(torch.stack([v.cond[b % len(v.cond)] for b, v in enumerate(values)]))
        elif all(_is_same_for_all(v, first) for v in values):
            found[name] = first
        else:
            return None
    return found


def _is_same_for_all(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a.cond, Tensor):
        return isinstance(b.cond, Tensor) and a.cond.shape == b.cond.shape and torch.equal(a.cond, b.cond)
    return type(a.cond) in (int, float, bool, str, tuple, type(None)) and a.cond == b.cond


# The other options of an entry that the host reads for a prediction (get_area_and_mult, comfy/samplers.py:40).
_READ = (
    "area",
    "strength",
    "mask",
    "mask_strength",
    "timestep_start",
    "timestep_end",
    "hooks",
    "control",
    "gligen",
    "default",
)


def _rest(entry: dict) -> list:
    """What has to be equal in prompts that are joined: plain values by value, others by identity."""
    plain = (int, float, bool, str, tuple, type(None))
    return [value if isinstance(value := entry.get(name), plain) else id(value) for name in _READ]
