"""Files that are written whole or not at all, whatever ends the writing.

The bytes go into a part beside the file, which then takes its place. A part's name tells who writes it, on a disk that
several computers or containers share too (where each of them may be process 1), so that the parts of writers who were
ended can be told from those of writers at work.
"""

import contextlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

import psutil  # the host's own

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:60] or "unknown"
_PART = re.compile(r"\.guidekit\.([A-Za-z0-9-]+)\.(\d{1,9})\.[0-9a-f]{16}\.part")
_LONG = 24 * 3600.0  # seconds after which a writer elsewhere is taken to be gone


def write_whole(path: Path, content: bytes) -> None:
    """With the permissions that the process gives to its files.

    Raises:
        OSError: then what was at `path` is as it was.
    """
    for old in path.parent.glob(".guidekit.*.part"):
        with contextlib.suppress(OSError):  # of another user, or taken away by another writer
            if _is_left_over(old):
                old.unlink()
    part = path.with_name(f".guidekit.{_HOST}.{os.getpid()}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _is_left_over(part: Path) -> bool:
    match = _PART.fullmatch(part.name)
    if match is None:
        return False
    changed = part.stat().st_mtime
    if match[1] == _HOST:
        try:
            if psutil.Process(int(match[2])).create_time() > changed:
                return True  # a later process of the same number
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            pass
    return time.time() - changed > _LONG
