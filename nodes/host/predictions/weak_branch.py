"""Weak branches as nodes attach them: D = D_cfg(w) + sum_k s_k (D_c - weak_k), x0 space.

PAG, SEG and SLG are such a branch with its rows changed in some blocks. Each node adds a branch of its own, so that any
number of them can be combined.
"""

from collections.abc import Callable
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.guidance.cfg import cfg
from ....samplers.guidance.weak_branch import weak_branch
from ..network.blocks import can_resume, reach_blocks
from ..network.families import Block, order_of
from ..run import Run
from ..run.ranges import Range
from .branches import Branch, add_branch, prediction
from .corrections import add_correction


@dataclass(frozen=True, eq=False)
class WeakGuidance:
    """The correction s (D_c - weak), however weak is made. `rescale`: see samplers/guidance/weak_branch.py."""

    label: str
    scale: float
    rescale: str
    range: Range

    idle_reason = "the sampler never asked for a guided prediction (DualModelGuider at cfg 1 does not)."

    def why_idle(self, run: Run) -> str | None:
        return "the weakened prediction came out equal to the positive one." if self in run.notes else None

    def change(self, run: Run, args: dict, weak: Tensor) -> Tensor:
        """What to add to the guided prediction, [B, ...], x0 space, as `weak`."""
        run.notes[self] = True  # it was evaluated, whether or not anything changes
        cond = args["cond_denoised"]
        guided = cond
        if self.rescale == "full":  # only "full" uses it; without a negative, the host has scale 1
            guided = cfg(cond, args["uncond_denoised"], args["cond_scale"])
        streams = zip(*map(run.unpack, (cond, weak, guided)))
        return run.pack([weak_branch(c, k, self.scale, g, self.rescale) for c, k, g in streams])


@dataclass(frozen=True, eq=False)
class WeakBranch(WeakGuidance, Branch):
    """Guidance away from cond in a network that is weakened at `blocks(run)`."""

    blocks: Callable[[Run], frozenset[Block]]
    weakens = True
    resumes: bool  # whether the blocks before these can be shared with cond

    def conds(self, run: Run, conds: list) -> list[dict] | None:
        return conds[0] if self.range.active(run) and self.blocks(run) else None

    def first_block(self, run: Run) -> Block | None:
        if not self.resumes:
            run.remark(self, "Its weak prediction is computed whole: the blocks of this network cannot be replaced.")
            return None
        return min(self.blocks(run), key=order_of(run).__getitem__)

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        weak = prediction(run, args, self)
        return None if weak is None else self.change(run, args, weak)


def add_weak_branch(
    model: ModelPatcher,
    label: str,
    scale: float,
    rescale: str,
    range: Range,
    blocks: Callable[[Run], frozenset[Block]],
) -> WeakBranch:
    """Evaluates cond once more, weakened at the blocks `blocks(run)`, and guides away from it, on a (cloned) model. The
    caller adds what weakens it, for the branch that is returned.

    Raises:
        ValueError: a model of no known family.
    """
    branch = WeakBranch(label, scale, rescale, range, blocks, can_resume(model))
    if branch.resumes:
        reach_blocks(model)
    add_branch(model, branch)
    add_correction(model, branch)
    return branch


@dataclass(frozen=True)
class Always:
    """The same blocks in every step."""

    blocks: frozenset[Block]

    def __call__(self, run: Run) -> frozenset[Block]:
        return self.blocks
