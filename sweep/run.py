"""The jobs of a journal on several servers: each takes the next one when it is ready, until all have come to an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .errors import StoppedError
from .journal import Journal, Task
from .link import Link, new_session
from .plan import Plan
from .progress import OnProgress, Pace, duration
from .station import Station

_CANCELLING = 15  # seconds that servers get to take our prompts back


class Servers:
    """Running ComfyUIs by their URLs."""

    def __init__(self, urls: Sequence[str], patience: float) -> None:
        self._urls, self._patience = urls, patience

    async def __aenter__(self) -> Servers:
        self._session = new_session()
        self._links = [Link(url, self._session, "") for url in self._urls]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def describe(self, named: set[str]) -> dict[str, dict[str, Any]]:
        found = {}
        for link in self._links:
            await link.about()
            found[link.name] = await link.object_info(named)
        return found

    async def run(self, plan: Plan, journal: Journal, on_progress: OnProgress | None) -> None:
        for link in self._links:
            link.client_id = journal.client_id
        await Run(plan, journal, self._links, self._patience).run(on_progress)


class Run:
    """`patience`: seconds to wait while no server answers."""

    def __init__(self, plan: Plan, journal: Journal, links: Sequence[Link], patience: float) -> None:
        self.plan = plan
        self.journal = journal
        self.patience = patience
        self.stations = [Station(link, self) for link in links]
        self._end: asyncio.Future[None] | None = None

    async def run(self, on_progress: OnProgress | None = None) -> None:
        """Returns when every job is done or has failed. Raises StoppedError where it cannot go on."""
        self._end = asyncio.get_running_loop().create_future()
        await self._take_up()
        self.changed()
        working = [asyncio.create_task(station.work()) for station in self.stations]
        for task in working:
            task.add_done_callback(self.noticed)
        if on_progress:
            working.append(asyncio.create_task(self._tell(on_progress)))
        try:
            await self._end
        finally:
            for station in self.stations:
                working += station.collecting.values()
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            stopping = asyncio.gather(*(station.stop() for station in self.stations), return_exceptions=True)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stopping, _CANCELLING)

    async def _take_up(self) -> None:
        """Takes over what an earlier call has left at the servers."""
        stations = {station.link.name: station for station in self.stations}
        for task in self.journal.unwanted():
            self.journal.forget(task)
            if task.server in stations:
                stations[task.server].given_back.add(task.prompt_id)
        for task in self.journal.running():
            if task.server in stations:
                stations[task.server].waiting[task.prompt_id] = task
            else:
                self.journal.give_back(task)

    # For the stations

    def take(self, station: Station) -> Task | None:
        models = [other.model for other in self.stations if other is not station and other.model is not None]
        return self.journal.take(station.link.name, station.model, models)

    def changed(self) -> None:
        """To be called when a job has ended or waits again."""
        if self.journal.over and not self._end.done():
            self._end.set_result(None)
        elif self.journal.counts["queued"]:
            for station in self.stations:
                station.wake.set()

    def noticed(self, task: asyncio.Task[None]) -> None:
        """The end of a task; what it raised ends the run."""
        if not task.cancelled() and (error := task.exception()) and not self._end.done():
            self._end.set_exception(error)

    def check_patience(self) -> None:
        since = [station.away for station in self.stations]
        if all(since) and time.monotonic() - max(since) > self.patience:
            left = self.journal.counts["queued"] + self.journal.counts["running"]
            raise StoppedError(
                f"No server has answered for {duration(self.patience)} ({self.stations[0].link.name} is "
                f"{self.stations[0].doing}); {left} jobs are left, and the same call goes on with them."
            )

    async def _tell(self, on_progress: Callable) -> None:
        pace = Pace()
        while True:
            on_progress(pace.progress(self.journal.counts, {s.link.name: s.doing for s in self.stations}))
            await asyncio.sleep(1)
