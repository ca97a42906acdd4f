"""D = D_cfg(w) + sum_k s_k (D_c - weak_k): weak branches as the nodes attach them.

PAG, SEG and SLG are this branch with something done to its rows in some blocks; each node puts its own, so that any
number of them ride together.
"""

from collections.abc import Callable
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...samplers.guidance.cfg import cfg
from ...samplers.guidance.weak_branch import RESCALE, weak_branch
from .blocks import can_resume, reach_blocks
from .branches import Branch, add_branch, chunks_of, prediction
from .choice import TOOLTIP as BLOCKS_TOOLTIP
from .corrections import add_correction
from .families import Block
from .lora_difference import shared_difference
from .ranges import Range
from .row_lora import Difference, add_row_lora
from .run import Run
from .second import SecondModel, add_second_model


@dataclass(frozen=True, eq=False)
class WeakGuidance:
    """The correction s (D_c - weak), whichever way weak is made."""

    label: str
    scale: float
    rescale: str
    range: Range

    idle_reason = "the sampler never asked for a guided prediction (DualModelGuider at cfg 1 does not)."

    def why_idle(self, run: Run) -> str | None:
        return "the weakened prediction came out equal to the positive one." if self in run.notes else None

    def change(self, run: Run, args: dict, weak: Tensor) -> Tensor:
        """What to add to the guided prediction."""
        run.notes[self] = True  # it was asked, whether or not anything changes
        cond = args["cond_denoised"]
        guided = cfg(cond, args["uncond_denoised"], args["cond_scale"])  # without a negative, the host has scale 1
        streams = zip(*map(run.unpack, (cond, weak, guided)))
        return run.pack([weak_branch(c, k, self.scale, g, self.rescale) for c, k, g in streams])


@dataclass(frozen=True, eq=False)
class WeakBranch(WeakGuidance, Branch):
    """Away from cond in a network that is weakened at `blocks(run)`."""

    blocks: Callable[[Run], frozenset[Block]]
    resumes: bool  # whether the blocks before can be shared with cond

    def conds(self, run: Run, conds: list) -> list[dict] | None:
        return conds[0] if self.range.active(run) and self.blocks(run) else None

    def first_block(self, run: Run) -> Block | None:
        if not self.resumes:
            run.say(
                f"{self.label}: the weak prediction is computed whole; here blocks of this network cannot be replaced."
            )
            return None
        return min(self.blocks(run), key=run.order.get)

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        weak = prediction(run, args, self)
        return None if weak is None else self.change(run, args, weak)


@dataclass(frozen=True, eq=False)
class WeakLora(WeakGuidance, Branch):
    """Away from cond with other LoRAs."""

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
    """Away from the prediction of a second model."""

    second: SecondModel

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        if not self.range.active(run):
            return None
        return self.change(run, args, self.second.predict(run, args["input"], args["sigma"]))


def add_weak_branch(
    model: ModelPatcher,
    label: str,
    scale: float,
    rescale: str,
    range: Range,
    blocks: Callable[[Run], frozenset[Block]],
) -> WeakBranch:
    """Evaluates cond once more, weakened at the blocks that `blocks(run)` gives, and guides away from it. What weakens
    it is for the caller to add, with the branch returned."""
    branch = WeakBranch(label, scale, rescale, range, blocks, can_resume(model))
    if branch.resumes:
        reach_blocks(model)
    add_branch(model, branch)
    add_correction(model, branch)
    return branch


def add_weak_model(
    model: ModelPatcher, weak: ModelPatcher, label: str, scale: float, rescale: str, range: Range
) -> None:
    """Guides away from what `weak` predicts for the same positive, x and sigma: in the same network call where it is
    the same network with other LoRAs."""
    difference = shared_difference(model, weak)
    if difference is None:
        second = add_second_model(model, weak, label, WeakGuidance.idle_reason)
        add_correction(model, WeakModel(label, scale, rescale, range, second))
        return
    if not difference:
        raise ValueError("The weak model is the model itself, so that nothing lies between them. Connect a worse one.")
    branch = WeakLora(label, scale, rescale, range, difference)
    add_row_lora(model, branch)
    add_branch(model, branch)
    add_correction(model, branch)


@dataclass(frozen=True)
class Always:
    """The same blocks in every step."""

    blocks: frozenset[Block]

    def __call__(self, run: Run) -> frozenset[Block]:
        return self.blocks


def scale_input(default: float) -> io.Float.Input:
    return io.Float.Input(
        "scale",
        default=default,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.001,
        tooltip="How far to go away from the weakened prediction, beside CFG: cfg + scale * (positive - weakened). "
        "0 is off and costs nothing.",
    )


def blocks_input() -> io.String.Input:
    return io.String.Input("blocks", default="", tooltip=BLOCKS_TOOLTIP)


def random_seed_input(tooltip: str) -> io.Int.Input:
    # Not "seed": the frontend would change it after every run.
    return io.Int.Input("random_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, step=1, tooltip=tooltip, advanced=True)


def rescale_input() -> io.Combo.Input:
    return io.Combo.Input(
        "rescale",
        options=list(RESCALE),
        default="off",
        tooltip="Against contrast that grows with the scale, each sample by itself. partial: this guidance is made "
        "smaller by as much as it widens the positive prediction. full: the whole result, CFG included, gets the "
        "spread of the positive prediction.",
        advanced=True,
    )
