"""The negative's prediction, seen or replaced by an estimate where it is not worth an evaluation.

Relies on: the function in the slot (slot.py) may return for the negative whatever later hooks shall take for its
prediction; conds [cond, uncond, ...], a None of which is not evaluated and gives zeros (comfy/samplers.py:221). At
cfg 1 the host gives None itself.
"""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..run import Run, attach, attach_hook
from ..run.prompt_slot import Evaluate, take_slot


class Negative:
    """A technique that looks at the negative's prediction, or stands in for it. `evaluates`: it asks the network for
    what it puts there; techniques that do not, come first."""

    evaluates = False
    needs_negative = True

    def why_idle(self, run: Run) -> str | None:
        """The reason that all of these techniques may have to do nothing."""
        if self in run.of(_Watched).left_out:
            return "another node before it stands in for the negative. Take one of the two off the model."
        if run.prompts.has_guided and not run.of(_Watched).asked:
            return (
                f"{type(run.guider).__name__} evaluates its prompts by itself, so that no node can take the negative's "
                "place. Use KSampler or CFGGuider."
            )
        return None

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


def _stage(run: Run, args: dict, evaluate: Evaluate) -> list[Tensor]:
    conds = list(args["conds"])
    techniques = sorted(run.techniques["negative"], key=lambda t: t.evaluates)
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
    for technique in techniques:
        if technique is not chosen:
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
    """Of one run: whether the guider has ever asked here for its predictions; `left_out`: techniques in whose place
    another one stood in for the negative."""

    def __init__(self, run: Run):
        self.asked = False
        self.left_out: set[Negative] = set()


def watch_negative(model: ModelPatcher, technique: Negative) -> None:
    """Lets `technique` see the two predictions of CFG, and stand in for the negative's."""
    attach(model, "negative", technique)
    attach_hook(model, _hook)


def _hook(run: Run, guider) -> None:
    take_slot(guider, _stage)
