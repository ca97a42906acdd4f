"""Extra predictions (weak, reference, perturbed ones) in the same batched network call as cond and uncond.

Relies on: `sampler_calc_cond_batch_function` (comfy/samplers.py:618), which sees the full conds above context windows;
`calc_cond_batch`, which takes any number of conds and splits the batch by memory (samplers.py:206, 273-284); and
`transformer_options["uuids"]`, one per chunk, aligned with `cond_or_uncond` (samplers.py:322-326). Chunks are
recognised by uuid and never by index: other guiders pass other lists. The uuids are made once per run, for caches that
key on them.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .run import KEY, Run, attach, current_run


class Branch(Protocol):
    """An extra prediction. `conds` gives the conditioning to evaluate, made from the host's list [cond, uncond, ...],
    or None where the branch is not wanted. The prediction is `run.predictions[branch]` in the post-CFG functions."""

    def conds(self, run: Run, conds: list) -> list[dict] | None: ...


@dataclass(frozen=True, eq=False)
class _CalcCondBatch:
    inner: Callable[[dict], list[Tensor]] | None  # what had the slot before

    def __call__(self, args: dict) -> list[Tensor]:
        model_options, conds = args["model_options"], args["conds"]
        run = current_run(model_options)
        wanted = {}
        for branch in run.techniques["branches"]:
            entries = branch.conds(run, conds)
            if entries is not None:
                wanted[branch] = [{**e, "uuid": branch_uuid(run, branch, e["uuid"])} for e in entries]
        out = self._evaluate(args, conds + list(wanted.values()))
        extra = out[len(conds) :]
        if len(extra) < len(wanted):  # an inner function that knows only cond and uncond
            missing = list(wanted.values())[len(extra) :]
            extra += comfy.samplers.calc_cond_batch(args["model"], missing, args["input"], args["sigma"], model_options)
        run.predictions.update(zip(wanted, extra))
        run.acted.update(wanted)
        return out[: len(conds)]

    def _evaluate(self, args: dict, conds: list) -> list[Tensor]:
        if self.inner is not None:
            return list(self.inner({**args, "conds": conds}))
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])


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
