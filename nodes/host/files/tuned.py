"""Finds files of tuned weights: LoRAs, and whole networks.

Relies on: folder_paths.get_filename_list, get_full_path_or_raise and its folders "loras" and "diffusion_models".
"""

from pathlib import Path

import folder_paths

_FOLDERS = {"loras": "", "diffusion_models": "diffusion_models/"}


def names() -> list[str]:
    """The names of all files; those of whole networks begin with their folder."""
    return [prefix + name for folder, prefix in _FOLDERS.items() for name in folder_paths.get_filename_list(folder)]


def path_of(name: str) -> Path:
    """The path of a file in `names`.

    Raises:
        ValueError: there is no such file.
    """
    path = _find(name)
    if path is None:
        raise ValueError(
            f"There is no file {name!r} in models/loras or models/diffusion_models. They have: "
            f"{', '.join(names()[:20]) or 'nothing'}."
        )
    return path


def modified(name: str) -> float | None:
    """The time at which a file was last modified, in seconds; None if there is no such file."""
    path = _find(name)
    return None if path is None else path.stat().st_mtime


def _find(name: str) -> Path | None:
    for folder, prefix in _FOLDERS.items():
        bare = name.removeprefix(prefix)
        if name == prefix + bare and bare in folder_paths.get_filename_list(folder):
            return Path(folder_paths.get_full_path_or_raise(folder, bare))
    return None
