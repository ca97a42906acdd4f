"""The schemas and texts of the nodes, in the two forms that are kept as files.

`nodes.json`, beside this file: the schemas as /object_info serves them. It changes only when a saved workflow may
break, or when a text changes. `locales/en/nodeDefs.json`: the texts, as the frontend wants them and as a translator
finds them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from guidekit.nodes import NODES
from guidekit.nodes.presets import ANY, TABLE, shown

PACK = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("nodes.json")
ENGLISH = PACK / "locales" / "en" / "nodeDefs.json"
# Candidate lengthens a list of Candidates, which also takes plain words; the others act on votes that are there
# already. Their pages show how.
IN_NO_TEMPLATE = frozenset({"GuidekitCandidate", "GuidekitExportVotes", "GuidekitImportVotes"})
OTHERS = "others"  # of the families that a help page lists

# python_module is the folder that the pack was cloned into. has_intermediate_output is served by newer hosts than the
# oldest that the pack runs on; no node uses it.
DROPPED = ("python_module", "has_intermediate_output")


def object_info() -> dict[str, dict]:
    """Our nodes as /object_info serves them (the host's server.py, node_info), by node id."""
    infos = {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in NODES}
    return json.loads(json.dumps(infos))


def schemas() -> dict[str, dict]:
    """The same without the parts that depend on the host."""
    return {
        node_id: {key: value for key, value in info.items() if key not in DROPPED}
        for node_id, info in object_info().items()
    }


def inputs(info: dict) -> dict[str, tuple[str, dict]]:
    """(type, options) of all inputs of a node in their order, by id."""
    sections = (info["input"].get(section, {}) for section in ("required", "optional"))
    # Nodes of the older kind may leave out the options.
    return {name: (kind, *options, {})[:2] for section in sections for name, (kind, *options) in section.items()}


def english() -> dict[str, dict]:
    """The content of `locales/en/nodeDefs.json`."""
    return {
        node_id: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                name: {"name": options.get("display_name", name), "tooltip": options.get("tooltip")}
                for name, (_, options) in inputs(info).items()
            },
            "outputs": {
                str(i): {"name": name, "tooltip": tooltip}
                for i, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"]))
            },
        }
        for node_id, info in object_info().items()
    }


def published(node_id: str) -> list[str]:
    """The presets of a node as rows of its help page: family, settings, where from. Families with the same values share
    a row, all others are the last one; values from several sources are in the order of the sources."""
    taken: dict[str, dict[str, list[str]]] = {}
    for row in TABLE:
        if node_id == f"Guidekit{row.node}":
            # In two words, that the panel can break: HunyuanVideo.
            family = OTHERS if row.model == ANY else re.sub("(?<=[a-z])(?=[A-Z])", " ", row.model)
            taken.setdefault(family, {}).setdefault(row.source, []).append(shown(row.input, row.value))
    families: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for family, by_source in taken.items():
        settings, source = ("; ".join(parts) for parts in (map(", ".join, by_source.values()), by_source))
        families.setdefault((settings, family == OTHERS), {}).setdefault(source, []).append(family)
    return [
        f"| {', '.join(sum(by_source.values(), []))} | {settings} | {_sources(by_source)} |"
        for (settings, _), by_source in sorted(families.items(), key=lambda item: item[0][1])
    ]


def _sources(by_source: dict[str, list[str]]) -> str:
    if len(by_source) == 1:
        return next(iter(by_source))
    return "; ".join(f"{source} ({', '.join(families)})" for source, families in by_source.items())


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def differences(file: object, nodes: object, path: str = "") -> Iterator[str]:
    """One line for each place where a file and the nodes disagree, with the path of keys to it."""
    if isinstance(file, list) and isinstance(nodes, list) and len(file) == len(nodes):
        file, nodes = (dict(enumerate(part)) for part in (file, nodes))
    if isinstance(file, dict) and isinstance(nodes, dict):
        for key in {**file, **nodes}:
            where = f"{path}.{key}" if path else key
            if key not in nodes:
                yield f"{where}: only in the file"
            elif key not in file:
                yield f"{where}: not in the file; the node says {nodes[key]!r}"
            else:
                yield from differences(file[key], nodes[key], where)
    elif file != nodes or type(file) is not type(nodes):
        yield f"{path}: the file says {file!r}, the node {nodes!r}"


REGENERATE = "If the change is wanted: python dev.py python -m guidekit.tests.schema.regenerate"
