"""Corrections of the guided prediction, added after CFG; and what takes the place of all of it.

Relies on: the `sampler_post_cfg_function` list (comfy/samplers.py:602-606), called in order with `denoised` (the result
so far), `cond_denoised` and `uncond_denoised` (never changed by it), `uncond` (None when the host did not evaluate it:
`uncond_denoised` is then zeros) and `cond_scale`. Because each correction is added and reads only predictions that no
correction changes, their order does not matter, and other packs' functions in the same list keep working.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..run import Run, attach, attach_hook, current_run


class _Changes:
    """State of one run: whether each correction has changed anything, as tensors, so that nothing waits for the
    device."""

    def __init__(self, run: Run):
        self._any: dict[Any, Tensor] = {}
        run.at_end(self._tell)

    def note(self, correction: Any, change: Tensor) -> None:
        found = change.any()
        self._any[correction] = self._any[correction] | found if correction in self._any else found

    def _tell(self, run: Run) -> None:
        run.acted.update(correction for correction, found in self._any.items() if found)


@dataclass(frozen=True, eq=False)
class _PostCFG:
    correction: Callable[[Run, dict], Tensor | None]

    def __call__(self, args: dict) -> Tensor:
        run = current_run(args["model_options"])
        change = self.correction(run, args)
        if change is None:
            return args["denoised"]
        run.of(_Changes).note(self.correction, change)
        return args["denoised"] + change


@dataclass(frozen=True, eq=False)
class _Observe:
    observer: Callable[[Run, dict], None]

    def __call__(self, args: dict) -> Tensor:
        self.observer(current_run(args["model_options"]), args)
        return args["denoised"]


def observe(model: ModelPatcher, observer: Callable[[Run, dict], None]) -> None:
    """Calls `observer(run, args)` after CFG in each evaluation, with the host's args of post-CFG functions: the guided
    prediction and the two it is made of. Does not attach the observer as a technique."""
    model.set_model_sampler_post_cfg_function(_Observe(observer))


def add_correction(model: ModelPatcher, correction: Callable[[Run, dict], Tensor | None]) -> None:
    """Adds `correction(run, args)`, [B, ...] in x0 space, to each guided prediction; None leaves it bit-identical.
    `args`: those of the host's post-CFG functions."""
    attach(model, "corrections", correction)
    model.set_model_sampler_post_cfg_function(_PostCFG(correction))


class Result:
    """A technique that now and then puts something else in the place of the guided prediction."""

    def why_idle(self, run: Run) -> str | None:
        """The reason that all of these techniques may have to do nothing."""
        return "another node had put a result in the place of its own." if self in run.of(_Replaced).left_out else None

    def result(self, run: Run, args: dict) -> Tensor | None:
        """What the sampler is given, whatever other nodes have added; None for what they have made."""
        raise NotImplementedError


class _Replaced:
    """Of one run, `left_out`: techniques whose result another one's took the place of."""

    def __init__(self, run: Run):
        self.left_out: set[Result] = set()


def _results(args: dict) -> Tensor:
    run = current_run(args["model_options"])
    made = ((technique, technique.result(run, args)) for technique in run.techniques["results"])
    found = [(technique, result) for technique, result in made if result is not None]
    run.of(_Replaced).left_out.update(technique for technique, _ in found[1:])
    if not found:
        return args["denoised"]
    technique, result = found[0]
    run.acted.add(technique)
    return result


def replace_result(model: ModelPatcher, technique: Result) -> None:
    """Lets `technique` have the last word, behind all corrections, other packs' too."""
    attach(model, "results", technique)
    attach_hook(model, _come_last)


def _come_last(run: Run, guider) -> None:
    options = guider.model_options
    options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", ()), _results]
