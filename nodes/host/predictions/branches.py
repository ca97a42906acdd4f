"""Extra predictions (weak, reference, perturbed ones): in the same batched network call as cond and uncond, or, where
a branch equals cond up to some block, in a second call that resumes from there. Where the guider evaluates its prompts
by itself, they are evaluated after CFG.

Relies on: `calc_cond_batch`, which accepts any number of conds and splits the batch by memory (comfy/samplers.py:206,
273-284); the positive's entries in `args["cond"]` of post-CFG functions.
"""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..network.families import Block, order_of
from ..network.shared_prefix import Prefix, Sharing
from ..run import Run, attach, attach_hook
from ..run.branch_chunks import branch_uuid
from ..run.further_rows import check_further_rows
from ..run.partial_calls import know_rows
from ..run.prompt_slot import Evaluate, evaluate_alone, take_slot


class Branch:
    """An extra prediction; `prediction(run, args, branch)` returns it."""

    weakens = False  # it is cond in a weakened network, so that it stays near to it from step to step

    def conds(self, run: Run, conds: list) -> list[dict] | None:
        """The entries to evaluate, made from the host's list [cond, uncond, ...]; None for no prediction."""
        raise NotImplementedError

    def first_block(self, run: Run) -> Block | None:
        """For a branch that is cond in a changed network: the first block that is changed; the blocks before are then
        not computed again. None: all blocks are computed, in the same call as cond."""
        return None


class BranchCache:
    """A technique that stands in for the prediction of weak branches where it is not worth an evaluation."""

    def replaces_branch(self, run: Run, branch: Branch) -> bool:
        """Whether `branch` is not to be evaluated this time."""
        raise NotImplementedError

    def branch_stand_in(self, run: Run, args: dict, cond: Tensor, branch: Branch) -> Tensor:
        """The prediction to take for it; denoised, as `cond` is."""
        raise NotImplementedError

    def see_branch(self, run: Run, args: dict, cond: Tensor, weak: Tensor, branch: Branch) -> None:
        """Shown the prediction where it was evaluated."""
        raise NotImplementedError


class Branches:
    """State of one run. `shares_blocks`: whether branches may start at the first block that differs from cond."""

    def __init__(self, run: Run):
        self.shares_blocks = True
        self._predictions: dict[Branch, Tensor | None] = {}
        self._evaluation = 0  # the number of the evaluation that they belong to

    def predictions(self, run: Run) -> dict[Branch, Tensor | None]:
        """The predictions in the current evaluation, [B, ...]; None for a branch that is not evaluated."""
        if self._evaluation != run.evaluations:
            self._evaluation, self._predictions = run.evaluations, {}
        return self._predictions


def prediction(run: Run, args: dict, branch: Branch) -> Tensor | None:
    """The denoised prediction of `branch`, [B, ...], for a post-CFG function with `args`; None where it has none."""
    known = run.of(Branches).predictions(run)
    if branch not in known:
        known[branch] = None
        entries = branch.conds(run, [args["cond"], args["uncond"]])
        if entries is not None:
            [known[branch]] = evaluate_alone(args, _marked(run, {branch: entries}))
            run.remark(
                branch,
                f"It takes a whole network evaluation in every step, as {type(run.guider).__name__} evaluates its "
                "prompts by itself.",
            )
    return known[branch]


def _stage(run: Run, args: dict, evaluate: Evaluate) -> list[Tensor]:
    state = run.of(Branches)
    asked = {branch: branch.conds(run, args["conds"]) for branch in run.techniques["branches"]}
    wanted = {branch: entries for branch, entries in asked.items() if entries is not None}
    first = {branch: branch.first_block(run) for branch in wanted} if state.shares_blocks else {}
    first = {branch: block for branch, block in first.items() if block is not None and order_of(run)[block] > 0}
    cached = {branch: cache for branch in wanted if (cache := _cache_for(run, branch)) is not None}
    wanted = {branch: entries for branch, entries in wanted.items() if branch not in cached}
    first = {branch: block for branch, block in first.items() if branch not in cached}
    done = _resumed(run, args, evaluate, wanted, first) if first else None
    out, found = done or _together(run, args, evaluate, wanted)
    found |= {branch: cache.branch_stand_in(run, args, out[0], branch) for branch, cache in cached.items()}
    _show(run, args, out[0], found, cached)
    state.predictions(run).update({**dict.fromkeys(asked), **found})
    return out


def _cache_for(run: Run, branch: Branch) -> BranchCache | None:
    """Who stands in for it this time."""
    caches = run.techniques.get("branch cache", ()) if branch.weakens else ()
    chosen = next((cache for cache in caches if cache.replaces_branch(run, branch)), None)
    run.acted.update([] if chosen is None else [chosen])
    return chosen


def _show(run: Run, args: dict, cond: Tensor, found: dict[Branch, Tensor], cached: dict[Branch, BranchCache]) -> None:
    for cache in run.techniques.get("branch cache", ()):
        for branch, weak in found.items():
            if branch.weakens and branch not in cached:
                cache.see_branch(run, args, cond, weak, branch)


def _together(
    run: Run, args: dict, evaluate: Evaluate, wanted: dict[Branch, list[dict]]
) -> tuple[list[Tensor], dict[Branch, Tensor]]:
    """The host's predictions and those of the branches, all in one call."""
    conds = args["conds"]
    out = evaluate(conds + _marked(run, wanted))
    return out[: len(conds)], dict(zip(wanted, out[len(conds) :]))


def _resumed(
    run: Run, args: dict, evaluate: Evaluate, wanted: dict[Branch, list[dict]], first: dict[Branch, Block]
) -> tuple[list[Tensor], dict[Branch, Tensor]] | None:
    """As `_together`, but with the branches in `first` in a second call that starts at the first changed block. None
    where the blocks of cond could not be kept."""
    sharing, later = run.of(Sharing), {branch: wanted[branch] for branch in first}
    entries = {entry["uuid"] for entries in later.values() for entry in entries}
    prefix = sharing.prefix = Prefix(min(first.values(), key=order_of(run).__getitem__), entries)
    try:
        out, found = _together(run, args, evaluate, {b: entries for b, entries in wanted.items() if b not in first})
        if not prefix.kept:
            # A cache (EasyCache) has replaced the network call, or another node the blocks. Then all predictions have
            # to be in one call, where all are cached or none is.
            run.of(Branches).shares_blocks = False
            for branch in first:
                run.remark(branch, "Its prediction is computed whole: the blocks of the positive were not reached.")
            return None
        prefix.resumed = {branch_uuid(run, b, e["uuid"]): e["uuid"] for b in later for e in later[b]}
        extra = evaluate_alone(args, _marked(run, later))
    finally:
        sharing.prefix = None
    if prefix.unusable:
        for branch in first:
            run.remark(branch, f"Its prediction is computed whole: {prefix.unusable}.")
    return out, found | dict(zip(later, extra))


def _marked(run: Run, branches: dict[Branch, list[dict]]) -> list[list[dict]]:
    """The entries of each branch, with uuids of their own."""
    return [[{**e, "uuid": branch_uuid(run, b, e["uuid"])} for e in entries] for b, entries in branches.items()]


def add_branch(model: ModelPatcher, branch: Branch) -> None:
    """Evaluates `branch` on a (cloned) model together with cond and uncond, in every evaluation in which its `conds`
    are not None."""
    attach(model, "branches", branch)
    know_rows(model)
    attach_hook(model, _hook)


def keep_branches(model: ModelPatcher, cache: BranchCache) -> None:
    """Lets `cache` stand in for the weak branches that other nodes evaluate."""
    attach(model, "branch cache", cache)


def _hook(run: Run, guider) -> None:
    check_further_rows(run, run.techniques["branches"][0])
    take_slot(guider, _stage)
