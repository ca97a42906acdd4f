"""Guidekit's own files, in the folder `guidekit` among the host's model folders.

Relies on: folder_paths.add_model_folder_path, get_filename_list and get_full_path (folder_paths.py), which keep names
inside the folder.
"""

import json
import os
import re
from pathlib import Path

import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = "guidekit"
_ENDING = ".safetensors"

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def names() -> list[str]:
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(_ENDING)]


def check_name(name: str) -> str:
    """A file name without folders, with its ending."""
    stem = name.removesuffix(_ENDING)
    if not re.fullmatch(r"\w[\w .-]{0,99}", stem):
        raise ValueError(
            f"The file name is {name!r}. It may have up to 100 letters, digits, spaces, dots, dashes and underscores, "
            "and begins with a letter or digit."
        )
    return stem + _ENDING


def save(name: str, tensors: dict[str, Tensor], description: dict) -> str:
    """Writes the whole file or nothing; returns its name."""
    name = check_name(name)
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    folder.mkdir(parents=True, exist_ok=True)
    # Not of the same ending, so that it is not offered while it is written.
    part = folder / f".{name}.{os.getpid()}.part"
    try:
        save_file(tensors, part, metadata={FOLDER: json.dumps(description)})
        part.replace(folder / name)
    finally:
        part.unlink(missing_ok=True)
    return name


def path_of(name: str) -> str | None:
    return folder_paths.get_full_path(FOLDER, name)


def load(name: str, wanted: tuple[str, ...]) -> tuple[dict[str, Tensor], dict]:
    """(tensors, description). Raises ValueError with a sentence for a file that `save` has not written."""
    path = path_of(name)
    if path is None:
        raise ValueError(f"There is no file {name!r} in models/{FOLDER}. It has: {', '.join(names()) or 'nothing'}.")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get(FOLDER, "null"))
            found = set(file.keys())
            if not isinstance(description, dict) or found != set(wanted):
                raise ValueError(
                    f"{name} holds {', '.join(sorted(found)[:5]) or 'nothing'}; wanted is a file of this pack with "
                    f"{' and '.join(wanted)}."
                )
            tensors = {key: file.get_tensor(key) for key in wanted}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} cannot be read ({error}). Make it again.") from error
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"{name} holds NaN or infinity. Make it again.")
    return tensors, description
