"""Gradient-Free Classifier Guidance (Shenoy, Pan, Balakrishnan et al., WACV 2026, arXiv 2411.15393): a classifier says
what an image is mistaken for, and guidance leads away from that.

That a classifier is used in inference only, that a reference class adapted to the step takes the place of the
unconditional prediction, and that the scale follows the confusion is the paper's; the formulas are this pack's (see
samplers/guidance/gfcg.py).
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.gfcg import MEASURES, guidance_update
from .host.classifiers.confusion import Confusion, Verdict, verdict
from .host.classifiers.decode import Decoder, vae_input
from .host.classifiers.labels import Candidates, CandidatesType, Classifier, ClassifierType, load_beside
from .host.inputs import check_prompt_for, checked
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import RangedNode, range_inputs
from .host.models.second_model import SecondModel, add_second_model
from .host.predictions.branches import Branch, add_branch, prediction
from .host.predictions.corrections import add_correction
from .host.predictions.negative import Negative, watch_negative
from .host.predictions.per_sample_prompts import References
from .host.run import Run
from .host.run.messages import cut, quoted
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range

LABEL = "Gradient-Free Classifier Guidance (GFCG)"
ADD, SWAP, AUTOGUIDANCE = "add to CFG", "in place of the negative", "autoguidance"


@dataclass
class _Notes:
    """State of one run: how often each candidate was guided away from, and evaluations beyond the guider's own."""

    against: Counter = field(default_factory=Counter)
    evaluations: int = 0


@dataclass(frozen=True, eq=False)
class _GFCG:
    """What the three combinations share."""

    candidates: Candidates
    references: References
    confusion: Confusion
    scale: float
    threshold: float
    use_previous_step: bool
    range: Range

    label = LABEL
    idle_reason = "the classifier was never in doubt."

    def begin(self, run: Run, guider) -> None:
        self.confusion.decoder.check(run, LABEL)
        guider.conds |= self.references.prompts(guider.conds["positive"])

    def look(self, run: Run, denoised: Tensor) -> tuple[Verdict, list[int]]:
        """The classifier's verdict on this step, and the prompt that each image is guided away from, 0 for none. With
        use_previous_step the prompts are those that the step before has found, and the verdict is on them."""
        now = self.confusion(run, denoised)
        if not self.lags(run):
            return now, now.chosen(self.threshold)
        before, chosen = run.memory(self).read(), self.foreseen(run)
        run.memory(self).write(now)
        if not chosen:
            return now, [0] * len(denoised)
        return verdict(now.p, self.confusion.measure, before.reference), chosen

    def lags(self, run: Run) -> bool:
        """Also beside EasyCache, which wraps the network itself: a candidate that is evaluated in a call of its own
        would be fresh beside a positive from the cache."""
        wrappers = run.model_options["transformer_options"]["wrappers"].get(WrappersMP.DIFFUSION_MODEL, {})
        return self.use_previous_step or "easycache" in wrappers

    def foreseen(self, run: Run) -> list[int] | None:
        """With use_previous_step, the prompts that this step will want, if any."""
        before = run.memory(self).read() if self.lags(run) and self.range.active(run) else None
        chosen = before.chosen(self.threshold) if before else []
        return chosen if any(chosen) else None

    def note(self, run: Run, chosen: list[int], evaluations: int) -> None:
        notes = run.notes.setdefault(self, _Notes())
        notes.against.update(self.candidates.labels[k].word for k in chosen if k)
        notes.evaluations += evaluations

    def summary(self, run: Run) -> str:
        notes = run.notes.get(self, _Notes())
        against = ", ".join(f"{cut(word, 60)} {count}" for word, count in notes.against.most_common(5)) or "nothing"
        asked = self.confusion.asked(run)
        return (
            f"led away from {against} (images and steps); {notes.evaluations} more evaluations, classifier asked "
            f"{asked} times."
        )


@dataclass(frozen=True, eq=False)
class _Add(_GFCG, Branch):
    """D = D_cfg + scale confusion (D_c - D_k)."""

    def conds(self, run: Run, conds: list) -> list[dict] | None:
        chosen = self.foreseen(run)
        return None if chosen is None else self.references.together(run, run.prompts.by_name, _filled(chosen))

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        if not self.range.active(run):
            return None
        cond = args["cond_denoised"]
        said, chosen = self.look(run, cond)
        if not any(chosen):
            return None
        reference, evaluations = prediction(run, args, self), 1
        if reference is None:
            reference, evaluations = self.references.predict(run, args, _filled(chosen))
        self.note(run, chosen, evaluations)
        strength = self.scale * said.confusion * torch.tensor(chosen).bool()
        return guidance_update(cond, reference, strength)


@dataclass(frozen=True, eq=False)
class _Swap(_GFCG, Negative):
    """CFG away from the most confusing candidate where there is confusion, from the negative elsewhere."""

    turn = 2

    def replaces(self, run: Run) -> bool:
        """Not where one prompt can be evaluated in the negative's place: with use_previous_step it is known before."""
        chosen = self.foreseen(run)
        return self.range.active(run) and (
            not self.lags(run) or chosen is not None and self._prompt(run, chosen) is None
        )

    def instead(self, run: Run) -> list[dict] | None:
        chosen = self.foreseen(run)
        return None if chosen is None else self._prompt(run, chosen)

    def _prompt(self, run: Run, chosen: list[int]) -> list[dict] | None:
        return self.references.together(run, run.prompts.by_name, chosen)

    def stand_in(self, run: Run, args: dict, cond: Tensor) -> Tensor:
        _, chosen = self.look(run, cond)
        found, evaluations = self.references.predict(run, args, chosen, place=1)
        self.note(run, chosen, evaluations - 1)  # the negative's is saved
        return found

    def see(self, run: Run, args: dict, cond: Tensor, uncond: Tensor | None) -> None:
        if self.lags(run) and self.range.active(run) and uncond is not None:
            _, chosen = self.look(run, cond)
            self.note(run, chosen, evaluations=0)


@dataclass(frozen=True, eq=False)
class _Auto(_GFCG):
    """D = D_cfg + scale (D_c - W_k): autoguidance by a worse model that is shown the most confusing candidate, or the
    positive where there is no confusion."""

    second: SecondModel

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        if not self.range.active(run):
            return None
        _, chosen = self.look(run, args["cond_denoised"])
        weak, evaluations = self.second.predict_chosen(run, args["input"], args["sigma"], chosen)
        self.note(run, chosen, evaluations)
        return self.scale * (args["cond_denoised"] - weak)


def _filled(chosen: list[int]) -> list[int]:
    """Images without a reference take that of another one, which is evaluated anyway."""
    some = next(k for k in chosen if k)
    return [k or some for k in chosen]


class GFCG(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitGFCG",
            display_name=LABEL,
            category="guidekit/guidance",
            description="A classifier looks at every step's image and says what it could be mistaken for; guidance "
            "leads away from that, as far as the classifier is in doubt. For prompts that models confuse.",
            search_aliases=["GFCG", "classifier guidance", "gradient-free", "confusion", "CLIP guidance", "class"],
            inputs=[
                io.Model.Input("model", tooltip="Any model that makes images or videos."),
                ClassifierType.Input("classifier", tooltip="From CLIP Classifier or Image Classifier."),
                CandidatesType.Input("candidates", tooltip="From Candidates: what the image shall be first."),
                io.Float.Input(
                    "scale",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How far to go away from the confusing candidate where confusion is 1. 0 is off and costs "
                    "nothing.",
                ),
                io.Combo.Input(
                    "combination",
                    options=[ADD, SWAP, AUTOGUIDANCE],
                    default=ADD,
                    tooltip="add to CFG: beside it. in place of the negative: CFG itself leads away from the "
                    "candidate, at the guider's cfg. autoguidance: a worse model is shown the candidate.",
                ),
                io.Combo.Input(
                    "measure",
                    options=list(MEASURES),
                    default="miss",
                    tooltip="Of confusion, from the classifier's probabilities. miss: 1 - that of the target. margin: "
                    "the wrong one's share of both. max: that of the wrong one. const: always 1.",
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Of the classifier's softmax: above 1 makes it less sure of itself.",
                    advanced=True,
                ),
                io.Float.Input(
                    "threshold",
                    default=0.02,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Confusion up to this counts as none, and costs no evaluation.",
                    advanced=True,
                ),
                io.Int.Input(
                    "classifier_interval",
                    default=1,
                    min=1,
                    max=100,
                    step=1,
                    tooltip="Ask the classifier every N steps; in between, its last result is reused.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "use_previous_step",
                    default=False,
                    tooltip="Take the candidate that the step before has found, so that all is one network call.",
                    advanced=True,
                ),
                *range_inputs(),
                vae_input(),
                io.Model.Input("weak_model", optional=True, tooltip="For autoguidance: a worse model of the family."),
            ],
            outputs=[io.Model.Output(tooltip="The model with GFCG."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        classifier: Classifier,
        candidates: Candidates,
        scale,
        combination,
        measure,
        temperature,
        threshold,
        classifier_interval,
        use_previous_step,
        start_percent,
        end_percent,
        vae=None,
        weak_model=None,
    ) -> io.NodeOutput:
        candidates.check()
        if combination == AUTOGUIDANCE and weak_model is None:
            raise ValueError(
                "combination is 'autoguidance', but nothing is connected to weak_model. Connect a worse model."
            )
        for label, prompt in zip(candidates.labels[1:], candidates.conditionings[1:]):
            asked_of = weak_model if combination == AUTOGUIDANCE else model
            check_prompt_for(asked_of, prompt, f"The candidate {quoted(label.word)}")
        logits = classifier.among(candidates.labels)
        model = model.clone()
        if scale == 0 and combination != SWAP:
            return with_report(model, report="")
        references = References(candidates.conditionings[1:], "positive" if combination == AUTOGUIDANCE else "negative")
        settings: dict[str, Any] = {
            "candidates": candidates,
            "references": references,
            "confusion": Confusion(logits, Decoder(vae), measure, temperature, classifier_interval),
            "scale": scale,
            "threshold": threshold,
            "use_previous_step": use_previous_step,
            "range": Range(start_percent, end_percent),
        }
        rest = {"scale": scale} if combination == SWAP else {}
        rest |= {"weak_model": weak_model} if combination != AUTOGUIDANCE else {}
        report = tell_settings(cls, unused(cls, f"with combination '{combination}'", **rest))
        load_beside(model, classifier, vae)
        if combination == SWAP:
            watch_negative(model, _Swap(**settings))
        elif combination == AUTOGUIDANCE:
            second = add_second_model(model, weak_model, references)
            add_correction(model, _Auto(**settings, second=second))
        else:
            technique = _Add(**settings)
            add_branch(model, technique)
            add_correction(model, technique)
        return with_report(model, report=report)
