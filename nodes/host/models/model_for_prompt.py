"""Another model that predicts the negative, or is mixed into the positive, in a run of the first.

Where the two are one network with different LoRAs, both predict in the same network call, with the difference on the
rows of the other only. Else it is a second model; if it shares the first one's weights, it gets a copy of them.
"""

from dataclasses import dataclass

import comfy.sampler_helpers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..predictions.branches import Branch, add_branch, prediction
from ..predictions.corrections import add_correction
from ..predictions.negative import Negative, watch_negative
from ..run import Run
from ..run.branch_chunks import chunks_of
from ..run.ranges import Range
from .lora_difference import shared_difference
from .row_lora import Difference, add_row_lora
from .second_model import SecondModel, add_second_model

SHARED = "in the same network call, on the weights that both share"
SEPARATE = "in a network call of its own, on weights of its own"
_SAG = "comfy_extras.nodes_sag"  # reads the attention of the negative (nodes_sag.py:150)
_IDLE = "the sampler never asked for a guided prediction."


@dataclass(frozen=True, eq=False)
class _SharedNegative:
    label: str
    range: Range
    difference: Difference

    idle_reason = _IDLE
    needs_negative = True

    def chunks(self, run: Run, options: dict) -> list[int]:
        if not self.range.active(run):
            return []
        found = [i for i, negative in enumerate(run.prompts.negative_chunks(options)) if negative]
        if found:
            run.acted.add(self)
        return found


@dataclass(frozen=True, eq=False)
class _OtherNegative(Negative):
    label: str
    range: Range
    second: SecondModel

    turn = 2
    idle_reason = _IDLE

    def begin(self, run: Run, guider) -> None:
        functions = guider.model_options.get("sampler_post_cfg_function", ())
        if any(getattr(each, "__module__", "") == _SAG for each in functions):
            raise ValueError(
                f"SelfAttentionGuidance (SAG) blurs by this model's attention to the negative, which another model "
                f"predicts for {self.label}. Take one of the two off the model."
            )

    def replaces(self, run: Run) -> bool:
        return self.range.active(run)

    def stand_in(self, run: Run, args: dict, cond: Tensor) -> Tensor:
        return self.second.predict(run, args["input"], args["sigma"])


def predict_negative_by(model: ModelPatcher, other: ModelPatcher, label: str, range: Range) -> str:
    """Lets `other` predict the negative of a (cloned) model; returns in which way, SHARED or SEPARATE.

    Raises:
        ValueError: the two are the same, or do not share latents or noise.
    """
    difference = shared_difference(model, other)
    if difference is None:
        second = add_second_model(model, other, role="negative")
        watch_negative(model, _OtherNegative(label, range, second))
        return SEPARATE
    if not difference:
        raise ValueError("The other model is the model itself. Connect one with other LoRAs or other weights.")
    add_row_lora(model, _SharedNegative(label, range, difference))
    return SHARED


@dataclass(frozen=True, eq=False)
class Mixture:
    """Replaces the positive's prediction D_c by m D_c + (1 - m) D_o: m is `model_weight`, D_o the other model's
    prediction for `prompt`, or for the positive where that is None. After CFG at scale w this adds w (1 - m) (D_o -
    D_c), x0 space."""

    label: str
    range: Range
    model_weight: float
    prompt: list | None

    idle_reason = _IDLE

    def change(self, args: dict, other: Tensor) -> Tensor:
        return args["cond_scale"] * (1 - self.model_weight) * (other - args["cond_denoised"])


@dataclass(frozen=True, eq=False)
class _SharedMixture(Mixture, Branch):
    difference: Difference

    def begin(self, run: Run, guider) -> None:
        if self.prompt is not None:
            guider.conds[self._name] = comfy.sampler_helpers.convert_cond(self.prompt)

    @property
    def _name(self) -> str:
        return f"guidekit_{id(self)}"

    def conds(self, run: Run, conds: list) -> list[dict] | None:
        if not self.range.active(run):
            return None
        return conds[0] if self.prompt is None else run.prompts.by_name[self._name]

    def chunks(self, run: Run, options: dict) -> list[int]:
        return chunks_of(run, self, options)

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        other = prediction(run, args, self)
        return None if other is None else self.change(args, other)


@dataclass(frozen=True, eq=False)
class _OtherMixture(Mixture):
    second: SecondModel

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        if not self.range.active(run):
            return None
        return self.change(args, self.second.predict(run, args["input"], args["sigma"]))


def mix_in(
    model: ModelPatcher, other: ModelPatcher, label: str, range: Range, model_weight: float, prompt: list | None
) -> str:
    """Mixes the prediction of `other` into the positive of a (cloned) model, see `Mixture`; returns in which way,
    SHARED or SEPARATE.

    Raises:
        ValueError: the two do not share latents or noise.
    """
    difference = shared_difference(model, other)
    if difference is None:
        second = add_second_model(model, other, prompt=prompt)
        add_correction(model, _OtherMixture(label, range, model_weight, prompt, second))
        return SEPARATE
    technique = _SharedMixture(label, range, model_weight, prompt, difference)
    add_row_lora(model, technique)
    add_branch(model, technique)
    add_correction(model, technique)
    return SHARED
