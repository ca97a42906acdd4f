"""The store of this ComfyUI, opened when it is first used.

Relies on: get_system_user_directory (folder_paths.py:160), a folder below the user folder that no route of the host
serves; SQLAlchemy, which the host requires, but also starts without.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

if TYPE_CHECKING:
    from .store import Store

_LOCK = threading.Lock()


def store() -> Store:
    """Raises ValueError if it cannot be opened."""
    folder = Path(folder_paths.get_system_user_directory("guidekit")) / "votes"
    with _LOCK:
        if not _store(folder).is_current():  # somebody has moved the database away, or put another one in its place
            _store.cache_clear()
        return _store(folder)


@functools.lru_cache(maxsize=4)
def _store(folder: Path) -> Store:
    try:
        from .store import Store  # not at the top: it brings SQLAlchemy, which not every start needs
    except ImportError as error:
        raise ValueError(
            f"Votes are kept by SQLAlchemy, a requirement of ComfyUI, which is not installed ({error}). Install "
            "ComfyUI's requirements.txt."
        ) from error
    return Store(folder)
