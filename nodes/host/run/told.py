"""The messages of nodes, stored by prompt: for the page, which shows them under the nodes, and for GuidekitReport.

The messages of a node arise while a node executes: itself, or the sampler that uses its patched model. They stay valid
as long as the host would reuse that execution from its cache, in any prompt: until the executing node runs again, or
it, its inputs or a node before it differ.

Relies on: the queue's running items and those in its history, (number, prompt id, nodes, extra_data, ...) with
`client_id` and the workflow in extra_data (server.py:1117, execution.py:1267); `send_sync`, which delivers events of
any name to the page; the ids of nodes in subgraphs (12:5) and of nodes that a node expands to (5.0.0.3).
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
_PROMPTS = 64  # stored at most

Nodes = dict[str, dict[str, Any]]  # the nodes of a prompt in API form, by id


@dataclass(frozen=True)
class Line:
    """A message. `node`: the id of its node, "" outside a graph; `label`: the node's name; `text`: plain."""

    node: str
    label: str
    text: str

    def named(self, source: str | None) -> str:
        """The text with the node's name and id, and those of the sampler node `source` if that is what executed."""
        places = [f"node {self.node}"] if self.node else []
        places += [f"sampler node {source}"] if source and source != self.node else []
        where = f" ({', '.join(places)})" if places else ""
        return f"{self.label}{where}: {self.text}"


@dataclass
class Entry:
    """The messages of one execution of the node `source`; `at`: its time in seconds; `cached`: the execution was in an
    earlier prompt."""

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
    """The messages of the last `prompts` prompts. Safe to use from several threads."""

    def __init__(self, prompts: int = _PROMPTS):
        self._most = prompts
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, context: ExecutionContext) -> None:
        """The node of `context` starts to execute: its earlier messages become invalid."""
        with self._lock:
            self._entry(context)

    def add(self, context: ExecutionContext, lines: list[Line]) -> None:
        """Adds messages to the execution of the node of `context` and sends them to the client that queued the
        prompt."""
        with self._lock:
            entry = self._entry(context)
            entry.lines += lines
            entry.at = time.time()
            prompt = self._prompts[context.prompt_id]
            message = _as_json(prompt, entry)
        if prompt.client is not None:
            _server().send_sync(EVENT, {"prompt_id": context.prompt_id, **message}, prompt.client)

    def behind(self, context: ExecutionContext, nodes: Nodes) -> list[Entry]:
        """The messages of all nodes that the node of `context` depends on, in the order of the graph `nodes`."""
        with self._lock:
            prompt = self._prompt(context.prompt_id)
            prompt.nodes = prompt.nodes or nodes
            self._recall(prompt)
            order = [node_id for node_id in lineage(nodes, context.node_id) if node_id != context.node_id]
            return [entry for node_id in order for entry in prompt.entries.values() if shown(entry.source) == node_id]

    def newest(self, prompt_id: str | None = None) -> list[dict]:
        """The valid messages in each workflow, as JSON. `prompt_id`: a prompt that was just queued, whose nodes may be
        cached."""
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
        """Copies to `prompt` the messages of nodes that have not executed in it, from the last execution, under any id,
        with the same inputs and the same nodes before them."""
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
    """A node and all nodes it depends on, these first: {id: (class, inputs)}."""
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
    """A lineage independent of the ids of its nodes, as the host's cache compares it."""
    place = {node_id: i for i, node_id in enumerate(found)}

    def linked(value: Any) -> Any:
        return ("from", place.get(value[0]), value[1]) if is_link(value) else value

    return [(kind, {name: linked(value) for name, value in inputs.items()}) for kind, inputs in found.values()]


def _moved(entry: Entry, node_id: str, ids: dict[str, str]) -> Entry:
    """A copy of `entry` for the node `node_id` of a prompt; `ids`: from the ids in the old prompt to those in it."""
    source = node_id + entry.source.removeprefix(shown(entry.source))
    return Entry(source, time.time(), [replace(line, node=ids.get(line.node, line.node)) for line in entry.lines], True)


def shown(node_id: str) -> str:
    """The id of the node in the graph that `node_id` was expanded from, or is."""
    return node_id.partition(".")[0]


def serve() -> None:
    """Adds the page's route to the server, if there is one and another copy of the pack has not done so."""
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
    """The prompt of this id in the host's queue or history; None if there is none."""
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
    """The text at `keys` in data from a client; None if there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, str) else None
