"""The negative's prediction, seen or replaced by an estimate where it is not worth an evaluation.

Relies on: `sampler_calc_cond_batch_function` (comfy/samplers.py:618), which may return for the negative whatever later
hooks shall take for its prediction; conds [cond, uncond, ...], a None of which is not evaluated and gives zeros
(samplers.py:221). At cfg 1 the host gives None itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .run import Run, attach, current_run


class Negative(Protocol):
    """A technique that knows something about the negative's prediction."""

    def replaces(self, run: Run) -> bool:
        """Whether it stands in for the negative in this evaluation."""

    def see(self, run: Run, args: dict, cond: Tensor, uncond: Tensor | None) -> Tensor | None:
        """The negative's prediction for everybody else, given the evaluated ones (denoised; `uncond` None if it was
        replaced or nobody wanted it)."""


@dataclass(frozen=True, eq=False)
class _CalcCondBatch:
    technique: Negative
    inner: Callable[[dict], list[Tensor]] | None  # what had the slot before

    def __call__(self, args: dict) -> list[Tensor]:
        run, conds = current_run(args["model_options"]), list(args["conds"])
        wanted = conds[1] is not None
        replaced = wanted and self.technique.replaces(run)
        if replaced:
            conds[1] = None
        out = list(self._evaluate(args, conds))
        seen = self.technique.see(run, args, out[0], out[1] if wanted and not replaced else None)
        if replaced:
            run.acted.add(self.technique)
            out[1] = seen
        return out

    def _evaluate(self, args: dict, conds: list) -> list[Tensor]:
        if self.inner is not None:
            return self.inner({**args, "conds": conds})
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])


def watch_negative(model: ModelPatcher, technique: Negative) -> None:
    """Lets `technique` see the two predictions of CFG, and stand in for the negative's."""
    inner = model.model_options.get("sampler_calc_cond_batch_function")
    model.set_model_sampler_calc_cond_batch_function(_CalcCondBatch(technique, inner))
    attach(model, "negative", technique)
