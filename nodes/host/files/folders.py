"""Guidekit's own files: safetensors with a description, in folders of the host.

Relies on: folder_paths.add_model_folder_path, get_folder_paths, get_output_directory, get_input_directory and
get_system_user_directory (folder_paths.py).
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ....samplers.strict_json import read_json
from .checksum import checksum
from .safetensors_header import read_header
from .tensors import read_tensors
from .whole_file import whole_file

_NAME = "guidekit"  # name of the folders, and of the description in a file
_CHECKSUM = "guidekit sha256"
_ENDING = ".safetensors"
_DTYPES = ("F64", "F32", "F16", "BF16")  # accepted in these files
_MOST_BYTES = 255  # of a file name
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_SHOWN = 20  # names in a sentence

folder_paths.add_model_folder_path(_NAME, os.path.join(folder_paths.models_dir, _NAME))


@dataclass(frozen=True)
class Folder:
    """A folder of safetensors files. `shown`: its name for users; `paths()`: its places, of which the first is written
    to."""

    shown: str
    paths: Callable[[], list[str]]

    def names(self) -> list[str]:
        """The names of its files, with subfolders, sorted."""
        return sorted({name for path in self.paths() for name in _names(path)})

    def path_of(self, name: str) -> str | None:
        """The path of a file in `names`; None for any other name, such as a path that leads out of the folder."""
        return next((os.path.join(path, name) for path in self.paths() if name in _names(path)), None)

    def fingerprint(self, name: str | None) -> float | None:
        """A number that changes when a file is written, for `fingerprint_inputs`; None if there is no such file."""
        path = name and self.path_of(name)
        return os.path.getmtime(path) if path else None

    def check(self, name: str) -> str:
        """The name under which `save` will write the file; finds failures before the data is computed.

        Raises:
            ValueError: the name is not allowed, or the folder cannot be written to.
        """
        name = check_name(name)
        folder = Path(self.paths()[0])
        there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
        wrong = None
        if not there.is_dir():
            wrong = f"{there.name} is a file and no folder"
        elif not os.access(there, os.W_OK | os.X_OK):
            wrong = f"the folder {there.name} may not be written to"
        elif os.path.isdir(folder / name):
            wrong = "a folder has this name"
        if wrong is not None:
            raise ValueError(f"{name} cannot be saved in {self.shown}: {wrong}.")
        return name

    def save(
        self, name: str, tensors: dict[str, Tensor], description: dict, about: Mapping[str, str] | None = None
    ) -> str:
        """Writes the whole file or nothing; returns its name. `description`: ready for JSON; `about`: metadata for
        other programs.

        Raises:
            ValueError: it cannot be written, with the reason.
        """
        name, text = self.check(name), json.dumps(description)
        tensors, folder = _apart(tensors), Path(self.paths()[0])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / name) as path:
                save_file(tensors, path, {**(about or {}), _NAME: text, _CHECKSUM: checksum(text, tensors)})
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or str(error)[:200]
            raise ValueError(f"{name} cannot be saved in {self.shown}: {why}. An earlier file was kept.") from error
        return name

    def load(
        self, name: str, wanted: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> tuple[dict[str, Tensor], dict]:
        """(tensors by name, description) of a file that has all tensors in `wanted` and no others than those and
        `optional`. A missing checksum is accepted, since earlier versions wrote none.

        Raises:
            ValueError: there is no such file, `save` has not written it, or it is damaged.
        """
        found = self.path_of(name)
        if found is None:
            names = self.names()
            known = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            raise ValueError(f"There is no file {name[:200]!r} in {self.shown}. It has: {known or 'nothing'}.")
        path = Path(found)
        header = read_header(path)
        inside, text = header.tensors, header.metadata.get(_NAME, "null")
        try:
            description = read_json(text)
        except ValueError as error:
            raise ValueError(f"{name} cannot be read: in its description {str(error)[:200]}. Make it again.") from error
        if not isinstance(description, dict) or not set(wanted) <= set(inside) <= {*wanted, *optional}:
            raise ValueError(
                f"{name} holds {', '.join(key[:100] for key in sorted(inside)[:5]) or 'nothing'}; wanted is a file of "
                f"this pack with {' and '.join(wanted)}."
            )
        for key, entry in inside.items():
            if entry.dtype not in _DTYPES:
                raise ValueError(f"{name} has {key} in {entry.dtype}; wanted is one of {', '.join(_DTYPES)}.")
        tensors = read_tensors(path, {key: key for key in inside})
        said = header.metadata.get(_CHECKSUM)
        if said is not None and said != checksum(text, tensors):
            raise ValueError(f"{name} is damaged: its checksum is not the one that it was saved with. Make it again.")
        return tensors, description


def check_name(name: str) -> str:
    """`name` with the ending .safetensors, if it is a file name without folders that all systems accept.

    Raises:
        ValueError: it is not.
    """
    return check_stem(name.removesuffix(_ENDING), name) + _ENDING


def check_stem(stem: str, name: str | None = None) -> str:
    """`stem`, of a file or a folder, if all systems accept it. `name`: what the message calls it.

    Raises:
        ValueError: it is not.
    """
    name = stem if name is None else name
    if not re.fullmatch(r"\w([\w .-]{0,98}[\w-])?", stem):
        raise ValueError(
            f"The file name is {name[:200]!r}. It may have up to 100 letters, digits, spaces, dots, dashes and "
            "underscores, begins with a letter or digit, and does not end with a space or dot."
        )
    if _DEVICES.fullmatch(stem):
        raise ValueError(f"The file name is {name[:200]!r}, which is a device on Windows. Take another one.")
    if (size := len((stem + _ENDING).encode())) > _MOST_BYTES:
        raise ValueError(
            f"The file name is {name[:200]!r}, which has {size} bytes with its ending. Disks take up to {_MOST_BYTES}."
        )
    return stem


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory (safetensors refuses views of one tensor)."""
    found, taken = {}, set()
    for key, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if place in taken else tensor
        taken.add(place)
    return found


def _names(folder: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in Path(folder).rglob(f"*{_ENDING}") if path.is_file()]


def _models() -> list[str]:
    return folder_paths.get_folder_paths(_NAME)


def _inversions() -> list[str]:
    places = folder_paths.get_output_directory(), folder_paths.get_input_directory()
    return [os.path.join(place, _NAME) for place in places]


def _loras() -> list[str]:
    return [os.path.join(place, _NAME) for place in folder_paths.get_folder_paths("loras")]


def name_in_loras(name: str) -> str:
    """By which loaders of LoRAs know a file of `LORAS`: as the host lists it, with the system's separator."""
    return os.path.join(_NAME, name)


def _trainings() -> list[str]:
    return [os.path.join(folder_paths.get_system_user_directory(_NAME), "training")]


MODELS = Folder("models/guidekit", _models)
INVERSIONS = Folder("output/guidekit or input/guidekit", _inversions)
LORAS = Folder("models/loras/guidekit", _loras)
TRAININGS = Folder("user/__guidekit/training", _trainings)
