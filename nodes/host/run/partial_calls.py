"""Network calls whose chunks another pack evaluates in parts.

The host evaluates several predictions in one call, a chunk of rows for each. Packs that save memory or use several GPUs
evaluate the chunks one after another, with `uuids` of the whole call. This is corrected here, so that all inner code
can rely on `cond_or_uncond` and `uuids`.

Relies on: APPLY_MODEL wrappers running for every part (comfy/model_base.py:191); `cond_or_uncond` being places in the
list of prompts that `calc_cond_batch` was given (comfy/samplers.py:318).
"""

from collections import Counter
from uuid import UUID

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .attach import attach_hook, current_run, wrap_run
from .run import Run


def know_rows(model: ModelPatcher) -> None:
    """For techniques that treat the chunks of a network call of a (cloned) model differently: makes sure that
    `cond_or_uncond` and `uuids` of a call describe its rows, or stops the run with a ValueError."""
    attach_hook(model, put_rows_right)


def put_rows_right(run: Run, guider) -> None:
    """A hook: corrects the options before any other wrapper of a network call reads them. Hooks that add a wrapper in
    front of it call it again."""
    wrap_run(guider, WrappersMP.CALC_COND_BATCH, _calc_cond_batch, outermost=False)
    wrap_run(guider, WrappersMP.APPLY_MODEL, _apply_model, outermost=True)


class _Places:
    """State of one run: (place, uuid) of the entries in the list of prompts that is being evaluated."""

    def __init__(self, run: Run):
        self.of: set[tuple[int, UUID]] = set()


def _calc_cond_batch(executor, model, conds: list, x: Tensor, timestep: Tensor, model_options: dict):
    places = {(place, entry["uuid"]) for place, entries in enumerate(conds) for entry in entries or ()}
    current_run(model_options).of(_Places).of = places
    return executor(model, conds, x, timestep, model_options)


def _apply_model(executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
    run = current_run(transformer_options)
    places, uuids = transformer_options["cond_or_uncond"], transformer_options["uuids"]
    if len(places) != len(uuids):
        uuids = _of_part(places, uuids, run.of(_Places).of)
        transformer_options = {**transformer_options, "uuids": uuids}
    batch = run.latent_shapes[0][0]
    if uuids is None or len(x) != batch * len(uuids):
        raise ValueError(
            f"Another node evaluates {len(x)} rows at a time where the host wants {len(uuids or places)} predictions "
            f"of a batch of {batch}, without saying which they are, and a Guidekit node on this model has to know. "
            "Take one of the two off the model."
        )
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _of_part(places: list[int], uuids: list[UUID], known: set[tuple[int, UUID]]) -> list[UUID] | None:
    """The uuids of a part, whose chunks stand at `places`, from the `uuids` of the whole call; None if ambiguous."""
    found, wanted = {}, Counter(places)
    for place, count in wanted.items():
        fitting = [uuid for uuid in uuids if (place, uuid) in known]
        if len(fitting) != count and len(set(fitting)) != 1:
            return None
        found[place] = iter(fitting)
    return [next(found[place]) for place in places]
