"""Tensors in files that are named by what is in them: what is there already is not written again, and a file that is
not what its name says is damaged.

Relies on: CONDITIONING, a list of [tokens, options] (comfy/sampler_helpers.py:59).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ....samplers.strict_json import is_number, read_json
from ..files.checksum import checksum
from ..files.safetensors_header import read_header
from ..files.tensors import read_tensors
from ..files.whole_file import whole_file

ENDING = ".safetensors"
LARGEST = 2**26  # bytes of a latent, or of a prompt
_KEY = "guidekit"  # of the description in a file
_LATENT = "samples"
_DEEPEST = 4  # lists within lists in a prompt's options


def tensor_name(tensors: dict[str, Tensor], description: str) -> str:
    return checksum(description, tensors)


def write_tensors(folder: Path, tensors: dict[str, Tensor], description: str) -> str:
    """The name of the file. Raises OSError; then there is none."""
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    name = tensor_name(tensors, description)
    path = folder / (name + ENDING)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            try:
                save_file(tensors, part, {_KEY: description})
            except SafetensorError as error:  # a full disk
                raise OSError(str(error)[:200]) from error
    return name


def read_named(folder: Path, name: str) -> tuple[dict[str, Tensor], str]:
    """Raises ValueError with a sentence for a file that is gone, or not what it was."""
    path = folder / (name + ENDING)
    header = read_header(path)
    tensors, description = read_tensors(path, {key: key for key in header.tensors}), header.metadata.get(_KEY, "")
    if tensor_name(tensors, description) != name:
        raise ValueError(f"{path.name} is damaged: it is not what it was saved as.")
    return tensors, description


def write_latent(folder: Path, latent: Tensor) -> str:
    return write_tensors(folder, {_LATENT: latent}, "")


def read_latent(folder: Path, name: str) -> Tensor:
    return read_named(folder, name)[0][_LATENT]


def write_conditioning(folder: Path, conditioning: list) -> str:
    tensors, entries = {}, []
    for tokens, options in conditioning:
        given = {"": tokens, **{key: value for key, value in options.items() if _can_be_kept(value)}}
        entries.append({key: _take(value, tensors) for key, value in given.items()})
    return write_tensors(folder, tensors, json.dumps(entries, sort_keys=True))


def read_conditioning(folder: Path, name: str) -> list:
    tensors, description = read_named(folder, name)
    entries = [{key: _give(value, tensors) for key, value in entry.items()} for entry in read_json(description)]
    return [[entry.pop(""), entry] for entry in entries]


def not_kept(conditioning: list) -> list[str]:
    """Names of options of a prompt that cannot be kept in a file, such as ControlNets and hooks."""
    names = {key for _, options in conditioning for key, value in options.items() if not _can_be_kept(value)}
    return sorted(map(str, names))


def row_of(conditioning: list, index: int, batch: int) -> list:
    """What the row `index` of a batch is sampled with: a prompt may hold as many rows itself."""

    def row(value: Any) -> Any:
        own = isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch > 1
        return value[index : index + 1] if own else value

    return [[row(tokens), {key: row(value) for key, value in options.items()}] for tokens, options in conditioning]


def write_image(path: Path, pixels: np.ndarray) -> None:
    """`pixels`: [H, W, 3], 8 bits."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            Image.fromarray(pixels).save(part, format="PNG", compress_level=4)


def _can_be_kept(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list | tuple):
        return depth < _DEEPEST and all(_can_be_kept(each, depth + 1) for each in value)
    return value is None or isinstance(value, Tensor | str | bool) or is_number(value)


def _take(value: Any, tensors: dict[str, Tensor]) -> Any:
    """For JSON; a tensor is put away and named."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_take(each, tensors) for each in value]}
    return value


def _give(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    (kind, items), *_ = value.items()
    found = [_give(each, tensors) for each in items]
    return tuple(found) if kind == "tuple" else found
