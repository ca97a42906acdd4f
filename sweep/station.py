"""One server's part in a sweep: it is kept busy, listened to, and asked again for everything after it was away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .collect import collect
from .journal import Task
from .link import Event, Link, Lost, Refused
from .outcome import Told, hear, outcome
from .text import plain
from .workflow import title

if TYPE_CHECKING:
    from .run import Run

QUICK = 0.5  # seconds: below, several jobs wait at the server, so that it never waits for us
_COLLECTING = 16  # jobs whose results are brought in at the same time
_SILENCE = 15  # seconds without an event, after which the server is asked
_PAUSES = (0.2, 0.5, 1, 2)  # seconds between tries to reach it again


@dataclass
class Station:
    """`waiting`: by prompt id, what is in the server's queue as far as we know; `given_back`: what was, when it could
    not be reached, and must not run there any more."""

    link: Link
    run: Run
    waiting: dict[str, Task] = field(default_factory=dict)
    collecting: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    given_back: set[str] = field(default_factory=set)
    told: dict[str, Told] = field(default_factory=dict)
    model: str | None = None
    current: str | None = None  # the prompt of ours that runs
    suspect: str | None = None  # the one that ran when the server was lost
    doing: str = ""  # for the user
    away: float | None = None  # since when
    pace: float | None = None  # seconds between the ends of jobs
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    _heard: float = 0.0
    _ended: float = 0.0

    async def work(self) -> None:
        """Until it is cancelled."""
        tries = 0
        while True:
            try:
                async with self.link.events() as events:
                    await self.link.cancel(self.given_back)
                    self.given_back.clear()
                    self._heard, tries = time.monotonic(), 0
                    await self._ask()
                    self.away = self.suspect = None
                    self.wake.set()
                    await _first_of(self._listen(events), self._feed(), self._watch())
            except Lost as lost:
                if self.away is None:
                    self.away = time.monotonic()
                    # A process that dies at once has not said what it began; it takes prompts in their order.
                    waiting = (prompt_id for prompt_id in self.waiting if prompt_id not in self.collecting)
                    self.suspect, self.current = self.current or next(waiting, None), None
                self.doing = f"away: {lost}"
                for task in self.collecting.values():
                    task.cancel()
                if lost.gone or time.monotonic() - self.away > self.run.patience:
                    self._give_all_back(died=lost.gone)
                self.run.check_patience()
            await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    async def stop(self) -> None:
        """Take what is ours from the server's queue. For the end of a sweep before its end."""
        ids = list(self.waiting)
        self._give_all_back(died=False)
        with suppress(Lost):
            await self.link.cancel(ids)

    # What goes to the server

    async def _feed(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            ahead = 8 if self.pace is not None and self.pace < QUICK else 2
            while len(self.waiting) - len(self.collecting) < ahead and len(self.collecting) < _COLLECTING:
                task = self.run.take(self)
                if task is None:
                    break
                self.waiting[task.prompt_id] = task
                self.model = task.model
                try:
                    await self.link.submit(self.run.plan.prompt(task.settings), task.prompt_id)
                except Refused as refused:
                    self._fail(task, refused.node_id, refused.sentence)

    # What comes from it

    async def _listen(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self._heard = time.monotonic()
            self._take(event)

    def _take(self, event: Event) -> None:
        if event.kind == "told":  # to everybody, whoever's prompt runs
            if self.current is not None:
                hear(self.told.setdefault(self.current, {}), event.node_id, event.text)
            return
        if event.prompt_id not in self.waiting:
            return
        if event.kind == "ended":
            self.current, self.doing = None, ""
            now = time.monotonic()
            if self._ended:
                self.pace = 0.7 * (self.pace or now - self._ended) + 0.3 * (now - self._ended)
            self._ended = now
            self._collect(event.prompt_id)
            return
        self.current = event.prompt_id
        if event.kind in ("node", "progress"):
            steps = f" {event.done}/{event.total}" if event.total else ""
            self.doing = title(self.run.plan.base, event.node_id or "") + steps

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_SILENCE / 3)
            if self.waiting and time.monotonic() - self._heard > _SILENCE:
                await self._ask()
                self._heard = time.monotonic()

    async def _ask(self) -> None:
        """What became of what was queued: the queue first, since prompts go from there to the history."""
        if not self.waiting:
            return
        queue = await self.link.queue()
        for prompt_id, task in list(self.waiting.items()):
            if prompt_id in queue or prompt_id in self.collecting:
                continue
            if await self.link.history(prompt_id) is not None:
                self._collect(prompt_id)
            elif prompt_id in self.waiting:  # the server has been started anew, or somebody has emptied its queue
                self._give_back(task, died=prompt_id == self.suspect)

    def _collect(self, prompt_id: str) -> None:
        if prompt_id not in self.collecting:
            task = asyncio.create_task(self._bring_in(self.waiting[prompt_id]))
            self.collecting[prompt_id] = task
            task.add_done_callback(self.run.noticed)
            self.wake.set()

    async def _bring_in(self, task: Task) -> None:
        try:
            entry = await self.link.history(task.prompt_id)
            if entry is None:  # somebody has emptied the history
                self._give_back(task, died=False)
                return
            found = outcome(entry)
            if found.error is not None:
                self._fail(task, found.node_id, found.error, found.node_class)
                return
            told = self.told.get(task.prompt_id, {})
            await collect(self.run.journal, task, self.run.plan.prompt(task.settings), found, told, self.link.save)
            self._forget(task)
        except Refused as refused:
            self._fail(task, refused.node_id, refused.sentence)
        except Lost:
            pass  # asked for again after a silence, or when the server is there again
        finally:
            self.collecting.pop(task.prompt_id, None)
            self.wake.set()

    # The end of a job here

    def _fail(self, task: Task, node_id: str | None, sentence: str, node_class: str | None = None) -> None:
        base = self.run.plan.base
        kind = node_class or base.get(node_id or "", {}).get("class_type")
        node = f"{node_id} ({kind})" if kind else node_id
        self.run.journal.failed(task, node, plain(sentence))
        self._forget(task)

    def _give_back(self, task: Task, died: bool) -> None:
        self.run.journal.give_back(task, died)
        self._forget(task)

    def _give_all_back(self, died: bool) -> None:
        for prompt_id, task in list(self.waiting.items()):
            self.given_back.add(prompt_id)
            self._give_back(task, died and prompt_id == self.suspect)
        self.model = None

    def _forget(self, task: Task) -> None:
        self.waiting.pop(task.prompt_id, None)
        self.told.pop(task.prompt_id, None)
        self.run.changed()


async def _first_of(*parts: Awaitable[None]) -> None:
    """Side by side until one fails, as all of them do in the end."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
