"""Benchmarks on the workers of dask.distributed: `python dev.py bench NAME --dask local:2`, or a scheduler's address.

Rows of different demo models do not depend on each other: each model of each benchmark is a task, a process of its own
in the worker's environment, which must be that of dev.py. Tables are printed in the order in which they were asked for.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distributed import Client, Future, LocalCluster

from ..sweep import SweepError
from ..sweep.cluster import local_workers
from . import KNOWN_FAMILIES


def by_model(name: str) -> bool:
    """Whether a benchmark takes the models to measure as arguments."""
    return "for family in FAMILIES:" in (Path(__file__).parent / f"{name}.py").read_text("utf-8")


def commands(name: str) -> list[list[str]]:
    """Commands without the interpreter, which the worker adds."""
    module = ["-m", f"guidekit.benchmarks.{name}"]
    return [[*module, family] for family in KNOWN_FAMILIES] if by_model(name) else [module]


def merged(tables: Sequence[str]) -> str:
    """The tables of one benchmark as one: their common beginning is printed once."""
    first, *others = (table.splitlines() for table in tables)
    heads = [len(os.path.commonprefix([first, other])) for other in others]
    return "\n".join([*first, *(line for head, other in zip(heads, others) for line in other[head:])])


def run(client: Client, names: Sequence[str]) -> int:
    futures: dict[str, list[Future]] = {
        name: [client.submit(_run, command, pure=False) for command in commands(name)] for name in names
    }
    status = 0
    for tasks in futures.values():
        ended = client.gather(tasks)
        print(merged([process.stdout for process in ended]), flush=True)
        for process in ended:
            if process.returncode:
                print(process.stderr, file=sys.stderr, flush=True)
                status = 1
    return status


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """In a worker."""
    return subprocess.run([sys.executable, *command], capture_output=True, text=True)


def main() -> int:
    options = argparse.ArgumentParser(prog="dev.py bench")
    options.add_argument("--dask", required=True, metavar="ADDRESS")
    options.add_argument("names", nargs="+")
    given = options.parse_args()
    try:
        workers = local_workers(given.dask)
    except SweepError as error:
        options.error(str(error))
    if not workers:
        return run(Client(given.dask), given.names)
    with LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster:
        return run(Client(cluster), given.names)


if __name__ == "__main__":
    sys.exit(main())
