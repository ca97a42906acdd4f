"""A graph as one node, in the form in which the frontend loads a blueprint: a workflow of one node, whose class is the
subgraph that is defined beside it.

Relies on: the host's app/subgraph_manager.py, which serves the files of subgraphs/, and the frontend's subgraphStore,
which expects the definition first, reads its category and description, and makes widgets of the node's inputs that
`proxyWidgets` names with the inner node -1, the subgraph's own input.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .graph import Graph, Info, Node, Output, Socket, graph_links, in_order, size, sockets, ui_node
from .layout import place

INPUT, OUTPUT = -10, -20  # the frontend's ids of the two boundaries
CATEGORY = "Guidekit"
_MARGIN = 200


class Boundary(Graph):
    """A graph with inputs from outside."""

    def __init__(self, info: Info) -> None:
        super().__init__(info)
        self.outside = Node(INPUT, "input", {}, [], [])
        self.promoted: list[Socket] = []
        self.results: list[tuple[str, Output]] = []

    def take(self, name: str, kind: str) -> Output:
        """A socket."""
        return self._take(Socket(name, kind, widget=False, optional=False))

    def widget(self, kind: str, name: str, label: str | None = None, default: Any = None) -> Output:
        """A widget of the node: input `name` of an inner node of class `kind`, with its default or another."""
        inner = next(socket for socket in sockets(self.info[kind]) if socket.name == name)
        default = next((value for value in (default, inner.default) if value is not None), "")
        return self._take(Socket(label or name, inner.type, True, False, default, inner.multiline))

    def _take(self, socket: Socket) -> Output:
        self.promoted.append(socket)
        self.outside.outputs.append((socket.name, socket.type))
        return Output(self.outside, len(self.promoted) - 1)

    def give(self, name: str, output: Output) -> None:
        self.results.append((name, output))


@dataclass(frozen=True)
class Blueprint:
    """`title` is the file's name, and the node's in the frontend."""

    title: str
    description: str
    aliases: tuple[str, ...]
    build: Callable[[Boundary], None]

    def files(self, info: Info) -> dict[str, Any]:
        """The content by path below subgraphs/."""
        return {f"{self.title}.json": blueprint(self, info)}


def blueprint(made: Blueprint, info: Info) -> dict[str, Any]:
    graph = Boundary(info)
    made.build(graph)
    place(graph)
    key = _id(made.title, "definition")
    inputs = [
        {"name": s.name, "type": s.type, "link": None, **({"widget": {"name": s.name}} if s.widget else {})}
        for s in graph.promoted
    ]
    outputs = [{"name": name, "type": out.node.outputs[out.slot][1], "links": []} for name, out in graph.results]
    widgets = [socket for socket in graph.promoted if socket.widget]
    texts = sum(socket.multiline for socket in widgets)
    high = 20 * max(len(inputs) - len(widgets), len(outputs)) + 24 * (len(widgets) - texts) + 90 * texts + 20
    node = {
        "id": 1,
        "type": key,
        "pos": [0, 0],
        "size": [400 if texts else 320, high],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "title": made.title,
        "properties": {"proxyWidgets": [["-1", s.name] for s in widgets], "cnr_id": "guidekit", "ver": "0.1.0"},
        "widgets_values": [socket.default for socket in widgets],
    }
    return {
        "id": _id(made.title, "workflow"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "groups": [],
        "config": {},
        "extra": {"BlueprintDescription": made.description, "BlueprintSearchAliases": list(made.aliases)},
        "version": 0.4,
        "definitions": {"subgraphs": [_definition(made, graph, key)]},
    }


def _definition(made: Blueprint, graph: Boundary, key: str) -> dict[str, Any]:
    links = graph_links(graph)
    ends = [(len(links) + 1 + i, out, (OUTPUT, i)) for i, (_, out) in enumerate(graph.results)]
    written = [*((i, out, end, kind) for i, out, end, kind in links)]
    written += [(i, out, end, out.node.outputs[out.slot][1]) for i, out, end in ends]
    order = {node: i for i, node in enumerate(in_order(graph.nodes))}
    right = max(node.position[0] + size(node)[0] for node in graph.nodes)
    inputs = [
        {
            "id": _id(made.title, f"input {socket.name}"),
            "name": socket.name,
            "type": socket.type,
            "linkIds": [i for i, out, *_ in written if out == Output(graph.outside, slot)],
            "pos": [-_MARGIN + 80, 20 + 20 * slot],
        }
        for slot, socket in enumerate(graph.promoted)
    ]
    outputs = [
        {
            "id": _id(made.title, f"output {name}"),
            "name": name,
            "type": out.node.outputs[out.slot][1],
            "linkIds": [number],
            "pos": [right + _MARGIN - 80, 20 + 20 * slot],
        }
        for slot, ((name, out), (number, *_)) in enumerate(zip(graph.results, ends))
    ]
    return {
        "id": key,
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": len(graph.nodes),
            "lastLinkId": len(written),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": made.title,
        "inputNode": {"id": INPUT, "bounding": [-_MARGIN, 0, 120, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [right + _MARGIN - 120, 0, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": [ui_node(node, written, order[node]) for node in graph.nodes],
        "groups": [],
        "links": [
            {
                "id": i,
                "origin_id": out.node.id,
                "origin_slot": out.slot,
                "target_id": target,
                "target_slot": slot,
                "type": kind,
            }
            for i, out, (target, slot), kind in written
        ],
        "extra": {},
        "category": CATEGORY,
        "description": made.description,
    }


def _id(title: str, what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"guidekit/subgraphs/{title}/{what}"))
