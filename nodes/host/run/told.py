"""What nodes have said, kept by prompt: for the page, which shows it under them, and for the node GuidekitReport.

A node speaks while a node executes: itself, or the sampler that its patched model is sampled by. What was said then
holds for as long as the host has the result of that execution in its cache, whichever prompt asks for it: until this
node executes again, or is another one, or stands behind others.

Relies on: the queue's running items and those in its history, (number, prompt id, nodes, extra_data, ...) with
`client_id` and the workflow in extra_data (server.py:1117, execution.py:1267); `send_sync`, whose events of any name
reach the page; ids of nodes in subgraphs (12:5) and of nodes that a node puts in its place (5.0.0.3).
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import ExecutionContext

EVENT = "guidekit.told"
PATH = "/guidekit/told"
_PROMPTS = 64  # kept

Nodes = dict[str, dict[str, Any]]  # of a prompt in API form


@dataclass(frozen=True)
class Line:
    """`node`: the id of the one that speaks, "" outside a graph; `label`: its name; `text`: plain."""

    node: str
    label: str
    text: str

    def named(self, source: str | None) -> str:
        """With who says it, and in which sampler's run, if the node `source` that executed is another one."""
        places = [f"node {self.node}"] if self.node else []
        places += [f"sampler node {source}"] if source and source != self.node else []
        where = f" ({', '.join(places)})" if places else ""
        return f"{self.label}{where}: {self.text}"


@dataclass
class Entry:
    """What was said while the node `source` was executing; `at`: when, in seconds; `cached`: in an earlier prompt."""

    source: str
    at: float
    lines: list[Line] = field(default_factory=list)
    cached: bool = False


@dataclass
class _Prompt:
    nodes: Nodes
    client: str | None
    workflow: str | None
    entries: dict[str, Entry] = field(default_factory=dict)  # by source


class Told:
    """Of the last prompts. Threads may ask and tell at once."""

    def __init__(self, prompts: int = _PROMPTS):
        self._most = prompts
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, context: ExecutionContext) -> None:
        """The node of `context` executes: what it had said before does not hold any more."""
        with self._lock:
            self._entry(context)

    def add(self, context: ExecutionContext, lines: list[Line]) -> None:
        """Said while the node of `context` executes. The client that queued the prompt hears of it at once."""
        with self._lock:
            entry = self._entry(context)
            entry.lines += lines
            entry.at = time.time()
            prompt = self._prompts[context.prompt_id]
            message = _as_json(prompt, entry)
        if prompt.client is not None:
            _server().send_sync(EVENT, {"prompt_id": context.prompt_id, **message}, prompt.client)

    def behind(self, context: ExecutionContext, nodes: Nodes) -> list[Entry]:
        """What was said on the way to the node of `context`, in the order of the graph `nodes`."""
        with self._lock:
            prompt = self._prompt(context.prompt_id)
            prompt.nodes = prompt.nodes or nodes
            self._recall(prompt)
            order = [node_id for node_id in lineage(nodes, context.node_id) if node_id != context.node_id]
            return [entry for node_id in order for entry in prompt.entries.values() if shown(entry.source) == node_id]

    def newest(self, prompt_id: str | None = None) -> list[dict]:
        """What holds in each workflow, as JSON. `prompt_id`: one that was just queued, whose nodes may be cached."""
        with self._lock:
            if prompt_id is not None and (prompt_id in self._prompts or _queued(prompt_id) is not None):
                self._recall(self._prompt(prompt_id))
            all_entries = [(prompt, entry) for prompt in self._prompts.values() for entry in prompt.entries.values()]
            newest = {
                (prompt.workflow, entry.source): _as_json(prompt, entry)
                for prompt, entry in sorted(all_entries, key=lambda each: each[1].at)
            }
            return list(newest.values())

    def _entry(self, context: ExecutionContext) -> Entry:
        entries, source = self._prompt(context.prompt_id).entries, context.node_id
        if source not in entries or entries[source].cached:
            entries[source] = Entry(source, time.time())
        return entries[source]

    def _prompt(self, prompt_id: str) -> _Prompt:
        if prompt_id not in self._prompts:
            while len(self._prompts) >= self._most:
                self._prompts.popitem(last=False)
            self._prompts[prompt_id] = _queued(prompt_id) or _Prompt({}, None, None)
        return self._prompts[prompt_id]

    def _recall(self, prompt: _Prompt) -> None:
        """Nodes that have not executed in this prompt say what they, or nodes of other ids, said when they last did
        with the same before them."""
        spoken = set(map(shown, prompt.entries))
        for other in reversed(self._prompts.values()):
            for entry in list(other.entries.values()):
                source = shown(entry.source)
                if entry.cached or source not in other.nodes:
                    continue
                then, kind = lineage(other.nodes, source), other.nodes[source]["class_type"]
                for node_id in prompt.nodes.keys() - spoken:
                    if prompt.nodes[node_id]["class_type"] == kind:
                        now = lineage(prompt.nodes, node_id)
                        if form(now) == form(then):
                            moved = _moved(entry, node_id, dict(zip(then, now)))
                            prompt.entries[moved.source] = moved
            spoken = set(map(shown, prompt.entries))


TOLD = Told()


def lineage(nodes: Nodes, node_id: str) -> dict[str, tuple]:
    """A node and all that it depends on, which come first: (class, inputs) by id."""
    found: dict[str, tuple] = {}
    _follow(nodes, node_id, found, set())
    return found


def _follow(nodes: Nodes, node_id: str, found: dict[str, tuple], seen: set[str]) -> None:
    if node_id in seen or node_id not in nodes:
        return
    seen.add(node_id)
    inputs = nodes[node_id]["inputs"]
    for source in _sources(inputs):
        _follow(nodes, source, found, seen)
    found[node_id] = nodes[node_id]["class_type"], inputs


def _sources(inputs: dict) -> Iterator[str]:
    return (value[0] for value in inputs.values() if is_link(value))


def form(found: dict[str, tuple]) -> list[tuple]:
    """Of a lineage: the same whatever the ids of its nodes are, as for the host's cache."""
    place = {node_id: i for i, node_id in enumerate(found)}

    def linked(value: Any) -> Any:
        return ("from", place.get(value[0]), value[1]) if is_link(value) else value

    return [(kind, {name: linked(value) for name, value in inputs.items()}) for kind, inputs in found.values()]


def _moved(entry: Entry, node_id: str, ids: dict[str, str]) -> Entry:
    """To the node `node_id` of a prompt in which nodes have other `ids`."""
    source = node_id + entry.source.removeprefix(shown(entry.source))
    return Entry(source, time.time(), [replace(line, node=ids.get(line.node, line.node)) for line in entry.lines], True)


def shown(node_id: str) -> str:
    """The id of the node in the graph that stands for `node_id`."""
    return node_id.partition(".")[0]


def serve() -> None:
    """Lets the page ask what holds, where there is a server. A second copy of the pack finds it done."""
    server = _server()
    if server is not None and all(getattr(route, "path", None) != PATH for route in server.routes):
        server.routes.get(PATH)(_answer)


async def _answer(request: web.Request) -> web.Response:
    return web.json_response({"entries": TOLD.newest(request.rel_url.query.get("prompt_id"))})


def _as_json(prompt: _Prompt, entry: Entry) -> dict:
    lines = [{"node": line.node, "text": line.text} for line in entry.lines]
    return {"workflow": prompt.workflow, "source": entry.source, "at": entry.at, "lines": lines}


def _server() -> Any:
    from server import PromptServer  # not at the top: the tests load nodes without a server

    return getattr(PromptServer, "instance", None)


def _queued(prompt_id: str) -> _Prompt | None:
    """One that runs, or has run."""
    if (queue := getattr(_server(), "prompt_queue", None)) is None:
        return None
    running, _ = queue.get_current_queue_volatile()
    items = [*running, *(each["prompt"] for each in queue.get_history(prompt_id).values())]
    for _, queued_id, nodes, extra_data, *_ in items:
        if queued_id == prompt_id:
            workflow = _text(extra_data, "extra_pnginfo", "workflow", "id")
            return _Prompt(nodes, _text(extra_data, "client_id"), workflow)
    return None


def _text(data: Any, *keys: str) -> str | None:
    """What a client has put there, if it is text."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, str) else None
