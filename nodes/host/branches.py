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
        model, model_options, conds = args["model"], args["model_options"], args["conds"]
        run = current_run(model_options)
        together, later = {}, {}
        for branch in run.techniques["branches"]:
            entries = branch.conds(run, conds)
            if entries is not None:
                first = branch.first_block(run)
                resumes = first is not None and run.order[first] > 0
                (later if resumes else together)[branch] = entries
        if later:
            first = min((branch.first_block(run) for branch in later), key=run.order.get)
            run.prefix = Prefix(first, {entry["uuid"] for entries in later.values() for entry in entries})
        try:
            out = self._evaluate(args, conds + _marked(run, together))
            extra = out[len(conds) :]
            # An inner function may know only cond and uncond.
            alone = [_marked(run, together)[len(extra) :]] if len(extra) < len(together) else []
            if later:
                alone.append(_marked(run, later))
                run.prefix.resumed = {
                    branch_uuid(run, branch, entry["uuid"]): entry["uuid"]
                    for branch, entries in later.items()
                    for entry in entries
                }
            for group in alone:
                extra += comfy.samplers.calc_cond_batch(model, group, args["input"], args["sigma"], model_options)
            if later and run.prefix.repeated:
                run.say("The positive is evaluated in parts, so weak branches are computed whole.")
        finally:
            run.prefix = None
        run.predictions.update(zip([*together, *later], extra))
        run.acted.update(together, later)
        return out[: len(conds)]

    def _evaluate(self, args: dict, conds: list) -> list[Tensor]:
        if self.inner is not None:
            return list(self.inner({**args, "conds": conds}))
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
