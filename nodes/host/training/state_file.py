"""The state of a training as a file, from which it goes on to the bit.

`settings` in its description say of which training it is; one of another training is not gone on with.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ....samplers.strict_json import read_json
from ..files.folders import TRAININGS, check_name
from ..files.safetensors_header import read_header
from .adapters import Factors
from .trainer import MOMENTS, Point, State, Trainer

_FACTORS = ("up", "down")


def identity(trainer: Trainer) -> dict:
    """What a training that goes on must have in common with the one before, ready for JSON."""
    return {
        "settings": trainer.settings.describe(),
        "votes": trainer.votes.digest,
        "policy": trainer.policy,
        "start": "" if trainer.start is None else _digest(trainer.start),
        "layers": list(trainer.adapters.products),
    }


def check_state(name: str) -> None:
    """Raises ValueError where no state could be written, before anything is trained."""
    TRAININGS.check(name)


def save_state(name: str, trainer: Trainer) -> None:
    """Raises ValueError where it cannot be written; what was there is as it was then."""
    state = trainer.state()
    tensors: dict[str, Tensor] = {}
    for path, factors in state.factors.items():
        tensors |= {f"{path}.{part}": t for part, t in zip(_FACTORS, factors)}
    for i, moments in enumerate(state.moments):
        tensors |= {f"{i}.{part}": t for part, t in moments.items()}
    curve = [[None if math.isnan(n) else n for n in dataclasses.astuple(point)] for point in state.curve]
    TRAININGS.save(name, tensors, {"of": identity(trainer), "step": state.step, "curve": curve})


def load_state(name: str, trainer: Trainer) -> State | None:
    """None where there is none, or one of another training.

    Raises:
        ValueError: a file that is damaged.
    """
    file = check_name(name)
    path = TRAININGS.path_of(file)
    if path is None or _told(Path(path)).get("of") != identity(trainer):
        return None
    paths, number = list(trainer.adapters.products), len(trainer.adapters.parameters())
    parts = tuple(f"{path}.{part}" for path in paths for part in _FACTORS)
    moments = tuple(f"{i}.{part}" for i in range(number) for part in MOMENTS)
    tensors, about = TRAININGS.load(file, parts, moments)
    factors = {path: (tensors[f"{path}.up"], tensors[f"{path}.down"]) for path in paths}
    held = [{part: tensors[f"{i}.{part}"] for part in MOMENTS if f"{i}.{part}" in tensors} for i in range(number)]
    curve = [_point(*values) for values in about["curve"]]
    return State(about["step"], factors, held, curve)


def _point(step: int, *values: float | None) -> Point:
    return Point(step, *(math.nan if value is None else value for value in values))


def _told(path: Path) -> dict:
    try:
        found = read_json(read_header(path).metadata.get("guidekit", "null"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _digest(factors: Mapping[str, Factors]) -> str:
    digest = hashlib.sha256()
    for path, both in sorted(factors.items()):
        digest.update(path.encode())
        for tensor in both:
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:32]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
