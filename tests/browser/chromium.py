"""A page in a real Chromium, driven by its own protocol over the websocket that it opens.

    with Page() as page:
        page.open(url)
        page.until("document.title")
        page.screenshot(path)

Relies on: aiohttp, which is ComfyUI's own requirement; the DevTools protocol (Page, Runtime, Log, Input).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1600, 1000
# Whether to leave a page with unsaved changes: nobody is there to answer.
_NO_QUESTIONS = "window.addEventListener('beforeunload', (event) => event.stopImmediatePropagation(), true)"


class PageError(RuntimeError):
    """An expression of a test that threw in the page, or never became true."""


def executable() -> str:
    """Where Chromium is: GUIDEKIT_CHROMIUM, or on the path."""
    found = os.environ.get("GUIDEKIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise PageError("no Chromium on the path: install one (Debian: chromium), or name it in GUIDEKIT_CHROMIUM")
    return found


class Page:
    """`errors`: what the page has thrown, or logged as an error, since it was opened."""

    def __init__(self, width: int = WIDTH, height: int = HEIGHT):
        self._size = width, height
        self.errors: list[str] = []

    def __enter__(self) -> Page:
        self._loop = asyncio.new_event_loop()
        self._profile = tempfile.TemporaryDirectory(prefix="guidekit-chromium-", ignore_cleanup_errors=True)
        command = [executable(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={self._profile.name}", "--no-first-run"]
        command += [f"--window-size={self._size[0]},{self._size[1]}", "--lang=en-US", "--disable-background-networking"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AttributeError):
            self._loop.run_until_complete(self._session.close())
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._loop.close()
        self._profile.cleanup()

    def open(self, url: str) -> None:
        self.errors.clear()
        self("Page.navigate", url=url)

    def reload(self) -> None:
        self.errors.clear()
        self.run("window.stale = true")
        self("Page.reload")
        self.until("!window.stale")

    def run(self, javascript: str) -> Any:
        """The value of an expression, awaited; it may be the call of an async function."""
        found = self("Runtime.evaluate", expression=javascript, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in found:
            raise PageError(f"{_thrown(found['exceptionDetails'])}\n  in {javascript}")
        return found["result"].get("value")

    def until(self, javascript: str, limit: float = 60) -> Any:
        """Waits until an expression is true, and returns it. While the page loads, it may throw."""
        deadline, last = time.monotonic() + limit, None
        while time.monotonic() < deadline:
            try:
                if last := self.run(javascript):
                    return last
            except PageError as error:
                last = error
            self._loop.run_until_complete(asyncio.sleep(0.1))
        raise PageError(f"not within {limit:g} s: {javascript}; last {last!r}; errors {self.errors}")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

    def __call__(self, method: str, **parameters: Any) -> dict:
        """A command of the protocol."""
        return self._loop.run_until_complete(asyncio.wait_for(self._command(method, parameters), 120))

    async def _connect(self) -> None:
        port_file, deadline = Path(self._profile.name, "DevToolsActivePort"), time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text()):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise PageError("Chromium did not start")
            await asyncio.sleep(0.05)
        address = f"http://127.0.0.1:{port_file.read_text().split()[0]}/json"
        self._session = aiohttp.ClientSession()
        async with self._session.get(address) as answer:
            [target] = [each for each in await answer.json(content_type=None) if each["type"] == "page"]
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        self._number = 0
        for domain in ("Page", "Runtime", "Log"):
            await self._command(f"{domain}.enable", {})
        await self._command("Page.addScriptToEvaluateOnNewDocument", {"source": _NO_QUESTIONS})

    async def _command(self, method: str, parameters: dict) -> dict:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise PageError(f"Chromium has closed the connection: {message}")
            answer = json.loads(message.data)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict) -> None:
        kind, data = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(_thrown(data["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and data["type"] == "error":
            self.errors.append(" ".join(str(each.get("value", each.get("description"))) for each in data["args"]))
        elif kind == "Log.entryAdded" and data["entry"]["level"] == "error":
            self.errors.append(f"{data['entry']['text']} {data['entry'].get('url', '')}")


def _thrown(details: dict) -> str:
    return details.get("exception", {}).get("description") or details["text"]
