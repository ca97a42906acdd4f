"""The slot for the function that evaluates a guider's prompts, shared by the subsystems that work there.

Relies on: `sampler_calc_cond_batch_function` (comfy/samplers.py:618), called with conds [cond, uncond] above context
windows; guiders that do not call it (PerpNeg, DualCFG, DualModel) evaluate their prompts by themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
from torch import Tensor

from .attach import current_run
from .run import Run

_SLOT = "sampler_calc_cond_batch_function"
_GIVEN = 2  # prompts that the host gives to the function, and all that one of another pack may know

Evaluate = Callable[[list], list[Tensor]]  # of prompts: their predictions, denoised
Stage = Callable[[Run, dict, Evaluate], list[Tensor]]


@dataclass(frozen=True, eq=False)
class _Slot:
    """`stage(run, args, evaluate)` gives the predictions for args["conds"]; `inner` is what had the slot before."""

    stage: Stage
    inner: Callable[[dict], list[Tensor]] | None

    def __call__(self, args: dict) -> list[Tensor]:
        def evaluate(conds: list) -> list[Tensor]:
            if self.inner is None:
                return evaluate_alone(args, conds)
            if isinstance(self.inner, _Slot):
                return list(self.inner({**args, "conds": conds}))
            return [*self.inner({**args, "conds": conds[:_GIVEN]}), *evaluate_alone(args, conds[_GIVEN:])]

        return self.stage(current_run(args["model_options"]), args, evaluate)


def take_slot(guider, stage: Stage) -> None:
    """For hooks of a run: puts `stage` around whatever evaluates the prompts."""
    options = guider.model_options
    options[_SLOT] = _Slot(stage, options.get(_SLOT))


def evaluate_alone(args: dict, conds: list) -> list[Tensor]:
    """In a call of the host's own. `args`: as for functions of a step."""
    if not conds:
        return []
    return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])
