"""One prompt at a time on one ComfyUI, and what else it answers, for scripts and tests:

    client = Client("http://127.0.0.1:8188")
    outputs = client.run(prompt)                      # a workflow in API format
    image = client.view(outputs["9"]["images"][0])  # the bytes of a PNG

A prompt that fails is an exception with its node and sentence.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .errors import PromptError, ServerError
from .link import Event, File, Link, Lost, Refused, new_session, valid_url
from .outcome import Told, hear, outcome
from .workflow import Prompt

Step = Callable[[int, int, str], None]  # steps done, steps in all, node id
T = TypeVar("T")


class Client:
    """`told`: what nodes reported of the last prompt, by node id. Methods raise ServerError if the server does not
    answer."""

    def __init__(self, url: str) -> None:
        self.url = valid_url(url)
        self.told: dict[str, str] = {}

    def get(self, path: str) -> Any:
        """The JSON that ComfyUI answers at `path`, for instance "/object_info"."""
        return self._wait(lambda link: link.get(path))

    def view(self, image: dict[str, str]) -> bytes:
        """A file, given as the outputs of a run name it: filename, subfolder, type."""
        file = File("", image["filename"], image.get("subfolder", ""), image.get("type", "output"))
        return self._wait(lambda link: link.view(file))

    def interrupt(self) -> None:
        """Stop the prompt that is running, whose `run` then raises PromptError. `on_step` may call it."""
        self._wait(lambda link: link.interrupt())

    def run(self, prompt: Prompt, on_step: Step | None = None, limit: float = 600) -> dict[str, Any]:
        """Queue a prompt, wait for its end, and return the outputs of its output nodes by node id.

        Raises PromptError if it is refused, fails, is interrupted or takes more than `limit` seconds; the server can be
        used further in each case.
        """
        return self._wait(lambda link: self._run(link, prompt, on_step, limit))

    def _wait(self, work: Callable[[Link], Awaitable[T]]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._with_link(work))
        with ThreadPoolExecutor(1) as thread:  # called where something else runs: by `on_step`, or in a notebook
            return thread.submit(asyncio.run, self._with_link(work)).result()

    async def _with_link(self, work: Callable[[Link], Awaitable[T]]) -> T:
        async with new_session() as session:
            try:
                return await work(Link(self.url, session, uuid.uuid4().hex))
            except Lost as lost:
                raise ServerError(f"ComfyUI does not answer: {lost}.") from None
            except Refused as refused:
                raise PromptError(refused.sentence) from None

    async def _run(self, link: Link, prompt: Prompt, on_step: Step | None, limit: float) -> dict[str, Any]:
        prompt_id = str(uuid.uuid4())
        told: Told = {}
        try:
            async with link.events() as events:
                await link.submit(prompt, prompt_id)
                await asyncio.wait_for(_end(events, prompt_id, told, on_step), limit)
        except Refused as refused:
            named = prompt.get(refused.node_id or "", {}).get("class_type")
            where = f"node {refused.node_id} ({named}): " if named else ""
            raise PromptError(f"ComfyUI refused the prompt: {where}{refused.sentence}") from None
        except asyncio.TimeoutError:
            await link.cancel([prompt_id])
            raise PromptError(f"the prompt did not end within {limit:g} s and was interrupted") from None
        except asyncio.CancelledError:
            await link.cancel([prompt_id])
            raise
        found = outcome(await link.history(prompt_id) or {})
        self.told = {node_id: "\n".join(texts) for node_id, texts in told.items()}
        if found.error is not None:
            raise PromptError(f"node {found.node_id} ({found.node_class}): {found.error}")
        return found.outputs


async def _end(events: AsyncIterator[Event], prompt_id: str, told: Told, on_step: Step | None) -> None:
    """Waits for the end of a prompt."""
    async for event in events:
        if event.kind == "told":
            hear(told, event.node_id, event.text)
        elif event.prompt_id == prompt_id:
            if event.kind == "ended":
                return
            if event.kind == "progress" and on_step:
                on_step(event.done, event.total, event.node_id)
