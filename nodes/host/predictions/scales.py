"""Guidance scales that change from evaluation to evaluation.

Relies on: PREDICT_NOISE wrappers, which run once per evaluation, the last one innermost (comfy/samplers.py:1211);
guiders reading their scales in every evaluation; the host skipping the negative at scale 1 (samplers.py:609).
"""

from collections.abc import Callable

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..run import Run, attach, attach_hook, current_run, wrap_run
from ..run.further_rows import check_further_rows
from ..run.guiders import has_one_scale, limited_scale
from ..run.prompts import is_ours

Change = Callable[[Run, float], float]


def set_scale(model: ModelPatcher, change: Change) -> None:
    """Sets the guider's scale to `change(run, scale)` in each evaluation of a (cloned) model; before all limits, so
    that the order of nodes does not matter."""
    attach(model, "set scale", change)
    attach_hook(model, _wrap)


def limit_scale(model: ModelPatcher, change: Change) -> None:
    """Limits the scale of each evaluation, also one that other nodes have set, to `change(run, scale)`, which is nearer
    to 1; at 1 the host skips the negative."""
    attach(model, "limit scale", change)
    attach_hook(model, _wrap)


def saved(run: Run, change: Change) -> int:
    """The number of predictions that were not evaluated in the run because of `change`."""
    return run.of(_Saved).predictions.get(change, 0)


class ScaleChange:
    """Base of the techniques that change the scale."""

    idle_reason: str

    def why_idle(self, run: Run) -> str:
        if run.scale_is_lambda:
            return f"the sampler {run.sampler_name} takes cfg as CFG++'s lambda. Use one without cfg_pp."
        if not run.prompts.has_guided:
            return "no negative prompt was evaluated: cfg is 1, or the guider has none."
        if self in run.of(_Saved).preceded:
            return "another node had brought the scale to 1 before it."
        return self.idle_reason


class _Saved:
    """State of one run. `predictions`: how many each technique has saved; `preceded`: techniques that would have saved
    some if another had not done so first; `usual`: the prompts that are evaluated where nothing is limited."""

    def __init__(self, run: Run):
        self.predictions: dict[Change, int] = {}
        self.preceded: set[Change] = set()
        self.usual: set[str] = set()


def _wrap(run: Run, guider) -> None:
    for change in run.techniques.get("set scale", ()):
        check_further_rows(run, change)  # the negative's, at cfg 1 too
    # Innermost, so that a scale set by other nodes (CFGOverride) is limited too.
    wrap_run(guider, WrappersMP.PREDICT_NOISE, _predict, outermost=False)


def _predict(executor, x: Tensor, timestep: Tensor, *args, **kwargs):
    guider = executor.class_obj
    run = current_run(guider.model_options)
    if run.scale_is_lambda:
        return executor(x, timestep, *args, **kwargs)
    before = guider.cfg
    try:
        if has_one_scale(guider):
            for change in run.techniques.get("set scale", ()):
                guider.cfg, old = change(run, guider.cfg), guider.cfg
                run.acted.update([change] if guider.cfg != old else [])
        limit = _Limit(run)
        with limited_scale(guider, limit):
            out = executor(x, timestep, *args, **kwargs)
        limit.count()
        return out
    finally:
        guider.cfg = before


class _Limit:
    """All limits of one evaluation, applied one after the other."""

    def __init__(self, run: Run):
        self.run, self.off = run, None  # off: the technique that has set a scale to 1

    def __call__(self, scale: float) -> float:
        given = scale
        for change in self.run.techniques.get("limit scale", ()):
            if self.off is not None and change(self.run, given) != given:
                self.run.of(_Saved).preceded.add(change)
            old, scale = scale, change(self.run, scale)
            if scale != old:
                self.run.acted.add(change)
                self.off = self.off or (change if scale == 1 else None)
        return scale

    def count(self) -> None:
        """Counts, after the evaluation, the predictions that were not evaluated."""
        saved, evaluated = self.run.of(_Saved), self.run.prompts.evaluated_now
        if self.off is None:
            saved.usual |= evaluated
            return
        left_out = (saved.usual or self.run.prompts.by_name.keys()) - evaluated - {"positive"}
        number = sum(not is_ours(name) for name in left_out)
        saved.predictions[self.off] = saved.predictions.get(self.off, 0) + number
