"""A ComfyUI that is started here, from a checkout, and ends with the program that started it.

It runs under a keeper: a small process that waits for the end of a pipe from this one. However this process ends, also
by kill -9, the pipe closes with it, and the keeper ends ComfyUI with all its children, so that no GPU stays occupied.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil  # ComfyUI's own requirement

from .client import Client
from .errors import PromptError, ServerError, StoppedError

KEEPER = Path(__file__).with_name("keeper.py")
_ENDING = 20  # seconds


class ComfyUI:
    """`with ComfyUI(path) as server:` waits until it answers at `server.url`.

    Args:
        path: the checkout, with main.py in it.
        arguments: further ones for main.py.
        base: the base directory, if it is not the checkout. What is saved goes elsewhere, to a folder that is removed
            at the end.
        limit: seconds within which it must answer.
        port: a free one, if none is given.
        pack: a folder of custom nodes that it is to load, if it does not have it already.
    """

    def __init__(
        self,
        path: Path,
        arguments: Sequence[str] = (),
        base: Path | None = None,
        limit: float = 300,
        port: int | None = None,
        pack: Path | None = None,
    ) -> None:
        self._path, self._arguments, self._base, self._limit = Path(path), list(arguments), base, limit
        self._port, self._pack = port, pack

    def __enter__(self) -> ComfyUI:
        if not (self._path / "main.py").is_file():
            raise ServerError(f"{self._path} is no ComfyUI: it has no main.py")
        # On Windows a file may stay in use for a moment after the process that had it open.
        self._temporary = tempfile.TemporaryDirectory(prefix="guidekit-", ignore_cleanup_errors=True)
        self._own = Path(self._temporary.name).resolve()
        self._keeper: subprocess.Popen[bytes] | None = None
        try:
            while not self._start():
                pass  # another process took the port between its choice and its use
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> bool:
        """Start, and wait until it answers; False if the free port that was chosen was taken in the meantime."""
        port = self._port or _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [_python(self._path), "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        if self._base:
            command += ["--base-directory", str(self._base)]
        for kind in ("output", "temp"):
            (self._own / kind).mkdir(exist_ok=True)
            command += [f"--{kind}-directory", str(self._own / kind)]
        command += self._arguments
        if self._pack and not self._has(self._pack):
            command += ["--extra-model-paths-config", str(self._config(self._pack))]
        # Users' ComfyUI does not have this program on its path; neither may this one.
        environ = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        with self._log_file.open("wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, str(KEEPER), *command],
                cwd=self._path,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # This program alone handles Ctrl-C at the terminal.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        deadline = time.monotonic() + self._limit
        client = Client(self.url)
        while time.monotonic() < deadline:
            if (status := self._keeper.poll()) is not None:
                if not self._port and f"Port {port} is already in use" in self.log:
                    return False
                raise ServerError(f"ComfyUI ended with status {status} while starting. {self.log_tail}")
            # There is no answer yet, or one of another server, which was not started with this folder.
            with suppress(ServerError, PromptError, StoppedError, LookupError, TypeError):
                if str(self._own / "output") in client.get("/system_stats")["system"]["argv"]:
                    return True
            time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer within {self._limit:g} s. {self.log_tail}")

    def _has(self, pack: Path) -> bool:
        folder = (self._base or self._path) / "custom_nodes"
        return folder.is_dir() and any(entry.resolve() == pack.resolve() for entry in folder.iterdir())

    def _config(self, pack: Path) -> Path:
        """A configuration with which ComfyUI finds the pack, and none of the packs beside it."""
        folder = self._own / "custom_nodes"
        link(folder / pack.name, pack)
        config = self._own / "paths.yaml"
        config.write_text(f"sweep:\n  custom_nodes: {json.dumps(str(folder))}\n", "utf-8")
        return config

    def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.stdin.close()
            try:
                self._keeper.wait(_ENDING)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.wait()
        self._temporary.cleanup()

    @property
    def running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def process(self) -> psutil.Process:
        """The process of ComfyUI itself."""
        [found] = psutil.Process(self._keeper.pid).children()
        return found

    @property
    def output(self) -> Path:
        """The folder that it saves to."""
        return self._own / "output"

    @property
    def _log_file(self) -> Path:
        return self._own / "server.log"

    @property
    def log(self) -> str:
        """What ComfyUI has logged so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._log_file.read_text("utf-8", errors="replace"))

    @property
    def log_tail(self) -> str:
        return "The end of its log:\n" + "\n".join(self.log.splitlines()[-40:])


def link(path: Path, target: Path) -> None:
    """Make `path` lead to the folder `target`. Windows allows everyone a junction, but not everyone a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", path, target], check=True, stdout=subprocess.DEVNULL)
    elif not path.is_symlink():
        path.symlink_to(target, target_is_directory=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _python(path: Path) -> str:
    """The interpreter of the checkout's own environment, if it has one; else this one."""
    for folder in (".venv", "venv"):
        for python in ("bin/python", "Scripts/python.exe"):
            if (found := path / folder / python).exists():
                return str(found)
    return sys.executable
