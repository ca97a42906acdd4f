"""The host with all its own nodes and this pack, loaded as it loads them when it starts."""

import asyncio
import json
from types import ModuleType

import pytest

from guidekit.tests.schema.catalogue import PACK


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """The host's module `nodes`."""
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    core = set(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(PACK), ignore=core))
    return nodes


@pytest.fixture(scope="session")
def host_info(host) -> dict[str, dict]:
    """/object_info of every node, as far as a converter of workflows needs it."""
    infos = {}
    for name, node in host.NODE_CLASS_MAPPINGS.items():
        if hasattr(node, "GET_NODE_INFO_V1"):
            infos[name] = node.GET_NODE_INFO_V1()
        else:
            title = host.NODE_DISPLAY_NAME_MAPPINGS.get(name, name)
            infos[name] = {"input": node.INPUT_TYPES(), "output": node.RETURN_TYPES, "display_name": title}
    return json.loads(json.dumps(infos, default=repr))
