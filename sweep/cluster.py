"""The jobs of a sweep as tasks of dask.distributed, whose deployments on SLURM, Kubernetes and clouds then work for us.

Each worker owns one ComfyUI: one that it starts, or one that runs. What a worker takes next is decided as for servers,
by the journal: a job whose models it has loaded. Everything else is dask's: where tasks go when a worker is lost or
another one is idle, how results travel, which machines there are. The driver holds a few jobs for each worker, never
all.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import uuid
import zlib
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client, KilledWorker, LocalCluster, Worker, get_worker
from distributed.client import FutureCancelledError
from distributed.diagnostics.plugin import WorkerPlugin

from .collect import collect
from .comfyui import ComfyUI
from .errors import ServerError, StoppedError, SweepError
from .journal import MOST_DEATHS, Journal, Task
from .link import File, Link, Lost, Refused, new_session
from .outcome import Outcome, Told, hear, outcome
from .plan import Plan
from .progress import OnProgress, Pace, duration
from .station import QUICK
from .text import plain, quoted
from .workflow import Prompt

PLUGIN = "guidekit-sweep"
PACK = Path(__file__).resolve().parent.parent  # with nodes in it, unless only this program has been installed
_THREADS = 4  # of a local worker: prompts in its ComfyUI at once
_FEW, _MANY = 2, 8  # jobs at a worker; many where they are so quick that what lies between them counts
_SILENCE = 15  # seconds without a sign of the end, after which ComfyUI is asked
_TRIES = 3  # on one worker, whose ComfyUI does not answer
_TAKEN_BACK = "taken back"
_CONNECTING = 10  # seconds to reach the scheduler
_LOOKING = 2  # seconds between looks at who is there


@dataclass(frozen=True)
class Done:
    """What a worker gives back: the result of a prompt with the content of its files, or the reason why it was
    refused."""

    outcome: Outcome
    files: dict[File, bytes] = field(default_factory=dict)
    told: Told = field(default_factory=dict)


class Owner(WorkerPlugin):
    """A worker's ComfyUI. It is started when it is first needed, and anew when it has died."""

    name = PLUGIN

    def __init__(self, comfyui: str | None, arguments: Sequence[str], urls: Sequence[str], gpus: int) -> None:
        self._comfyui, self._arguments, self._urls, self._gpus = comfyui, list(arguments), list(urls), gpus

    def setup(self, worker: Worker) -> None:
        name = str(worker.name)
        self._index = int(name) if name.isdigit() else zlib.crc32(name.encode())
        self._address = worker.address
        self._session = None
        self._own: ComfyUI | None = None
        self._link: Link | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._room = asyncio.Semaphore(_THREADS)
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._told: dict[str, Told] = {}
        self._current: str | None = None  # the prompt of ours that runs
        self._suspect: str | None = None  # the one that ran when the connection was lost
        self._taken_back = 0  # how often

    async def teardown(self, worker: Worker) -> None:
        if self._listening:
            self._listening.cancel()
        if self._session:
            await self._session.close()
        if self._own:
            await asyncio.to_thread(self._own.stop)

    async def describe(self, named: set[str]) -> dict[str, Any]:
        link = await self._ready()
        await link.about()
        return await link.object_info(named)

    async def do(self, prompt: Prompt, prompt_id: str) -> Done:
        calls = self._taken_back
        async with self._room:
            deaths = misses = 0
            while calls == self._taken_back:
                try:
                    return await self._do(await self._ready(), prompt, prompt_id, first=not deaths + misses)
                except Refused as refused:
                    kind = prompt.get(refused.node_id or "", {}).get("class_type")
                    return Done(Outcome(error=refused.sentence, node_id=refused.node_id, node_class=kind))
                except Lost as lost:
                    own, reason = self._own, lost
                await asyncio.sleep(1)  # in which it is seen that a process has ended
                if own and not own.running:
                    deaths += prompt_id == self._suspect
                else:
                    misses += 1
                if deaths == MOST_DEATHS:
                    return Done(Outcome(error=f"The server died while it ran this job, {deaths} times."))
                if misses == _TRIES:
                    raise ServerError(f"the ComfyUI of worker {self._address} does not answer: {reason}")
            return Done(Outcome(error=_TAKEN_BACK))

    async def _do(self, link: Link, prompt: Prompt, prompt_id: str, first: bool) -> Done:
        end = self._ends[prompt_id] = asyncio.get_running_loop().create_future()
        try:
            if first:
                await link.submit(prompt, prompt_id)
                await asyncio.wait([end], timeout=_SILENCE)
            while (entry := await link.history(prompt_id)) is None:
                if end.done():
                    end.result()  # raises Lost or Refused, if it was that
                    raise Lost("somebody has emptied the history")
                if prompt_id not in await link.queue() and await link.history(prompt_id) is None:
                    await link.submit(prompt, prompt_id)
                await asyncio.wait([end], timeout=_SILENCE)
            found = outcome(entry)
            files = {file: await link.view(file) for file in found.files}
            return Done(found, files, self._told.pop(prompt_id, {}))
        finally:
            del self._ends[prompt_id]
            if not end.cancel() and not end.cancelled():
                end.exception()  # has been seen

    async def take_back(self) -> None:
        """What is ours from ComfyUI's queue; what waits for its turn here does not go there any more."""
        self._taken_back += 1
        if self._link:
            with suppress(Lost):
                await self._link.cancel(self._ends)
        for end in self._ends.values():
            if not end.done():
                end.set_exception(Refused(None, _TAKEN_BACK))

    async def _ready(self) -> Link:
        async with self._starting:
            if self._own and not self._own.running:
                self._own.stop()
                self._own = self._link = None
                if self._listening:
                    self._listening.cancel()
                    self._listening = None
            if self._session is None:
                self._session = new_session()
            if self._link is None:
                if self._comfyui:
                    own = ComfyUI(
                        Path(self._comfyui), self._arguments_here(), pack=PACK if (PACK / "nodes").is_dir() else None
                    )
                    await asyncio.to_thread(own.__enter__)
                    self._own = own
                url = self._own.url if self._own else self._urls[self._index % len(self._urls)]
                self._link = Link(url, self._session, uuid.uuid4().hex)
            if self._listening is None or self._listening.done():
                connected = asyncio.Event()
                self._listening = asyncio.create_task(self._listen(self._link, connected))
                waiting = asyncio.create_task(connected.wait())
                await asyncio.wait([self._listening, waiting], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self._listening.done():
                    await self._listening  # raises what is the matter
            return self._link

    def _arguments_here(self) -> list[str]:
        arguments = list(self._arguments)
        if self._gpus > 1 and "--cuda-device" not in arguments:
            arguments += ["--cuda-device", str(self._index % self._gpus)]
        return arguments

    async def _listen(self, link: Link, connected: asyncio.Event) -> None:
        reason: Lost | None = None
        try:
            async with link.events() as events:
                connected.set()
                async for event in events:
                    if event.kind == "told":
                        if self._current:
                            hear(self._told.setdefault(self._current, {}), event.node_id, event.text)
                    elif event.prompt_id in self._ends:
                        self._current = None if event.kind == "ended" else event.prompt_id
                        if event.kind == "ended" and not self._ends[event.prompt_id].done():
                            self._ends[event.prompt_id].set_result(None)
        except Lost as lost:
            reason = lost
            if not connected.is_set():
                raise
        finally:
            # A process that dies at once has not said what it began; it takes prompts in their order.
            waiting = (prompt_id for prompt_id, end in self._ends.items() if not end.done())
            self._suspect, self._current = self._current or next(waiting, None), None
            for end in self._ends.values():
                if not end.done():
                    end.set_exception(reason or Lost("the worker ends"))


# What goes wrong with a worker's ComfyUI comes back as a sentence: of exceptions, dask logs every line.


async def _do(prompt: Prompt, prompt_id: str) -> Done | str:
    try:
        return await get_worker().plugins[PLUGIN].do(prompt, prompt_id)
    except (ServerError, SweepError) as error:
        return str(error)


async def _describe(named: set[str], dask_worker: Worker) -> dict[str, Any] | str:
    try:
        return await dask_worker.plugins[PLUGIN].describe(named)
    except (ServerError, SweepError, Lost) as error:
        return str(error)


async def _take_back(dask_worker: Worker) -> None:
    await dask_worker.plugins[PLUGIN].take_back()


class Cluster:
    """Workers of dask.distributed: at a scheduler's address, or `local:N` of this machine."""

    def __init__(
        self,
        address: str,
        comfyui: str | os.PathLike[str] | None,
        arguments: Sequence[str],
        urls: Sequence[str],
        patience: float,
    ) -> None:
        self._address = address
        self._count = local_workers(address)
        self._patience = patience
        path = str(Path(comfyui).resolve() if self._count else comfyui) if comfyui else None
        self._owner = Owner(path, arguments, urls, _gpus() if self._count else 1)

    async def __aenter__(self) -> Cluster:
        self._local = None
        try:
            if self._count:
                self._local = await LocalCluster(
                    n_workers=self._count,
                    threads_per_worker=_THREADS,
                    memory_limit=0,
                    dashboard_address=None,
                    asynchronous=True,
                )
            self._client = await Client(self._local or self._address, asynchronous=True, timeout=_CONNECTING)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            reason = plain(str(error)) or "it does not answer"
            raise SweepError(f"No scheduler of dask can be reached at {quoted(self._address)}: {reason}.") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._local:
            with suppress(OSError, ValueError):
                await self._client.unregister_worker_plugin(PLUGIN)
        await self._client.close()
        if self._local:
            await self._local.close()

    async def describe(self, named: set[str]) -> dict[str, dict[str, Any]]:
        await self._client.register_plugin(self._owner, name=PLUGIN)
        try:
            await self._client.wait_for_workers(1, timeout=self._patience)
        except (TimeoutError, asyncio.TimeoutError):
            raise SweepError(f"The scheduler at {quoted(self._address)} has no workers.") from None
        found = await self._client.run(_describe, named)
        for worker, info in found.items():
            if isinstance(info, str):
                raise SweepError(f"On worker {worker}: {info}")
        return found

    async def run(self, plan: Plan, journal: Journal, on_progress: OnProgress | None) -> None:
        await ClusterRun(self._client, plan, journal, self._patience).run(on_progress)


class ClusterRun:
    """The jobs of a journal on the workers of a client: each has a few slots, and a slot takes one job after the
    other."""

    def __init__(self, client: Client, plan: Plan, journal: Journal, patience: float) -> None:
        self._client, self._plan, self._journal, self._patience = client, plan, journal, patience
        self._models: dict[str, str] = {}  # by worker
        self._slots: set[str] = set()  # workers that have them
        self._broken: dict[str, str] = {}  # workers without a ComfyUI, with the reason
        self._more = asyncio.Event()  # jobs have been given back
        self._quick = asyncio.Event()  # jobs take less than QUICK
        self._tasks: list[asyncio.Task[None]] = []
        self._alone: float | None = None  # since when there is no worker
        self._end: asyncio.Future[None] | None = None

    async def run(self, on_progress: OnProgress | None) -> None:
        self._end = asyncio.get_running_loop().create_future()
        for task in self._journal.unwanted():
            self._journal.forget(task)
        for task in self._journal.running():  # at workers of an earlier call, with which it was lost
            self._journal.give_back(task)
        self._changed()
        self._start(self._look())
        if on_progress:
            self._start(self._tell(on_progress))
        try:
            await self._end
        finally:
            over = self._journal.over
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if not over and self._client.status == "running":
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._client.run(_take_back, on_error="ignore"), 10)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._noticed)
        self._tasks.append(task)
        return task

    async def _look(self) -> None:
        """Slots for workers that have come, none for those that are gone."""
        while True:
            there = set(await self._client.nthreads()) - set(self._broken)
            for worker in there - self._slots:
                self._slots.add(worker)
                for slot in range(_MANY):
                    self._start(self._work(worker, slot))
            self._slots &= there  # those of others end with the job that they have, which dask gives to another one
            self._alone = None if there else self._alone or time.monotonic()
            if self._alone and time.monotonic() - self._alone > self._patience:
                left = self._journal.counts["queued"] + self._journal.counts["running"]
                why = next(iter(self._broken.values()), f"for {duration(self._patience)}")
                raise StoppedError(f"The cluster has no worker ({why}); {left} jobs are left.")
            await asyncio.sleep(_LOOKING)

    async def _work(self, worker: str, slot: int) -> None:
        while worker in self._slots:
            if slot >= _FEW:
                await self._quick.wait()
            elsewhere = {model for other, model in self._models.items() if other != worker and other in self._slots}
            task = self._journal.take(worker, self._models.get(worker), elsewhere)
            if task is None:
                self._more.clear()
                await self._more.wait()
                continue
            self._models[worker] = task.model
            await self._one(worker, task)

    async def _one(self, worker: str, task: Task) -> None:
        prompt = self._plan.prompt(task.settings)
        future = self._client.submit(
            _do,
            prompt,
            task.prompt_id,
            key=f"{PLUGIN}-{task.prompt_id}",
            workers=[worker],
            allow_other_workers=True,  # where this one is lost, or others are idle
        )
        try:
            done = await future
        except KilledWorker:
            self._journal.failed(task, None, "The workers that ran it died, one after the other.")
        except FutureCancelledError:
            self._journal.give_back(task)
            raise StoppedError("The scheduler of dask was lost. The same call goes on from here.") from None
        except asyncio.CancelledError:
            self._journal.give_back(task)
            raise
        else:
            if isinstance(done, str):
                self._broken[worker] = plain(done)
                self._slots.discard(worker)
                self._journal.give_back(task)
                self._more.set()
            else:
                await self._finish(task, prompt, done)
        finally:
            future.release()
        self._changed()

    async def _finish(self, task: Task, prompt: Prompt, done: Done) -> None:
        found = done.outcome
        if found.seconds is not None and found.seconds < QUICK:
            self._quick.set()
        else:
            self._quick.clear()
        if found.error is not None:
            node = f"{found.node_id} ({found.node_class})" if found.node_class else found.node_id
            self._journal.failed(task, node, plain(found.error))
            return

        async def save(file: File, path: Path) -> None:
            path.write_bytes(done.files[file])

        await collect(self._journal, task, prompt, found, done.told, save)

    def _changed(self) -> None:
        if self._journal.over and not self._end.done():
            self._end.set_result(None)

    def _noticed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) and not self._end.done():
            self._end.set_exception(error)

    async def _tell(self, on_progress: OnProgress) -> None:
        pace = Pace()
        while True:
            on_progress(pace.progress(self._journal.counts, {}))
            await asyncio.sleep(1)


def local_workers(address: str) -> int:
    """How many workers `local:N` asks for; 0 if it is something else."""
    if not address.startswith("local"):
        return 0
    count = address.removeprefix("local").removeprefix(":")
    if not count.isdecimal() or not 1 <= int(count) <= 1000:
        raise SweepError(f"{quoted(address)} is not local:N, for instance local:4.")
    return int(count)


def _gpus() -> int:
    """Number of GPUs of this machine, from the driver's own tool: importing torch would take seconds."""
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
        return listed.count("GPU ")
    return 0
