"""Guidekit's own files: safetensors with a description, in two folders of the host's.

Relies on: folder_paths.add_model_folder_path, get_folder_paths, get_output_directory and get_input_directory
(folder_paths.py).
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_NAME = "guidekit"  # of the folders, and of the description in a file
_ENDING = ".safetensors"

folder_paths.add_model_folder_path(_NAME, os.path.join(folder_paths.models_dir, _NAME))


@dataclass(frozen=True)
class Folder:
    """`shown`: what users know it by; `paths`: where it is; the first one is written to."""

    shown: str
    paths: Callable[[], list[str]]

    def names(self) -> list[str]:
        return sorted({name for path in self.paths() for name in _names(path)})

    def path_of(self, name: str) -> str | None:
        """Of a file that `names` gives; None for anything else, such as a path that leads out of the folder."""
        return next((os.path.join(path, name) for path in self.paths() if name in _names(path)), None)

    def fingerprint(self, name: str | None) -> float | None:
        """Another one for a file that was written anew; for `fingerprint_inputs`."""
        path = name and self.path_of(name)
        return os.path.getmtime(path) if path else None

    def save(self, name: str, tensors: dict[str, Tensor], description: dict) -> str:
        """Writes the whole file or nothing; returns its name."""
        name = check_name(name)
        folder = Path(self.paths()[0])
        folder.mkdir(parents=True, exist_ok=True)
        # Not of the same ending, so that it is not offered while it is written.
        part = folder / f".{name}.{os.getpid()}.part"
        try:
            # Of their own memory, which views of one tensor do not have.
            own = {key: each.cpu().clone(memory_format=torch.contiguous_format) for key, each in tensors.items()}
            save_file(own, part, metadata={_NAME: json.dumps(description)})
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)
        return name

    def load(
        self, name: str, wanted: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> tuple[dict[str, Tensor], dict]:
        """(tensors, description). Raises ValueError with a sentence for a file that `save` has not written."""
        path = self.path_of(name)
        if path is None:
            raise ValueError(
                f"There is no file {name!r} in {self.shown}. It has: {', '.join(self.names()) or 'nothing'}."
            )
        try:
            with safe_open(path, framework="pt") as file:
                description = json.loads((file.metadata() or {}).get(_NAME, "null"))
                found = set(file.keys())
                if not isinstance(description, dict) or not set(wanted) <= found <= {*wanted, *optional}:
                    raise ValueError(
                        f"{name} holds {', '.join(sorted(found)[:5]) or 'nothing'}; wanted is a file of this pack with "
                        f"{' and '.join(wanted)}."
                    )
                tensors = {key: file.get_tensor(key) for key in found}
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{name} cannot be read ({error}). Make it again.") from error
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise ValueError(f"{name} holds NaN or infinity. Make it again.")
        return tensors, description


def check_name(name: str) -> str:
    """A file name without folders, with its ending."""
    stem = name.removesuffix(_ENDING)
    if not re.fullmatch(r"\w[\w .-]{0,99}", stem):
        raise ValueError(
            f"The file name is {name!r}. It may have up to 100 letters, digits, spaces, dots, dashes and underscores, "
            "and begins with a letter or digit."
        )
    return stem + _ENDING


def _names(folder: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in Path(folder).rglob(f"*{_ENDING}") if path.is_file()]


def _models() -> list[str]:
    return folder_paths.get_folder_paths(_NAME)


def _inversions() -> list[str]:
    places = folder_paths.get_output_directory(), folder_paths.get_input_directory()
    return [os.path.join(place, _NAME) for place in places]


MODELS = Folder("models/guidekit", _models)
INVERSIONS = Folder("output/guidekit or input/guidekit", _inversions)
