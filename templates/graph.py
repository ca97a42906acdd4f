"""A workflow as nodes and links, and the two forms in which ComfyUI reads it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Info = dict[str, dict[str, Any]]  # /object_info, by class

# How the frontend saves widgets that are not inputs, by the option that asks for them.
_FURTHER_WIDGETS = {"control_after_generate": "fixed", "image_upload": "image"}
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_OURS = "Guidekit"
VERSIONS = {"guidekit": "0.1.0", "comfy-core": "0.30.0"}
PURPLE, GREEN, RED = ("#323", "#535"), ("#232", "#353"), ("#322", "#533")  # the frontend's own


@dataclass(frozen=True)
class File:
    """A model's file: its name in ComfyUI's folder, and the address where its authors, or ComfyUI's, publish it."""

    name: str
    directory: str
    url: str

    @property
    def page(self) -> str:
        """The page for people; `url` is the download."""
        return self.url.split("/resolve/")[0]


@dataclass(frozen=True)
class Output:
    node: Node
    slot: int


@dataclass(eq=False)
class Node:
    id: int
    kind: str
    values: dict[str, Any]  # of all inputs: an Output, a widget's value, or None
    outputs: list[tuple[str, str]]  # (name, type)
    sockets: list[Socket]
    title: str | None = None
    files: tuple[File, ...] = ()
    row: str | None = None
    column: int | None = None
    folded: bool = False
    color: tuple[str, str] | None = None
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, name: str | int) -> Output:
        names = [name for name, _ in self.outputs]
        return Output(self, name if isinstance(name, int) else names.index(name))

    @property
    def ours(self) -> bool:
        return self.kind.startswith(_OURS)

    @property
    def sources(self) -> list[Node]:
        return [value.node for value in self.values.values() if isinstance(value, Output)]


@dataclass(frozen=True)
class Socket:
    """An input. `further`: what the frontend saves after its value."""

    name: str
    type: str
    widget: bool
    optional: bool
    default: Any = None
    multiline: bool = False
    further: tuple[str, ...] = ()


def sockets(info: dict[str, Any]) -> list[Socket]:
    """Sockets of a class, in the order of /object_info."""
    found = []
    for section in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(section, {}).items():
            options = rest[0] if rest else {}
            widget = not options.get("forceInput") and (isinstance(kind, list) or kind in _WIDGETS)
            further = tuple(text for option, text in _FURTHER_WIDGETS.items() if options.get(option))
            shown = "COMBO" if isinstance(kind, list) else kind
            default, multiline = options.get("default"), options.get("multiline", False)
            found.append(Socket(name, shown, widget, section == "optional", default, multiline, further))
    return found


@dataclass(eq=False)
class Note:
    id: int
    title: str
    text: str
    position: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)


@dataclass(eq=False)
class Graph:
    info: Info
    nodes: list[Node] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    app: dict[str, Any] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)
    _row: str | None = None

    def add(
        self,
        kind: str,
        title: str | None = None,
        files: tuple[File, ...] = (),
        column: int | None = None,
        color: tuple[str, str] | None = None,
        **values: Any,
    ) -> Node:
        """A node with `values` by the names of its inputs; widgets that are not named get the schema's defaults.

        Raises:
            ValueError: the class has no such input, or one without a default was not named.
        """
        info = self.info[kind]
        known = sockets(info)
        if unknown := set(values) - {socket.name for socket in known}:
            raise ValueError(f"{kind} has no input {', '.join(sorted(unknown))}")
        given = {socket.name: values.get(socket.name, socket.default) for socket in known}
        if missing := [s.name for s in known if given[s.name] is None and not s.optional]:
            raise ValueError(f"{kind} wants {', '.join(missing)}")
        # Newer hosts have given outputs to the nodes that save.
        kinds = () if info.get("output_node") and not kind.startswith(_OURS) else info["output"]
        outputs = [*zip(info.get("output_name") or kinds, kinds)]
        color = color or (PURPLE if kind.startswith(_OURS) else None)
        node = Node(len(self.nodes) + 1, kind, given, outputs, known, title, files, self._row, column, color=color)
        self.nodes.append(node)
        return node

    @contextmanager
    def row(self, title: str) -> Iterator[None]:
        """Nodes added inside are placed in one band, in a frame with this title."""
        self._row = title
        yield
        self._row = None

    def note(self, title: str, text: str) -> None:
        self.notes.append(Note(len(self.nodes) + len(self.notes) + 1, title, text))

    def of(self, *kinds: str) -> list[Node]:
        return [node for node in self.nodes if node.kind in kinds]


# The forms ----------------------------------------------------------------------------------------------------------


def api(graph: Graph) -> dict[str, dict[str, Any]]:
    """The form for /prompt. Widgets first, then links, as the frontend exports it."""
    found = {}
    for node in graph.nodes:
        saved = [s for s in widgets(node) if not isinstance(node.values[s.name], Output)]
        inputs = {socket.name: node.values[socket.name] for socket in saved}
        inputs |= {
            socket.name: [str(value.node.id), value.slot]
            for socket in node.sockets
            if isinstance(value := node.values[socket.name], Output)
        }
        title = node.title or (graph.info[node.kind]["display_name"] if node.ours else node.kind)
        found[str(node.id)] = {"class_type": node.kind, "inputs": inputs, "_meta": {"title": title}}
    return found


def widgets(node: Node) -> list[Socket]:
    return [socket for socket in node.sockets if socket.widget]


def ui(graph: Graph, name: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The form for the frontend. Nodes are in an order in which they can be computed."""
    links = graph_links(graph)
    order = {node: i for i, node in enumerate([*in_order(graph.nodes), *graph.notes])}
    last = max(node.id for node in (*graph.nodes, *graph.notes))
    written = [ui_node(node, links, order[node]) for node in graph.nodes]
    written += [_ui_note(note, order[note]) for note in graph.notes]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"guidekit/workflows/{name}")),
        "revision": 0,
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": written,
        "links": [[i, out.node.id, out.slot, *end, kind] for i, out, end, kind in links],
        "groups": graph.groups,
        "config": {},
        "extra": {"ds": graph.view, "frontendVersion": "1.47.12", **(extra or {})},
        "version": 0.4,
    }


Link = tuple[int, Output, tuple[int, int], str]  # (number, from, (node, place among its inputs), type)


def graph_links(graph: Graph) -> list[Link]:
    found: list[Link] = []
    for node in graph.nodes:
        for place, socket in enumerate(shown_inputs(node)):
            if isinstance(value := node.values[socket.name], Output):
                found.append((len(found) + 1, value, (node.id, place), value.node.outputs[value.slot][1]))
    return found


def shown_inputs(node: Node) -> list[Socket]:
    """The inputs with a connection point, and the widgets that are connected."""
    return [s for s in node.sockets if not s.widget or isinstance(node.values[s.name], Output)]


def in_order(nodes: list[Node]) -> list[Node]:
    found: list[Node] = []
    left = list(nodes)
    while left:
        ready = [node for node in left if not set(node.sources) & set(left)]
        found += ready
        left = [node for node in left if node not in ready]
    return found


def ui_node(node: Node, links: list[Link], order: int) -> dict[str, Any]:
    arriving = {place: i for i, _, (target, place), _ in links if target == node.id}
    inputs = []
    for place, socket in enumerate(shown_inputs(node)):
        entry = {"name": socket.name, "type": socket.type, "link": arriving.get(place)}
        entry |= {"shape": 7} if socket.optional else {}
        inputs.append(entry | ({"widget": {"name": socket.name}} if socket.widget else {}))
    outputs = [
        {"name": name, "type": kind, "links": [i for i, out, *_ in links if out == Output(node, slot)]}
        for slot, (name, kind) in enumerate(node.outputs)
    ]
    pack = "guidekit" if node.ours else "comfy-core"
    properties: dict[str, Any] = {"cnr_id": pack, "ver": VERSIONS[pack], "Node name for S&R": node.kind}
    if node.files:
        properties["models"] = [{"name": f.name, "url": f.url, "directory": f.directory} for f in node.files]
    written = {
        "id": node.id,
        "type": node.kind,
        "pos": list(node.position),
        "size": list(size(node)),
        "flags": {"collapsed": True} if node.folded else {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        **({"title": node.title} if node.title else {}),
        "properties": properties,
        "widgets_values": widget_values(node),
    }
    return written | ({"color": node.color[0], "bgcolor": node.color[1]} if node.color else {})


def widget_values(node: Node) -> list[Any]:
    found = []
    for socket in widgets(node):
        value = node.values[socket.name]
        found += [socket.default if isinstance(value, Output) else value, *socket.further]
    return ["" if value is None else value for value in found]


def _ui_note(note: Note, order: int) -> dict[str, Any]:
    return {
        "id": note.id,
        "type": "MarkdownNote",
        "pos": list(note.position),
        "size": list(note.size),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": note.title,
        "properties": {},
        "widgets_values": [note.text],
        "color": "#222",
        "bgcolor": "#000",
    }


# Sizes, as the frontend draws them -----------------------------------------------------------------------------------

_SLOT, _WIDGET, _TEXT, _IMAGE = 20, 24, 90, 225
_VOTES = 2 * 160 + 60  # of two rows of three images of Vote on Images, and of what it says
_COURSE = 400 + 100  # of the course of a training with its previews, and of what the trainer says
WIDTH, TEXT_WIDTH = 320, 400
_WIDE = ("GuidekitPreferenceLoraLoader", "GuidekitVote")


def size(node: Node) -> tuple[int, int]:
    """[width, height] that fit the node's contents."""
    shown = widgets(node)
    texts = sum(socket.multiline for socket in shown)
    further = sum(len(socket.further) for socket in shown)
    high = _SLOT * max(len(shown_inputs(node)), len(node.outputs))
    high += _WIDGET * (len(shown) - texts + further) + _TEXT * texts + 10
    high += _IMAGE if node.kind.startswith(("SaveImage", "SaveAnimated", "LoadImage")) else 0
    high += _TEXT if node.kind == "PreviewAny" else 0
    high += _COURSE if node.kind == "GuidekitTrainPreference" else 0
    high += _VOTES if node.kind == "GuidekitVote" else 0
    wide = TEXT_WIDTH if texts or node.files or node.kind in _WIDE else WIDTH
    return wide, high
