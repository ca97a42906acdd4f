"""Files that are written whole or not at all, whatever ends the writing.

They are written in a folder of their own beside their place, and then moved there: whatever the one who writes makes on
the way lies in it too. Its name tells who that is, on a disk that several computers or containers share (where each of
them may be process 1), so that what writers have left who were ended can be told from what is being written.
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
_LONG = 24 * 3600.0  # seconds after which a writer elsewhere is taken to be gone


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what will be at `path` once the block has ended, with the rights that the process gives to files.
    What was there is as it was if the block, or this, raises; of its own it raises OSError."""
    for old in path.parent.glob(".guidekit.*.part"):
        with contextlib.suppress(OSError):  # another writer has taken it away
            if _is_left_over(old):
                shutil.rmtree(old, ignore_errors=True)
    part = path.with_name(f".guidekit.{_HOST}.{os.getpid()}.{secrets.token_hex(8)}.part")
    part.mkdir()
    try:
        whole = part / "whole"
        whole.touch()
        mode = whole.stat().st_mode
        yield whole
        with contextlib.suppress(OSError):  # disks without rights
            whole.chmod(mode)  # the library gives none to others
        whole.replace(path)
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
                return True  # a later process of the same number
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            pass
    return time.time() - changed > _LONG
