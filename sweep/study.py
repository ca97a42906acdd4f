"""`Sweep`: a workflow, its settings, the servers and the output folder, put together."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import grid as grids
from . import page, table
from .collect import FILES, PART
from .errors import StoppedError, SweepError
from .journal import DONE, FAILED, Journal, Row
from .link import valid_url
from .plan import Plan, Setting, make_plan
from .progress import OnProgress
from .run import Servers
from .text import plain, quoted
from .workflow import as_prompt, check, classes, read_json

DEFAULT_SERVER = "http://127.0.0.1:8188"
DEFAULT_LIMIT = 20_000  # jobs
DEFAULT_PATIENCE = 300  # seconds


@dataclass(frozen=True)
class Summary:
    """Summary of one call's jobs; `seconds`: the average time of a job, None if none has succeeded."""

    count: int
    done: int
    failed: int
    seconds: float | None


class Workers(Protocol):
    """What jobs run on: servers, or a cluster. Entered for the time of a call."""

    async def __aenter__(self) -> Workers: ...
    async def __aexit__(self, *_: object) -> None: ...

    async def describe(self, named: set[str]) -> dict[str, dict[str, Any]]:
        """What each server says of the node classes `named`, by what the server is called."""

    async def run(self, plan: Plan, journal: Journal, on_progress: OnProgress | None) -> None:
        """Returns when every job has come to an end. Raises StoppedError where it cannot go on."""


class Sweep:
    """A workflow run once for every combination of settings.

        sweep = Sweep("workflow.json", "out", settings={"KSampler.seed": range(1, 65)}, servers=[url, another])
        print(sweep.run())
        for row in sweep.rows():
            print(row.settings, row.files)

    Args:
        workflow: a file of either form, or the content of one.
        out: the folder for the results. Where it holds some of this workflow, what is done is not done again.
        settings: values by "NODE.input" (title, class or id of the node), or texts "NODE.input=VALUES" as the command
            line has them. They are multiplied; the first one changes slowest.
        zipped: groups of settings, those of one group advancing together.
        grid: one or two settings, of which a grid image is made: columns, rows.
        servers: URLs.
        limit: jobs at most.
        retry: whether jobs that have failed in an earlier call are done again.
        patience: seconds for which no server at all may answer.
        dask: the address of a scheduler of dask.distributed, or "local:4" for four workers on this machine; each worker
            then has a ComfyUI of its own, that of `comfyui` or one of `servers`.
        comfyui: a checkout of ComfyUI that each worker of dask starts, with this pack, and `arguments` for it.

    Methods raise SweepError, with nothing queued, where the call cannot be carried out, and StoppedError where it could
    not be to its end.
    """

    def __init__(
        self,
        workflow: str | os.PathLike[str] | Mapping[str, Any],
        out: str | os.PathLike[str],
        settings: Mapping[str, Iterable[Any]] | Sequence[str] = (),
        zipped: Sequence[Mapping[str, Iterable[Any]] | Sequence[str]] = (),
        grid: Mapping[str, Iterable[Any]] | Sequence[str] = (),
        servers: Sequence[str] = (DEFAULT_SERVER,),
        limit: int = DEFAULT_LIMIT,
        retry: bool = False,
        patience: float = DEFAULT_PATIENCE,
        dask: str | None = None,
        comfyui: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = Path(out)
        self._workflow = dict(workflow) if isinstance(workflow, Mapping) else Path(workflow)
        self._settings, self._grid = _settings(settings), _settings(grid)
        self._zipped = [_settings(group) for group in zipped]
        self._urls = list(dict.fromkeys(valid_url(url) for url in servers))
        if not self._urls:
            raise SweepError("No server was named.")
        self._limit, self._retry, self._patience = limit, retry, patience
        self._dask, self._comfyui, self._arguments = dask, comfyui, list(arguments)
        if comfyui and not dask:
            raise SweepError("A ComfyUI is started by workers of dask only: say --dask local:1 for one of them here.")

    def run(self, on_progress: OnProgress | None = None) -> Summary:
        """Do what is not done yet, and write the table, the contact sheet and the grids."""
        return asyncio.run(self._run(on_progress))

    def rows(self) -> Iterator[Row]:
        """All jobs of the folder with what came of them."""
        with Journal(self.folder) as journal:
            yield from journal.rows()

    def dry_run(self, show: Callable[[dict[str, Any]], None]) -> Summary:
        """Show the settings of each job, and do only the first one, for the time: its result is kept."""
        return asyncio.run(self._run(None, show))

    async def _run(self, on_progress: OnProgress | None, show: Callable | None = None) -> Summary:
        content = read_json(self._workflow) if isinstance(self._workflow, Path) else self._workflow
        async with self._workers() as workers:
            plan = self._plan(content, await workers.describe(classes(content)))
            if show:
                for job in plan.jobs():
                    show(job.settings)
            with Journal(self.folder) as journal:
                count = journal.enter(plan, self._retry)
                if show:
                    journal.only_first()
                await self._work(plan, journal, workers, on_progress)
                known, seconds = journal.seconds()
                return Summary(count, journal.counts[DONE], journal.counts[FAILED], seconds if known else None)

    def _workers(self) -> Workers:
        if not self._dask:
            return Servers(self._urls, self._patience)
        try:
            from .cluster import Cluster
        except ImportError as error:
            raise SweepError(
                f"dask.distributed cannot be used ({plain(str(error))}): pip install distributed (it is in the extra "
                "guidekit[sweep])."
            ) from None
        return Cluster(self._dask, self._comfyui, self._arguments, self._urls, self._patience)

    def _plan(self, content: Any, infos: Mapping[str, Mapping[str, Any]]) -> Plan:
        """`infos`: what each server says of its nodes; what one of them cannot do is said before anything is queued."""
        plan = None
        for name, info in infos.items():
            base = as_prompt(content, info)
            check(base, info, name)
            try:
                found = make_plan(base, info, self._settings, self._zipped, self._grid, self._limit)
            except SweepError as error:
                raise error if plan is None else SweepError(f"On {name}: {error}") from None
            plan = plan or found
            if found.digest != plan.digest:
                raise SweepError(f"On {name} the workflow makes another prompt than on the others: its nodes differ.")
        return plan

    async def _work(self, plan: Plan, journal: Journal, workers: Workers, on_progress: OnProgress | None) -> None:
        for left in (journal.folder / FILES).glob(f"*{PART}"):
            left.unlink(missing_ok=True)
        try:
            if not journal.over:
                await workers.run(plan, journal, on_progress)
        finally:
            # What is done can be looked at, whatever the end.
            self._write(plan, journal)

    def _write(self, plan: Plan, journal: Journal) -> None:
        try:
            names = journal.names()
            table.write(self.folder / "results.csv", names, journal.rows())
            heading = self._workflow.name if isinstance(self._workflow, Path) else self.folder.name
            page.write(self.folder / "index.html", plain(heading), names, journal.rows())
            if plan.grid:
                grids.write(self.folder, plan.grid, journal.rows(DONE))
        except (OSError, sqlite3.Error) as error:
            reason = plain(getattr(error, "strerror", None) or str(error))
            raise StoppedError(f"The table in {quoted(str(self.folder))} cannot be written: {reason}.") from None


def _settings(given: Mapping[str, Iterable[Any]] | Sequence[str]) -> list[Setting]:
    if isinstance(given, Mapping):
        return [(name, values) for name, values in given.items()]
    return list(given)
