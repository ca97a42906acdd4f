"""Files named by the checksum of their content. Content that is stored already is not written again, and a file whose
content does not match its name is damaged.

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
_KEY = "guidekit"  # under which a file has its description
_LATENT = "samples"
_DEEPEST = 4  # lists within lists in a prompt's options


def write_tensors(folder: Path, tensors: dict[str, Tensor], description: str) -> str:
    """Writes a file and returns its name, without ending. Raises OSError; then there is no such file."""
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    name = checksum(description, tensors)
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
    """The tensors and the description. Raises ValueError for a file that is missing or damaged."""
    path = folder / (name + ENDING)
    header = read_header(path)
    tensors, description = read_tensors(path, {key: key for key in header.tensors}), header.metadata.get(_KEY, "")
    if checksum(description, tensors) != name:
        raise ValueError(f"{path.name} is damaged: it is not what it was saved as.")
    return tensors, description


def write_latent(folder: Path, latent: Tensor) -> str:
    return write_tensors(folder, {_LATENT: latent}, "")


def read_latent(folder: Path, name: str) -> Tensor:
    return read_named(folder, name)[0][_LATENT]


def write_conditioning(folder: Path, conditioning: list) -> str:
    tensors: dict[str, Tensor] = {}
    entries = []
    for tokens, options in conditioning:
        given = {"": tokens, **{key: value for key, value in options.items() if _can_be_kept(value)}}
        entries.append({key: _take(value, tensors) for key, value in given.items()})
    return write_tensors(folder, tensors, json.dumps(entries, sort_keys=True))


def read_conditioning(folder: Path, name: str) -> list:
    tensors, description = read_named(folder, name)
    entries = [{key: _give(value, tensors) for key, value in entry.items()} for entry in read_json(description)]
    return [[entry.pop(""), entry] for entry in entries]


def not_kept(conditioning: list) -> list[str]:
    """The names of a prompt's options that cannot be stored in a file, such as ControlNets and hooks."""
    names = {key for _, options in conditioning for key, value in options.items() if not _can_be_kept(value)}
    return sorted(map(str, names))


def row_of(conditioning: list, index: int, batch: int) -> list:
    """The prompt of the image `index` of a batch: a CONDITIONING may have one row for each image."""

    def row(value: Any) -> Any:
        own = isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch > 1
        return value[index : index + 1] if own else value

    return [[row(tokens), {key: row(value) for key, value in options.items()}] for tokens, options in conditioning]


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG, unless it is there. `pixels`: [H, W, 3], 8 bits. Raises OSError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            Image.fromarray(pixels).save(part, format="PNG", compress_level=4)


def _can_be_kept(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list | tuple):
        return depth < _DEEPEST and all(_can_be_kept(each, depth + 1) for each in value)
    return value is None or isinstance(value, Tensor | str | bool) or is_number(value)


def _take(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` for JSON. Tensors go into `tensors`, and a reference replaces them."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_take(each, tensors) for each in value]}
    return value


def _give(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_take` was given."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    (kind, items), *_ = value.items()
    found = [_give(each, tensors) for each in items]
    return tuple(found) if kind == "tuple" else found
