"""Corrections of the guided prediction, added after CFG.

Relies on: the `sampler_post_cfg_function` list (comfy/samplers.py:602-606), called in order with `denoised` (the result
so far), `cond_denoised` and `uncond_denoised` (never changed by it), `uncond` (None when the host did not evaluate it:
`uncond_denoised` is then zeros) and `cond_scale`. Because each correction is added and reads only predictions that no
correction changes, their order does not matter, and other packs' functions in the same list keep working.
"""

from collections.abc import Callable
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .run import Run, attach, current_run


@dataclass(frozen=True, eq=False)
class _PostCFG:
    correction: Callable[[Run, dict], Tensor | None]

    def __call__(self, args: dict) -> Tensor:
        run = current_run(args["model_options"])
        change = self.correction(run, args)
        if change is None:
            return args["denoised"]
        run.acted.add(self.correction)
        return args["denoised"] + change


@dataclass(frozen=True, eq=False)
class _Look:
    observer: Callable[[Run, dict], None]

    def __call__(self, args: dict) -> Tensor:
        self.observer(current_run(args["model_options"]), args)
        return args["denoised"]


def observe(model: ModelPatcher, observer: Callable[[Run, dict], None]) -> None:
    """Shows `observer(run, args)` each guided prediction and the two it is made of. For a technique that is attached
    already."""
    model.set_model_sampler_post_cfg_function(_Look(observer))


def add_correction(model: ModelPatcher, correction: Callable[[Run, dict], Tensor | None]) -> None:
    """Adds `correction(run, args)` to each guided prediction; None leaves it untouched, to the bit."""
    attach(model, "corrections", correction)
    model.set_model_sampler_post_cfg_function(_PostCFG(correction))
