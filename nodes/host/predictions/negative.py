"""The negative's prediction: observed, or replaced by an estimate or another prompt's.

Relies on: the function in the slot (run/prompt_slot.py), whose result for the negative is what all later hooks use;
conds [cond, uncond, ...], where None is not evaluated and gives zeros (comfy/samplers.py:221). At cfg 1 the host itself
passes None for the negative.
"""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..run import Run, attach, attach_hook
from ..run.prompt_slot import Evaluate, take_slot

_EVALUATED = 2  # the turn of those that evaluate a network instead


class Negative:
    """A technique that observes the negative's prediction, or replaces it. `turn`: of those that could replace it in
    one evaluation the one with the lowest does, whatever the order of nodes: a kept difference (0) before an estimate
    from other steps (1), and both before what needs a network evaluation (2)."""

    turn = 1
    needs_negative = True
    sees_estimates = True  # whether `see` is for predictions, too, that others have estimated

    def why_idle(self, run: Run) -> str | None:
        """Why the technique did nothing, for the reasons that all of these share; None if it is not one of them."""
        if self in run.of(_Watched).left_out:
            return "another node before it stands in for the negative. Take one of the two off the model."
        if run.prompts.has_guided and not run.of(_Watched).asked:
            return (
                f"{type(run.guider).__name__} evaluates its prompts by itself, so that no node can take the negative's "
                "place. Use KSampler or CFGGuider."
            )
        return None

    def replaces(self, run: Run) -> bool:
        """Whether the technique replaces the negative's prediction in this evaluation."""
        return False

    def instead(self, run: Run) -> list[dict] | None:
        """A prompt to evaluate instead of the negative, which then counts as the negative; None for the negative
        itself."""
        return None

    def stand_in(self, run: Run, args: dict, cond: Tensor) -> Tensor:
        """The prediction to use for the negative's where it is replaced: denoised, [B, ...], as `cond`."""
        raise NotImplementedError

    def see(self, run: Run, args: dict, cond: Tensor, uncond: Tensor | None) -> None:
        """Called with the two predictions that all later hooks use; `uncond` is None where it is not needed (cfg 1)."""


def _stage(run: Run, args: dict, evaluate: Evaluate) -> list[Tensor]:
    conds = list(args["conds"])
    techniques = sorted(run.techniques["negative"], key=lambda t: t.turn)
    run.of(_Watched).asked = True
    wanted = conds[1] is not None
    able = [t for t in techniques if wanted and t.replaces(run)]
    chosen = able[0] if able else None
    run.of(_Watched).left_out.update(able[1:])
    if chosen is not None:
        conds[1] = None
        run.acted.add(chosen)
    elif wanted:
        conds[1] = _instead(run, techniques) or conds[1]
    out = list(evaluate(conds))
    if chosen is not None:
        out[1] = chosen.stand_in(run, args, out[0])
    estimated = chosen is not None and chosen.turn < _EVALUATED
    for technique in techniques:
        if technique is not chosen and (technique.sees_estimates or not estimated):
            technique.see(run, args, out[0], out[1] if wanted else None)
    return out


def _instead(run: Run, techniques: list[Negative]) -> list[dict] | None:
    for technique in techniques:
        if (prompt := technique.instead(run)) is not None:
            run.acted.add(technique)
            run.prompts.take_for_negative(prompt)
            return prompt
    return None


class _Watched:
    """State of one run. `asked`: whether the guider has called the slot; `left_out`: techniques that could not replace
    the negative because another one did."""

    def __init__(self, run: Run):
        self.asked = False
        self.left_out: set[Negative] = set()


def watch_negative(model: ModelPatcher, technique: Negative) -> None:
    """Lets `technique` observe the two predictions of CFG, and replace the negative's, on a (cloned) model."""
    attach(model, "negative", technique)
    attach_hook(model, _hook)


def _hook(run: Run, guider) -> None:
    take_slot(guider, _stage)
