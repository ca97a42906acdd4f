"""The host in this process, with all its own nodes and this pack, loaded as it loads them when it starts."""

from __future__ import annotations

import asyncio
import json
from types import ModuleType

from ..demo import own_folders  # noqa: F401 before any other module of the host is imported
from .files import PACK
from .graph import Info


def load_host() -> ModuleType:
    """The host's module `nodes`.

    Raises:
        RuntimeError: the pack did not load; the log says why.
    """
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    core = set(nodes.NODE_CLASS_MAPPINGS)
    if not asyncio.run(nodes.load_custom_node(str(PACK), ignore=core)):
        raise RuntimeError(f"{PACK} did not load as a custom node")
    return nodes


def object_info(host: ModuleType) -> Info:
    """/object_info of every node, as far as converters of workflows need it."""
    infos = {}
    for name, node in host.NODE_CLASS_MAPPINGS.items():
        if hasattr(node, "GET_NODE_INFO_V1"):
            infos[name] = node.GET_NODE_INFO_V1()
        else:
            infos[name] = {
                "input": node.INPUT_TYPES(),
                "output": node.RETURN_TYPES,
                "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
                "output_node": getattr(node, "OUTPUT_NODE", False),
                "display_name": host.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
            }
    return json.loads(json.dumps(infos, default=repr))
