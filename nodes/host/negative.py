"""The negative's prediction, seen or replaced by an estimate where it is not worth an evaluation.

Relies on: `sampler_calc_cond_batch_function` (comfy/samplers.py:618), which may return for the negative whatever later
hooks shall take for its prediction; conds [cond, uncond, ...], a None of which is not evaluated and gives zeros
(samplers.py:221). At cfg 1 the host gives None itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .run import KEY, Run, attach, current_run


class Negative:
    """A technique that looks at the negative's prediction, or stands in for it. `evaluates`: it asks the network for
    what it puts there; techniques that do not, come first."""

    evaluates = False

    def replaces(self, run: Run) -> bool:
        """Whether the negative is not to be evaluated this time."""
        return False

    def instead(self, run: Run) -> list[dict] | None:
        """A prompt that is evaluated in the negative's place, and taken for it; None for the negative itself."""
        return None

    def stand_in(self, run: Run, args: dict, cond: Tensor) -> Tensor:
        """The prediction to take for the negative's, where it is replaced; denoised, as `cond` is."""
        raise NotImplementedError

    def see(self, run: Run, args: dict, cond: Tensor, uncond: Tensor | None) -> None:
        """Shown what goes for the two predictions elsewhere; `uncond` is None where nobody wanted it (cfg 1)."""


@dataclass(frozen=True, eq=False)
class _CalcCondBatch:
    inner: Callable[[dict], list[Tensor]] | None  # what had the slot before

    def __call__(self, args: dict) -> list[Tensor]:
        run, conds = current_run(args["model_options"]), list(args["conds"])
        techniques = sorted(run.techniques["negative"], key=lambda t: t.evaluates)
        wanted = conds[1] is not None
        chosen = next((t for t in techniques if wanted and t.replaces(run)), None)
        if chosen is not None:
            conds[1] = None
            run.acted.add(chosen)
        elif wanted:
            conds[1] = self._instead(run, techniques) or conds[1]
        out = list(self._evaluate(args, conds))
        if chosen is not None:
            out[1] = chosen.stand_in(run, args, out[0])
        for technique in techniques:
            if technique is not chosen:
                technique.see(run, args, out[0], out[1] if wanted else None)
        return out

    def _instead(self, run: Run, techniques: list[Negative]) -> list[dict] | None:
        for technique in techniques:
            if (prompt := technique.instead(run)) is not None:
                run.acted.add(technique)
                return prompt
        return None

    def _evaluate(self, args: dict, conds: list) -> list[Tensor]:
        if self.inner is not None:
            return self.inner({**args, "conds": conds})
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])


def watch_negative(model: ModelPatcher, technique: Negative) -> None:
    """Lets `technique` see the two predictions of CFG, and stand in for the negative's."""
    if not model.model_options.get(KEY, {}).get("negative"):
        inner = model.model_options.get("sampler_calc_cond_batch_function")
        model.set_model_sampler_calc_cond_batch_function(_CalcCondBatch(inner))
    attach(model, "negative", technique)
