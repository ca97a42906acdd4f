"""The host in this process, with this pack and the nodes that stand in for loaders."""

import asyncio
import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from guidekit.templates import host as loading
from guidekit.tests.graphs.selection import Graphs, graphs
from guidekit.tests.graphs.variants import Executor

STAND_INS = Path(__file__).with_name("stand_in_nodes")


@pytest.fixture(scope="session")
def templates() -> Graphs:
    host = loading.load_host()
    assert asyncio.run(host.load_custom_node(str(STAND_INS)))
    return graphs(loading.object_info(host))


@pytest.fixture(scope="session")
def executor(templates) -> Iterator[Executor]:
    import execution

    gc.collect()
    gc.freeze()  # the host's thousand nodes stay; garbage is looked for after every run
    logging.getLogger().setLevel(logging.ERROR)
    yield Executor(execution)
    gc.unfreeze()
