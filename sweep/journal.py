"""Which job is queued, running, done or failed: a SQLite file in the output folder, so that nothing is lost or done
twice.

A job is entered under the digest of its prompt. Before a prompt goes to a server, its id is written down here: whatever
dies then, the next call asks that server for the id. The files of a job are in place before it is called done.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import StoppedError, SweepError
from .plan import Plan
from .text import plain, quoted

FORM = 1  # of the tables
QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"
MOST_DEATHS = 3  # of servers, under one job

_TABLES = """
create table if not exists about (key text primary key, value text) without rowid;
create table if not exists jobs (
    number integer primary key,
    digest text not null unique,
    settings text not null,
    model text not null,
    wanted integer not null,
    state text not null,
    server text,
    prompt_id text,
    deaths integer not null default 0,
    seconds real,
    files text not null default '[]',
    texts text not null default '[]',
    told text not null default '[]',
    node text,
    error text
);
create index if not exists jobs_to_do on jobs (wanted, state, model, number);
"""
_ENTER = """
insert into jobs (digest, settings, model, wanted, state) values (?, ?, ?, 1, 'queued')
on conflict (digest) do update set wanted = 1, settings = excluded.settings
"""


@dataclass(frozen=True)
class Task:
    """A job as it is handed out."""

    number: int
    settings: dict[str, Any]
    model: str
    prompt_id: str
    server: str


@dataclass(frozen=True)
class Row:
    """A job with what came of it. `files`: (path below the output folder, what the workflow calls the file); `texts`
    and `told`: (node title, text)."""

    number: int
    settings: dict[str, Any]
    state: str
    server: str | None
    seconds: float | None
    files: list[tuple[str, str]]
    texts: list[tuple[str, str]]
    told: list[tuple[str, str]]
    node: str | None
    error: str | None


class Journal:
    """The journal of one output folder, held by one process at a time, as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Journal:
        name = quoted(str(self.folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SweepError(f"The output folder {name} cannot be made: {error.strerror}.") from None
        self._lock = self._opened("lock.sqlite", 0)
        try:
            # The system lets go of it however the process ends.
            self._lock.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            self._lock.close()
            if "locked" in str(error):
                raise SweepError(f"Another sweep is at work in {name}.") from None
            raise SweepError(f"The output folder {name} cannot be written: {plain(str(error))}.") from None
        self._base = self._opened("journal.sqlite", 5)
        try:
            with self._written(first=True):
                self._base.execute("pragma journal_mode = wal")
                # A killed process loses nothing so; a power cut may lose the last moment, which is then done again.
                self._base.execute("pragma synchronous = normal")
                self._base.executescript(_TABLES)
            if self._about("form", str(FORM)) != str(FORM):
                raise SweepError(f"The journal in {name} is of another version of this program.")
            # Events of prompts that an earlier call has queued come to the same client.
            self.client_id = self._about("client", uuid.uuid4().hex)
            self.counts: dict[str, int] = {}  # of the jobs of this call, by state
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()
        self._lock.close()

    def _opened(self, name: str, timeout: float) -> sqlite3.Connection:
        try:
            return sqlite3.connect(self.folder / name, timeout=timeout, isolation_level=None)
        except sqlite3.Error as error:
            folder = quoted(str(self.folder))
            raise SweepError(f"The output folder {folder} cannot be written: {plain(str(error))}.") from None

    @contextmanager
    def _written(self, first: bool = False) -> Iterator[None]:
        kind = SweepError if first else StoppedError
        try:
            yield
        except sqlite3.Error as error:
            name = quoted(str(self.folder / "journal.sqlite"))
            raise kind(f"The journal {name} cannot be written: {plain(str(error))}.") from None

    def _about(self, key: str, value: str) -> str:
        """What is written down under `key`; `value`, written down now, if nothing was."""
        with self._written(first=True):
            self._base.execute("insert or ignore into about values (?, ?)", (key, value))
            return self._base.execute("select value from about where key = ?", (key,)).fetchone()[0]

    # Entering jobs

    def enter(self, plan: Plan, retry: bool) -> int:
        """Write down the jobs of a plan, those that are known already as well; how many there are, each once."""
        if self._about("workflow", plan.digest) != plan.digest:
            raise SweepError(
                f"{quoted(str(self.folder))} holds the results of another workflow; choose another folder."
            )
        with self._written(first=True), self._transaction():
            self._base.execute("update jobs set wanted = 0 where wanted")
            self._base.executemany(_ENTER, ((job.digest, _json(job.settings), job.model) for job in plan.jobs()))
            if retry:
                again = "state = 'queued', deaths = 0, node = null, error = null"
                self._base.execute(f"update jobs set {again} where wanted and state = 'failed'")
        self._count()
        return sum(self.counts.values())

    def only_first(self) -> None:
        """This call wants the first job that is queued, if none has been done yet; the others wait for another call."""
        with self._written(first=True):
            known, _ = self.seconds()
            first = "select min(number) from jobs where wanted = 1 and state = 'queued'"
            others = "" if known else f"and number <> ({first})"
            self._base.execute(f"update jobs set wanted = 0 where wanted = 1 and state = 'queued' {others}")
        self._count()

    def _count(self) -> None:
        rows = self._base.execute("select state, count(*) from jobs where wanted = 1 group by state")
        self.counts = {QUEUED: 0, RUNNING: 0, DONE: 0, FAILED: 0} | dict(rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._base.execute("rollback")
            raise
        self._base.execute("commit")

    # Handing out

    def take(self, server: str, model: str | None, elsewhere: Iterable[str] = ()) -> Task | None:
        """The next job for `server`, which has the models of `model` loaded: one with these; if there is none, one
        whose models no other server has (`elsewhere`); else any. It counts as running from now on."""
        found = self._next("and model = ?", [model]) if model is not None else None
        others = sorted(set(elsewhere))
        if found is None and others:
            found = self._next(f"and model not in ({','.join('?' * len(others))})", others)
        found = found or self._next("", [])
        if found is None:
            return None
        number, settings, model_of_it = found
        task = Task(number, json.loads(settings), model_of_it, str(uuid.uuid4()), server)
        with self._written():
            change = "update jobs set state = 'running', server = ?, prompt_id = ? where number = ?"
            self._base.execute(change, (server, task.prompt_id, number))
        self._moved(QUEUED, RUNNING)
        return task

    def _next(self, condition: str, values: list[str]) -> tuple[int, str, str] | None:
        where = f"where wanted = 1 and state = 'queued' {condition} order by number limit 1"
        return self._base.execute(f"select number, settings, model from jobs {where}", values).fetchone()

    def running(self) -> list[Task]:
        """What an earlier call handed out and did not see the end of. What this call does not want of it is taken back
        by `forget`."""
        return self._running(1)

    def unwanted(self) -> list[Task]:
        """The same, of jobs that are none of this call's."""
        return self._running(0)

    def _running(self, wanted: int) -> list[Task]:
        columns = "number, settings, model, prompt_id, server"
        where = "where wanted = ? and state = 'running' order by number"
        rows = self._base.execute(f"select {columns} from jobs {where}", (wanted,)).fetchall()
        return [Task(row[0], json.loads(row[1]), *row[2:]) for row in rows]

    def forget(self, task: Task) -> None:
        """An unwanted job waits for a call that wants it."""
        with self._written():
            self._base.execute("update jobs set state = 'queued', prompt_id = null where number = ?", (task.number,))

    def give_back(self, task: Task, died: bool = False) -> None:
        """The job will be handed out again. `died`: the server's process ended while it ran the job, which then fails
        after the third time: it may be the reason."""
        if died:
            with self._written():
                self._base.execute("update jobs set deaths = deaths + 1 where number = ?", (task.number,))
            [deaths] = self._base.execute("select deaths from jobs where number = ?", (task.number,)).fetchone()
            if deaths >= MOST_DEATHS:
                self.failed(task, None, f"The server died while it ran this job, {deaths} times.")
                return
        with self._written():
            change = "update jobs set state = 'queued', server = null, prompt_id = null where number = ?"
            self._base.execute(change, (task.number,))
        self._moved(RUNNING, QUEUED)

    # What came of them

    def done(
        self,
        task: Task,
        seconds: float | None,
        files: list[tuple[str, str]],
        texts: list[tuple[str, str]],
        told: list[tuple[str, str]],
    ) -> None:
        with self._written():
            self._base.execute(
                "update jobs set state = 'done', seconds = ?, files = ?, texts = ?, told = ?, server = ? "
                "where number = ?",
                (seconds, _json(files), _json(texts), _json(told), task.server, task.number),
            )
        self._moved(RUNNING, DONE)

    def failed(self, task: Task, node: str | None, error: str) -> None:
        with self._written():
            self._base.execute(
                "update jobs set state = 'failed', node = ?, error = ?, server = ? where number = ?",
                (node, error, task.server, task.number),
            )
        self._moved(RUNNING, FAILED)

    def _moved(self, before: str, after: str) -> None:
        self.counts[before] -= 1
        self.counts[after] += 1

    @property
    def over(self) -> bool:
        """Whether every job of this call has come to an end."""
        return self.counts[QUEUED] == self.counts[RUNNING] == 0

    def names(self) -> list[str]:
        """Names of all settings in the folder, in the order in which they first appeared."""
        found: dict[str, None] = {}
        for (settings,) in self._base.execute("select distinct settings from jobs order by number"):
            found |= dict.fromkeys(json.loads(settings))
        return list(found)

    def seconds(self) -> tuple[int, float]:
        """How many jobs have ended well, ever, and how long one takes on average."""
        query = "select count(seconds), coalesce(avg(seconds), 0) from jobs where state = 'done'"
        return self._base.execute(query).fetchone()

    def rows(self, only: str = "") -> Iterator[Row]:
        """All jobs of the folder by number, or those in the state `only`."""
        columns = "number, settings, state, server, seconds, files, texts, told, node, error"
        where = "where state = ?" if only else ""
        for row in self._base.execute(f"select {columns} from jobs {where} order by number", [only] if only else []):
            pairs = ([(first, second) for first, second in json.loads(part)] for part in row[5:8])
            yield Row(row[0], json.loads(row[1]), *row[2:5], *pairs, *row[8:])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)
