"""Files and folders that are written whole or not at all, however the writing ends.

A file is written in a temporary folder beside its destination, with any temporary files of the writer, and then moved;
a folder is filled under a temporary name, and then renamed.
The folder's name has the host and process id of the writer, so that leftovers of writers that were killed can be told
from files being written, also on a disk that several computers or containers share (each may be process 1).
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # the host's own

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:60] or "unknown"
_PART = re.compile(r"\.guidekit\.([A-Za-z0-9-]+)\.(\d{1,9})\.[0-9a-f]{16}\.part")
_LONG = 24 * 3600.0  # seconds after which a writer on another host is assumed to have ended


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block the file is moved to `path`, with the permissions of a new
    file of this process. If an exception is raised, a file at `path` is left unchanged.

    Raises:
        OSError: the file cannot be created or moved.
    """
    with temporary_folder(path.parent) as part:
        whole = part / "whole"
        whole.touch()
        mode = whole.stat().st_mode
        yield whole
        with contextlib.suppress(OSError):  # file systems without permissions
            whole.chmod(mode)  # the safetensors library gives none to other users
        whole.replace(path)


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A new folder in `place`, removed at the end of the block, unless the block has renamed it. Leftovers of writers
    that were killed are removed from `place` before.

    Raises:
        OSError: the folder cannot be created.
    """
    for old in place.glob(".guidekit.*.part"):
        with contextlib.suppress(OSError):  # another writer has removed it
            if _is_left_over(old):
                shutil.rmtree(old, ignore_errors=True)
    part = place / f".guidekit.{_HOST}.{os.getpid()}.{secrets.token_hex(8)}.part"
    part.mkdir()
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_left_over(part: Path) -> bool:
    match = _PART.fullmatch(part.name)
    if match is None:
        return False
    changed = part.stat().st_mtime
    if match[1] == _HOST:
        try:
            if psutil.Process(int(match[2])).create_time() > changed:
                return True  # a later process with the same id
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            pass
    return time.time() - changed > _LONG
