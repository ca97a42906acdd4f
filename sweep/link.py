"""One ComfyUI: its HTTP interface, and the websocket over which it tells how prompts go.

Relies on the host's server.py: POST /prompt takes a prompt id from the client, GET /queue and /history/{id} know it
from then on until the server ends, and events go to the client id that the prompt was queued with.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp

from .errors import StoppedError, SweepError
from .text import cut, plain, quoted
from .workflow import Prompt

_TEXT_EVENT = 3  # the host's protocol.py, BinaryEventTypes.TEXT
_TOLD = "guidekit.told"  # of the pack's nodes, nodes/host/run/told.py
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
_HEARTBEAT = 30  # seconds between signs of life on the websocket


class Lost(Exception):  # noqa: N818  not an error: the caller waits for the server to come back
    """The server does not answer. `gone`: nobody listens there any more."""

    def __init__(self, reason: str, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone


class Refused(Exception):  # noqa: N818  one job's end, not the program's
    """ComfyUI refuses a prompt: the node's id, where it names one, and the sentence."""

    def __init__(self, node_id: str | None, sentence: str) -> None:
        super().__init__(sentence)
        self.node_id = node_id
        self.sentence = sentence


@dataclass(frozen=True)
class Event:
    """Event of a prompt: it "started", its "node" runs, did `done` of `total` steps, "told" a `text`, or the prompt
    "ended"."""

    kind: str
    prompt_id: str | None = None
    node_id: str | None = None
    done: int = 0
    total: int = 0
    text: str = ""


@dataclass(frozen=True)
class File:
    """A file that a node has saved, as the history names it."""

    node_id: str
    filename: str
    subfolder: str
    type: str


def public(url: str) -> str:
    """A URL as it is written down and shown: without name and password."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def valid_url(text: str) -> str:
    """The URL of a server, http where it says nothing else."""
    given = text.strip()
    url = (given if "://" in given else f"http://{given}").rstrip("/")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = None, None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise SweepError(f"{quoted(text)} is not the URL of a server, for instance http://127.0.0.1:8188.")
    return url


class Link:
    """To the ComfyUI at `url`; `session` is the caller's, as is the time it lives."""

    def __init__(self, url: str, session: aiohttp.ClientSession, client_id: str) -> None:
        self.url = url
        self.name = public(url)
        self._session = session
        self.client_id = client_id

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Connected to the websocket; to be entered before a prompt is queued, or its first events could be missed."""
        async with _honestly(self.name):
            socket = await self._session.ws_connect(
                f"{self.url}/ws?clientId={self.client_id}", heartbeat=_HEARTBEAT, max_msg_size=0
            )
        try:
            yield self._read(socket)
        finally:
            await socket.close()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Event]:
        async with _honestly(self.name):
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    if event := _told(message.data):
                        yield event
                elif message.type is aiohttp.WSMsgType.TEXT:
                    for event in _events(message.data):
                        yield event
        raise Lost(f"{self.name} has closed the connection")

    async def submit(self, prompt: Prompt, prompt_id: str) -> None:
        """Queue a prompt. Raises Refused if it cannot run, as a whole or in one of its outputs."""
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": self.client_id}
        async with _honestly(self.name), self._session.post(f"{self.url}/prompt", json=body) as reply:
            if reply.status in (502, 503, 504):
                raise Lost(f"{self.name} is behind a server that answers {reply.status}")
            text = await reply.text(errors="replace")
        answer = _parsed(text)
        if reply.status != 200 or not isinstance(answer, dict) or answer.get("error"):
            raise _refusal(reply.status, answer, text)
        if answer.get("node_errors"):
            # The outputs that do not depend on these nodes have been queued; a part of a job is no result.
            await self.cancel([prompt_id])
            raise _refusal(reply.status, answer, text)

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What the server keeps of a prompt that has ended."""
        return (await self.get(f"/history/{prompt_id}")).get(prompt_id)

    async def queue(self) -> set[str]:
        """The ids of the prompts that wait or run there, anybody's."""
        found = await self.get("/queue")
        return {item[1] for part in ("queue_running", "queue_pending") for item in found[part]}

    async def cancel(self, prompt_ids: Iterable[str]) -> None:
        """Take these prompts from the queue, and interrupt the one of them that runs."""
        ids = list(prompt_ids)
        if ids:
            await self._post("/queue", {"delete": ids})
            for prompt_id in (await self.queue()).intersection(ids):
                await self._post("/interrupt", {"prompt_id": prompt_id})

    async def interrupt(self) -> None:
        """Stop what runs, whoever's it is."""
        await self._post("/interrupt", {})

    async def get(self, path: str) -> Any:
        """The JSON at `path`."""
        async with _honestly(self.name), self._session.get(self.url + path) as reply:
            if reply.status in (502, 503, 504):
                raise Lost(f"{self.name} is behind a server that answers {reply.status}")
            text = await reply.text(errors="replace")
        answer = _parsed(text)
        if reply.status != 200 or not isinstance(answer, dict):
            raise StoppedError(f"{self.name} answers {path} with status {reply.status} and {quoted(text[:200])}.")
        return answer

    async def view(self, file: File) -> bytes:
        """The content of a file. Raises Refused if the server does not have it."""
        query = "&".join(f"{key}={quote(getattr(file, key))}" for key in ("filename", "subfolder", "type"))
        async with _honestly(self.name), self._session.get(f"{self.url}/view?{query}") as reply:
            if reply.status != 200:
                raise Refused(file.node_id, f"its file {quoted(file.filename)} cannot be had: status {reply.status}")
            return await reply.read()

    async def save(self, file: File, path: Path) -> None:
        """The same, into a file: it may be a long video."""
        query = "&".join(f"{key}={quote(getattr(file, key))}" for key in ("filename", "subfolder", "type"))
        async with _honestly(self.name), self._session.get(f"{self.url}/view?{query}") as reply:
            if reply.status != 200:
                raise Refused(file.node_id, f"its file {quoted(file.filename)} cannot be had: status {reply.status}")
            with path.open("wb") as target:
                async for part in reply.content.iter_chunked(2**20):
                    target.write(part)

    async def about(self) -> dict[str, Any]:
        """/system_stats, by which ComfyUI is told from another program."""
        try:
            return (await self.get("/system_stats"))["system"]
        except (StoppedError, LookupError, TypeError):
            raise SweepError(f"Something answers at {self.name}, but it is not ComfyUI.") from None
        except Lost as lost:
            raise SweepError(f"No ComfyUI answers at {self.name}: {lost}.") from None

    async def object_info(self, classes: Iterable[str]) -> dict[str, Any]:
        """/object_info, of these classes; those that the server does not have are left out."""
        found = await self.get("/object_info")
        return {name: found[name] for name in classes if name in found}

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        async with _honestly(self.name), self._session.post(self.url + path, json=body) as reply:
            await reply.read()


def new_session() -> aiohttp.ClientSession:
    """For all links of a run. The system's proxy is not asked for 127.0.0.1, nor for anything else."""
    return aiohttp.ClientSession(timeout=_TIMEOUT, connector=aiohttp.TCPConnector(limit=0))


@asynccontextmanager
async def _honestly(name: str) -> AsyncIterator[None]:
    """What may happen to a connection, as Lost."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        reason = getattr(error.os_error, "strerror", None) or str(error.os_error)
        raise Lost(f"it cannot be reached ({plain(str(reason))})", gone=True) from None
    except aiohttp.ServerDisconnectedError:
        raise Lost(f"{name} has closed the connection") from None
    except asyncio.TimeoutError:
        raise Lost(f"{name} takes too long to answer") from None
    except aiohttp.ClientError as error:
        raise Lost(f"{plain(str(error)) or type(error).__name__}") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _events(text: str) -> list[Event]:
    message = _parsed(text)
    if not isinstance(message, dict) or not isinstance(data := message.get("data"), dict):
        return []
    kind, prompt_id, node_id = message.get("type"), data.get("prompt_id"), data.get("node")
    if kind == "execution_start":
        return [Event("started", prompt_id)]
    if kind == "executing":  # without a node it is sent when the history has been written
        return [Event("ended", prompt_id) if node_id is None else Event("node", prompt_id, node_id)]
    if kind == "progress":
        return [Event("progress", prompt_id, node_id, int(data.get("value", 0)), int(data.get("max", 0)))]
    if kind == _TOLD:
        said: dict[str, list[str]] = {}
        for line in data["lines"]:
            said.setdefault(line["node"], []).append(line["text"])
        return [Event("told", prompt_id, node, text="\n".join(texts)) for node, texts in said.items()]
    return []


def _told(message: bytes) -> Event | None:
    """The text that a node of another pack shows under itself, if the message is one (the host's server.py,
    send_progress_text); others are preview images. It does not say of which prompt."""
    if len(message) < 8:
        return None
    kind, length = struct.unpack(">II", message[:8])
    if kind != _TEXT_EVENT:
        return None
    rest = message[8:]
    return Event("told", None, rest[:length].decode(errors="replace"), text=rest[length:].decode(errors="replace"))


def _refusal(status: int, answer: Any, text: str) -> Refused:
    """The sentences in ComfyUI's answer to an invalid prompt."""
    if not isinstance(answer, dict):
        return Refused(None, f"ComfyUI refused the prompt with status {status}: {cut(plain(text), 300)}")
    error = answer.get("error")
    general = (
        error if isinstance(error, str) else " ".join(str((error or {}).get(k, "")) for k in ("message", "details"))
    )
    for node_id, node in (answer.get("node_errors") or {}).items():
        reasons = [f"{reason.get('message')}: {reason.get('details')}" for reason in node.get("errors", ())]
        return Refused(node_id, "; ".join(reasons))
    return Refused(None, general.strip())
