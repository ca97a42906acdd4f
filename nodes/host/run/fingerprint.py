"""A description of a run: everything that fitted coefficients depend on.

Relies on: `original_conds` of the guider (comfy/samplers.py:1189, convert_cond): dicts with the tensors `cross_attn`
and `pooled_output`.
"""

import hashlib
import json
import math
from reprlib import repr as shown

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.strict_json import is_number
from .run import Run

_LONGEST = 200  # characters of a name
_PROJECTIONS = 4
_TOLERANCE = 0.01  # other devices and precisions give text embeddings that differ in the third digit


def describe(run: Run, guider) -> dict:
    """Model, sampler, sigmas, cfg and a sketch of the negative prompt of a run, ready for JSON."""
    return {
        **describe_model(guider.model_patcher),
        "sampler": run.sampler_name,
        "sigmas": [round(sigma, 6) for sigma in run.sigmas],
        "cfg": float(guider.cfg),
        "negative": _sketch(guider.original_conds.get("negative") or []),
    }


def describe_model(model: ModelPatcher) -> dict:
    """The model's class, architecture and prediction type, ready for JSON; not its weights."""
    return {
        "model": type(model.model).__name__,
        "network": _digest(model.model.model_config.unet_config),
        "parameterisation": _prediction(model.get_model_object("model_sampling")),
    }


def check_description(found: dict) -> None:
    """Checks a description from a file.

    Raises:
        ValueError: `describe` does not make such a one.
    """
    texts, lists = ("model", "network", "parameterisation", "sampler"), ("sigmas", "negative")
    if found.keys() != {*texts, *lists, "cfg"}:
        raise ValueError(f"it describes its run by {shown(sorted(found))}")
    for name in texts:
        if not isinstance(found[name], str) or len(found[name]) > _LONGEST:
            raise ValueError(f"its {name} is {shown(found[name])}, not a name")
    for name in lists:
        if not isinstance(found[name], list) or not all(map(is_number, found[name])):
            raise ValueError(f"its {name} are {shown(found[name])}, not a list of numbers")
    if not is_number(found["cfg"]):
        raise ValueError(f"its cfg is {shown(found['cfg'])}, not a number")


def difference(fitted: dict, run: dict) -> str | None:
    """A sentence about the first field in which a run differs from the fitted one; None if none does."""
    for field, wanted in fitted.items():
        given = run[field]
        if field == "negative":
            if not _close(wanted, given, _TOLERANCE):
                return "They were fitted for another negative prompt."
        elif field == "sigmas":
            if len(wanted) != len(given):
                return f"They were fitted for {len(wanted) - 1} steps, this run has {len(given) - 1}."
            if not _close(wanted, given):
                return f"They were fitted for the sigmas {wanted}, this run has {given}."
        elif not (_close([wanted], [given]) if field == "cfg" else wanted == given):
            return f"They were fitted for {field} {wanted}, this run has {given}."
    return None


def _close(a: list[float], b: list[float], tolerance: float = 1e-4) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance) for x, y in zip(a, b))


def _digest(settings: dict) -> str:
    # Without the precision of the weights, which depends on the machine.
    settings = {key: value for key, value in settings.items() if key != "dtype"}
    words = json.dumps(settings, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _prediction(model_sampling) -> str:
    return next(kind.__name__ for kind in type(model_sampling).__mro__ if "calculate_denoised" in vars(kind))


def _sketch(conds: list[dict]) -> list[float]:
    """Numbers that distinguish prompts and tolerate rounding: for each tensor its size, its rms, and the projections of
    the normalised tensor onto a few fixed random directions."""
    numbers = []
    for entry in conds:
        for name in ("cross_attn", "pooled_output"):
            if isinstance(tensor := entry.get(name), Tensor):
                numbers += _projections(tensor)
    return numbers


def _projections(tensor: Tensor) -> list[float]:
    flat = tensor.detach().flatten().to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn((_PROJECTIONS, len(flat)), generator=generator, dtype=torch.float64)
    length = flat.norm().clamp(min=1e-12)
    return [float(len(flat)), length.item() / len(flat) ** 0.5, *(directions @ (flat / length)).tolist()]
