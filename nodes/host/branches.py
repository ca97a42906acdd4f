"""Extra predictions (weak, reference, perturbed ones): in the same batched network call as cond and uncond, or, where
a branch equals cond up to some block, in a second call that goes on from there.

Relies on: `sampler_calc_cond_batch_function` (comfy/samplers.py:618), which sees the full conds above context windows;
`calc_cond_batch`, which takes any number of conds and splits the batch by memory (samplers.py:206, 273-284); and
`transformer_options["uuids"]`, one per chunk, aligned with `cond_or_uncond` (samplers.py:322-326). Chunks are
recognised by uuid and never by index: other guiders pass other lists. The uuids are made once per run, for caches that
key on them.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .families import Block
from .prefix import Prefix
from .run import KEY, Run, attach, current_run


class Branch:
    """An extra prediction. Found as `run.predictions[branch]` in the post-CFG functions."""

    def conds(self, run: Run, conds: list) -> list[dict] | None:
        """The conditioning to evaluate, made from the host's list [cond, uncond, ...]; None where none is wanted."""
        raise NotImplementedError

    def first_block(self, run: Run) -> Block | None:
        """For a branch that is cond itself in a changed network: the first block that is changed. What comes before
        it is then not computed again. None: all of it is computed, in the same call as cond."""
        return None


@dataclass(frozen=True, eq=False)
class _CalcCondBatch:
    inner: Callable[[dict], list[Tensor]] | None  # what had the slot before

    def __call__(self, args: dict) -> list[Tensor]:
        run = current_run(args["model_options"])
        asked = {branch: branch.conds(run, args["conds"]) for branch in run.techniques["branches"]}
        wanted = {branch: entries for branch, entries in asked.items() if entries is not None}
        first = {branch: branch.first_block(run) for branch in wanted} if run.shares_blocks else {}
        first = {branch: block for branch, block in first.items() if block is not None and run.order[block] > 0}
        done = self._resumed(args, run, wanted, first) if first else None
        out, found = done or self._together(args, run, wanted)
        run.predictions.update(found)
        run.acted.update(wanted)
        return out

    def _together(self, args: dict, run: Run, wanted: dict[Branch, list[dict]]) -> tuple[list[Tensor], dict]:
        """The host's predictions and those of the branches, all in one call."""
        conds, marked = args["conds"], _marked(run, wanted)
        out = self._evaluate(args, conds + marked)
        extra = out[len(conds) :]
        extra += _evaluate_alone(args, marked[len(extra) :])  # the inner function may know only cond and uncond
        return out[: len(conds)], dict(zip(wanted, extra))

    def _resumed(
        self, args: dict, run: Run, wanted: dict[Branch, list[dict]], first: dict[Branch, Block]
    ) -> tuple[list[Tensor], dict] | None:
        """The same with the branches in `first` in a second call, from the first changed block on."""
        later = {branch: wanted[branch] for branch in first}
        entries = {entry["uuid"] for entries in later.values() for entry in entries}
        prefix = run.prefix = Prefix(min(first.values(), key=run.order.get), entries)
        try:
            out, found = self._together(args, run, {b: entries for b, entries in wanted.items() if b not in first})
            if not prefix.kept:
                # A cache (EasyCache) has answered for the network, or another node has taken the blocks. In one call
                # all predictions are cached or none is.
                run.shares_blocks = False
                run.say("Weak branches are computed whole from here on: the blocks of the positive could not be seen.")
                return None
            prefix.resumed = {branch_uuid(run, b, e["uuid"]): e["uuid"] for b in later for e in later[b]}
            extra = _evaluate_alone(args, _marked(run, later))
        finally:
            run.prefix = None
        if prefix.repeated:
            run.say("Weak branches are computed whole: the positive is evaluated in parts.")
        return out, found | dict(zip(later, extra))

    def _evaluate(self, args: dict, conds: list) -> list[Tensor]:
        if self.inner is not None:
            return list(self.inner({**args, "conds": conds}))
        return _evaluate_alone(args, conds)


def _evaluate_alone(args: dict, conds: list) -> list[Tensor]:
    if not conds:
        return []
    return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])


def _marked(run: Run, branches: dict[Branch, list[dict]]) -> list[list[dict]]:
    """The entries with the branch's own uuids."""
    return [[{**e, "uuid": branch_uuid(run, b, e["uuid"])} for e in entries] for b, entries in branches.items()]


def add_branch(model: ModelPatcher, branch: Branch) -> None:
    """Evaluates `branch` together with cond and uncond in every step in which it asks for it."""
    if not model.model_options.get(KEY, {}).get("branches"):
        inner = model.model_options.get("sampler_calc_cond_batch_function")
        model.set_model_sampler_calc_cond_batch_function(_CalcCondBatch(inner))
    attach(model, "branches", branch)


def branch_uuid(run: Run, branch: Any, original: uuid.UUID) -> uuid.UUID:
    """The uuid of a cond entry on `branch`, the same one throughout the run."""
    known = run.branch_uuids.setdefault(branch, {})
    return known.setdefault(original, uuid.uuid4())


def chunks_of(run: Run, branch: Any, transformer_options: dict) -> list[int]:
    """Which chunks of the current network call belong to `branch`; chunk i is rows i * B to (i + 1) * B."""
    mine = set(run.branch_uuids.get(branch, {}).values())
    return [i for i, chunk in enumerate(transformer_options["uuids"]) if chunk in mine]
