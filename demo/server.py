"""A real headless ComfyUI with this pack in it, and a client for it: for the demo and the headless tests.

    with Server() as server:
        outputs = server.run(prompt)                      # a workflow in API format
        picture = server.view(outputs["9"]["images"][0])  # the bytes of a PNG

The checkout to run is named by the environment variable GUIDEKIT_COMFYUI, which dev.py sets.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import aiohttp  # this and psutil are ComfyUI's own requirements
import psutil

from ..dev import link

PACK = Path(__file__).resolve().parent.parent
Prompt = dict[str, dict[str, Any]]
Progress = Callable[[int, int, str], None]  # steps done, steps in all, node id
_TEXT_EVENT = 3  # the host's protocol.py, BinaryEventTypes.TEXT

# The default opener would ask the user's proxy for 127.0.0.1.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class ServerError(RuntimeError):
    """ComfyUI did not start, or died. The text ends with the end of its log."""


class PromptError(RuntimeError):
    """ComfyUI refused a prompt, failed in one of its nodes, or was interrupted. The text names the nodes."""


class Server:
    """ComfyUI in a child process that lives exactly as long as the `with` block.

    It has a base directory of its own, removed at the end: only this pack and the folders in `extra_nodes` are custom
    nodes, there are no models, and what it saves is fetched with `view`. `start_limit` is in seconds.
    """

    def __init__(self, extra_nodes: Sequence[Path] = (), start_limit: float = 180) -> None:
        if "GUIDEKIT_COMFYUI" not in os.environ:
            raise ServerError("GUIDEKIT_COMFYUI is not set; run this through `python dev.py python`, which sets it")
        self._host = Path(os.environ["GUIDEKIT_COMFYUI"])
        self._nodes = {"guidekit": PACK, **{folder.name: folder for folder in extra_nodes}}
        self._start_limit = start_limit
        self.told: dict[str, str] = {}  # what nodes said of the last prompt, by node id

    def __enter__(self) -> Server:
        # On Windows a file may stay in use for a moment after the process that had it open.
        self._temporary = tempfile.TemporaryDirectory(prefix="guidekit-", ignore_cleanup_errors=True)
        self._base = Path(self._temporary.name).resolve()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            for name, folder in self._nodes.items():
                link(self._base / "custom_nodes" / name, folder.resolve())
            while not self._start():
                pass  # another process took the port between its choice and its use
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> bool:
        """Start ComfyUI on a free port and wait until it answers; False if the port was taken in the meantime."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self._base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-api-nodes", "--disable-auto-launch"]
        # An extra_model_paths.yaml in the checkout may name folders of further ones.
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *self._nodes]
        if not _has_gpu():
            command.append("--cpu")
        # Users' ComfyUI does not have this repository on its path; neither may this one.
        environ = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._host, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + self._start_limit
        while time.monotonic() < deadline:
            if (status := self._process.poll()) is not None:
                if f"Port {port} is already in use" in self.log:
                    return False
                raise ServerError(f"ComfyUI ended with status {status} while starting. {self._log_tail}")
            # Nobody answers yet; or something else does, which was not started with this base directory.
            with suppress(OSError, HTTPException, ValueError, LookupError):
                if str(self._base) in self.get("/system_stats")["system"]["argv"]:
                    return True
            time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer within {self._start_limit:g} s. {self._log_tail}")

    def _stop(self) -> None:
        if self._process is not None:
            family: list[psutil.Process] = []
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(self._process.pid).children(recursive=True)
            try:
                self._process.terminate()
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            finally:
                self._process.kill()  # does nothing if it has ended
                self._process.wait()
                for child in family:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
        self._temporary.cleanup()

    @property
    def models(self) -> Path:
        """Where the server looks for models; there are none but those that are put there."""
        return self._base / "models"

    @property
    def _log_file(self) -> Path:
        return self._base / "server.log"

    @property
    def log(self) -> str:
        """What ComfyUI has logged so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._log_file.read_text("utf-8", errors="replace"))

    @property
    def _log_tail(self) -> str:
        return "The end of its log:\n" + "\n".join(self.log.splitlines()[-40:])

    def get(self, path: str) -> Any:
        """The JSON that ComfyUI answers at `path`, for instance "/object_info"."""
        with _open(self.url + path, timeout=30) as reply:
            return json.load(reply)

    def view(self, image: dict[str, str]) -> bytes:
        """The file of a picture, given as the outputs of a run name it: filename, subfolder, type."""
        with _open(f"{self.url}/view?{urllib.parse.urlencode(image)}", timeout=30) as reply:
            return reply.read()

    def interrupt(self) -> None:
        """Stop the prompt that is running; `run` then raises PromptError."""
        self._post("/interrupt", {})

    def run(self, prompt: Prompt, on_progress: Progress | None = None, limit: float = 600) -> dict[str, Any]:
        """Queue a prompt, wait for its end, and return the outputs of its output nodes by node id.

        Raises PromptError if it is refused, fails, is interrupted or takes more than `limit` seconds; the server can be
        used further in each case. Raises ServerError if the server dies. `on_progress` may call `interrupt`.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._run(prompt, on_progress), limit))
        except asyncio.TimeoutError:
            self.interrupt()
            raise PromptError(f"the prompt did not end within {limit:g} s and was interrupted") from None
        except aiohttp.ClientError as error:
            raise ServerError(f"ComfyUI does not answer: {error}. {self._log_tail}") from error

    async def _run(self, prompt: Prompt, on_progress: Progress | None) -> dict[str, Any]:
        client = uuid.uuid4().hex
        # Connected before the prompt is queued, or its first messages could be missed.
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}") as messages,
        ):
            self.told = {}
            prompt_id = self._post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"]
            async for message in messages:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self.told |= _node_text(message.data)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id") != prompt_id:
                    continue
                if kind == "progress" and on_progress:
                    on_progress(data["value"], data["max"], data["node"])
                elif kind == "execution_error":
                    what = f"{data['exception_type']}: {data['exception_message'].strip()}"
                    raise PromptError(f"node {data['node_id']} ({data['node_type']}): {what}")
                elif kind == "execution_interrupted":
                    raise PromptError(f"node {data['node_id']} ({data['node_type']}): interrupted")
                elif kind == "executing" and data["node"] is None:  # sent when the history has been written
                    return self.get(f"/history/{prompt_id}")[prompt_id]["outputs"]
        raise ServerError(f"ComfyUI closed the connection during a prompt. {self._log_tail}")

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _open(request, timeout=60) as reply:
                return json.loads(reply.read() or "null")
        except urllib.error.HTTPError as refusal:
            raise PromptError(_readable(refusal.read().decode(errors="replace"))) from None


def _node_text(message: bytes) -> dict[str, str]:
    """The text that a node shows under itself, by node id, if the message is one (the host's server.py,
    send_progress_text); others are preview pictures."""
    kind, length = struct.unpack(">II", message[:8])
    return {message[8 : 8 + length].decode(): message[8 + length :].decode()} if kind == _TEXT_EVENT else {}


def _readable(refusal: str) -> str:
    """The sentences in ComfyUI's answer to an invalid prompt."""
    try:
        answer = json.loads(refusal)
    except ValueError:
        return f"ComfyUI refused the request: {refusal}"
    lines = [f"ComfyUI refused the prompt: {answer['error']['message']} {answer['error']['details']}".strip()]
    for node_id, node in answer["node_errors"].items():
        for error in node["errors"]:
            lines.append(f"node {node_id} ({node['class_type']}): {error['message']}: {error['details']}")
    return "\n".join(lines)


def _has_gpu() -> bool:
    import torch  # takes seconds; users of the client alone need not wait

    return torch.cuda.is_available()
