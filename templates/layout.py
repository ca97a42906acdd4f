"""The positions of a graph's nodes: columns from left to right, by the distance from the loaders.

On the left is what all rows share, on the right one band for each row, and the notes are where there is room.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .graph import Graph, Node, Note, size

GAP_X, GAP_Y, TITLE, FOLDED_WIDTH = 40, 16, 30, 160
_FRAME = {"color": "#3f789e", "font_size": 24, "flags": {}}
_PAD, _HEAD = 16, 40  # of a frame, at its sides and above its nodes' titles
# Nodes between a sampler and a node that saves have nothing to set: they are drawn as titles, above the latter.
_FOLDED = ("VAEDecode", "ImageScaleBy", "StringConcatenate")

Box = tuple[int, int, int, int]  # left, top, right, bottom


def place(graph: Graph) -> None:
    """Sets the positions of nodes and notes, and makes the frames."""
    for node in graph.nodes:
        node.folded = node.kind in _FOLDED
    shared = [node for node in graph.nodes if node.row is None]
    left = _columns(shared, 0, 0)
    x, y = (left[2] + GAP_X + _PAD if shared else 0), 0
    right = (x, 0, x, 0)
    for title in dict.fromkeys(node.row for node in graph.nodes if node.row is not None):
        box = _columns([node for node in graph.nodes if node.row == title], x, y)
        bounding = [box[0] - _PAD, y - TITLE - _HEAD, box[2] - box[0] + 2 * _PAD, box[3] - y + TITLE + _HEAD + _PAD]
        graph.groups.append({"id": len(graph.groups) + 1, "title": title, "bounding": bounding, **_FRAME})
        y = box[3] + TITLE + _HEAD + 2 * _PAD
        right = (x, 0, max(right[2], box[2]), box[3] + _PAD)
    _put_notes(graph, left, right)
    graph.view = _view(graph)


def _put_notes(graph: Graph, left: Box, right: Box) -> None:
    """Puts the note under the shared nodes or under the rows, where there is more room."""
    for note in graph.notes:
        below_left, below_right = _under(note, left), _under(note, right)
        both = max(left[3], right[3])
        spot = min((below_left, below_right), key=lambda box: (max(box[3], both), box[0]))
        if right[0] == right[2]:
            spot = below_left
        note.position, note.size = spot[:2], (spot[2] - spot[0], spot[3] - spot[1])
        if spot == below_left:
            left = (left[0], left[1], left[2], spot[3])
        else:
            right = (right[0], right[1], right[2], spot[3])


_SCREEN, _SHARE, _EDGE = (1900, 990), 0.75, 120


def _view(graph: Graph) -> dict[str, Any]:
    """The frontend's first view: the whole graph, in three quarters of a screen, as for its own templates."""
    boxes = [(*node.position, *((FOLDED_WIDTH, 0) if node.folded else size(node))) for node in graph.nodes]
    boxes += [(*note.position, *note.size) for note in graph.notes]
    boxes += [tuple(group["bounding"]) for group in graph.groups]
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    width, height = (max(box[i] + box[i + 2] for box in boxes) - start for i, start in ((0, left), (1, top)))
    scale = round(min(1.0, *(_SHARE * screen / long for screen, long in zip(_SCREEN, (width, height)))), 2)
    return {"scale": scale, "offset": [round(_EDGE / scale) - left, round(_EDGE / scale) - top]}


def _columns(nodes: list[Node], x: int, y: int) -> Box:
    """Places nodes from (x, y) on; the box around them, without the bar of titles above."""
    columns: dict[int, list[Node]] = {}
    for node, column in _depths(nodes).items():
        columns.setdefault(column, []).append(node)
    bottom = y
    for column in sorted(columns):
        at, wide = y, max(size(node)[0] for node in columns[column])
        beside = 0
        for node in _with_folded_first(columns[column]):
            if node.folded:  # nodes in a line that lead to the same node
                node.position = (x + beside * FOLDED_WIDTH, at)
                beside += 1
                continue
            at += (TITLE + GAP_Y) * (beside > 0)
            beside = 0
            node.position = (x, at)
            at += size(node)[1] + TITLE + GAP_Y
        bottom = max(bottom, at - TITLE - GAP_Y)
        x += wide + GAP_X
    return (min((n.position[0] for n in nodes), default=x), y, x - GAP_X if nodes else x, bottom)


def _depths(nodes: list[Node]) -> dict[Node, int]:
    """The column of each node: the one after its sources, or the one that it names."""
    found: dict[Node, int] = {}
    for node in nodes:  # which come after their sources
        behind = [found[source] + 1 for source in node.sources if source in found]
        found[node] = node.column if node.column is not None else max(behind, default=0)
    for node in reversed(nodes):
        users = [found[user] for user in nodes if node in user.sources]
        if node.folded and users:
            found[node] = min(users)
    numbers = {column: i for i, column in enumerate(sorted(set(found.values())))}
    return {node: numbers[column] for node, column in found.items()}


def _with_folded_first(nodes: Iterable[Node]) -> list[Node]:
    """In a column, folded nodes are above the node that they lead to."""
    nodes, found = list(nodes), []

    def take(node: Node) -> None:
        for source in node.sources:
            if source in nodes and source.folded:
                take(source)
        if node not in found:
            found.append(node)

    for node in nodes:
        if not node.folded:
            take(node)
    return found + [node for node in nodes if node not in found]


_CHARACTER, _LINE, _PARAGRAPH, _WIDEST = 6.4, 18, 10, 760


def _under(note: Note, box: Box) -> Box:
    """The height of its text in the width of the box above."""
    left, _, right, bottom = box
    wide = min(right - left, _WIDEST) if right > left else _WIDEST
    lines = [-(-len(_shown(text)) * _CHARACTER // (wide - 40)) for text in note.text.split("\n\n")]
    high = int(sum(lines) * _LINE + len(lines) * _PARAGRAPH + 30)
    top = bottom + TITLE + GAP_Y
    return left, top, left + wide, top + high


def _shown(text: str) -> str:
    """The text without the addresses of links."""
    parts = text.split("](")
    return "".join([parts[0], *(part.partition(")")[2] for part in parts[1:])])
