"""The slot for the function that evaluates a guider's prompts, shared by several subsystems.

Relies on: `sampler_calc_cond_batch_function` (comfy/samplers.py:618), called with conds [cond, uncond], outside context
windows; guiders that do not call it (PerpNeg, DualCFG, DualModel) evaluate their prompts by themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
from torch import Tensor

from .attach import current_run
from .run import Run

_SLOT = "sampler_calc_cond_batch_function"
_GIVEN = 2  # prompts that the host passes to the function; a function of another pack may support no more

Evaluate = Callable[[list], list[Tensor]]  # prompts to their denoised predictions
Stage = Callable[[Run, dict, Evaluate], list[Tensor]]


@dataclass(frozen=True, eq=False)
class _Slot:
    """`stage(run, args, evaluate)` returns the predictions for args["conds"]; `inner`: the earlier function or None."""

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
    """For hooks of a run: puts `stage` around the function that evaluates the prompts."""
    options = guider.model_options
    options[_SLOT] = _Slot(stage, options.get(_SLOT))


def evaluate_alone(args: dict, conds: list) -> list[Tensor]:
    """The denoised predictions for `conds`, by the host's `calc_cond_batch`. `args`: those of the slot's function."""
    if not conds:
        return []
    return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])
