"""Further prompts in a run, of which each picture of the batch is compared with its own.

Relies on: `guider.conds` by name, all prepared by the host when a run starts (process_conds, comfy/samplers.py:773),
of which a guider evaluates those that it knows; `model_conds` of a prepared entry, whose tensors are taken row by row
where they have as many rows as the batch (comfy/conds.py).
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

_Evaluate = Callable[[list[list[dict]]], list[Tensor]]  # of prompts, a prediction for each


@dataclass(frozen=True, eq=False)
class References:
    """`conditionings`: the host's lists, counted from 1; 0 is the guider's prompt of the name `zero`, "negative" or
    "positive"."""

    conditionings: tuple[list, ...]
    zero: str = "negative"

    def prompts(self) -> dict[str, list[dict]]:
        """To be given to a guider, under their names, before its run prepares what it has."""
        prepared = map(comfy.sampler_helpers.convert_cond, self.conditionings)
        return {self._name(i): entries for i, entries in enumerate(prepared, 1)}

    def _name(self, i: int) -> str:
        return f"guidekit_{id(self)}_{i}" if i else self.zero

    def together(self, run: Run, conds: dict[str, list[dict]], chosen: list[int]) -> list[dict] | None:
        """One prompt that is `chosen[b]` for picture b, of a running guider's `conds`; None where they do not fit into
        one."""
        prompts = {i: conds[self._name(i)] for i in set(chosen)}
        if len(prompts) == 1:
            return prompts[chosen[0]]
        if any(len(entries) != 1 for entries in prompts.values()):
            return None
        entry = joined([prompts[i][0] for i in chosen])
        return entry and [{**entry, "uuid": branch_uuid(run, (self, *chosen), entry["uuid"])}]

    def pick(
        self, run: Run, conds: dict[str, list[dict]], chosen: list[int], evaluate: _Evaluate
    ) -> tuple[Tensor, int]:
        """(the prediction for picture b with prompt `chosen[b]`, how many evaluations it took): one where they fit into
        one prompt, else one for each prompt."""
        one = self.together(run, conds, chosen)
        if one is not None:
            return evaluate([one])[0], 1
        kinds = sorted(set(chosen))
        found = evaluate([conds[self._name(i)] for i in kinds])
        return torch.stack([found[kinds.index(i)][b] for b, i in enumerate(chosen)]), len(kinds)

    def predict(self, run: Run, args: dict, chosen: list[int], place: int = 0) -> tuple[Tensor, int]:
        """`pick`, by the run's own network; `args` as the host gives them to functions of a step. For patches that look
        at it, the prompts count as the positive (place 0) or the negative (1)."""

        def evaluate(prompts: list[list[dict]]) -> list[Tensor]:
            if place:
                run.prompts.take_for_negative([entry for prompt in prompts for entry in prompt])
            at = args["input"], args["sigma"], args["model_options"]
            return comfy.samplers.calc_cond_batch(args["model"], [None] * place + prompts, *at)[place:]

        return self.pick(run, run.prompts.by_name, chosen, evaluate)


def joined(entries: list[dict]) -> dict | None:
    """One prepared entry that is `entries[b]` for picture b of a batch; None where they do not fit into one."""
    conds = _joined([entry["model_conds"] for entry in entries])
    if conds is None or any(_rest(entry) != _rest(entries[0]) for entry in entries):
        return None
    return {**entries[0], "model_conds": conds}


def _joined(each: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of prepared prompts, one for each picture, the rows for these pictures; None where they differ in shape."""
    if any(conds.keys() != each[0].keys() for conds in each):
        return None
    found = {}
    for name, first in each[0].items():
        values = [conds[name] for conds in each]
        if type(first) in (comfy.conds.CONDRegular, comfy.conds.CONDCrossAttn):
            if any(type(v) is not type(first) or v.cond.shape[1:] != first.cond.shape[1:] for v in values):
                return None
            found[name] = first._copy_with(torch.stack([v.cond[b % len(v.cond)] for b, v in enumerate(values)]))
        elif all(_same(v, first) for v in values):
            found[name] = first
        else:
            return None
    return found


def _same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a.cond, Tensor):
        return isinstance(b.cond, Tensor) and a.cond.shape == b.cond.shape and torch.equal(a.cond, b.cond)
    return type(a.cond) in (int, float, bool, str, tuple, type(None)) and a.cond == b.cond


# What else of an entry the host reads for a prediction (get_area_and_mult, comfy/samplers.py:40).
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
    """Only prompts that are alike in it are joined: numbers by value, the rest by identity."""
    plain = (int, float, bool, str, tuple, type(None))
    return [value if isinstance(value := entry.get(name), plain) else id(value) for name in _READ]
