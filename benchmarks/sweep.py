"""What the driver of a sweep costs: `python dev.py bench sweep` (10,000 jobs of a millisecond, some minutes).

The server alone: prompts that lie in its queue already, from the first to the last. The sweep: the same prompts from
the call to the last file, one after the other, table and contact sheet included. Fresh servers, the same ones in both.
"""

import asyncio
import os
import resource
import sys
import tempfile
import time
import uuid
from pathlib import Path

import aiohttp

from ..demo.server import PACK, Server
from ..sweep import Sweep
from ..sweep.progress import Progress
from ._table import print_row

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
KINDS = {"one server": {}, "dask local:1": {"dask": "local:1"}}
NODES = PACK / "tests" / "sweep" / "sweep_nodes"


def workflow(folder: Path, subfolder: str) -> dict:
    """Each kind has a subfolder of its own: the host looks through all files of one for each image that it saves."""
    given = {
        "value": 0,
        "free": 50_000,
        "fails_at": -1,
        "dies_at": -1,
        "strength": 1.0,
        "kind": "plain",
        "loud": False,
        "note": "",
    }
    given |= {"log": "", "gate": str(folder / "gate")}
    image = {"class_type": "TestCounted", "inputs": given}
    saved = {"filename_prefix": f"{subfolder}/bench", "images": ["1", 0]}
    return {"1": image, "2": {"class_type": "SaveImage", "inputs": saved}}


def alone(server: Server, folder: Path) -> float:
    """Seconds for each prompt of a queue that is full."""

    async def fill() -> None:
        async with aiohttp.ClientSession() as session:
            for i in range(COUNT):
                prompt = workflow(folder, "alone")
                prompt["1"]["inputs"] |= {"value": 60_000 + i}  # waits for the gate
                body = {"prompt": prompt, "prompt_id": str(uuid.uuid4())}
                async with session.post(f"{server.url}/prompt", json=body) as reply:
                    assert reply.status == 200

    asyncio.run(fill())
    (folder / "gate").touch()
    started = time.perf_counter()
    while server.get("/prompt")["exec_info"]["queue_remaining"]:
        time.sleep(0.2)
    return (time.perf_counter() - started) / COUNT


def resident() -> float:
    """Megabytes of this process."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if pages.exists() else float("nan")


class Memory:
    """The driver's, when a tenth is done and at the end."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0

    def __call__(self, progress: Progress) -> None:
        if self.first is None and progress.done >= progress.count / 10:
            self.first = resident()
        self.last = resident()


def measure(server: Server, folder: Path, name: str, own: float, **how: str) -> None:
    memory = Memory()
    sweep = Sweep(workflow(folder, "sweep"), folder / name, {"1.value": range(COUNT)}, servers=[server.url], **how)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    assert sweep.run(memory).done == COUNT
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    each = [1000 * seconds / COUNT for seconds in (wall, computed)]
    own *= 1000
    times = f"{own:.1f} ms | {each[0]:.1f} ms | {each[0] - own:.1f} ms | {each[1]:.1f} ms"
    print_row(f"| {name} | {COUNT} | {times} | {memory.first or 0:.0f} MB | {memory.last:.0f} MB |")


def main() -> None:
    print("| | jobs | server alone | sweep | beyond the server | computing | memory at a tenth | at the end |")
    print("|---|---|---|---|---|---|---|---|")
    for name, how in KINDS.items():
        with Server(extra_nodes=[NODES]) as server, tempfile.TemporaryDirectory() as folder:
            own = alone(server, Path(folder))
            measure(server, Path(folder), name, own, **how)


if __name__ == "__main__":
    main()
