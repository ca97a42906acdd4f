"""Guidance away from a second model, or from the same one with other LoRAs (formula: predictions/weak_branch.py)."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..predictions.branches import Branch, add_branch, prediction
from ..predictions.corrections import add_correction
from ..predictions.weak_branch import WeakGuidance
from ..run import Run
from ..run.branch_chunks import chunks_of
from ..run.ranges import Range
from .lora_difference import shared_difference
from .row_lora import Difference, add_row_lora
from .second_model import SecondModel, add_second_model


@dataclass(frozen=True, eq=False)
class WeakLora(WeakGuidance, Branch):
    """Guidance away from cond with other LoRAs."""

    weakens = True
    difference: Difference

    def conds(self, run: Run, conds: list) -> list[dict] | None:
        return conds[0] if self.range.active(run) else None

    def chunks(self, run: Run, options: dict) -> list[int]:
        return chunks_of(run, self, options)

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        weak = prediction(run, args, self)
        return None if weak is None else self.change(run, args, weak)


@dataclass(frozen=True, eq=False)
class WeakModel(WeakGuidance):
    """Guidance away from the prediction of a second model."""

    second: SecondModel

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        if not self.range.active(run):
            return None
        return self.change(run, args, self.second.predict(run, args["input"], args["sigma"]))


def add_weak_model(
    model: ModelPatcher, weak: ModelPatcher, label: str, scale: float, rescale: str, range: Range
) -> None:
    """Guides a (cloned) model away from the prediction of `weak` for the same positive, x and sigma; in the same
    network call if it is the same network with other LoRAs.

    Raises:
        ValueError: `weak` is the model itself, or does not share its latents or noise.
    """
    difference = shared_difference(model, weak)
    if difference is None:
        second = add_second_model(model, weak)
        add_correction(model, WeakModel(label, scale, rescale, range, second))
        return
    if not difference:
        raise ValueError("The weak model is the model itself, so there is nothing to guide by. Connect a worse one.")
    branch = WeakLora(label, scale, rescale, range, difference)
    add_row_lora(model, branch)
    add_branch(model, branch)
    add_correction(model, branch)
