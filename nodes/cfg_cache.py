"""CFG-Cache (from FasterCache, Lv et al., ICLR 2025, arXiv 2410.19355), with a guard of our own."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.cfg_cache import estimate, evaluates, first_reuse, missed, strengths
from .host.inputs import checked
from .host.inputs.shared import RangedNode, range_inputs
from .host.predictions.branches import Branch, BranchCache, keep_branches
from .host.predictions.negative import Negative, watch_negative
from .host.run import Part, Run
from .host.run.ranges import Range
from .host.run.raw_predictions import from_raw, to_raw


class _Check:
    """What the estimate in an evaluated step would have missed in the worst sample. It lies on the device until
    somebody has to know it, once in a step. `reused`: whether steps before it were given such estimates; `before`: the
    check before."""

    def __init__(self, error: Tensor, limit: float, reused: bool, before: "_Check | None"):
        self._error, self._limit, self._reused, self._before = error, limit, reused, before

    @cached_property
    def error(self) -> float:
        return self._error.item()

    @property
    def above(self) -> bool:
        """Whether that is too much for the next step."""
        return self.error > self._limit

    @cached_property
    def failed(self) -> bool:
        """Whether it was too much where it had been relied on, now or before."""
        return self._reused and self.above or self._before is not None and self._before.failed


@dataclass(frozen=True, eq=False)
class _Kept:
    """What an evaluated step leaves: the differences of the outputs, by stream."""

    step: int
    differences: list[Tensor]
    check: _Check | None  # in the first one there was no estimate


@dataclass
class _Notes:
    """Of one run: the checks by step, and how often no evaluation was made."""

    checks: dict[int, _Check] = field(default_factory=dict)
    reused: int = 0
    waited: bool = False  # in a step in which it could have been reused, for an estimate had missed too much
    unwanted: bool = False  # in a step in which it could have been reused

    @property
    def errors(self) -> str:
        """By step."""
        return ", ".join(f"{step + 1}: {check.error:.2f}" for step, check in self.checks.items())

    @property
    def failed(self) -> bool:
        return any(check.failed for check in self.checks.values())


@dataclass(frozen=True)
class _Of(Part):
    """The cache for one prediction: the negative's, or that of a branch."""

    technique: Any
    prediction: Any


@dataclass(frozen=True, eq=False)
class _Cache(Negative, BranchCache):
    every: int
    warm_up: float
    limit: float
    low: float
    high: float
    range: Range

    label = "CFG-Cache"
    turn = 0
    sees_estimates = False  # its limit is on what estimates miss of evaluations
    idle_reason = "there are too few steps to leave an evaluation out."

    # The negative

    def replaces(self, run: Run) -> bool:
        return self._reuses(run, None)

    def stand_in(self, run: Run, args: dict, cond: Tensor) -> Tensor:
        return self._estimated(run, args, cond, None)

    def see(self, run: Run, args: dict, cond: Tensor, uncond: Tensor | None) -> None:
        if uncond is not None:
            self._keep(run, args, cond, uncond, None)
        elif self._may_reuse(run):
            self._notes(run, None).unwanted = True

    # Weak branches, each by itself

    def replaces_branch(self, run: Run, branch: Branch) -> bool:
        return self._reuses(run, branch)

    def branch_stand_in(self, run: Run, args: dict, cond: Tensor, branch: Branch) -> Tensor:
        return self._estimated(run, args, cond, branch)

    def see_branch(self, run: Run, args: dict, cond: Tensor, weak: Tensor, branch: Branch) -> None:
        self._keep(run, args, cond, weak, branch)

    # Both

    def _notes(self, run: Run, prediction: Any) -> _Notes:
        return run.notes.setdefault(self, {}).setdefault(prediction, _Notes())

    def _may_reuse(self, run: Run) -> bool:
        return self.range.active(run) and not evaluates(run.step, run.steps, self._first(run), self.every)

    def _reuses(self, run: Run, prediction: Any) -> bool:
        if not self._may_reuse(run):
            return False
        kept = run.memory(_Of(self, prediction)).read()
        if kept is None:
            return False
        if kept.check is not None and (kept.check.above or kept.check.failed):
            self._notes(run, prediction).waited = True
            return False
        return True

    def _first(self, run: Run) -> int:
        return first_reuse(self.warm_up, run.steps)

    def _outputs(self, run: Run, args: dict, denoised: Tensor) -> list[Tensor]:
        """Of the network, by stream."""
        return run.unpack(to_raw(run.model_sampling, args["input"], denoised, args["sigma"]))

    def _estimates(self, run: Run, cond: list[Tensor], kept: _Kept) -> list[Tensor]:
        times = strengths(kept.step, run.step, run.steps, self.low, self.high)
        return [estimate(c, d, *times) for c, d in zip(cond, kept.differences)]

    def _estimated(self, run: Run, args: dict, cond: Tensor, prediction: Any) -> Tensor:
        kept = run.memory(_Of(self, prediction)).read()
        found = run.pack(self._estimates(run, self._outputs(run, args, cond), kept))
        self._notes(run, prediction).reused += 1
        return from_raw(run.model_sampling, args["input"], found, args["sigma"])

    def _keep(self, run: Run, args: dict, cond: Tensor, other: Tensor, prediction: Any) -> None:
        if not self.range.active(run):
            return
        memory = run.memory(_Of(self, prediction))
        conds, others = (self._outputs(run, args, d) for d in (cond, other))
        check = None
        if (before := memory.read()) is not None:
            streams = zip(self._estimates(run, conds, before), others, conds)
            error = torch.stack([missed(*stream).max() for stream in streams]).max()
            # Behind the last step there is nothing to end.
            reused = before.step < run.step - 1 and run.step < run.steps - 1
            check = _Check(error, self.limit, reused, before.check)
            self._notes(run, prediction).checks.setdefault(run.step, check)
        memory.write(_Kept(run.step, [o - c for o, c in zip(others, conds)], check))

    # What it says

    def why_idle(self, run: Run) -> str | None:
        if run.why_unknown_steps:
            return f"each step might be the last, which is evaluated: {run.why_unknown_steps}"
        for notes in run.notes.get(self, {}).values():
            if notes.waited:
                return f"estimates missed more of the guidance than limit {self.limit:g}. By step: {notes.errors}."
            if notes.unwanted and run.prompts.has_guided:
                return "where the negative could have been reused, another node had brought the scale to 1."
        return super().why_idle(run)

    def summary(self, run: Run) -> str:
        told = []
        for prediction, notes in run.notes[self].items():
            what = "negative" if prediction is None else f"weak prediction of {prediction.label}"
            stopped = ""
            if notes.failed:
                stopped = f" An estimate missed more than limit {self.limit:g}: nothing was reused from there on."
            number = f"{notes.reused} evaluation{'s' * (notes.reused != 1)}"
            told.append(
                f"{number} of the {what} saved in {run.steps} steps.{stopped} What estimates would have missed of the "
                f"guidance, by evaluated step: {notes.errors}."
            )
        return " ".join(told)


class CFGCache(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitCFGCache",
            display_name="CFG-Cache",
            category="guidekit/guidance",
            description="CFG in less time: behind the first third of the run only every fifth step evaluates the "
            "negative prompt, the others take its last difference to the positive. Guidance goes on to the end. In "
            "every evaluated step it is measured what an estimate would have missed; above a limit nothing is reused "
            "any more.",
            search_aliases=[
                "CFG-Cache",
                "CFG-Cache of FasterCache",
                "cache",
                "reuse negative",
                "video speed",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model, any latent: image, video or audio."),
                io.Int.Input(
                    "every",
                    default=5,
                    min=1,
                    max=100,
                    step=1,
                    tooltip="Of how many steps one is evaluated, behind warm_up: 5 is the paper's. 1 is off, 2 is the "
                    "safest.",
                ),
                io.Float.Input(
                    "warm_up",
                    default=0.333,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of the steps, the first ones, that are evaluated in any case. The paper's is a "
                    "third.",
                ),
                io.Float.Input(
                    "limit",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Largest share of the guidance that an estimate may miss, in the worst sample of the "
                    "batch: 0 is a perfect estimate, 1 as bad as no guidance, 2 as guidance the other way round. While "
                    "one would miss more, reusing waits; once one that was used has missed more, it ends. The run "
                    "reports the shares.",
                ),
                io.Boolean.Input(
                    "weak_too",
                    default=True,
                    tooltip="The same for the weak predictions of PAG, SEG, SLG and Autoguidance on this model, each "
                    "by itself. At cfg 1 too.",
                ),
                io.Float.Input(
                    "low",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    tooltip="What the low frequencies of the difference are multiplied by in every reused step, from a "
                    "tenth to nine tenths of the run. FasterCache has 1.1 for videos; 1 takes them as they were.",
                    advanced=True,
                ),
                io.Float.Input(
                    "high",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    tooltip="The same for the high frequencies, in the last three tenths of the run.",
                    advanced=True,
                ),
                *range_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with CFG-Cache.")],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, model, every, warm_up, limit, weak_too, low, high, start_percent, end_percent) -> io.NodeOutput:
        model = model.clone()
        if every > 1 and warm_up < 1:
            technique = _Cache(
                every=every,
                warm_up=warm_up,
                limit=limit,
                low=low,
                high=high,
                range=Range(start_percent, end_percent),
            )
            watch_negative(model, technique)
            if weak_too:
                keep_branches(model, technique)
        return io.NodeOutput(model)
