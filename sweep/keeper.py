"""Runs a command until the pipe at its standard input ends, then ends it with all its children; see comfyui.py."""

import contextlib
import os
import subprocess
import sys
import threading

import psutil  # ComfyUI's own requirement

GRACE = 10  # seconds


def watch(process: subprocess.Popen) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be in the way at the end
        pass
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    process.kill()  # does nothing if it has ended
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def main() -> int:
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    watching = threading.Thread(target=watch, args=(process,), daemon=True)
    watching.start()
    status = process.wait()
    watching.join(0.5)  # where it is ending the family; otherwise the command has ended by itself
    return status


if __name__ == "__main__":
    sys.exit(main())
